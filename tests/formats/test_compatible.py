"""A chat completion that has to be told again."""

from typing import Any

import orjson
import pytest

from gateway.formats.compatible import Events, read_answer
from gateway.formats.completion import Misread, ProviderError, completion
from gateway.formats.foreign import Sse, StreamAnswer
from tests.formats import told
from tests.formats.told import LABEL


def answer(finish: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    return {"id": "c-1", "model": "m", "choices": [choice], "usage": usage}


def call(name: str) -> dict[str, Any]:
    return {"id": "t1", "type": "function", "function": {"name": name, "arguments": '{"a":1}'}}


def test_what_is_told_again_says_the_same() -> None:
    """Text, thoughts, calls, usage and names."""
    doc = answer("tool_calls", content="hi", reasoning_content="hm", tool_calls=[call("x")])
    found = completion(read_answer(doc, json_tool=None), LABEL)
    assert (found["id"], found["model"], found["usage"]["total_tokens"]) == ("c-1", "m", 7)
    choice = found["choices"][0]
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("hi", "hm")
    assert (choice["message"]["tool_calls"], choice["finish_reason"]) == ([call("x")], "tool_calls")


def test_the_tool_that_stands_for_a_schema_is_the_text() -> None:
    """It is no call of the client's."""
    choice = read_answer(answer("tool_calls", tool_calls=[call("json")]), json_tool="json").choices[0]
    assert (choice.text, choice.calls, choice.finish) == ('{"a":1}', [], "stop")


def test_an_error_and_what_is_no_answer_are_told_apart() -> None:
    """Both may come with status 200."""
    with pytest.raises(ProviderError, match="down"):
        read_answer({"error": {"message": "down"}}, json_tool=None)
    with pytest.raises(Misread):
        read_answer({}, json_tool=None)


def streamed(*choices: dict[str, Any], **more: Any) -> told.Told:
    docs = [{"choices": [{"index": 0, **choice}]} for choice in choices] + ([{"choices": [], **more}] if more else [])
    answer = StreamAnswer(Sse(), Events(), LABEL)
    out = b"".join(answer.feed(b"data: " + orjson.dumps(doc) + b"\n\n") for doc in docs)
    return told.read(out + answer.finish())


def test_chunks_told_again_say_the_same() -> None:
    """Text, thoughts, usage and the end; an end that is nobody's is a plain one."""
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    deltas = [{"delta": {"reasoning_content": "hm"}}, {"delta": {"content": "hel"}}, {"delta": {"content": "lo"}}]
    found = streamed(*deltas, {"delta": {}, "finish_reason": "eos"}, usage=usage)
    assert (found.reasoning, found.text, found.finish, found.done) == ("hm", "hello", ["stop"], True)
    assert found.usage is not None
    assert found.usage["total_tokens"] == 7
    assert streamed(*deltas).done is False


def test_calls_keep_their_places() -> None:
    """By their ids; a piece without a known one goes on with the last."""
    pieces = [
        {"id": "a", "function": {"name": "f", "arguments": "{"}},
        {"id": "a", "function": {"name": None, "arguments": "}"}},
        {"id": "b", "function": {"name": "g", "arguments": ""}},
        {"id": None, "function": {"arguments": "[]"}},
    ]
    found = streamed(*({"delta": {"tool_calls": [piece]}} for piece in pieces), {"finish_reason": "tool_calls"})
    assert (found.calls, found.ids) == ({0: ["f", "{}"], 1: ["g", "[]"]}, {0: "a", 1: "b"})
