"""`POST /v1/audio/speech`: a text in, sound out, passed on as it is made."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from gateway.errors import GatewayError, InvalidRequest
from gateway.formats.chat import kind_of, model_name, parse_object, without_repeats
from gateway.formats.continuation import Continuation
from gateway.formats.passing import Passing, PassingAnswer, PassingEvents, PassingRequest
from gateway.formats.request import ANYTHING, Extent, NotAnAnswer
from gateway.formats.tokens import estimate
from gateway.formats.usage import Usage, parse_usage

_TELLING = (b'"model"', b'"input"', b'"instructions"', b'"stream_format"')
_MOST = 5  # tokens of sound that a character may take, read very slowly; and so many for a pause around it all:
_PAUSE = 200
_USUAL = 1.4  # tokens that it takes: about 15 characters and 21 tokens a second (OpenAI's price by the second)


class SpeechRequest(PassingRequest):
    """One text read aloud. Its answer is always a stream, since sound is long, and may be of events (`sse`)."""

    __slots__ = ()
    mode: ClassVar[str] = "audio"
    operation: ClassVar[str] = "speech"
    endpoint: ClassVar[bytes] = b"/audio/speech"

    @property
    def accept(self) -> bytes:
        """Sound of any kind, or events."""
        return ANYTHING

    @property
    def _in_events(self) -> bool:
        return self.doc.get("stream_format") == "sse"

    def read(self, body: bytes, content_type: bytes, provider: str) -> PassingAnswer:
        """A document is no sound. Raises NotAnAnswer."""
        kind = "JSON" if b"json" in content_type else "HTML" if b"html" in content_type else "a document"
        raise NotAnAnswer(f"{kind} instead of sound")

    def usage_of(self, doc: Mapping[str, Any]) -> Usage | None:
        """What the final event says."""
        given = doc.get("usage")
        usage = parse_usage(given) if isinstance(given, Mapping) else None
        if usage is None:
            return None
        return replace(usage, audio_output=usage.output_tokens, characters=len(self.doc["input"]))

    def expected(self) -> Usage:
        """Characters are known, tokens are guessed from them."""
        text = self.doc["input"]
        made = int(_USUAL * len(text)) + 1
        return Usage(estimate(self.text()), made, audio_output=made, characters=len(text), estimated=True)

    def events(self, provider: str, continues: Continuation | None) -> Passing:
        """The observer of one upstream stream."""
        return PassingEvents(self.usage_of, self.expected()) if self._in_events else Passing(self.expected())

    def error_event(self, error: GatewayError) -> bytes:
        """Nothing can be said in the middle of a sound: it must be cut."""
        return PassingRequest.error_event(self, error) if self._in_events else b""

    def text(self) -> str:
        """What is read, and how."""
        how = self.doc.get("instructions")
        return f"{self.doc['input']}\n{how}" if how else str(self.doc["input"])


def parse_speech(raw: bytes) -> SpeechRequest:
    """Read a request body, or say which field is wrong and what to write instead."""
    doc = parse_object(raw)
    model = model_name(doc)
    text = doc.get("input")
    if text is None:
        raise InvalidRequest("`input` is missing; send the text to read.", code="missing_field", param="input")
    if not isinstance(text, str):
        raise InvalidRequest(f"`input` must be a text, not {kind_of(text)}.", param="input")
    voice = doc.get("voice")
    if voice is None:
        raise InvalidRequest("`voice` is missing; name one, such as `alloy`.", code="missing_field", param="voice")
    if not isinstance(voice, (str, dict)):
        raise InvalidRequest(f"`voice` must be a name, not {kind_of(voice)}.", param="voice")
    most = _MOST * len(text) + _PAUSE
    return SpeechRequest(
        without_repeats(raw, doc, _TELLING),
        doc,
        model,
        Extent(writes=False, beside=Usage(characters=len(text), audio_output=most)),
        stream=True,
        max_output=most,
    )
