"""The errors that a client sees: their shape, and headers that never tell an SDK to come back too soon."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors
from gateway.errors import GatewayError

# CONTRACT, section 3
TABLE = [
    (errors.InvalidRequest, 400, "invalid_request_error", "invalid_value"),
    (errors.AuthenticationError, 401, "authentication_error", "invalid_api_key"),
    (errors.PermissionDenied, 403, "permission_error", "model_not_allowed"),
    (errors.NotFound, 404, "invalid_request_error", "model_not_found"),
    (errors.MethodNotAllowed, 405, "invalid_request_error", "method_not_allowed"),
    (errors.RequestTimeout, 408, "invalid_request_error", "request_timeout"),
    (errors.RequestTooLarge, 413, "invalid_request_error", "request_too_large"),
    (errors.RateLimited, 429, "rate_limit_error", "rate_limit_exceeded"),
    (errors.LargerThanRate, 429, "rate_limit_error", "rate_limit_exceeded"),
    (errors.BudgetExceeded, 429, "insufficient_quota", "budget_exceeded"),
    (errors.BudgetHeld, 429, "insufficient_quota", "budget_held"),
    (errors.UpstreamFailed, 502, "upstream_error", "upstream_error"),
    (errors.Unavailable, 503, "service_unavailable_error", "no_backend_available"),
    (errors.UpstreamTimeout, 504, "upstream_error", "upstream_timeout"),
    (errors.StreamBroken, 502, "upstream_error", "stream_interrupted"),
]


@pytest.mark.parametrize(("kind", "status", "type_", "code"), TABLE)
def test_the_table(kind: type[GatewayError], status: int, type_: str, code: str) -> None:
    """Status, type and code as the contract has them; another code and a param where one is given."""
    error = kind("What to do.")
    assert (error.status, str(error)) == (status, "What to do.")
    body = {"error": {"message": "What to do.", "type": type_, "param": None, "code": code}}
    assert json.loads(json.dumps(error.to_openai())) == body
    assert kind("x", code="other", param="model").to_openai()["error"] == {
        "message": "x",
        "type": type_,
        "param": "model",
        "code": "other",
    }


def test_the_table_is_whole() -> None:
    """Every error of the tree stands in it."""
    found = {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, GatewayError)}
    assert found - {GatewayError} == {kind for kind, *_ in TABLE}


@pytest.mark.parametrize(
    ("seconds", "whole", "milliseconds"),
    [
        (0.0, b"0", b"0"),
        (0.0001, b"1", b"1"),
        (0.5, b"1", b"500"),
        (1.0, b"1", b"1000"),
        (1.0001, b"2", b"1001"),
        (2.3, b"3", b"2300"),
        (60.0, b"60", b"60000"),
        (-5.0, b"0", b"0"),
    ],
)
def test_when_to_come_back(seconds: float, whole: bytes, milliseconds: bytes) -> None:
    """In whole seconds and in milliseconds, both rounded up."""
    headers = errors.RateLimited("x", retry_after=seconds).headers()
    assert headers == [(b"retry-after", whole), (b"retry-after-ms", milliseconds)]


@given(seconds=st.floats(0, 1e8))
def test_nobody_is_told_to_come_back_too_soon(seconds: float) -> None:
    """And nobody more than a second, or two milliseconds, too late."""
    headers = dict(errors.RateLimited("x", retry_after=seconds).headers())
    whole, milliseconds = int(headers[b"retry-after"]), int(headers[b"retry-after-ms"])
    assert seconds * 1000 <= milliseconds <= seconds * 1000 + 2
    assert milliseconds <= whole * 1000 < milliseconds + 1000


@pytest.mark.parametrize(
    ("error", "names"),
    [
        (errors.InvalidRequest("x"), []),
        (errors.BudgetExceeded("x"), [b"x-should-retry"]),
        (errors.BudgetHeld("x"), [b"retry-after", b"retry-after-ms"]),
        (errors.Unavailable("x"), [b"retry-after", b"retry-after-ms"]),
        (errors.UpstreamFailed("x"), []),
        (errors.UpstreamFailed("x", retry_after=3.0), [b"retry-after", b"retry-after-ms"]),
    ],
)
def test_which_headers_an_error_has(error: GatewayError, names: list[bytes]) -> None:
    """Only those that say something."""
    assert [name for name, _ in error.headers()] == names
    assert (b"x-should-retry", b"true") not in error.headers()
