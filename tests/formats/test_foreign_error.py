"""Errors of every provider, told as OpenAI tells them, and what the gateway makes of them."""

import orjson
import pytest

from gateway.formats.foreign_error import openai_error
from gateway.upstream.retry import Kind, classify

ANTHROPIC = {"type": "error", "error": {"type": "invalid_request_error", "message": "max_tokens: required"}}
TOO_LONG = {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 9 > 8"}}
NO_MONEY = {"type": "error", "error": {"type": "invalid_request_error", "message": "Your credit balance is too low to"}}
BAD_KEY = {"error": {"code": 400, "message": "API key not valid. Please pass", "status": "INVALID_ARGUMENT"}}
QUOTA = {"error": {"code": 429, "message": "Quota exceeded. Please retry in 7.5s.", "status": "RESOURCE_EXHAUSTED"}}
FASTAPI = {"object": "error", "message": {"detail": [{"loc": ["body", "n"], "msg": "Extra inputs", "input": "SECRET"}]}}


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind", "message", "code"),
    [
        (400, ANTHROPIC, {}, Kind.CLIENT, "max_tokens: required", "invalid_request_error"),
        (400, TOO_LONG, {}, Kind.TOO_LONG, "prompt is too long: 9 > 8", "context_length_exceeded"),
        (400, NO_MONEY, {}, Kind.NO_QUOTA, "Your credit balance is too low to", "invalid_request_error"),
        (529, {"error": {"type": "overloaded_error", "message": "Overloaded"}}, {}, Kind.TRANSIENT, "Overloaded", None),
        (400, BAD_KEY, {}, Kind.AUTH, "API key not valid. Please pass", "INVALID_ARGUMENT"),
        (429, QUOTA, {}, Kind.RATE_LIMITED, "Quota exceeded. Please retry in 7.5s.", "RESOURCE_EXHAUSTED"),
        (400, [BAD_KEY], {}, Kind.AUTH, "API key not valid. Please pass", "INVALID_ARGUMENT"),
        (
            429,
            {"message": "Too many requests"},
            {b"x-amzn-errortype": b"ThrottlingException:http://x"},
            Kind.RATE_LIMITED,
            "Too many requests",
            "ThrottlingException",
        ),
        (422, FASTAPI, {}, Kind.CLIENT, "body.n: Extra inputs", None),
        (404, {"error": "model 'x' not found"}, {}, Kind.CLIENT, "model 'x' not found", None),
        (500, {"id": "1", "message": "internal"}, {}, Kind.TRANSIENT, "internal", None),
        (403, {"Message": "Missing Authentication Token"}, {}, Kind.AUTH, "Missing Authentication Token", None),
        (503, None, {}, Kind.TRANSIENT, "The provider answered with status 503.", None),
    ],
)
def test_errors_mean_the_same_in_openai_s_shape(
    status: int, body: object, headers: dict[bytes, bytes], kind: Kind, message: str, code: str | None
) -> None:
    """Message and code are the provider's, and the table of failures reads them rightly."""
    told, out = openai_error(status, tuple(headers.items()), b"<html>" if body is None else orjson.dumps(body))
    error = orjson.loads(out)["error"]
    assert error["message"] == message
    assert set(error) == {"message", "type", "param", "code"}
    assert code is None or error["code"] == code
    assert classify(told, (), out, 0.0).kind is kind


def test_a_wait_that_the_message_tells_is_understood() -> None:
    """Gemini says it in words."""
    told, out = openai_error(429, (), orjson.dumps(QUOTA))
    assert classify(told, (), out, 0.0).retry_after == 7.5


def test_the_field_that_openai_s_own_shape_names_is_kept() -> None:
    """Azure and most compatible servers name it."""
    body = {"error": {"message": "m", "type": "t", "param": "messages.0", "code": None}}
    assert orjson.loads(openai_error(400, (), orjson.dumps(body))[1])["error"]["param"] == "messages.0"


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"1", b'{"error":null}', b'{"error":{}}', b'{"detail":[1,null]}']
)
def test_any_body_becomes_an_error(body: bytes) -> None:
    """Also one that says nothing."""
    told, out = openai_error(500, (), body)
    assert told == 500
    assert orjson.loads(out)["error"]["message"]
