"""A request to `/v1/messages`: what is refused, what goes out in its own bytes, and what as chat."""

import json
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequest, StreamBroken
from gateway.formats.messages import MessagesRequest, error_body, parse_count, parse_messages
from gateway.formats.request import NotAnAnswer
from gateway.formats.tokens import upper_bound
from gateway.formats.usage import Usage

ASKED = {"model": "fast", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}


def request(**fields: Any) -> MessagesRequest:
    return parse_messages(json.dumps({**ASKED, **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, "model", "missing_field"),
        ({"model": 1}, "model", "invalid_value"),
        ({"max_tokens": None}, "max_tokens", "missing_field"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": True}, "max_tokens", "invalid_value"),
        ({"messages": None}, "messages", "missing_field"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": ["a"]}, "messages[0]", "invalid_value"),
        ({"messages": [{"content": "a"}]}, "messages[0].role", "missing_field"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_field"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"system": 1}, "system", "invalid_value"),
        ({"tools": {}}, "tools", "invalid_value"),
        ({"tools": [1]}, "tools", "invalid_value"),
        ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
        ({"stop_sequences": "END"}, "stop_sequences", "invalid_value"),
        ({"metadata": []}, "metadata", "invalid_value"),
        ({"thinking": True}, "thinking", "invalid_value"),
    ],
)
def test_what_is_wrong_is_named(fields: Mapping[str, Any], param: str, code: str) -> None:
    """Each wrong field by its name."""
    with pytest.raises(InvalidRequest) as refused:
        request(**fields)
    assert (refused.value.param, refused.value.code) == (param, code)


def test_counting_needs_no_limit() -> None:
    """`/v1/messages/count_tokens` takes the same body without `max_tokens`."""
    asked = {name: value for name, value in ASKED.items() if name != "max_tokens"}
    assert parse_count(json.dumps(asked).encode()).max_output is None


def test_its_bytes_go_on_to_who_speaks_it() -> None:
    """All but the model stays as it came."""
    raw = b'{ "model":"fast", "max_tokens" : 100,"x_unknown":1.0, "messages":[{"role":"user","content":"\\u00e9"}]}'
    found = parse_messages(raw)
    assert found.path("anthropic") == b"/v1/messages"
    assert found.encode("claude", provider="anthropic") == raw.replace(b'"fast"', b'"claude"')
    assert found.encode("fast", provider="anthropic") is raw


def test_a_lowered_limit_goes_on() -> None:
    """Alone, and with the thinking that must fit in it."""
    found = request()
    assert json.loads(found.encode("c", provider="anthropic", max_output=50))["max_tokens"] == 50
    thinking = request(max_tokens=9000, thinking={"type": "enabled", "budget_tokens": 8000})
    body = json.loads(thinking.encode("c", provider="anthropic", max_output=2000))
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 1999}
    assert json.loads(thinking.encode("c", provider="anthropic", max_output=900))["thinking"] == {"type": "disabled"}
    assert json.loads(thinking.encode("c", provider="anthropic", max_output=8500))["thinking"]["budget_tokens"] == 8000


def test_thinking_that_is_not_signed_is_not_sent_back() -> None:
    """Another backend showed it; Anthropic would refuse it."""
    unsigned = {"type": "thinking", "thinking": "hm", "signature": ""}
    signed = {"type": "thinking", "thinking": "hm", "signature": "s"}
    text = {"type": "text", "text": "a"}
    found = request(messages=[{"role": "assistant", "content": [unsigned, signed, text]}, *ASKED["messages"]])  # type: ignore[misc]
    body = json.loads(found.encode("c", provider="anthropic"))
    assert body["messages"][0]["content"] == [signed, text]


def test_it_goes_as_chat_to_all_others() -> None:
    """With the limit under the name that the backend knows, and usage asked for."""
    found = request(stream=True)
    assert found.path("openai") == b"/chat/completions"
    assert json.loads(found.encode("gpt", output_field="max_completion_tokens", max_output=7)) == {
        "model": "gpt",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_completion_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_an_answer_of_its_own_passes_as_it_came() -> None:
    """And is read for its usage."""
    usage = {"input_tokens": 3, "output_tokens": 5, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 0}
    doc = {"id": "msg_1", "type": "message", "model": "c", "content": [{"type": "text", "text": "Hi"}], "usage": usage}
    body = json.dumps({**doc, "stop_reason": "end_turn"}, indent=1).encode()
    answer = request().read(body, b"application/json", "anthropic")
    assert answer.body is body
    assert answer.usage == Usage(5, 5, cached_input=2)
    assert (answer.text, answer.response_id, answer.finish_reasons) == ("Hi", "msg_1", ("end_turn",))


def test_a_chat_answer_becomes_a_message() -> None:
    """With what the backend did not report estimated for the client only."""
    body = b'{"id":"c","model":"m","choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}'
    answer = request().read(body, b"application/json", "openai")
    assert answer.usage is None
    shown = json.loads(answer.body)
    assert shown["content"] == [{"type": "text", "text": "Hi"}]
    assert shown["usage"]["input_tokens"] > 0


@pytest.mark.parametrize(
    ("provider", "body"),
    [
        ("anthropic", b'{"type":"message"}'),
        ("anthropic", b'{"type":"error","error":{"type":"api_error","message":"m"}}'),
        ("openai", b'{"choices":[]}'),
        ("openai", b'{"choices":[1]}'),
        ("openai", b'{"error":{"message":"m"}}'),
        ("openai", b"<html>"),
    ],
)
def test_what_is_no_answer_is_none(provider: str, body: bytes) -> None:
    """Another candidate is asked then."""
    with pytest.raises(NotAnAnswer):
        request().read(body, b"application/json", provider)


def test_errors_are_of_both_shapes() -> None:
    """OpenAI's four fields inside Anthropic's envelope."""
    error = InvalidRequest("wrong", param="model")
    assert json.loads(error_body(error.to_openai(), "req_1")) == {
        "type": "error",
        "error": {"message": "wrong", "type": "invalid_request_error", "param": "model", "code": "invalid_value"},
        "request_id": "req_1",
    }
    name, data = request().error_event(StreamBroken("cut")).rstrip().split(b"\n")
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: "))["error"]["code"] == "stream_interrupted"


def test_the_rest_is_asked_for_as_chat() -> None:
    """What was delivered is the assistant's beginning, at who speaks Anthropic's format too."""
    rest = request(stream=True).go_on("Hello, ", 3)
    assert rest is not None
    assert rest.path("anthropic") == b"/chat/completions"
    body = json.loads(rest.encode("c", provider="anthropic"))
    assert body["messages"][-1] == {"role": "assistant", "content": "Hello,"}
    assert body["max_tokens"] == 97


def test_its_text_is_all_that_it_sends() -> None:
    """System, blocks, calls, results and tools."""
    call = {"type": "tool_use", "id": "a", "name": "lookup", "input": {"city": "Bern"}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "sunny"}]}
    found = request(
        system="Be brief.",
        messages=[{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}],
        tools=[{"name": "lookup", "input_schema": {}}],
    ).text()
    for word in ("Be brief.", "Bern", "sunny", "lookup"):
        assert word in found


def test_the_bound_covers_a_call_as_chat_prints_it() -> None:
    """A tool's input is printed again by a template, with spaces, as chat's `tool_calls` are."""
    plain = request(messages=[{"role": "assistant", "content": [{"type": "text", "text": "a"}]}])
    deep = {"a": [[[[1, 2], [3, 4]], [[5, 6], [7, 8]]]] * 9}
    call = request(
        messages=[{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": deep}]}]
    )
    printed = orjson.dumps(deep, option=orjson.OPT_INDENT_2)
    assert upper_bound(call.doc, len(call.raw)) > upper_bound(plain.doc, len(plain.raw)) + 2 * len(orjson.dumps(deep))
    assert len(printed.replace(b" ", b"")) < upper_bound(call.doc, len(call.raw))
