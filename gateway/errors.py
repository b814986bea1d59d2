"""Every error that the gateway shows a client: status, type, code and what to do, as one flat tree."""

from collections.abc import Mapping
from typing import Any, ClassVar


class GatewayError(Exception):
    """An answer that is an error, in OpenAI's shape.

    `status` is the HTTP status, `type`, `param` and `code` are OpenAI's fields. `retry_after` is in seconds and
    becomes `Retry-After` and `retry-after-ms`. `should_retry` becomes `x-should-retry`, which OpenAI's SDKs obey.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"
    default_retry_after: ClassVar[float | None] = None
    should_retry: ClassVar[bool | None] = None

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.retry_after = self.default_retry_after if retry_after is None else retry_after

    def to_openai(self) -> Mapping[str, Any]:
        """The body: `{"error": {"message", "type", "param", "code"}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The response headers that tell an SDK whether and when to come back."""
        found: list[tuple[bytes, bytes]] = []
        if self.retry_after is not None:
            milliseconds = max(0, -int(-self.retry_after * 1000 // 1))
            found.append((b"retry-after", b"%d" % -(-milliseconds // 1000)))
            found.append((b"retry-after-ms", b"%d" % milliseconds))
        if self.should_retry is not None:
            found.append((b"x-should-retry", b"true" if self.should_retry else b"false"))
        return found


class InvalidRequest(GatewayError):
    """The request is wrong; `param` names the field."""

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_value"


class AuthenticationError(GatewayError):
    """No key, an unknown key, or one that has expired."""

    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class PermissionDenied(GatewayError):
    """The key may not use what it asked for."""

    status = 403
    type = "permission_error"
    default_code = "model_not_allowed"


class NotFound(GatewayError):
    """No such model, or no such URL."""

    status = 404
    type = "invalid_request_error"
    default_code = "model_not_found"


class MethodNotAllowed(GatewayError):
    """The URL exists, the method does not."""

    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class RequestTimeout(GatewayError):
    """The client did not finish its own request in time."""

    status = 408
    type = "invalid_request_error"
    default_code = "request_timeout"


class RequestTooLarge(GatewayError):
    """The body is larger than `server.max_body`."""

    status = 413
    type = "invalid_request_error"
    default_code = "request_too_large"


class RateLimited(GatewayError):
    """A limit that time alone will clear: `rate_limit_exceeded` or `concurrency_exceeded`."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"
    default_retry_after = 1.0


class LargerThanRate(RateLimited):
    """One request is more than the limit permits at a time, so that waiting does not help."""

    should_retry = False


class BudgetExceeded(GatewayError):
    """The money is spent; coming back at once would not help."""

    status = 429
    type = "insufficient_quota"
    default_code = "budget_exceeded"
    should_retry = False


class BudgetHeld(GatewayError):
    """The money is held by running requests, and some of it will come back."""

    status = 429
    type = "insufficient_quota"
    default_code = "budget_held"
    default_retry_after = 1.0


class UpstreamFailed(GatewayError):
    """Every candidate failed: `upstream_error`, `upstream_auth` or `upstream_invalid_response`."""

    status = 502
    type = "upstream_error"
    default_code = "upstream_error"


class Unavailable(GatewayError):
    """Nothing can take the request now: `no_backend_available`, `queue_full`, `queue_timeout` or `draining`."""

    status = 503
    type = "service_unavailable_error"
    default_code = "no_backend_available"
    default_retry_after = 1.0


class UpstreamTimeout(GatewayError):
    """The last candidate timed out."""

    status = 504
    type = "upstream_error"
    default_code = "upstream_timeout"


class StreamBroken(GatewayError):
    """A stream that had begun and cannot be finished: `stream_interrupted` or `stream_stalled`."""

    status = 502
    type = "upstream_error"
    default_code = "stream_interrupted"
