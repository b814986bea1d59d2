"""Errors as the client sees them: always `{"error": {"message", "type", "param", "code"}}`, with a request id."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import orjson

from gateway.errors import GatewayError, MethodNotAllowed, NotFound
from gateway.server.downstream import Downstream
from gateway.telemetry.lines import describe
from gateway.upstream.dispatch import Reporter
from gateway.upstream.wire import Header

Render = Callable[[Mapping[str, Any], str], bytes]  # an error's body from `{"error": {…}}` and the request's id
JSON = (b"content-type", b"application/json")


class InternalError(GatewayError):
    """A fault of the gateway itself; what it was stands in the log under the request's id."""

    @classmethod
    def told(cls, report: Reporter, request_id: str, failure: Exception) -> Self:
        """Tell the operator what failed; the error for the client."""
        report.event("internal_error", request_id=request_id, **describe(failure))
        return cls(f"The gateway failed; its log has the reason under {request_id}.")


def send_body(downstream: Downstream, status: int, headers: Sequence[Header], body: bytes, request_id: str) -> None:
    """One whole answer."""
    downstream.answer(status, [*headers, (b"x-request-id", request_id.encode())], body)


def in_openais_shape(doc: Mapping[str, Any], _request_id: str) -> bytes:
    """The body of an error, as every endpoint shows it that has no shape of its own."""
    return orjson.dumps(doc)


def send_error(
    downstream: Downstream,
    error: GatewayError,
    headers: Sequence[Header],
    request_id: str,
    render: Render = in_openais_shape,
) -> None:
    """An error as a whole answer."""
    body = render(error.to_openai(), request_id)
    send_body(downstream, error.status, [JSON, *error.headers(), *headers], body, request_id)


def refusal_body(body: bytes, request_id: str, render: Render) -> bytes:
    """A backend's own refusal: as it came, but in the endpoint's shape where the backend speaks another."""
    if render is in_openais_shape:
        return body
    try:
        doc = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    if not isinstance(doc, dict) or not isinstance(doc.get("error"), dict) or doc.get("type") == "error":
        return body
    return render(doc, request_id)


def not_found(path: str) -> NotFound:
    """No such URL."""
    return NotFound(
        f"There is nothing at {path[:200]!r}; the API is at /v1, for example POST /v1/chat/completions.",
        code="not_found",
    )


def wrong_method(method: str, path: str, allowed: Sequence[str]) -> MethodNotAllowed:
    """The URL is there, the method is not."""
    return MethodNotAllowed(f"{method[:20]} is not allowed at {path[:200]}; use {' or '.join(allowed)}.")


def allow_header(allowed: Sequence[str]) -> Header:
    """RFC 9110 section 15.5.6 asks for it."""
    return (b"allow", ", ".join(allowed).encode())
