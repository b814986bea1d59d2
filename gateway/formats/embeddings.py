"""`POST /v1/embeddings`: texts or token ids in, vectors out; the vectors pass unread."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from gateway.formats.chat import model_name, parse_object, read_answer, without_repeats
from gateway.formats.chat_stream import read_json
from gateway.formats.inputs import count_inputs, text_of_inputs
from gateway.formats.passing import PassingAnswer, PassingRequest
from gateway.formats.request import Extent, NotAnAnswer

_TELLING = (b'"model"', b'"input"')
_SMALL = 64 * 1024  # bytes of an answer that is read whole
_DATA = re.compile(rb'"data"\s*:\s*\[')


class EmbeddingsRequest(PassingRequest):
    """One input or several, and a vector for each."""

    __slots__ = ()
    mode: ClassVar[str] = "embedding"
    operation: ClassVar[str] = "embeddings"
    endpoint: ClassVar[bytes] = b"/embeddings"
    field: ClassVar[str] = "data"

    def text(self) -> str:
        """All its inputs."""
        return text_of_inputs(self.doc["input"])

    def read(self, body: bytes, content_type: bytes, provider: str) -> PassingAnswer:
        """A whole answer from its bytes; millions of numbers are not read only to be passed on. Raises NotAnAnswer."""
        doc = _without_vectors(body) if len(body) > _SMALL else None
        if doc is None:
            doc = read_answer(body)
        if type(doc.get("data")) is not list:
            raise NotAnAnswer("an answer without `data`")
        return PassingAnswer.of(body, doc, self.usage_of(doc) or self.expected())


def _without_vectors(body: bytes) -> Mapping[str, Any] | None:
    """What stands around the list of vectors; None where that cannot be told from what is in it."""
    found = _DATA.search(body)
    end = body.rfind(b"]")
    if found is None or end < found.end():
        return None
    try:
        doc = read_json(body[: found.end()] + body[end:])
    except ValueError:
        return None
    return doc if isinstance(doc, dict) and doc.get("data") == [] else None


def parse_embeddings(raw: bytes) -> EmbeddingsRequest:
    """Read a request body, or say which field is wrong and what to write instead."""
    doc = parse_object(raw)
    model = model_name(doc)
    prompts = count_inputs(doc, "input")
    return EmbeddingsRequest(without_repeats(raw, doc, _TELLING), doc, model, Extent(prompts=prompts, writes=False))
