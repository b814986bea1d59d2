"""Speech: characters are known, tokens are guessed unless the last event tells them."""

from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequest, StreamBroken
from gateway.formats.passing import Passing, PassingEvents
from gateway.formats.request import ANYTHING, NotAnAnswer
from gateway.formats.speech import SpeechRequest, parse_speech
from gateway.formats.usage import Usage


def asked(**fields: Any) -> SpeechRequest:
    """A request."""
    return parse_speech(orjson.dumps({"model": "m", "input": "Grüße", "voice": "alloy", **fields}))


def test_it_is_a_stream_of_anything() -> None:
    """Characters count, not bytes; the tokens that it may have are bounded by them."""
    request = asked()
    assert (request.stream, request.accept, request.mode) == (True, ANYTHING, "audio")
    assert request.extent.beside == Usage(characters=5, audio_output=request.max_output or 0)
    expected = request.expected()
    assert expected.characters == 5
    assert expected.audio_output == expected.output_tokens < (request.max_output or 0)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"input": None}, "input"), ({"input": ["a"]}, "input"), ({"voice": None}, "voice"), ({"voice": 1}, "voice")],
)
def test_what_is_wrong_is_named(fields: Any, param: str) -> None:
    """By its field."""
    with pytest.raises(InvalidRequest) as caught:
        asked(**fields)
    assert caught.value.param == param


def test_a_voice_of_ones_own() -> None:
    """OpenAI's are objects with an id."""
    assert asked(voice={"id": "voice_1"}, instructions="Slowly.").text() == "Grüße\nSlowly."


def test_sound_or_events() -> None:
    """Only among events an error can be told; sound must be cut."""
    broken = StreamBroken("no")
    assert type(asked().events("openai", None)) is Passing
    assert asked().error_event(broken) == b""
    events = asked(stream_format="sse").events("openai", None)
    assert isinstance(events, PassingEvents)
    assert asked(stream_format="sse").error_event(broken).startswith(b'data: {"error"')
    usage = {"input_tokens": 3, "output_tokens": 9, "total_tokens": 12}
    events.feed(b"data: " + orjson.dumps({"type": "speech.audio.done", "usage": usage}) + b"\n\n")
    assert events.usage == Usage(3, 9, audio_output=9, characters=5)


def test_a_document_is_no_sound() -> None:
    """Another candidate may have some."""
    with pytest.raises(NotAnAnswer, match="HTML"):
        asked().read(b"<html>", b"text/html", "openai")
