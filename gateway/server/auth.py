"""Reads the few request headers that mean something here, and finds out who asks."""

from dataclasses import dataclass, field

from starlette.types import Scope

from gateway.errors import InvalidRequest
from gateway.server.watch import too_large
from gateway.upstream.wire import Header

_BEARER = b"bearer "
_READ = {
    b"authorization": "authorization",
    b"x-api-key": "api_key",
    b"x-gateway-task": "task",
    b"content-length": "length",
    b"content-encoding": "encoding",
    b"content-type": "content_type",
    b"traceparent": "traceparent",
    b"tracestate": "tracestate",
}
_FORWARDED = frozenset((b"openai-beta", b"anthropic-beta", b"anthropic-version", b"idempotency-key"))


@dataclass(slots=True)
class Headers:
    """What a request's headers say. `forwarded` go upstream as they are; no other header does."""

    authorization: bytes | None = None
    api_key: bytes | None = None
    task: bytes | None = None
    length: bytes | None = None
    encoding: bytes | None = None
    content_type: bytes | None = None
    traceparent: bytes | None = None
    tracestate: bytes | None = None
    forwarded: list[Header] = field(default_factory=list)

    @property
    def secret(self) -> bytes | None:
        """The key: of `Authorization: Bearer`, else of `x-api-key`."""
        if self.authorization is not None and self.authorization[:7].lower() == _BEARER:
            return self.authorization[7:].strip()
        return self.api_key

    def check_body(self, limit: int) -> None:
        """Refuse by its headers what need not be read."""
        if self.length is not None and self.length.isdigit() and int(self.length) > limit:
            raise too_large(limit)
        if self.encoding not in (None, b"", b"identity"):
            raise InvalidRequest(
                "A compressed body is not read here; send it without `content-encoding`.", param="content-encoding"
            )

    def task_name(self) -> str | None:
        """The task of `x-gateway-task`."""
        return self.task.decode("latin-1").strip() if self.task is not None else None


def read_headers(scope: Scope) -> Headers:
    """One pass over the headers of a request; of a header sent twice the last counts."""
    headers = Headers()
    for pair in scope["headers"]:
        name = _READ.get(pair[0])
        if name is not None:
            setattr(headers, name, pair[1])
        elif pair[0] in _FORWARDED:
            headers.forwarded.append((pair[0], pair[1]))
    return headers
