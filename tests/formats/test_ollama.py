"""Ollama's own answers and lines read as chat completions."""

from typing import Any

import orjson
import pytest

from gateway.formats.completion import Misread, ProviderError, completion
from gateway.formats.foreign import JsonLines
from gateway.formats.ollama import Events, read_answer
from gateway.formats.usage import Usage, parse_usage
from tests.formats.told import LABEL, Told, play, stream

DONE: dict[str, Any] = {"done": True, "done_reason": "stop", "prompt_eval_count": 26, "eval_count": 5}
CALL = {"function": {"name": "a", "arguments": {"city": "東京"}}}


def line(content: str = "", **fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    message.update({name: fields.pop(name) for name in ("thinking", "tool_calls") if name in fields})
    return {"model": "llama3.2", "message": message, "done": False, **fields}


def told(*lines: dict[str, Any], step: int | None = None, last: bytes = b"\n") -> Told:
    return play(stream(JsonLines(), Events()), b"\n".join(map(orjson.dumps, lines)) + last, step)


def test_an_answer_becomes_a_completion() -> None:
    """Text, thoughts, calls with an id of ours, and the counts."""
    doc = line("Grüße", thinking="hm", tool_calls=[CALL, CALL], **DONE)
    found = completion(read_answer(doc, LABEL), LABEL)
    message = found["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Grüße", "hm")
    assert [call["id"] for call in message["tool_calls"]] == ["call_00ff00", "call_00ff01"]
    assert message["tool_calls"][0]["function"] == {"name": "a", "arguments": '{"city":"東京"}'}
    assert (found["choices"][0]["finish_reason"], found["model"]) == ("tool_calls", "llama3.2")
    assert parse_usage(found["usage"]) == Usage(26, 5)


def test_a_stream_becomes_chunks() -> None:
    """However its lines are split, and without a line break after the last."""
    lines = (line("Grü"), line("ße"), line(**DONE))
    for step, last in ((None, b"\n"), (1, b"\n"), (7, b"")):
        found = told(*lines, step=step, last=last)
        assert (found.text, found.finish, found.done, found.roles) == ("Grüße", ["stop"], True, 1)
        assert found.usage is not None
        assert parse_usage(found.usage) == Usage(26, 5)


def test_calls_decide_the_finish_reason_though_the_last_line_says_stop() -> None:
    """They come whole, in a line of their own."""
    found = told(line(tool_calls=[CALL]), line(tool_calls=[CALL]), line(**DONE))
    assert (found.finish, list(found.calls), found.ids) == (
        ["tool_calls"],
        [0, 1],
        {0: "call_00ff00", 1: "call_00ff01"},
    )


def test_an_answer_that_ran_into_its_limit_says_so() -> None:
    """The reason is `length` there too."""
    doc = line("x", **{**DONE, "done_reason": "length"})
    assert read_answer(doc, LABEL).choices[0].finish == told(doc).finish[0] == "length"


def test_an_error_inside_a_stream_ends_it() -> None:
    """The runner may die at any line."""
    found = told(line("a"), {"error": "llama runner process has terminated"})
    assert found.error is not None
    assert (found.error["status"], found.text, found.done) == (500, "a", False)
    with pytest.raises(ProviderError):
        read_answer({"error": "no"}, LABEL)
    with pytest.raises(Misread):
        read_answer({}, LABEL)


def test_a_cut_stream_does_not_look_whole() -> None:
    """Only the line with `done` is the end."""
    assert not told(line("a")).done
