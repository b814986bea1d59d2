"""Bedrock's Converse answers and events read as chat completions."""

from typing import Any

import orjson
import pytest

from gateway.formats.completion import Misread, completion
from gateway.formats.converse import Events, read_answer, usage_from
from gateway.formats.foreign import AwsEvents
from gateway.formats.usage import Usage, parse_usage
from tests.formats.test_aws_events import frame, text
from tests.formats.told import LABEL, Told, play, stream

USAGE = {"inputTokens": 4, "outputTokens": 7, "totalTokens": 31, "cacheReadInputTokens": 16, "cacheWriteInputTokens": 4}


def answer(*content: dict[str, Any], reason: str = "end_turn") -> dict[str, Any]:
    return {
        "output": {"message": {"role": "assistant", "content": list(content)}},
        "stopReason": reason,
        "usage": USAGE,
    }


def event(kind: str, payload: dict[str, Any], name: str = ":event-type") -> bytes:
    return frame(orjson.dumps(payload), text(name, kind) + text(":message-type", "event"))


def delta(index: int, said: dict[str, Any]) -> bytes:
    return event("contentBlockDelta", {"contentBlockIndex": index, "delta": said})


def told(*events: bytes, json_tool: str | None = None, step: int | None = None) -> Told:
    translation = stream(AwsEvents(), Events(names={"a_b": "a/b"}, json_tool=json_tool))
    return play(translation, b"".join(events), step)


def test_an_answer_becomes_a_completion() -> None:
    """Text, thoughts, calls with the client's own names, and usage that includes the cached."""
    said = read_answer(
        answer(
            {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}},
            {"text": "Grüße"},
            {"toolUse": {"toolUseId": "t1", "name": "a_b", "input": {"x": 1}}},
            reason="tool_use",
        ),
        names={"a_b": "a/b"},
        json_tool=None,
    )
    found = completion(said, LABEL)
    message = found["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Grüße", "hm")
    assert message["thinking_blocks"] == [{"type": "thinking", "thinking": "hm", "signature": "s"}]
    assert message["tool_calls"][0]["function"] == {"name": "a/b", "arguments": '{"x":1}'}
    assert found["choices"][0]["finish_reason"] == "tool_calls"
    assert parse_usage(found["usage"]) == Usage(24, 7, cached_input=16, cache_write=4)


def test_the_tool_that_stands_for_a_schema_is_the_answer_itself() -> None:
    """Whole and streamed."""
    use = {"toolUseId": "t1", "name": "json_tool_call"}
    whole = answer({"toolUse": {**use, "input": {"a": 1}}}, reason="tool_use")
    choice = read_answer(whole, names={}, json_tool="json_tool_call").choices[0]
    found = told(
        event("contentBlockStart", {"contentBlockIndex": 0, "start": {"toolUse": use}}),
        delta(0, {"toolUse": {"input": '{"a":1}'}}),
        event("messageStop", {"stopReason": "tool_use"}),
        json_tool="json_tool_call",
    )
    assert (choice.text, choice.finish) == (found.text, found.finish[0]) == ('{"a":1}', "stop")


def test_a_stream_becomes_chunks() -> None:
    """However its frames are split; the usage comes after the stop reason."""
    events = (
        event("messageStart", {"role": "assistant"}),
        delta(0, {"text": "Grü"}),
        delta(0, {"text": "ße"}),
        event("contentBlockStop", {"contentBlockIndex": 0}),
        event(
            "contentBlockStart",
            {"contentBlockIndex": 1, "start": {"toolUse": {"toolUseId": "t1", "name": "a_b"}}},
        ),
        delta(1, {"toolUse": {"input": '{"x"'}}),
        delta(1, {"toolUse": {"input": ":1}"}}),
        event("contentBlockStop", {"contentBlockIndex": 1}),
        event("contentBlockStart", {"contentBlockIndex": 2, "start": {"toolUse": {"toolUseId": "t2", "name": "b"}}}),
        event("contentBlockStop", {"contentBlockIndex": 2}),
        event("messageStop", {"stopReason": "tool_use"}),
        event("metadata", {"usage": USAGE}),
    )
    for step in (None, 1, 13):
        found = told(*events, step=step)
        assert (found.text, found.roles, found.finish, found.done) == ("Grüße", 1, ["tool_calls"], True)
        assert found.calls == {0: ["a/b", '{"x":1}'], 1: ["b", "{}"]}
        assert found.usage is not None
        assert parse_usage(found.usage) == Usage(24, 7, cached_input=16, cache_write=4)


@pytest.mark.parametrize(
    ("kind", "status"),
    [("throttlingException", 429), ("modelStreamErrorException", 500), ("somethingNewException", 500)],
)
def test_an_exception_inside_a_stream_keeps_its_status(kind: str, status: int) -> None:
    """It ends the stream."""
    exception = event(kind, {"message": "slow"}, ":exception-type")
    found = told(event("messageStart", {"role": "assistant"}), exception, delta(0, {"text": "never"}))
    assert found.error is not None
    assert (found.error["status"], found.error["message"], found.text) == (status, "slow", "")


def test_thoughts_are_streamed_with_their_signature() -> None:
    """And what is redacted stays so."""
    found = told(
        delta(0, {"reasoningContent": {"text": "hm"}}),
        delta(0, {"reasoningContent": {"signature": "s"}}),
        delta(1, {"reasoningContent": {"redactedContent": "xx"}}),
    )
    blocks = [block for chunk in found.chunks for block in chunk["choices"][0]["delta"].get("thinking_blocks", ())]
    assert found.reasoning == "hm"
    assert [block["type"] for block in blocks] == ["thinking", "thinking", "redacted_thinking"]


def test_usage_is_trusted_only_when_it_makes_sense() -> None:
    """Cached tokens are beside the input; those kept an hour cost more."""
    kept = {**USAGE, "cacheDetails": [{"ttl": "1h", "inputTokens": 3}, {"ttl": "5m", "inputTokens": 1}]}
    assert usage_from(kept) == Usage(24, 7, cached_input=16, cache_write=4, cache_write_1h=3)
    assert usage_from({**USAGE, "inputTokens": -1}) is None
    assert usage_from({**USAGE, "inputTokens": "4"}) is None
    assert usage_from(None) is None


def test_what_is_no_answer_is_not_read() -> None:
    """An error body has no output."""
    with pytest.raises(Misread):
        read_answer({"message": "no"}, names={}, json_tool=None)
