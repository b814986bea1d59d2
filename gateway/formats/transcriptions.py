"""`POST /v1/audio/transcriptions` and `/translations`: a form with a sound file in, text out."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, ClassVar, TypeVar

from gateway.errors import InvalidRequest
from gateway.formats.chat import model_name, read_answer
from gateway.formats.multipart import Form, parse_form
from gateway.formats.passing import PassingAnswer, PassingRequest, check_compatible
from gateway.formats.request import ANYTHING, Extent, NotAnAnswer
from gateway.formats.sound import length_ms
from gateway.formats.tokens import estimate
from gateway.formats.usage import MAX_COUNT, Usage, parse_usage

_HEARD = 10  # tokens of a second of sound at OpenAI; at most, anywhere (Gemini):
_HEARD_MOST = 32
_SPOKEN_MOST = 10  # tokens of text that a second of speech makes at most
_FORMATS = {"json": True, "verbose_json": True, "diarized_json": True, "text": False, "srt": False, "vtt": False}
_CAPTION = re.compile(r"--> (?:(\d+):)?(\d\d):(\d\d)[.,](\d{3})")


@dataclass(frozen=True, slots=True)
class _Upload(PassingRequest):
    """A form whose `model` alone is changed. `heard_ms` is about how long its sound is."""

    form: Form | None = None
    form_type: bytes = b""
    heard_ms: int = 0

    mode: ClassVar[str] = "audio"

    @property
    def content_type(self) -> bytes:
        """As the client named it, with its boundary."""
        return self.form_type

    @property
    def accept(self) -> bytes:
        """A model that cannot stream answers whole although a stream was asked for."""
        return ANYTHING

    def encode(
        self, model: str, *, provider: str = "openai", max_output: int | None = None, output_field: str = "max_tokens"
    ) -> bytes:
        """The form with `model` as the backend calls it. Raises Untranslatable for a backend of another format."""
        check_compatible(self.endpoint, provider)
        return self.raw if self.form is None or model == self.model else self.form.replaced("model", model.encode())

    def read(self, body: bytes, content_type: bytes, provider: str) -> PassingAnswer:
        """A whole answer from its bytes: JSON, or the text itself. Raises NotAnAnswer."""
        if not _FORMATS[str(self.doc.get("response_format") or "json")] and b"json" not in content_type:
            return self._read_text(body, content_type)
        doc = read_answer(body)
        text = doc.get("text")
        if not isinstance(text, str):
            raise NotAnAnswer("an answer without `text`")
        usage = self.usage_of(doc)
        if usage is None:
            usage = self._estimated(text, _duration_ms(doc.get("duration")) or self.heard_ms)
        return PassingAnswer.of(body, doc, usage, text)

    def usage_of(self, doc: Mapping[str, Any]) -> Usage | None:
        """Tokens, or the seconds that it heard."""
        given = doc.get("usage")
        if not isinstance(given, Mapping):
            return None
        heard = _duration_ms(given.get("seconds"))
        if heard is not None:
            return Usage(audio_ms=heard)
        usage = parse_usage({**given, "input_tokens_details": given.get("input_token_details")})
        return None if usage is None else replace(usage, audio_ms=self.heard_ms)

    def expected(self) -> Usage:
        """Before a word of it is known."""
        return self._estimated("", self.heard_ms)

    def text(self) -> str:
        """The prompt that says how to write it."""
        return str(self.doc.get("prompt") or "")

    def _read_text(self, body: bytes, content_type: bytes) -> PassingAnswer:
        try:
            text = body.decode()
        except UnicodeDecodeError:
            raise NotAnAnswer("a text that is not UTF-8") from None
        if b"html" in content_type:
            raise NotAnAnswer("a web page instead of a transcription")
        return PassingAnswer(body, self._estimated(text, _captioned_ms(text) or self.heard_ms), text)

    def _estimated(self, text: str, heard_ms: int) -> Usage:
        sound = -(-heard_ms * _HEARD // 1000)
        asked = sound + estimate(self.text())
        return Usage(asked, estimate(text), audio_input=sound, audio_ms=heard_ms, estimated=True)


class TranscriptionRequest(_Upload):
    """What is said, in its own language."""

    __slots__ = ()
    operation: ClassVar[str] = "transcription"
    endpoint: ClassVar[bytes] = b"/audio/transcriptions"


class TranslationRequest(_Upload):
    """What is said, in English."""

    __slots__ = ()
    operation: ClassVar[str] = "translation"
    endpoint: ClassVar[bytes] = b"/audio/translations"


R = TypeVar("R", bound=_Upload)


def parse_transcriptions(raw: bytes, content_type: bytes) -> TranscriptionRequest:
    """Read a form, or say what is wrong with it."""
    return _parse(TranscriptionRequest, raw, content_type)


def parse_translations(raw: bytes, content_type: bytes) -> TranslationRequest:
    """Read a form, or say what is wrong with it."""
    return _parse(TranslationRequest, raw, content_type)


def _parse(kind: Callable[..., R], raw: bytes, content_type: bytes) -> R:
    form = parse_form(raw, content_type)
    model = model_name(form.fields)
    sound = form.file("file")
    if sound is None:
        raise InvalidRequest(
            "`file` is missing; send the sound as a file, with its file name.", code="missing_field", param="file"
        )
    wanted = form.fields.get("response_format", "json")
    if wanted not in _FORMATS:
        raise InvalidRequest(f"`response_format` must be one of {', '.join(_FORMATS)}.", param="response_format")
    about, most = length_ms(sound)
    heard = -(-most * _HEARD_MOST // 1000)
    prompt = form.fields.get("prompt")
    return kind(
        raw,
        form.fields,
        model,
        Extent(
            writes=False,
            input_bound=heard + (len(prompt.encode()) if isinstance(prompt, str) else 0),
            beside=Usage(audio_ms=most, audio_input=heard),
        ),
        stream=_flag(form.fields, "stream"),
        max_output=-(-most * _SPOKEN_MOST // 1000) + 100,
        form=form,
        form_type=content_type,
        heard_ms=about,
    )


def _flag(fields: Mapping[str, str | list[str]], name: str) -> bool:
    value = str(fields.get(name, "false")).lower()
    if value not in ("true", "false"):
        raise InvalidRequest(f"`{name}` must be true or false.", param=name)
    return value == "true"


def _duration_ms(seconds: object) -> int | None:
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 <= seconds < MAX_COUNT // 1000:
        return None
    return ceil(seconds * 1000)


def _captioned_ms(text: str) -> int:
    """When the last caption ends, in milliseconds; 0 for a text that has none."""
    found = _CAPTION.findall(text)
    if not found:
        return 0
    hours, minutes, seconds, milliseconds = (int(each or 0) for each in found[-1])
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + milliseconds
