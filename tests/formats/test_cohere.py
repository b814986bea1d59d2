"""Cohere's answers and events read as chat completions."""

from typing import Any

import pytest

from gateway.formats.cohere import Events, read_answer, usage_from
from gateway.formats.completion import Misread, ProviderError, completion
from gateway.formats.foreign import Sse
from gateway.formats.usage import Usage, parse_usage
from tests.formats.told import LABEL, Told, play, sse, stream

USAGE = {
    "billed_units": {"input_tokens": 3, "output_tokens": 5},
    "tokens": {"input_tokens": 71.0, "output_tokens": 5.0},
    "cached_tokens": 64,
}
READ = Usage(71, 5, cached_input=64)
CALL = {"id": "c1", "type": "function", "function": {"name": "a", "arguments": '{"x":1}'}}


def answer(reason: str = "COMPLETE", **message: Any) -> dict[str, Any]:
    return {"id": "i-1", "finish_reason": reason, "message": {"role": "assistant", **message}, "usage": USAGE}


def told(*events: dict[str, Any]) -> Told:
    return play(stream(Sse(), Events()), sse(*events))


def part(kind: str, index: int = 0, **message: Any) -> dict[str, Any]:
    return {"type": kind, "index": index, "delta": {"message": message}}


def end(reason: str) -> dict[str, Any]:
    return {"type": "message-end", "delta": {"finish_reason": reason, "usage": USAGE}}


START = {"type": "message-start", "id": "i-1", "delta": {"message": {"role": "assistant"}}}


def test_an_answer_becomes_a_completion() -> None:
    """Text and the tokens that went through the model, of which it bills fewer."""
    found = completion(read_answer(answer(content=[{"type": "text", "text": "Grüße"}])), LABEL)
    assert found["choices"][0]["message"]["content"] == "Grüße"
    assert found["id"] == "i-1"
    assert parse_usage(found["usage"]) == READ


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("COMPLETE", "stop"), ("STOP_SEQUENCE", "stop"), ("MAX_TOKENS", "length"), ("TOOL_CALL", "tool_calls")],
)
def test_every_finish_reason_has_its_own(reason: str, finish: str) -> None:
    """Whole and streamed alike."""
    assert read_answer(answer(reason)).choices[0].finish == finish
    assert told(START, end(reason)).finish == [finish]


def test_an_answer_that_failed_is_an_error() -> None:
    """Cohere says so in the finish reason, with status 200."""
    with pytest.raises(ProviderError):
        read_answer(answer("ERROR"))
    found = told(START, end("TIMEOUT"))
    assert found.error is not None
    assert not found.done


def test_calls_and_the_plan_before_them() -> None:
    """The plan is what the model thinks."""
    choice = read_answer(answer("TOOL_CALL", tool_plan="I look", tool_calls=[CALL])).choices[0]
    found = told(
        START,
        part("tool-plan-delta", tool_plan="I look"),
        part("tool-call-start", tool_calls={**CALL, "function": {"name": "a", "arguments": ""}}),
        part("tool-call-delta", tool_calls={"function": {"arguments": '{"x"'}}),
        part("tool-call-delta", tool_calls={"function": {"arguments": ":1}"}}),
        {"type": "tool-call-end", "index": 0},
        end("TOOL_CALL"),
    )
    assert (choice.reasoning, choice.calls[0].id, choice.calls[0].arguments) == ("I look", "c1", '{"x":1}')
    assert (found.reasoning, found.ids, found.calls) == ("I look", {0: "c1"}, {0: ["a", '{"x":1}']})


def test_a_stream_becomes_chunks() -> None:
    """Its end is an event."""
    found = told(
        START,
        part("content-start", content={"type": "text", "text": ""}),
        part("content-delta", content={"text": "Grü"}),
        part("content-delta", content={"text": "ße"}),
        {"type": "content-end", "index": 0},
        end("COMPLETE"),
    )
    assert (found.text, found.roles, found.done, found.malformed) == ("Grüße", 1, True, 0)
    assert found.usage is not None
    assert parse_usage(found.usage) == READ


def test_usage_is_trusted_only_when_it_makes_sense() -> None:
    """Billed units are better than nothing."""
    assert usage_from({"billed_units": {"input_tokens": 3, "output_tokens": 5}}) == Usage(3, 5)
    assert usage_from({"tokens": {"input_tokens": -3}}) is None
    assert usage_from({}) is None
    assert usage_from(None) is None


def test_what_is_no_answer_is_not_read() -> None:
    """An error body has a message of another kind."""
    with pytest.raises(Misread):
        read_answer({"message": "invalid request"})
