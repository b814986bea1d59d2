"""Streams that are no chat: bytes or named events pass as they came, and the usage in them is noted."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats.embeddings import parse_embeddings
from gateway.formats.passing import Passing, PassingEvents
from gateway.formats.request import Untranslatable
from gateway.formats.sse import MAX_RECORD
from gateway.formats.usage import Usage, parse_usage

EXPECTED = Usage(5, 6, estimated=True)
DELTA = b'event: a.delta\ndata: {"type":"a.delta", "n": 1e5}\n\n'
DONE = b'data: {"type":"a.done","usage":{"input_tokens":1,"output_tokens":2}}\n\n'


def usage_of(doc: Mapping[str, Any]) -> Usage | None:
    """The plain usage."""
    return parse_usage(doc["usage"]) if "usage" in doc else None


def events(answers: int = 1) -> PassingEvents:
    """An observer."""
    return PassingEvents(usage_of, EXPECTED, answers)


@given(st.lists(st.integers(1, 40)))
def test_events_pass_as_they_came_however_they_are_cut(cuts: list[int]) -> None:
    """Names, comments and `[DONE]` too; the usage replaces what was expected."""
    stream = b": hello\n\n" + DELTA * 3 + DONE + b"data: [DONE]\n\n"
    seen, out, at = events(), b"", 0
    for cut in [*cuts, len(stream)]:
        out += seen.feed(stream[at : at + cut])
        at += cut
    assert out + seen.finish() + seen.closing() == stream
    assert seen.started
    assert seen.whole
    assert seen.usage == Usage(1, 2)


def test_an_event_without_its_end_is_kept_back() -> None:
    """Until the upstream says that it has ended."""
    seen = events()
    assert seen.feed(DELTA + DONE[:-2]) == DELTA
    assert not seen.whole
    assert seen.finish() == DONE
    assert seen.whole


def test_two_pictures_are_two_final_events() -> None:
    """Their usage adds up."""
    seen = events(2)
    seen.feed(DONE)
    assert not seen.finished
    seen.feed(DONE)
    assert (seen.finished, seen.usage) == (True, Usage(2, 4))


@pytest.mark.parametrize("bad", [b"data: nonsense\n\n", b"data: []\n\n"])
def test_a_malformed_event_is_dropped_and_counted(bad: bytes) -> None:
    """It does not make a stream that goes on to its final event less whole, but one that does not."""
    seen = events()
    assert seen.feed(bad + DELTA) == DELTA
    seen.feed(b"data: [DONE]\n\n")
    assert (seen.malformed, seen.whole) == (1, False)


@pytest.mark.parametrize("error", [{"error": {"message": "no"}}, {"type": "error", "message": "no"}])
def test_an_error_in_the_stream_is_not_shown(error: Mapping[str, Any]) -> None:
    """The gateway says it in its own words; nothing after it passes."""
    seen = events()
    assert seen.feed(DELTA + b"data: " + json.dumps(error).encode() + b"\n\n" + DELTA) == DELTA
    assert (seen.error, seen.whole, seen.usage) == (error, False, EXPECTED)


def test_an_event_without_bounds_breaks_the_stream() -> None:
    """Memory has an end."""
    seen = events()
    assert seen.feed(b"data: " + b"x" * (MAX_RECORD + 1)) == b""
    assert (seen.broken, seen.whole) == (True, False)


def test_bytes_pass() -> None:
    """A stream of sound is whole when its message has ended, and was no answer if there was nothing in it."""
    sound = Passing(EXPECTED)
    assert sound.feed(b"\0\xff") == b"\0\xff"
    assert (sound.started, sound.whole) == (True, False)
    assert sound.finish() + sound.closing() == b""
    assert (sound.whole, sound.usage) == (True, EXPECTED)
    silence = Passing(EXPECTED)
    silence.finish()
    assert not silence.whole


@pytest.mark.parametrize("provider", ["openai", "openai+responses", "simulator"])
def test_only_the_model_changes_for_a_compatible_backend(provider: str) -> None:
    """In the bytes that the client sent."""
    request = parse_embeddings(b'{ "input" : ["model"], "model":"m", "x": 1.0 }')
    assert request.encode("m", provider=provider) == request.raw
    assert request.encode("other", provider=provider) == b'{ "input" : ["model"], "model":"other", "x": 1.0 }'


def test_a_backend_of_another_format_is_not_asked() -> None:
    """Another candidate may be; the message says what to do."""
    with pytest.raises(Untranslatable, match="/v1/embeddings go to OpenAI-compatible backends only"):
        parse_embeddings(b'{"input":"a","model":"m"}').encode("m", provider="anthropic")
