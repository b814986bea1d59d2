"""`POST /v1/images/generations`: a description in, pictures out, sold by the token or by the picture."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from gateway.errors import InvalidRequest
from gateway.formats.chat import boolean, kind_of, model_name, parse_object, positive, read_answer, without_repeats
from gateway.formats.passing import PassingAnswer, PassingRequest
from gateway.formats.request import Extent, NotAnAnswer
from gateway.formats.tokens import estimate
from gateway.formats.usage import Usage, parse_usage

_TELLING = (b'"model"', b'"prompt"', b'"n"', b'"size"', b'"quality"', b'"stream"', b'"partial_images"')
_TOKENS = {
    "low": 408,
    "medium": 1584,
    "high": 6240,
}  # of a picture of gpt-image-1, at its dearest shape (OpenAI's guide)
_PIXELS = 1024 * 1536  # of that shape
_PARTIAL = 100  # tokens for each partial picture of a stream
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


class ImageRequest(PassingRequest):
    """One description, and `n` pictures. `max_output` are the tokens that one may have at most."""

    __slots__ = ()
    mode: ClassVar[str] = "image"
    operation: ClassVar[str] = "image_generation"
    endpoint: ClassVar[bytes] = b"/images/generations"

    def text(self) -> str:
        """The description."""
        return str(self.doc["prompt"])

    def read(self, body: bytes, content_type: bytes, provider: str) -> PassingAnswer:
        """A whole answer from its bytes. Raises NotAnAnswer."""
        doc = read_answer(body)
        pictures = doc.get("data")
        if type(pictures) is not list:
            raise NotAnAnswer("an answer without `data`")
        told = self.usage_of(doc)
        usage = told if told is not None else self._drawn(len(pictures))
        return PassingAnswer.of(body, doc, replace(usage, images=len(pictures)))

    def usage_of(self, doc: Mapping[str, Any]) -> Usage | None:
        """What an answer or a final event says; its tokens are of pictures unless it says that some are text."""
        given = doc.get("usage")
        usage = parse_usage(given) if isinstance(given, Mapping) else None
        if usage is None:
            return None
        drawn = usage.image_output or usage.output_tokens
        return replace(usage, image_output=drawn, images=1)

    def expected(self) -> Usage:
        """All that was asked for."""
        return self._drawn(self.n)

    def _drawn(self, pictures: int) -> Usage:
        tokens = (self.max_output or 0) * pictures
        return Usage(estimate(self.text()), tokens, image_output=tokens, images=pictures, estimated=True)


def parse_images(raw: bytes) -> ImageRequest:
    """Read a request body, or say which field is wrong and what to write instead."""
    doc = parse_object(raw)
    model = model_name(doc)
    prompt = doc.get("prompt")
    if prompt is None:
        raise InvalidRequest("`prompt` is missing; describe the picture.", code="missing_field", param="prompt")
    if not isinstance(prompt, str):
        raise InvalidRequest(f"`prompt` must be a text, not {kind_of(prompt)}.", param="prompt")
    for name in ("size", "quality"):
        if doc.get(name) is not None and not isinstance(doc[name], str):
            raise InvalidRequest(f"`{name}` must be a string, not {kind_of(doc[name])}.", param=name)
    n = positive(doc, "n") or 1
    tokens = _most_tokens(doc)
    beside = Usage(images=n, image_output=n * tokens)
    return ImageRequest(
        without_repeats(raw, doc, _TELLING),
        doc,
        model,
        Extent(writes=False, beside=beside),
        stream=boolean(doc, "stream"),
        max_output=tokens,
        n=n,
    )


def _most_tokens(doc: Mapping[str, Any]) -> int:
    """The most tokens of one picture: by its quality, in proportion to its pixels where it is larger than usual."""
    tokens = _TOKENS.get(doc.get("quality") or "", _TOKENS["high"])
    found = _SIZE.fullmatch(doc.get("size") or "")
    if found is not None:
        tokens = max(tokens, -(-tokens * int(found[1]) * int(found[2]) // _PIXELS))
    partial = doc.get("partial_images")
    return tokens + (_PARTIAL * partial if type(partial) is int and 0 < partial < 100 else 0)
