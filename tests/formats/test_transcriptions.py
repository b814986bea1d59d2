"""Transcriptions and translations: the sound's length bounds them, and their answers tell tokens, seconds or neither."""

from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.formats.request import ANYTHING, NotAnAnswer
from gateway.formats.transcriptions import TranscriptionRequest, parse_transcriptions, parse_translations
from gateway.formats.usage import Usage
from tests.conformance.media_upstream import form, wav

WAV = wav(2.5)


def asked(file: bytes | None = WAV, **fields: str) -> TranscriptionRequest:
    """A request."""
    fields = {"model": "m", **fields}
    given = form(file=file, raw=None, **fields)
    return parse_transcriptions(given["body"], given["content_type"].encode())


def test_what_it_is() -> None:
    """Bounded by the length of its sound, in whole seconds."""
    request = asked(prompt="Namen")
    assert (request.mode, request.operation, request.path("openai")) == (
        "audio",
        "transcription",
        b"/audio/transcriptions",
    )
    assert request.content_type == b"multipart/form-data; boundary=edge"
    assert request.accept == ANYTHING
    assert request.text() == "Namen"
    assert (request.extent.input_bound, request.extent.beside.audio_ms) == (3 * 32 + 5, 3000)
    given = form(model="m")
    translation = parse_translations(given["body"], given["content_type"].encode())
    assert (translation.operation, translation.path("openai")) == ("translation", b"/audio/translations")


def test_the_model_changes_in_the_form() -> None:
    """And nothing else."""
    request = asked(prompt="model")
    assert request.encode("m") == request.raw
    assert request.encode("other") == request.raw.replace(b"\r\n\r\nm\r\n", b"\r\n\r\nother\r\n")


@pytest.mark.parametrize(("value", "stream"), [("true", True), ("True", True), ("false", False)])
def test_a_stream_is_asked_for_in_words(value: str, *, stream: bool) -> None:
    """As the SDKs write them."""
    assert asked(stream=value).stream is stream


def test_what_is_wrong_is_named() -> None:
    """By its field."""
    with pytest.raises(InvalidRequest, match="`stream`"):
        asked(stream="1")
    with pytest.raises(InvalidRequest, match="`response_format`"):
        asked(response_format="xml")
    with pytest.raises(InvalidRequest) as caught:
        asked(file=None)
    assert (caught.value.code, caught.value.param) == ("missing_field", "file")


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"usage": {"type": "duration", "seconds": 3}}, Usage(audio_ms=3000)),
        ({"usage": {"type": "duration", "seconds": 2.5001}}, Usage(audio_ms=2501)),
        (
            {
                "usage": {
                    "type": "tokens",
                    "input_tokens": 14,
                    "output_tokens": 45,
                    "total_tokens": 59,
                    "input_token_details": {"audio_tokens": 10, "text_tokens": 4},
                }
            },
            Usage(14, 45, audio_input=10, audio_ms=2500),
        ),
        ({"duration": 2.0}, Usage(20, 1, audio_input=20, audio_ms=2000, estimated=True)),
        ({"duration": "nonsense"}, Usage(25, 1, audio_input=25, audio_ms=2500, estimated=True)),
    ],
)
def test_what_an_answer_consumed(answer: Any, usage: Usage) -> None:
    """Tokens, seconds as it says, or seconds as the file says."""
    body = orjson.dumps({"text": "Hello", **answer})
    found = asked(response_format="verbose_json").read(body, b"application/json", "openai")
    assert (found.body, found.text) == (body, "Hello")
    assert found.usage is not None
    assert found.usage.output_tokens == pytest.approx(usage.output_tokens, abs=1)
    assert (found.usage.input_tokens, found.usage.audio_input) == (usage.input_tokens, usage.audio_input)
    assert (found.usage.audio_ms, found.usage.estimated) == (usage.audio_ms, usage.estimated)


@pytest.mark.parametrize(
    ("wanted", "text", "heard"),
    [
        ("text", "Hello\n", 2500),
        ("srt", "1\n00:00:00,000 --> 01:02:03,004\nHello\n", 3_723_004),
        ("vtt", "WEBVTT\n\n00:00.000 --> 00:01.500\nHello\n", 1500),
    ],
)
def test_a_text_is_an_answer_where_a_text_was_asked_for(wanted: str, text: str, heard: int) -> None:
    """Its captions say how long it was."""
    answer = asked(response_format=wanted).read(text.encode(), b"text/plain; charset=utf-8", "openai")
    assert (answer.body, answer.text) == (text.encode(), text)
    assert answer.usage is not None
    assert (answer.usage.audio_ms, answer.usage.estimated) == (heard, True)


@pytest.mark.parametrize(
    ("wanted", "body", "kind"),
    [
        ("json", b"Hello", b"text/plain"),
        ("json", b'{"segments":[]}', b"application/json"),
        ("text", b'{"error":{"message":"no"}}', b"application/json"),
        ("text", b"<html>", b"text/html"),
        ("srt", b"\xff", b"text/plain"),
    ],
)
def test_what_is_no_answer(wanted: str, body: bytes, kind: bytes) -> None:
    """In the format that was asked for."""
    with pytest.raises(NotAnAnswer):
        asked(response_format=wanted).read(body, kind, "openai")
