"""Streams of responses, from chat's chunks and OpenAI's own, for any split of their bytes, whole, cut and continued."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.formats.continuation import Continuation
from gateway.formats.responses_stream import NativeResponses, TranslatedResponses
from gateway.formats.sse import event
from gateway.formats.usage import Usage
from tests.formats.test_messages_stream import CHAT, DONE, USED, chunk, parsed


def translated(continues: Continuation | None = None) -> TranslatedResponses:
    return TranslatedResponses({"input": "a", "instructions": "b"}, asked=lambda: 11, continues=continues)


def run(events: TranslatedResponses | NativeResponses, data: bytes) -> bytes:
    out = events.feed(data) + events.finish()
    return out + events.closing() if events.whole else out


def response_of(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The response that a client puts together from the deltas, which checks the order and the `done`s on the way."""
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    assert [each["type"] for each in events[:2]] == ["response.created", "response.in_progress"]
    items: list[dict[str, Any]] = []
    done: list[Any] = []
    for each in events[2:-1]:
        kind = each["type"].removeprefix("response.")
        place = each["output_index"]
        if kind == "output_item.added":
            assert place == len(items)
            items.append({**each["item"], "said": ""})
            done.append(None)
            continue
        if kind == "output_item.done":
            item = each["item"]
            parts = "".join(part.get("text", part.get("refusal")) for part in item.get("content", ()))
            assert item.get("arguments", parts) == items[place]["said"]
            done[place] = each["item"]
            continue
        assert each["item_id"] == items[place]["id"]
        if kind.endswith(".delta"):
            items[place]["said"] += each["delta"]
        elif kind in ("output_text.done", "function_call_arguments.done", "refusal.done"):
            said = next(each[name] for name in ("text", "arguments", "refusal") if name in each)
            assert said == items[place]["said"]
    final: dict[str, Any] = events[-1]["response"]
    assert events[-1]["type"] == f"response.{final['status']}"
    assert final["output"] == done
    return final


def test_chunks_become_items() -> None:
    """A message and each call are items, opened, filled and closed; the end has all of them, and the usage."""
    events = translated()
    final = response_of(parsed(run(events, CHAT)))
    assert final["id"] == "resp_c1"
    assert [item["type"] for item in final["output"]] == ["message", "function_call", "function_call"]
    assert final["output"][0]["content"][0]["text"] == "Grüße, 世界"
    assert [(item["call_id"], item["name"], item["arguments"]) for item in final["output"][1:]] == [
        ("call_0", "f", '{"a":1}'),
        ("call_1", "g", "{}"),
    ]
    assert final["usage"]["input_tokens"] == 20
    assert final["usage"]["input_tokens_details"]["cached_tokens"] == 8
    assert final["instructions"] == "b"
    assert events.usage == Usage(20, 7, cached_input=8)


@settings(max_examples=60)
@given(st.lists(st.integers(0, len(CHAT)), max_size=12))
def test_any_split_of_chunks_gives_the_same(cuts: list[int]) -> None:
    """Where the bytes are cut on their way changes nothing."""
    events = translated()
    places = [0, *sorted(cuts), len(CHAT)]
    out = b"".join(events.feed(CHAT[a:b]) for a, b in pairwise(places))
    assert out + events.finish() + events.closing() == run(translated(), CHAT)


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [("length", "incomplete", "max_output_tokens"), ("content_filter", "incomplete", "content_filter")],
)
def test_an_answer_that_was_cut_short_says_so(finish: str, status: str, reason: str) -> None:
    """Its last event is another one."""
    final = response_of(parsed(run(translated(), chunk({"content": "a"}, finish) + DONE)))
    assert (final["status"], final["incomplete_details"]) == (status, {"reason": reason})


def test_a_refusal_is_a_part_of_its_own() -> None:
    """With its own events."""
    final = response_of(parsed(run(translated(), chunk({"refusal": "No"}) + chunk({"refusal": "."}, "stop") + DONE)))
    assert final["output"][0]["content"] == [{"type": "refusal", "refusal": "No."}]


def test_calls_may_take_turns() -> None:
    """Pieces of an earlier call that come late still reach it."""
    mixed = (
        chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}}]})
        + chunk({"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{"}}]})
        + chunk({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]})
        + chunk({"tool_calls": [{"index": 1, "function": {"arguments": "}"}}]}, "tool_calls")
    )
    final = response_of(parsed(run(translated(), mixed + DONE)))
    assert [item["arguments"] for item in final["output"]] == ["{}", "{}"]


def continuing(events: TranslatedResponses | NativeResponses, delivered: str) -> Continuation:
    return Continuation(
        response_id=events.response_id, created=0, model="m", delivered=delivered, used=Usage(20, 3), place=events.place
    )


def test_a_cut_stream_goes_on_as_one_response() -> None:
    """One head, one message, numbers without a gap, and both consumptions at the end."""
    first = translated()
    head = first.feed(chunk({"role": "assistant"}) + chunk({"content": "Hello, "}))
    rest = translated(continuing(first, "Hello, "))
    tail = run(rest, chunk({"content": "Hello, "}) + chunk({"content": "world"}, "stop") + USED + DONE)
    final = response_of(parsed(head + tail))
    assert final["output"][0]["content"][0]["text"] == "Hello, world"
    assert final["usage"]["output_tokens"] == 10
    assert final["id"] == "resp_c1"


def native_docs() -> list[dict[str, Any]]:
    head = {
        "id": "resp_1",
        "object": "response",
        "created_at": 7,
        "model": "gpt",
        "status": "in_progress",
        "output": [],
    }
    usage = {"input_tokens": 20, "input_tokens_details": {"cached_tokens": 8}, "output_tokens": 9, "total_tokens": 29}
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": []}
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "in_progress", "content": []}
    part = {"type": "output_text", "text": "Grüße, 世界", "annotations": [], "logprobs": []}
    where = {"item_id": "msg_1", "output_index": 1, "content_index": 0}
    whole = {**message, "status": "completed", "content": [part]}
    docs: list[dict[str, Any]] = [
        {"type": "response.created", "response": head},
        {"type": "response.in_progress", "response": head},
        {"type": "response.output_item.added", "output_index": 0, "item": reasoning},
        {"type": "response.output_item.done", "output_index": 0, "item": reasoning},
        {"type": "response.output_item.added", "output_index": 1, "item": message},
        {"type": "response.content_part.added", **where, "part": {**part, "text": ""}},
        {"type": "response.output_text.delta", **where, "delta": "Grüße, "},
        {"type": "response.output_text.delta", **where, "delta": "世界"},
        {"type": "response.output_text.done", **where, "text": "Grüße, 世界"},
        {"type": "response.content_part.done", **where, "part": part},
        {"type": "response.output_item.done", "output_index": 1, "item": whole},
        {
            "type": "response.completed",
            "response": {**head, "status": "completed", "output": [reasoning, whole], "usage": usage},
        },
    ]
    return [{**doc, "sequence_number": place} for place, doc in enumerate(docs)]


def written(docs: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(event(doc["type"].encode(), json.dumps(doc, ensure_ascii=False).encode()) for doc in docs)


NATIVE = written(native_docs())


def test_a_native_stream_passes_as_it_came() -> None:
    """Byte for byte, and what it means is known."""
    events = NativeResponses()
    assert run(events, NATIVE) == NATIVE
    assert events.done
    assert events.whole
    assert events.finish_reasons == ("stop",)
    assert events.usage == Usage(20, 9, cached_input=8)
    assert events.text == {0: ["Grüße, ", "世界"]}
    assert (events.response_id, events.response_model) == ("resp_1", "gpt")
    assert not events.beyond_text


@settings(max_examples=60)
@given(st.lists(st.integers(0, len(NATIVE)), max_size=12))
def test_any_split_of_a_native_stream_gives_the_same(cuts: list[int]) -> None:
    """Where the bytes are cut on their way changes nothing."""
    events = NativeResponses()
    places = [0, *sorted(cuts), len(NATIVE)]
    out = b"".join(events.feed(NATIVE[a:b]) for a, b in pairwise(places))
    assert out + events.finish() + events.closing() == NATIVE


def test_a_native_stream_begins_with_its_first_item() -> None:
    """That a response was created promises nothing."""
    events = NativeResponses()
    events.feed(written(native_docs()[:2]))
    assert not events.started
    assert events.response_id == "resp_1"
    events.feed(written(native_docs()[2:3]))
    assert events.started


def test_a_native_stream_that_was_cut_goes_on_in_chats_words() -> None:
    """After its reasoning, in the message that is open, with numbers that follow on."""
    first = NativeResponses()
    head = first.feed(written(native_docs()[:8]))
    assert not first.whole
    rest = translated(continuing(first, "Grüße, 世界"))
    events = parsed(head + run(rest, chunk({"content": "!"}, "stop") + USED + DONE))
    final = response_of(events)
    assert [item["id"] for item in final["output"]] == ["rs_1", "msg_1"]
    assert final["output"][1]["content"][0]["text"] == "Grüße, 世界!"
    assert final["id"] == "resp_1"


@pytest.mark.parametrize(
    "doc",
    [
        {"type": "response.failed", "response": {"id": "r", "error": {"code": "server_error", "message": "no"}}},
        {"type": "error", "code": "server_error", "message": "no", "param": None},
    ],
)
def test_an_error_in_a_native_stream(doc: Mapping[str, Any]) -> None:
    """It is an error, not an event for the client."""
    events = NativeResponses()
    assert events.feed(written([*native_docs()[:8], doc])) == written(native_docs()[:8])
    assert events.error == {
        "error": {"code": "server_error", "message": "no", **({"param": None} if doc["type"] == "error" else {})}
    }
    assert not events.whole


def test_more_than_text_cannot_be_gone_on_with() -> None:
    """A call that was begun is not a text to continue."""
    events = NativeResponses()
    call = {"type": "function_call", "id": "fc_1", "name": "f", "arguments": ""}
    events.feed(written([{"type": "response.output_item.added", "output_index": 0, "item": call}]))
    assert events.beyond_text


def test_an_incomplete_native_response_is_whole() -> None:
    """It ended where its limit was."""
    events = NativeResponses()
    response = {"id": "r", "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "usage": None}
    events.feed(written([{"type": "response.incomplete", "response": response}]))
    assert events.whole
    assert events.finish_reasons == ("length",)


def test_what_has_no_type_is_malformed() -> None:
    """It is counted, and nobody sees it."""
    events = NativeResponses()
    assert events.feed(b'data: {"a":1}\n\n') == b""
    assert events.malformed == 1
