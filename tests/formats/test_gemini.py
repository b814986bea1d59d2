"""Gemini's answers and events read as chat completions."""

from typing import Any

import pytest

from gateway.formats.completion import Misread, ProviderError, completion
from gateway.formats.foreign import Sse
from gateway.formats.gemini import Events, read_answer
from gateway.formats.usage import Usage, parse_usage
from tests.formats.told import LABEL, Told, play, sse, stream

USAGE = {
    "promptTokenCount": 20,
    "cachedContentTokenCount": 16,
    "candidatesTokenCount": 5,
    "thoughtsTokenCount": 3,
    "totalTokenCount": 28,
}
READ = Usage(20, 8, cached_input=16, reasoning=3)


def answer(*parts: dict[str, Any], finish: str | None = "STOP", index: int = 0, **fields: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"index": index, "content": {"role": "model", "parts": list(parts)}}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "responseId": "r-1", "modelVersion": "gemini-x", **fields}


def told(*events: dict[str, Any], step: int | None = None) -> Told:
    return play(stream(Sse(), Events()), sse(*events), step)


def test_an_answer_becomes_a_completion() -> None:
    """Text, thoughts, ids, and the usage with its thoughts counted as output."""
    said = read_answer(answer({"text": "hm", "thought": True}, {"text": "Grüße"}, usageMetadata=USAGE), LABEL)
    found = completion(said, LABEL)
    shown = found["choices"][0]
    assert (shown["message"]["content"], shown["message"]["reasoning_content"]) == ("Grüße", "hm")
    assert (found["id"], found["model"], shown["finish_reason"]) == ("r-1", "gemini-x", "stop")
    assert parse_usage(found["usage"]) == READ


def test_calls_have_an_id_and_carry_their_signature_in_it() -> None:
    """Gemini often gives no id, and wants the signature back with the call."""
    calls = answer(
        {"functionCall": {"name": "a", "args": {"x": 1}}, "thoughtSignature": "c2ln"},
        {"functionCall": {"name": "b", "id": "own"}},
    )
    for found in (
        [(c.id, c.name, c.arguments) for c in read_answer(calls, LABEL).choices[0].calls],
        [(told(calls).ids[n], *told(calls).calls[n]) for n in (0, 1)],
    ):
        assert found == [("call_00ff00__thought__c2ln", "a", '{"x":1}'), ("own", "b", "{}")]
    assert read_answer(calls, LABEL).choices[0].finish == told(calls).finish[0] == "tool_calls"


def test_calls_that_came_earlier_decide_the_finish_reason() -> None:
    """The last event says STOP although tools are to be called."""
    found = told(answer({"functionCall": {"name": "a"}}, finish=None), answer({"text": ""}))
    assert (found.finish, list(found.calls)) == (["tool_calls"], [0])


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("STOP", "stop"), ("MAX_TOKENS", "length"), ("SAFETY", "content_filter"), ("SOMETHING_NEW", "content_filter")],
)
def test_every_finish_reason_has_its_own(reason: str, finish: str) -> None:
    """What is not known to be an end was withheld."""
    doc = answer({"text": "x"}, finish=reason)
    assert read_answer(doc, LABEL).choices[0].finish == finish
    assert told(doc).finish == [finish]


def test_a_prompt_that_is_blocked_is_an_answer_withheld() -> None:
    """There are no candidates then."""
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 4}}
    assert read_answer(blocked, LABEL).choices[0].finish == "content_filter"
    assert told(blocked).finish == ["content_filter"]
    with pytest.raises(Misread):
        read_answer({}, LABEL)


def test_images_are_shown_beside_the_text() -> None:
    """As data URLs, since they come as data."""
    part = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    said = read_answer(answer(part), LABEL)
    assert said.choices[0].images == ["data:image/png;base64,AAAA"]
    assert told(answer(part)).chunks[0]["choices"][0]["delta"]["images"][0]["image_url"]["url"].startswith("data:image")


def test_a_stream_becomes_chunks_and_its_last_usage_counts() -> None:
    """Every event repeats the usage so far; the end of the bytes is the end of the answer."""
    found = told(
        answer({"text": "Grü"}, finish=None, usageMetadata={"promptTokenCount": 20, "candidatesTokenCount": 1}),
        answer({"text": "ße"}, finish="STOP", usageMetadata=USAGE),
        step=5,
    )
    assert (found.text, found.finish, found.done, found.roles) == ("Grüße", ["stop"], True, 1)
    assert found.usage is not None
    assert parse_usage(found.usage) == READ


def test_several_candidates_keep_their_places() -> None:
    """Each with its own role, text and end."""
    found = told(answer({"text": "a"}, index=0), answer({"text": "b"}, index=1))
    assert [c["choices"][0]["index"] for c in found.chunks] == [0, 0, 1, 1]
    assert (found.roles, found.finish) == (2, ["stop", "stop"])


def test_an_error_inside_a_stream_keeps_its_status() -> None:
    """A quota that runs out midway comes with status 200."""
    found = told(answer({"text": "a"}, finish=None), {"error": {"code": 429, "message": "slow", "status": "RES"}})
    assert found.error is not None
    assert (found.error["status"], found.done) == (429, False)
    with pytest.raises(ProviderError):
        read_answer({"error": {"code": 503, "message": "x"}}, LABEL)


def test_a_cut_stream_does_not_look_whole() -> None:
    """Without a finishReason the end is no end."""
    assert not told(answer({"text": "a"}, finish=None)).done
