"""`POST /v1/completions`: the older way, in which a prompt is a text and its answer what would come after it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import orjson

from gateway.errors import InvalidRequest
from gateway.formats.chat import (
    ChatAnswer,
    ChatRequest,
    boolean,
    kind_of,
    model_name,
    parse_object,
    positive,
    read_answer,
    without_repeats,
)
from gateway.formats.inputs import count_inputs, text_of_inputs
from gateway.formats.passing import check_compatible
from gateway.formats.request import Extent, NotAnAnswer
from gateway.formats.splice import replace_fields

_TELLING = tuple(
    b'"%s"' % name
    for name in (b"model", b"prompt", b"stream", b"stream_options", b"max_tokens", b"n", b"best_of", b"echo")
)


class CompletionRequest(ChatRequest):
    """`n` counts every answer that is made: `best_of`, or `n`, for each prompt."""

    __slots__ = ()
    mode: ClassVar[str] = "completion"
    operation: ClassVar[str] = "text_completion"

    @property
    def extent(self) -> Extent:
        """As many prompts as it has, and text for answers."""
        prompt = self.doc["prompt"]
        several = isinstance(prompt, list) and not isinstance(prompt[0], int)
        return Extent(prompts=len(prompt) if several else 1)

    def path(self, provider: str) -> bytes:
        """The path below the backend's base URL."""
        return b"/completions"

    def encode(
        self,
        model: str,
        *,
        provider: str = "openai",
        ask_usage: bool = True,
        max_output: int | None = None,
        output_field: str = "max_tokens",
    ) -> bytes:
        """The body for a backend; its output limit has but one name. Raises Untranslatable for another format."""
        check_compatible(b"/completions", provider)
        return ChatRequest.encode(self, model, provider=provider, ask_usage=ask_usage, max_output=max_output)

    def read(self, body: bytes, content_type: bytes, provider: str) -> "CompletionAnswer":
        """A whole answer from its bytes. Raises NotAnAnswer."""
        doc = read_answer(body)
        if type(doc.get("choices")) is not list:
            raise NotAnAnswer("an answer without `choices`")
        return CompletionAnswer(body, doc)

    def text(self) -> str:
        """All its prompts."""
        return text_of_inputs(self.doc["prompt"])

    def go_on(self, delivered: str, delivered_tokens: int) -> "CompletionRequest | None":
        """Ask for the rest of the one text: the prompt with `delivered` after it."""
        prompt = self.doc["prompt"]
        if self.n != 1 or not isinstance(prompt, str) or self.doc.get("suffix") or boolean(self.doc, "echo"):
            return None
        longer = prompt + delivered
        raw = replace_fields(self.raw, self.doc, {"prompt": orjson.dumps(longer)})
        rest = replace(self, raw=raw, doc={**self.doc, "prompt": longer})
        if self.max_output is None:
            return rest
        limit = max(1, self.max_output - delivered_tokens)
        return replace(rest, raw=rest.encode(self.model, ask_usage=False, max_output=limit), max_output=limit)


class CompletionAnswer(ChatAnswer):
    """A whole completion, passed on as it came."""

    __slots__ = ()

    @property
    def text(self) -> str:
        """All that the answer says, for counting."""
        said = [choice.get("text") for choice in self.doc["choices"] if isinstance(choice, dict)]
        return "\n".join([each for each in said if isinstance(each, str)])


def parse_completions(raw: bytes) -> CompletionRequest:
    """Read a request body, or say which field is wrong and what to write instead."""
    doc = parse_object(raw)
    model = model_name(doc)
    prompts = count_inputs(doc, "prompt")
    boolean(doc, "echo")
    options = _options(doc)
    return CompletionRequest(
        raw=without_repeats(raw, doc, _TELLING),
        doc=doc,
        model=model,
        stream=boolean(doc, "stream"),
        include_usage=bool(options and boolean(options, "include_usage", "stream_options.")),
        max_output=_limit(doc),
        n=max(positive(doc, "n") or 1, positive(doc, "best_of") or 1) * prompts,
    )


def _options(doc: Mapping[str, Any]) -> Mapping[str, Any] | None:
    options = doc.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise InvalidRequest(f"`stream_options` must be an object, not {kind_of(options)}.", param="stream_options")
    return options


def _limit(doc: Mapping[str, Any]) -> int | None:
    """The client's own limit; 0 is one too, for who asks to have only the prompt echoed."""
    return 0 if doc.get("max_tokens") == 0 and boolean(doc, "echo") else positive(doc, "max_tokens")
