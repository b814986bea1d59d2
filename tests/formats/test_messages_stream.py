"""Streams in Anthropic's format, from chat's chunks and its own, for any split of their bytes, whole, cut and continued."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.formats.continuation import Continuation
from gateway.formats.messages_stream import NativeMessages, Place, TranslatedMessages
from gateway.formats.sse import event
from gateway.formats.usage import Usage

USAGE = {"prompt_tokens": 20, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 8}}


def chunk(delta: Any = None, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    doc = {"id": "c1", "model": "m-1", "created": 7, "choices": [choice], **more}
    return b"data: " + json.dumps(doc).encode() + b"\n\n"


def call(index: int, arguments: str, **head: Any) -> dict[str, Any]:
    name = head.pop("name", None)
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return {"tool_calls": [{"index": index, **head, "function": function}]}


USED = b"data: " + json.dumps({"id": "c1", "choices": [], "usage": USAGE}).encode() + b"\n\n"
DONE = b"data: [DONE]\n\n"
CHAT = b"".join(
    (
        b": hello\n\n",
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "hm"}),
        chunk({"content": "Grüße, "}),
        chunk({"content": "世界"}),
        chunk(call(0, "", id="call_0", name="f")),
        chunk(call(0, '{"a":')),
        chunk(call(0, "1}")),
        chunk(call(1, "{}", id="call_1", name="g")),
        chunk({}, "tool_calls"),
        USED,
        DONE,
    )
)


def translated(continues: Continuation | None = None, *, thinks: bool = True) -> TranslatedMessages:
    return TranslatedMessages(stops=["END"], thinks=thinks, asked=lambda: 11, continues=continues)


def parsed(data: bytes) -> list[Any]:
    """Every event, whose name must be its type."""
    found = []
    for record in data.split(b"\n\n"):
        lines = [line for line in record.split(b"\n") if line and not line.startswith(b":")]
        if lines:
            assert len(lines) == 2
            doc = json.loads(lines[1].removeprefix(b"data: "))
            assert lines[0] == b"event: " + doc["type"].encode()
            found.append(doc)
    return found


def message_of(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The message that a client puts together, which checks the order on the way."""
    message: dict[str, Any] = {}
    open_index = None
    for each in events:
        kind = each["type"]
        if kind == "message_start":
            assert not message
            message = {**each["message"], "content": []}
        elif kind == "content_block_start":
            assert open_index is None
            assert each["index"] == len(message["content"])
            open_index = each["index"]
            message["content"].append({**each["content_block"], "partial": ""})
        elif kind == "content_block_delta":
            assert each["index"] == open_index
            delta = each["delta"]
            block = message["content"][open_index]
            name = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial"}[delta["type"]]
            block[name] += delta.get("partial_json", delta.get(name))
        elif kind == "content_block_stop":
            assert each["index"] == open_index
            open_index = None
        elif kind == "message_delta":
            assert open_index is None
            message.update(each["delta"], usage=each["usage"])
        elif kind == "message_stop":
            message["stopped"] = True
    return message


def run(events: TranslatedMessages | NativeMessages, data: bytes) -> bytes:
    out = events.feed(data) + events.finish()
    return out + events.closing() if events.whole else out


def test_chunks_become_blocks() -> None:
    """Reasoning, text and each call are blocks one after another, and the end says why and how much."""
    events = translated()
    message = message_of(parsed(run(events, CHAT)))
    assert message["id"] == "msg_c1"
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert message["content"][1]["text"] == "Grüße, 世界"
    assert [(block["id"], block["name"], block["partial"]) for block in message["content"][2:]] == [
        ("call_0", "f", '{"a":1}'),
        ("call_1", "g", "{}"),
    ]
    assert message["stop_reason"] == "tool_use"
    assert message["stopped"]
    assert message["usage"]["input_tokens"] == 12
    assert message["usage"]["cache_read_input_tokens"] == 8
    assert events.usage == Usage(20, 7, cached_input=8)
    assert events.beyond_text


def test_reasoning_is_hidden_from_who_did_not_ask() -> None:
    """It is counted all the same."""
    events = translated(thinks=False)
    message = message_of(parsed(run(events, CHAT)))
    assert [block["type"] for block in message["content"]] == ["text", "tool_use", "tool_use"]
    assert "hm" in events.all_text


@settings(max_examples=60)
@given(st.lists(st.integers(0, len(CHAT)), max_size=12))
def test_any_split_of_chunks_gives_the_same(cuts: list[int]) -> None:
    """Where the bytes are cut on their way changes nothing."""
    events = translated()
    places = [0, *sorted(cuts), len(CHAT)]
    out = b"".join(events.feed(CHAT[a:b]) for a, b in pairwise(places))
    assert out + events.finish() + events.closing() == run(translated(), CHAT)


def test_usage_that_nobody_reports_is_estimated() -> None:
    """A client's bill needs numbers; here those of the text."""
    out = translated()
    message = message_of(parsed(run(out, chunk({"content": "Hello there"}, "stop") + DONE)))
    assert message["usage"]["input_tokens"] == 11
    assert message["usage"]["output_tokens"] > 0
    assert out.usage is None


def test_a_stop_sequence_is_told() -> None:
    """Where the server says which."""
    doc = {
        "id": "c",
        "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop", "stop_reason": "END"}],
    }
    message = message_of(parsed(run(translated(), b"data: " + json.dumps(doc).encode() + b"\n\n")))
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")


def test_calls_that_take_turns_lose_nothing() -> None:
    """Pieces of an earlier call that come late still go to its block."""
    mixed = chunk(call(0, "{", id="a", name="f")) + chunk(call(1, "{", id="b", name="g")) + chunk(call(0, "}"))
    deltas = [each for each in parsed(translated().feed(mixed)) if each["type"] == "content_block_delta"]
    assert [(each["index"], each["delta"]["partial_json"]) for each in deltas] == [(0, "{"), (1, "{"), (0, "}")]


def continuing(events: TranslatedMessages | NativeMessages, delivered: str) -> Continuation:
    return Continuation(
        response_id=events.response_id,
        created=0,
        model="m-1",
        delivered=delivered,
        used=Usage(20, 3),
        place=events.place,
    )


def test_a_cut_stream_goes_on_as_one_message() -> None:
    """One head, one block of text, and both consumptions at the end."""
    first = translated()
    head = first.feed(chunk({"role": "assistant"}) + chunk({"content": "Hello, "}))
    assert not first.whole
    rest = translated(continuing(first, "Hello, "))
    tail = run(
        rest, chunk({"role": "assistant", "content": "Hello, "}) + chunk({"content": "world"}, "stop") + USED + DONE
    )
    message = message_of(parsed(head + tail))
    assert [block["text"] for block in message["content"]] == ["Hello, world"]
    assert message["usage"]["output_tokens"] == 10
    assert rest.usage == Usage(20, 7, cached_input=8)


def native(*, cut: int | None = None) -> bytes:
    usage = {"input_tokens": 12, "cache_read_input_tokens": 8, "cache_creation_input_tokens": 0, "output_tokens": 1}
    docs: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "msg_1", "model": "claude", "role": "assistant", "usage": usage}},
        {"type": "ping"},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "sig"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Grüße, "}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "世界"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]
    return b"".join(event(doc["type"].encode(), json.dumps(doc, ensure_ascii=False).encode()) for doc in docs[:cut])


def test_a_native_stream_passes_as_it_came() -> None:
    """Byte for byte, and what it means is known."""
    events = NativeMessages()
    assert run(events, native()) == native()
    assert events.done
    assert events.whole
    assert events.finish_reasons == ("end_turn",)
    assert events.usage == Usage(20, 9, cached_input=8)
    assert events.text == {0: ["Grüße, ", "世界"]}
    assert events.response_id == "msg_1"
    assert not events.beyond_text


@settings(max_examples=60)
@given(st.lists(st.integers(0, len(native())), max_size=12))
def test_any_split_of_a_native_stream_gives_the_same(cuts: list[int]) -> None:
    """Where the bytes are cut on their way changes nothing."""
    events = NativeMessages()
    places = [0, *sorted(cuts), len(native())]
    out = b"".join(events.feed(native()[a:b]) for a, b in pairwise(places))
    assert out + events.finish() + events.closing() == native()


def test_a_native_stream_begins_with_its_first_token() -> None:
    """Its head and pings promise nothing."""
    events = NativeMessages()
    events.feed(native(cut=3))
    assert not events.started
    events.feed(native()[len(native(cut=3)) : len(native(cut=4))])
    assert events.started


def test_a_native_stream_without_its_last_event_is_closed() -> None:
    """It has said why it ended, so the client gets the end."""
    events = NativeMessages()
    assert parsed(run(events, native(cut=11))) == parsed(native())


def test_a_native_stream_that_was_cut_is_counted() -> None:
    """Its input is known from its head, its output is estimated from what came."""
    events = NativeMessages()
    events.feed(native(cut=9))
    assert not events.whole
    assert events.usage is not None
    assert events.usage.estimated
    assert (events.usage.input_tokens, events.usage.cached_input) == (20, 8)
    assert events.usage.output_tokens > 1


def test_a_native_stream_that_was_cut_goes_on_in_chats_words() -> None:
    """The open block of text is gone on with, whatever stood before it."""
    first = NativeMessages()
    head = first.feed(native(cut=9))
    assert first.place == Place(2, "text")
    rest = translated(continuing(first, "Grüße, 世界"))
    events = parsed(head + run(rest, chunk({"content": "!"}, "stop") + USED + DONE))
    assert [each["type"] for each in events].count("message_start") == 1
    assert (
        "".join(each["delta"].get("text", "") for each in events if each["type"] == "content_block_delta")
        == "Grüße, 世界!"
    )
    assert [each["index"] for each in events if each["type"] == "content_block_stop"] == [0, 1]


def test_an_error_in_a_native_stream() -> None:
    """It is an error, not an event for the client."""
    events = NativeMessages()
    data = event(b"error", b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}')
    assert events.feed(native(cut=3) + data) == native(cut=3)
    assert events.error is not None
    assert not events.whole


@pytest.mark.parametrize("kind", ["tool_use", "server_tool_use", "web_search_tool_result"])
def test_more_than_text_cannot_be_gone_on_with(kind: str) -> None:
    """A call that was begun is not a text to continue."""
    events = NativeMessages()
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": kind, "name": "f"}}
    events.feed(event(b"content_block_start", json.dumps(block).encode()))
    assert events.started
    assert events.beyond_text


def test_a_malformed_event_is_dropped() -> None:
    """And counted; without an end the stream is not whole."""
    events = NativeMessages()
    assert events.feed(b"event: content_block_delta\ndata: {oops\n\n") == b""
    assert events.malformed == 1
    assert not events.whole
