"""Reads the few request headers that mean something here, and finds out who asks."""

from collections.abc import Mapping

from gateway.errors import InvalidRequest
from gateway.server.downstream import too_large
from gateway.upstream.wire import Header

_BEARER = b"bearer "
_FORWARDED = (b"openai-beta", b"anthropic-beta", b"anthropic-version", b"idempotency-key")

Headers = Mapping[bytes, bytes]  # by lower-case name


def secret_of(headers: Headers) -> bytes | None:
    """The key: of `Authorization: Bearer`, else of `x-api-key`."""
    authorization = headers.get(b"authorization")
    if authorization is not None and authorization[:7].lower() == _BEARER:
        return authorization[7:].strip()
    return headers.get(b"x-api-key")


def check_body(headers: Headers, limit: int) -> None:
    """Refuse by its headers what need not be read."""
    length = headers.get(b"content-length")
    if length is not None and length.isdigit() and int(length) > limit:
        raise too_large(limit)
    if headers.get(b"content-encoding") not in (None, b"", b"identity"):
        raise InvalidRequest(
            "A compressed body is not read here; send it without `content-encoding`.", param="content-encoding"
        )


def task_of(headers: Headers) -> str | None:
    """The task of `x-gateway-task`."""
    task = headers.get(b"x-gateway-task")
    return task.decode("latin-1").strip() if task is not None else None


def forwarded(headers: Headers) -> list[Header]:
    """The headers that go upstream as they are; no other does."""
    return [(name, headers[name]) for name in _FORWARDED if name in headers]
