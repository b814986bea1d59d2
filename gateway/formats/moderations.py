"""`POST /v1/moderations`: texts and pictures in, verdicts out."""

from typing import Any, ClassVar

from gateway.errors import InvalidRequest
from gateway.formats.chat import kind_of, model_name, parse_object, without_repeats
from gateway.formats.passing import PassingRequest
from gateway.formats.request import Extent

DEFAULT_MODEL = "omni-moderation-latest"  # OpenAI's; its SDK leaves the model out
_TELLING = (b'"model"', b'"input"')


class ModerationRequest(PassingRequest):
    """One input or several, and a verdict on each."""

    __slots__ = ()
    mode: ClassVar[str] = "moderation"
    operation: ClassVar[str] = "moderation"
    endpoint: ClassVar[bytes] = b"/moderations"
    field: ClassVar[str] = "results"

    def text(self) -> str:
        """All the text of its inputs."""
        given = self.doc["input"]
        parts = [given] if isinstance(given, str) else given
        return "\n".join([part if isinstance(part, str) else str(part.get("text") or "") for part in parts])


def parse_moderations(raw: bytes) -> ModerationRequest:
    """Read a request body, or say which field is wrong and what to write instead."""
    doc = parse_object(raw)
    model = model_name(doc) if doc.get("model") is not None else DEFAULT_MODEL
    given = doc.get("input")
    if given is None:
        raise InvalidRequest(
            "`input` is missing; send a text, a list of texts, or parts.", code="missing_field", param="input"
        )
    if not isinstance(given, str) and not _are_alike(given):
        what = "an empty list" if given == [] else kind_of(given)
        raise InvalidRequest(
            f"`input` must be a text, a list of texts, or a list of parts with a `type`, not {what}.", param="input"
        )
    if doc.get("model") is None:
        doc = {name: value for name, value in doc.items() if name != "model"}
    prompts = len(given) if isinstance(given, list) else 1
    return ModerationRequest(without_repeats(raw, doc, _TELLING), doc, model, Extent(prompts=prompts, writes=False))


def _are_alike(given: Any) -> bool:
    if not isinstance(given, list) or not given:
        return False
    kinds = set(map(type, given))
    return kinds == {str} or (kinds == {dict} and all(isinstance(part.get("type"), str) for part in given))
