"""What a backend says it consumed: tokens by kind, read from every provider's shape into one."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from gateway.values import value

MAX_COUNT = 10**12  # more tokens than this is nonsense, and would not fit a database's integer once priced


@value
class Usage:
    """Tokens of one attempt. Every later count of tokens is a part of one of the first two, never added to it.

    `input_tokens` includes `cached_input`, `cache_write` (of which `cache_write_1h` are kept an hour, Anthropic) and
    `audio_input`. `output_tokens` includes `reasoning`, `audio_output`, `image_output` and `rejected_prediction`, which
    OpenAI bills as completion tokens although they are not in the answer. `estimated` says that it was counted from the
    text that passed because the backend did not report it.

    `images` (made), `characters` (read aloud) and `audio_ms` (milliseconds heard) are what is sold by other measures
    than tokens; they are no part of the tokens.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input: int = 0
    cache_write: int = 0
    reasoning: int = 0
    audio_input: int = 0
    audio_output: int = 0
    rejected_prediction: int = 0
    cache_write_1h: int = 0
    image_output: int = 0
    images: int = 0
    characters: int = 0
    audio_ms: int = 0
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: "Usage") -> "Usage":
        """Both consumptions together: of an attempt and of the one that continued it."""
        summed = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS}
        return Usage(**summed, estimated=self.estimated or other.estimated)

    def merge(self, later: "Usage") -> "Usage":
        """The same consumption reported twice: counts are cumulative, so the larger of each stands.

        For Anthropic's `message_start` and `message_delta`, and servers that report usage on every chunk.
        """
        larger = {name: max(getattr(self, name), getattr(later, name)) for name in _COUNTS}
        return Usage(**larger, estimated=later.estimated)


_COUNTS = tuple(field.name for field in fields(Usage) if field.name != "estimated")


def parse_usage(doc: Mapping[str, Any]) -> Usage | None:
    """Read one usage object; its field names tell whose it is. None when it is not to be trusted.

    Shapes: OpenAI's chat, completions, embeddings and responses; Anthropic's, whose `input_tokens` leaves out cached
    tokens; Gemini's `usageMetadata`; DeepSeek's `prompt_cache_hit_tokens`. Null and missing counts are 0; a negative
    count, a fraction, a boolean or a string makes the whole None.
    """
    try:
        if "prompt_tokens" in doc or "completion_tokens" in doc:
            return _chat(doc)
        if "promptTokenCount" in doc or "candidatesTokenCount" in doc:
            return _gemini(doc)
        if "input_tokens" in doc or "output_tokens" in doc:
            return _anthropic(doc) if _is_anthropic(doc) else _responses(doc)
        if doc.get("total_tokens") is not None:  # embeddings of some local servers
            return Usage(input_tokens=_count(doc, "total_tokens"))
    except _Unreadable:
        return None
    return None


def usage_of(body: Mapping[str, Any]) -> Usage | None:
    """The usage in a whole answer or in one event of a stream, wherever its format puts it; None when there is none.

    `usage` (OpenAI, Anthropic's answers and `message_delta`), `message.usage` (`message_start`), `response.usage`
    (Responses' `response.completed`), `usageMetadata` (Gemini), `x_groq.usage`.
    """
    for found in (body.get("usage"), body.get("usageMetadata")):
        if isinstance(found, Mapping):
            return parse_usage(found)
    for name in ("message", "response", "x_groq"):
        inner = body.get(name)
        if isinstance(inner, Mapping) and isinstance(found := inner.get("usage"), Mapping):
            return parse_usage(found)
    return None


_PLAIN_FIELDS = frozenset(
    ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details")
)


class _Unreadable(Exception):
    pass


def _count(doc: Mapping[str, Any], name: str) -> int:
    value = doc.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise _Unreadable(name)
    return value


def _details(doc: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = doc.get(name)
    return found if isinstance(found, Mapping) else {}


def _whole(whole: int, *parts: int) -> int:
    """Some backends report a part beside its whole; a part that cannot fit inside was, so it is added."""
    together = sum(parts)
    return whole + together if together > whole else whole


def _plain(doc: Mapping[str, Any]) -> Usage | None:
    """What most answers say: OpenAI's own fields with nothing special in them; None for all others."""
    if not doc.keys() <= _PLAIN_FIELDS:
        return None
    taken, made = doc.get("prompt_tokens"), doc.get("completion_tokens")
    if type(taken) is not int or type(made) is not int or doc.get("total_tokens") != taken + made:
        return None
    for name in ("prompt_tokens_details", "completion_tokens_details"):
        details = doc.get(name)
        if details and (type(details) is not dict or any(details.values())):
            return None
    return Usage(taken, made) if 0 <= taken <= MAX_COUNT and 0 <= made <= MAX_COUNT else None


def _chat(doc: Mapping[str, Any]) -> Usage:
    plain = _plain(doc)
    if plain is not None:
        return plain
    given = _details(doc, "prompt_tokens_details")
    made = _details(doc, "completion_tokens_details")
    hit, miss = _count(doc, "prompt_cache_hit_tokens"), _count(doc, "prompt_cache_miss_tokens")
    cached = (
        _count(given, "cached_tokens") or hit or _count(doc, "cache_read_input_tokens") or _count(doc, "cached_tokens")
    )
    written = _count(given, "cache_write_tokens") or _count(doc, "cache_creation_input_tokens")
    reasoning = _count(made, "reasoning_tokens") or _count(doc, "reasoning_tokens")
    prompt = _whole(_count(doc, "prompt_tokens") or hit + miss, cached, written)
    # xAI and Gemini's compatible endpoint leave the reasoning out of completion_tokens; only the total has it
    completion = max(_whole(_count(doc, "completion_tokens"), reasoning), _count(doc, "total_tokens") - prompt)
    return Usage(
        input_tokens=prompt,
        output_tokens=completion,
        cached_input=cached,
        cache_write=written,
        reasoning=reasoning,
        audio_input=_count(given, "audio_tokens"),
        audio_output=_count(made, "audio_tokens"),
        rejected_prediction=_count(made, "rejected_prediction_tokens"),
        cache_write_1h=min(written, _count(given, "cache_write_1h_tokens")),  # our own, for what Anthropic reports
        image_output=_count(made, "image_tokens"),
    )


def _responses(doc: Mapping[str, Any]) -> Usage:
    given = _details(doc, "input_tokens_details")
    made = _details(doc, "output_tokens_details")
    cached, written = _count(given, "cached_tokens"), _count(given, "cache_write_tokens")
    reasoning = _count(made, "reasoning_tokens")
    taken = _whole(_count(doc, "input_tokens"), cached, written)
    return Usage(
        input_tokens=taken,
        output_tokens=max(_whole(_count(doc, "output_tokens"), reasoning), _count(doc, "total_tokens") - taken),
        cached_input=cached,
        cache_write=written,
        reasoning=reasoning,
        audio_input=_count(given, "audio_tokens"),
        audio_output=_count(made, "audio_tokens"),
        image_output=_count(made, "image_tokens"),
    )


def _is_anthropic(doc: Mapping[str, Any]) -> bool:
    return "input_tokens_details" not in doc and (
        "cache_read_input_tokens" in doc or "cache_creation_input_tokens" in doc
    )


def _anthropic(doc: Mapping[str, Any]) -> Usage:
    kept = _details(doc, "cache_creation")
    hour = _count(kept, "ephemeral_1h_input_tokens")
    written = max(_count(doc, "cache_creation_input_tokens"), hour + _count(kept, "ephemeral_5m_input_tokens"))
    cached = _count(doc, "cache_read_input_tokens")
    made = _details(doc, "output_tokens_details")
    return Usage(
        input_tokens=_count(doc, "input_tokens") + cached + written,
        output_tokens=_count(doc, "output_tokens"),
        cached_input=cached,
        cache_write=written,
        reasoning=_count(made, "thinking_tokens") or _count(made, "reasoning_tokens"),
        cache_write_1h=hour,
    )


def _gemini(doc: Mapping[str, Any]) -> Usage:
    thoughts = _count(doc, "thoughtsTokenCount")
    cached = _count(doc, "cachedContentTokenCount")
    taken = _whole(_count(doc, "promptTokenCount"), cached) + _count(doc, "toolUsePromptTokenCount")
    return Usage(
        input_tokens=taken,
        output_tokens=max(_count(doc, "candidatesTokenCount") + thoughts, _count(doc, "totalTokenCount") - taken),
        cached_input=cached,
        reasoning=thoughts,
        audio_input=_modality(doc, "promptTokensDetails", "AUDIO"),
        audio_output=_modality(doc, "candidatesTokensDetails", "AUDIO"),
        image_output=_modality(doc, "candidatesTokensDetails", "IMAGE"),
    )


def _modality(doc: Mapping[str, Any], name: str, wanted: str) -> int:
    found = doc.get(name)
    rows = found if isinstance(found, Sequence) and not isinstance(found, str) else ()
    return sum(_count(row, "tokenCount") for row in rows if isinstance(row, Mapping) and row.get("modality") == wanted)
