"""A stream seen from the side: what passes, what is noted, and that no SDK stumbles over what comes out."""

import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from gateway.formats.chat_stream import DONE, KEPT, ChatStream
from gateway.formats.continuation import Continuation
from gateway.formats.sse import MAX_RECORD
from gateway.formats.usage import Usage

ROLE = {"role": "assistant", "content": ""}
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def chunk(delta: Any = None, *, index: Any = 0, finish: Any = None, **fields: Any) -> dict[str, Any]:
    """One chunk with one choice."""
    choice = {"index": index, "delta": {} if delta is None else delta, "finish_reason": finish}
    return {"id": "c-1", "object": "chat.completion.chunk", "created": 17, "model": "m", "choices": [choice], **fields}


def text(content: str, **fields: Any) -> dict[str, Any]:
    return chunk({"content": content}, **fields)


def event(doc: Any) -> bytes:
    return b"data: " + orjson.dumps(doc) + b"\n\n"


def only_usage() -> dict[str, Any]:
    return {**chunk(), "choices": [], "usage": USAGE}


END = chunk(finish="stop")


def run(data: bytes | Iterable[bytes], *, hide_usage: bool = False) -> tuple[ChatStream, bytes]:
    """A stream that got these bytes and ended, and what it let through."""
    stream = ChatStream(hide_usage=hide_usage)
    pieces = [data] if isinstance(data, bytes) else data
    out = b"".join(stream.feed(piece) for piece in pieces)
    return stream, out + stream.finish()


def decoded(data: bytes, size: int = 7) -> list[Any]:
    """What the decoder of OpenAI's SDK makes of these bytes."""

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    return [sse.data if sse.data.startswith("[DONE]") else sse.json() for sse in SSEDecoder().iter_bytes(pieces())]


def test_a_stream_passes_as_it_came() -> None:
    """Not a byte of an ordinary stream changes, and nothing of it is held back."""
    odd = b'data: {"id":"c-1", "choices":[ {"index":0,"delta":{"content":"\\u0041"}} ], "x":1.0e2}\n\n'
    data = event(chunk(ROLE)) + odd + event(END)
    stream, out = run(data + DONE)
    assert out == data
    assert stream.done
    assert stream.text == {0: ["A"]}


TABLE = [
    # what came                                                      started finished done   whole
    ([], False, False, False, False),
    ([event(chunk(ROLE))], False, False, False, False),
    ([event(text("a"))], True, False, False, False),
    ([event(text("a")), event(END)], True, True, False, True),
    ([event(text("a")), event(END), DONE], True, True, True, True),
    ([event(text("a")), DONE], True, False, True, True),
    ([DONE], False, False, True, True),
    ([event(END)], True, True, False, True),
    ([event(text("a")), b"data: {\n\n", event(END), DONE], True, True, True, True),
    ([event(text("a")), b"data: {\n\n", DONE], True, False, True, False),
    ([event(text("a")), b"data: {\n\n"], True, False, False, False),
    ([event(text("a")), event({"error": {"message": "x"}})], True, False, False, False),
    ([event(END), event({"error": {"message": "x"}})], True, True, False, False),
    ([event(text("a", index=0)), event(text("b", index=1)), event(END)], True, False, False, False),
    ([event(text("b", index=1)), event(END), event(chunk(index=1, finish="length"))], True, True, False, True),
]


@pytest.mark.parametrize(("events", "started", "finished", "done", "whole"), TABLE)
def test_what_a_stream_has_come_to(events: list[bytes], started: bool, finished: bool, done: bool, whole: bool) -> None:
    """Started by a token, finished when every choice has its reason, whole when it was meant to end there."""
    stream, _ = run(events)
    assert (stream.started, stream.finished, stream.done, stream.whole) == (started, finished, done, whole)


@pytest.mark.parametrize(
    ("delta", "started", "beyond"),
    [
        (ROLE, False, False),
        ({"role": "assistant", "content": None, "refusal": None, "tool_calls": []}, False, False),
        ({"content": "a"}, True, False),
        ({"reasoning_content": "hm"}, True, False),
        ({"reasoning": "hm", "content": ""}, True, False),
        ({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}, True, True),
        ({"refusal": "no"}, True, True),
        ({"audio": {"data": "AAAA"}}, True, True),
        ({"content": [{"type": "thinking", "thinking": []}]}, True, True),
        ({"content": {"text": "a"}}, True, True),
        ("a", True, False),
    ],
)
def test_what_is_a_token(delta: Any, started: bool, beyond: bool) -> None:
    """Anything but a role; and what text alone cannot continue is known as such."""
    stream, out = run(event(chunk(delta)))
    assert (stream.started, stream.beyond_text) == (started, beyond)
    assert out == event(chunk(delta))
    assert bool(stream.all_text) is started


def test_what_was_delivered_is_kept_by_choice() -> None:
    """For going on with a stream, and for counting what no usage was reported for."""
    made = [text("a"), text("x", index=1), text("b"), chunk({"reasoning_content": "hm"}), chunk({"refusal": "no"})]
    stream, _ = run(b"".join(map(event, made)))
    assert stream.text == {0: ["a", "b"], 1: ["x"]}
    assert stream.other_text == ["hm", '"no"']
    assert (stream.response_id, stream.response_model, stream.created) == ("c-1", "m", 17)


def test_reasons_stand_in_the_order_of_the_choices() -> None:
    """Choices of `n` come interleaved."""
    stream, _ = run(event(chunk(index=1, finish="length")) + event(chunk(index=0, finish="stop")))
    assert stream.finish_reasons == ("stop", "length")


def test_legacy_completions_are_text_too() -> None:
    """`/v1/completions` streams `text` where chat streams a delta."""
    stream, _ = run(event({"choices": [{"index": 0, "text": "abc", "finish_reason": None}]}))
    assert stream.started
    assert stream.text == {0: ["abc"]}


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ({**text("a"), "usage": None}, text("a")),
        ({**END, "usage": USAGE}, END),
        (only_usage(), None),
        ({**text("a"), "usage": {**USAGE, "details": {"usage": None}}}, text("a")),
        ({"choices": [], "prompt_filter_results": [1], "usage": None}, {"choices": [], "prompt_filter_results": [1]}),
        ({"usage": None, "choices": []}, {"choices": []}),
    ],
)
def test_usage_that_the_client_did_not_ask_for_is_hidden(sent: Any, shown: Any) -> None:
    """Neither the chunk that has only usage, nor `usage: null`, reaches it; all else does."""
    stream, out = run(event(sent), hide_usage=True)
    assert out == (b"" if shown is None else event(shown))
    if sent["usage"]:
        assert stream.usage is not None
        assert (stream.usage.input_tokens, stream.usage.output_tokens) == (5, 2)
    else:
        assert stream.usage is None


def test_usage_that_the_client_asked_for_is_shown() -> None:
    """And noted all the same; the last report counts."""
    data = event({**text("a"), "usage": {"prompt_tokens": 5, "completion_tokens": 1}}) + event(only_usage())
    stream, out = run(data)
    assert out == data
    assert stream.usage is not None
    assert stream.usage.output_tokens == 2


def test_hiding_touches_no_other_byte() -> None:
    """Spaces, escapes and numbers of the chunk stay as the backend wrote them."""
    data = b'data: { "id":"c","big":123456789012345678901234567890,"x":1.0e2, "usage" : null ,"choices":[{"index":0,"delta":{"content":"\\u0041"}}]}\n\n'
    _, out = run(data, hide_usage=True)
    assert out == data.replace(b' "usage" : null ,', b"")


HALVES = (b"\\ud83d", b"\\ude00")
MALFORMED = [
    b"{",
    b"[]",
    b"7",
    b'"x"',
    b"null",
    b"",
    b"{}{}",
    b"\xff\xfe",
    b'{"a":NaN}',
    b"[DONE",
    b'{"a":NaN,"b":"\\ud800"}',
]


@pytest.mark.parametrize("data", MALFORMED)
def test_a_malformed_event_is_dropped_and_counted(data: bytes) -> None:
    """The rest of the stream passes."""
    good = event(text("a")) + event(END)
    stream, out = run(event(text("a")) + b"data: " + data + b"\n\n" + event(END))
    assert out == good
    assert stream.malformed == 1
    assert stream.whole


def test_half_of_a_surrogate_pair_passes() -> None:
    """RFC 8259 allows it; a server that splits an emoji between two tokens writes it, and clients put it together."""
    halves = [b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % half for half in HALVES]
    stream, out = run(b"".join(halves) + event(END))
    assert out == b"".join(halves) + event(END)
    assert stream.malformed == 0
    assert stream.text == {0: ["?", "?"]}


def test_an_event_nested_too_deeply_is_malformed() -> None:
    """It cannot be written again, and takes no request down with it."""
    deep = b"[" * 400 + b"]" * 400
    stream, out = run(b'data: {"choices":[{"index":0,"delta":{"tool_calls":%s}}]}\n\n' % deep + event(END))
    assert out == event(END)
    assert stream.malformed == 1


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "overloaded", "type": "server_error"}},
        {"error": "overloaded"},
        {"object": "error", "message": "too long", "type": "BadRequestError", "param": None, "code": 400},
        {"id": "c-1", "choices": [], "error": {"code": 502, "message": "Provider returned error"}},
    ],
)
def test_an_error_event_ends_the_stream(error: dict[str, Any]) -> None:
    """OpenAI's, a plain text, vLLM's and OpenRouter's; what comes after it is not passed, nor is the event itself."""
    stream, out = run(event(text("a")) + event(error) + event(text("b")) + DONE)
    assert out == event(text("a"))
    assert stream.error == error
    assert not stream.whole
    assert not stream.done


def test_nothing_passes_after_the_end() -> None:
    """Bytes behind `[DONE]` belong to nobody."""
    stream, out = run([event(END) + DONE + event(text("a")), event(text("b"))])
    assert out == event(END)
    assert stream.text == {}


@pytest.mark.parametrize("done", [b"data: [DONE]\n\n", b"data:[DONE]\n\n", b"data: [DONE] \r\n\r\n", b"data: [DONE]"])
def test_every_way_to_say_done(done: bytes) -> None:
    """Also without the blank line behind it."""
    assert run(event(END) + done)[0].done


def test_a_last_event_without_its_blank_line_passes() -> None:
    """SDKs would drop it silently, so it gets its blank line."""
    stream, out = run(event(text("a")) + event(END)[:-2])
    assert out == event(text("a")) + event(END)
    assert stream.finished


def test_an_event_without_an_end_breaks_the_stream() -> None:
    """The buffer is bounded, and what was cut does not look whole."""
    stream = ChatStream(hide_usage=False)
    assert stream.feed(event(END)) == event(END)
    assert stream.feed(b"data: " + b"x" * MAX_RECORD) == b""
    assert stream.broken
    assert not stream.whole


def test_data_in_several_lines_is_one_event() -> None:
    """JSON spread over `data:` lines is read as one and passes as one."""
    written = json.dumps(text("a"), indent=1).encode()
    data = b"".join(b"data: " + line + b"\r\n" for line in written.split(b"\n")) + b"\r\n"
    stream, out = run(data)
    assert stream.text == {0: ["a"]}
    assert decoded(out) == [text("a")]


NASTY = [
    b"\xef\xbb\xbf",
    b"id: 7\n: comment\n\n",
    b"id: 7\n\n",
    b"retry: 3000\n\n",
    b"retry: soon\r\n\r\n",
    b"event: ping\n\n",
    b"event: error\n: x\n\n",
    b": ping\n\n",
    b":\n\n",
    b": \xff\xfe\n\n",
    b"\n\n\n",
    b"\r\n\r\n",
    b"data\n\n",
    b"data:\n\n",
    b"unknown: \xff\n\n",
    b"\xff\xfe\n\n",
    b"data: \xff\n\n",
    b"event: thread.run\ndata: {}\n\n",
    b'data: {"choices": 5}\n\n',
    b'data: {"choices": [5, null, {}]}\n\n',
    b'data: {"choices": {"index": 0}}\n\n',
    b'data: {"choices": [{"index": [], "delta": [], "finish_reason": {}}], "created": "x"}\r\n\r\n',
    b'data: {"choices": [{"index": "0", "delta": {"content": 7}, "finish_reason": 1}], "usage": 7}\n\n',
    b'data: {"choices": [{"text": {"a": 1}}], "usage": {"prompt_tokens": "x"}}\n\n',
    b'data: {"choices":\ndata: []}\n\n',
    'data: {"choices": [], "x": "\u2028\u0085"}\n\n'.encode(),
    b'data: {"\\ud83d": 1, "usage": {}, "choices": [{"delta": {"content": "\\ud83d"}}]}\n\n',
    *(b"data: " + data + b"\n\n" for data in MALFORMED),
]
EVENTS = st.one_of(
    st.sampled_from(NASTY),
    st.sampled_from([event(chunk(ROLE)), event(text("a")), event(text("b", index=1)), event(END), event(only_usage())]),
)
STREAMS = st.lists(EVENTS, max_size=10).map(b"".join)


def cuts(data: bytes) -> st.SearchStrategy[list[bytes]]:
    places = st.lists(st.integers(0, len(data)), max_size=10)
    return places.map(lambda at: [data[a:b] for a, b in pairwise([0, *sorted(at), len(data)])])


def seen(stream: ChatStream) -> tuple[Any, ...]:
    """All that a stream has noted."""
    noted = (stream.usage, stream.text, stream.other_text, stream.malformed, stream.error, stream.finish_reasons)
    return (*noted, stream.started, stream.done, stream.finished, stream.whole, stream.beyond_text, stream.response_id)


@given(data=st.data(), sent=STREAMS, hide=st.booleans())
def test_any_split_gives_the_same_answer(data: st.DataObject, sent: bytes, hide: bool) -> None:
    """Neither the bytes that pass nor what is noted depend on where the network cut them."""
    at_once, out = run(sent, hide_usage=hide)
    in_pieces, joined = run(data.draw(cuts(sent)), hide_usage=hide)
    assert joined == out
    assert seen(in_pieces) == seen(at_once)


@given(sent=STREAMS, hide=st.booleans(), size=st.integers(1, 64))
def test_no_stream_crashes_an_sdk(sent: bytes, hide: bool, size: int) -> None:
    """OpenAI's decoder reads what passes, event by event, as JSON objects: whatever the backend sent."""
    stream, out = run(sent, hide_usage=hide)
    documents = decoded(out + DONE, size)
    assert documents[-1] == "[DONE]"
    assert all(isinstance(document, dict) for document in documents[:-1])
    assert sum("usage" in document for document in documents[:-1]) == 0 or not hide
    assert isinstance(stream.all_text, str)


@given(sent=STREAMS, hide=st.booleans())
def test_no_continued_stream_crashes_an_sdk(sent: bytes, hide: bool) -> None:
    """The same when its chunks go on with an earlier stream: one id, whatever the backend sent."""
    earlier = Continuation(response_id="first", created=1, model="m", delivered="ab ", used=Usage(5, 2))
    stream = ChatStream(hide_usage=hide, continues=earlier)
    out = stream.feed(sent) + stream.finish()
    documents = decoded(out)
    assert {document["id"] for document in documents} <= {"first"}
    assert isinstance(stream.all_text, str)


def test_many_pieces_are_kept_as_few() -> None:
    """All of the text, at the price of its characters; and each piece counted."""
    stream, out = run(event(text("ab ")) * 5000 + event(END))
    assert "".join(stream.text[0]) == stream.all_text == "ab " * 5000
    assert len(stream.text[0]) < 1100
    assert (stream.pieces, stream.unkept, stream.beyond_text) == (5000, 0, False)
    assert out.count(b"ab ") == 5000


@pytest.mark.parametrize("field", ["content", "reasoning_content"])
def test_a_stream_without_end_needs_no_memory(field: str) -> None:
    """Beyond a bound its text passes, is counted and is not kept; then nobody can go on with it."""
    piece = "x" * 1000
    stream, out = run(event(chunk({field: piece})) * 600)
    assert out.count(piece.encode()) == 600
    assert len(stream.all_text) <= KEPT
    assert len(stream.all_text) + stream.unkept == 600_000
    assert stream.pieces == 600
    assert stream.beyond_text
