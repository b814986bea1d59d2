"""Framings, and what becomes of what cannot be read."""

from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from gateway.formats import foreign
from gateway.formats.completion import Choice, Chunks, Misread, ProviderError, Said, ToolCall
from gateway.formats.foreign import AwsEvents, Framing, JsonLines, Sse, StreamAnswer, Unreadable, WholeAnswer
from gateway.formats.usage import Usage
from tests.formats.test_aws_events import frame, text
from tests.formats.told import LABEL, play, read

SAID = Said((Choice("hi", "hm", (ToolCall("c1", "a", "{}"),), "tool_calls"), Choice("ho")), Usage(1, 2), "id", "m")


class Plain:
    """Reads events that are what they say."""

    def event(self, doc: Mapping[str, Any], kind: str, out: Chunks) -> None:
        if "fail" in doc:
            raise ProviderError(503, "no")
        out.text(doc["text"])
        if doc.get("last"):
            out.finish("stop")

    def end(self, out: Chunks) -> None:
        if out.finished:
            out.close()


def whole(read_answer: Any, body: bytes, *, as_stream: bool = False) -> bytes:
    answer = WholeAnswer(read_answer, LABEL, as_stream=as_stream)
    assert answer.feed(body[:3]) + answer.feed(body[3:]) == b""
    return answer.finish()


def raising(error: Exception) -> Any:
    def read_it(doc: dict[str, Any]) -> Said:
        raise error

    return read_it


def test_a_whole_answer_may_be_told_as_a_stream() -> None:
    """For a model that cannot stream: the same, in chunks."""
    found = read(whole(lambda _: SAID, b"{}", as_stream=True))
    assert (found.text, found.reasoning, found.calls, found.finish) == (
        "hiho",
        "hm",
        {0: ["a", "{}"]},
        ["tool_calls", "stop"],
    )
    assert (found.done, found.roles, found.chunks[0]["id"]) == (True, 2, "id")
    assert orjson.loads(whole(lambda _: SAID, b"{}"))["usage"]["total_tokens"] == 3


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null"])
def test_what_is_no_object_is_unreadable(body: bytes) -> None:
    """The error holds nothing of it."""
    with pytest.raises(Unreadable):
        whole(lambda _: SAID, body)


@pytest.mark.parametrize("error", [Misread("no"), KeyError("secret"), TypeError("secret"), IndexError()])
def test_an_answer_of_another_shape_is_unreadable(error: Exception) -> None:
    """Whatever the reader stumbles over."""
    with pytest.raises(Unreadable) as caught:
        whole(raising(error), b"{}")
    assert "secret" not in str(caught.value)


def test_an_error_with_a_good_status_stays_an_error() -> None:
    """In the body, or as an event."""
    body = orjson.loads(whole(raising(ProviderError(529, "Overloaded")), b"{}"))
    assert (body["error"]["status"], body["error"]["message"]) == (529, "Overloaded")
    assert read(whole(raising(ProviderError(529, "Overloaded")), b"{}", as_stream=True)).error == body["error"]


def test_answers_and_events_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, whatever a provider sends."""
    monkeypatch.setattr(foreign, "MAX_ANSWER", 10)
    monkeypatch.setattr(foreign, "MAX_RECORD", 10)
    monkeypatch.setattr("gateway.formats.sse.MAX_RECORD", 10)
    with pytest.raises(Unreadable):
        WholeAnswer(lambda _: SAID, LABEL).feed(b"x" * 11)
    with pytest.raises(Unreadable):
        JsonLines().feed(b"x" * 11)
    with pytest.raises(Unreadable):
        Sse().feed(b"x" * 11)


@pytest.mark.parametrize(
    ("framing", "good", "bad"),
    [
        (Sse, b'data: {"text":"a"}\n\n', b"data: {broken\n\n"),
        (JsonLines, b'{"text":"a"}\n', b"{broken\n"),
        (AwsEvents, frame(b'{"text":"a"}', text(":event-type", "e")), frame(b"{broken")),
    ],
)
def test_one_event_that_cannot_be_read_is_passed_over_and_counted(
    framing: type[Framing], good: bytes, bad: bytes
) -> None:
    """Not JSON, no object, or not the shape: the others still count."""
    odd = good.replace(b'"text"', b'"odd!"') if framing is not AwsEvents else frame(b"[]")
    found = play(StreamAnswer(framing(), Plain(), LABEL), good + bad + odd + good)
    assert (found.text, found.malformed, found.done) == ("aa", 2, False)


def test_nothing_is_read_after_an_error_or_the_end() -> None:
    """What a provider still says then is not for anybody."""
    good, fail = b'{"text":"a"}\n', b'{"fail":1}\n'
    found = play(StreamAnswer(JsonLines(), Plain(), LABEL), good + fail + good)
    assert found.error is not None
    assert (found.text, found.error["status"]) == ("a", 503)


def test_frames_that_are_broken_end_the_stream() -> None:
    """Nothing after a wrong checksum can be trusted."""
    with pytest.raises(Unreadable):
        AwsEvents().feed(b"\x00" * 16)


def test_a_last_event_without_its_end_is_read() -> None:
    """As for OpenAI-compatible servers."""
    found = play(StreamAnswer(Sse(), Plain(), LABEL), b'data: {"text":"a"}\n\ndata: {"text":"b","last":true}')
    assert (found.text, found.done) == ("ab", True)
