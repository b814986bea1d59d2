"""A request to `/v1/responses`: what is refused, what goes out in its own bytes, and what as chat."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.errors import InvalidRequest, StreamBroken
from gateway.formats.request import NotAnAnswer
from gateway.formats.responses import ResponsesRequest, parse_responses
from gateway.formats.tokens import UNBOUNDED, upper_bound
from gateway.formats.usage import Usage

NATIVE = "openai+responses"


def request(**fields: Any) -> ResponsesRequest:
    return parse_responses(json.dumps({"model": "fast", "input": "Hello", **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, "model", "missing_field"),
        ({"input": None}, "input", "missing_field"),
        ({"input": 1}, "input", "invalid_value"),
        ({"input": ["a"]}, "input[0]", "invalid_value"),
        ({"instructions": 1}, "instructions", "invalid_value"),
        ({"previous_response_id": 1}, "previous_response_id", "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"stream": 1}, "stream", "invalid_value"),
        ({"text": "json"}, "text", "invalid_value"),
        ({"tools": {}}, "tools", "invalid_value"),
        ({"background": True}, "background", "invalid_value"),
    ],
)
def test_what_is_wrong_is_named(fields: Mapping[str, Any], param: str, code: str) -> None:
    """Each wrong field by its name."""
    with pytest.raises(InvalidRequest) as refused:
        request(**fields)
    assert (refused.value.param, refused.value.code) == (param, code)


def test_it_may_only_follow() -> None:
    """Without an input of its own, from an earlier response."""
    found = parse_responses(b'{"model":"m","previous_response_id":"resp_1"}')
    assert found.follows == "resp_1"
    assert upper_bound(found.doc, len(found.raw)) == UNBOUNDED


def test_its_bytes_go_on_to_who_has_it() -> None:
    """All but the model, and a lowered limit, stays as it came."""
    raw = b'{ "model":"fast", "max_output_tokens" : 100,"x_unknown":1.0, "input":"\\u00e9"}'
    found = parse_responses(raw)
    assert found.path(NATIVE) == b"/responses"
    assert found.encode("gpt", provider=NATIVE) == raw.replace(b'"fast"', b'"gpt"')
    assert found.encode("gpt", provider=NATIVE, max_output=7) == raw.replace(b'"fast"', b'"gpt"').replace(b"100", b"7")


def test_it_goes_as_chat_to_all_others() -> None:
    """With the limit under the name that the backend knows, and usage asked for."""
    found = request(stream=True, max_output_tokens=100)
    assert found.path("openai") == b"/chat/completions"
    assert json.loads(found.encode("gpt", output_field="max_completion_tokens")) == {
        "model": "gpt",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_completion_tokens": 100,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_an_answer_of_its_own_passes_as_it_came() -> None:
    """And is read for its usage, its text and why it ended."""
    item = {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]}
    doc = {
        "id": "resp_1",
        "model": "gpt",
        "output": [item],
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"},
        "usage": {"input_tokens": 5, "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 2}},
    }
    body = json.dumps(doc, indent=1).encode()
    answer = request().read(body, b"application/json", NATIVE)
    assert answer.body is body
    assert answer.usage == Usage(5, 7, reasoning=2)
    assert (answer.text, answer.response_id, answer.finish_reasons) == ("Hi", "resp_1", ("length",))


def test_a_chat_answer_becomes_a_response() -> None:
    """With what the backend did not report estimated for the client only."""
    body = b'{"id":"c","created":7,"model":"m","choices":[{"message":{"content":"Hi"},"finish_reason":"length"}]}'
    answer = request(max_output_tokens=5).read(body, b"application/json", "openai")
    assert answer.usage is None
    shown = json.loads(answer.body)
    assert shown["id"] == "resp_c"
    assert shown["created_at"] == 7
    assert shown["status"] == "incomplete"
    assert shown["output"][0]["content"][0]["text"] == "Hi"
    assert shown["usage"]["total_tokens"] > 0


@pytest.mark.parametrize(
    ("provider", "body"),
    [
        (NATIVE, b'{"object":"response"}'),
        (NATIVE, b'{"output":[],"status":"failed","error":{"code":"server_error","message":"m"}}'),
        ("openai", b'{"choices":[]}'),
        ("openai", b"<html>"),
    ],
)
def test_what_is_no_answer_is_none(provider: str, body: bytes) -> None:
    """Another candidate is asked then."""
    with pytest.raises(NotAnAnswer):
        request().read(body, b"application/json", provider)


def test_the_error_event_is_one_that_sdks_raise() -> None:
    """OpenAI's own fields, and the error object that their decoders look for."""
    name, data = request().error_event(StreamBroken("cut")).rstrip().split(b"\n")
    assert name == b"event: error"
    doc = json.loads(data.removeprefix(b"data: "))
    assert (doc["type"], doc["code"], doc["message"]) == ("error", "stream_interrupted", "cut")
    assert sorted(doc["error"]) == ["code", "message", "param", "type"]


def test_the_rest_is_asked_for_as_chat() -> None:
    """What was delivered is the assistant's beginning, at who has responses too."""
    rest = request(stream=True, max_output_tokens=100).go_on("Hello, ", 3)
    assert rest is not None
    assert rest.path(NATIVE) == b"/chat/completions"
    body = json.loads(rest.encode("c", provider=NATIVE))
    assert body["messages"] == [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello,"}]
    assert body["max_tokens"] == 97


def test_its_text_is_all_that_it_sends() -> None:
    """Instructions, items, calls, results and tools."""
    found = request(
        instructions="Be brief.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "weather"}]},
            {"type": "function_call", "call_id": "a", "name": "lookup", "arguments": '{"city":"Bern"}'},
            {"type": "function_call_output", "call_id": "a", "output": "sunny"},
        ],
        tools=[{"type": "function", "name": "lookup"}],
    ).text()
    for word in ("Be brief.", "weather", "Bern", "sunny", "lookup"):
        assert word in found
