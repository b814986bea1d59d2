"""A request to `/v1/responses`: passed on in its bytes to backends that have it, translated to chat for all others."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import orjson

from gateway.errors import GatewayError, InvalidRequest
from gateway.formats.chat import boolean, kind_of, model_name, parse_object, positive, read_answer, without_repeats
from gateway.formats.continuation import Continuation
from gateway.formats.request import EVENTS, RESPONSES, TEXT, Events, Extent, NotAnAnswer
from gateway.formats.responses_chat import ending, output_of, response_id, response_of, to_chat
from gateway.formats.responses_stream import NativeResponses, TranslatedResponses
from gateway.formats.rewritten import chat_body, first_choice
from gateway.formats.splice import with_model
from gateway.formats.sse import event
from gateway.formats.tokens import estimate
from gateway.formats.usage import Usage, usage_of

_TELLING = tuple(
    b'"%s"' % name
    for name in (
        b"model",
        b"input",
        b"instructions",
        b"stream",
        b"max_output_tokens",
        b"background",
        b"previous_response_id",
    )
)
_STARTS = ("input", "previous_response_id", "conversation", "prompt")
_CUT = {"max_output_tokens": "length", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """`POST /v1/responses`, parsed once.

    `follows` is the id of the response that it goes on from, which only the backend that made it knows. `translated`
    says that it goes as chat to every backend: the rest of an answer does.
    """

    raw: bytes
    doc: Mapping[str, Any]
    model: str
    stream: bool
    max_output: int | None
    follows: str | None
    translated: bool = False

    n: ClassVar[int] = 1
    mode: ClassVar[str] = "chat"
    operation: ClassVar[str] = "chat"
    content_type: ClassVar[bytes] = b"application/json"
    accept: ClassVar[bytes] = EVENTS
    extent: ClassVar[Extent] = TEXT

    def path(self, provider: str) -> bytes:
        """The path below the backend's base URL."""
        return b"/responses" if self.is_native(provider) else b"/chat/completions"

    def encode(
        self, model: str, *, provider: str = "openai", max_output: int | None = None, output_field: str = "max_tokens"
    ) -> bytes:
        """The body for a backend. Raises Untranslatable for what chat cannot say."""
        if self.is_native(provider):
            return self._native_body(model, max_output)
        limit = self.max_output if max_output is None else max_output
        return chat_body(
            to_chat(self.doc), model, provider=provider, limit=limit, output_field=output_field, stream=self.stream
        )

    def read(self, body: bytes, content_type: bytes, provider: str) -> "ResponsesAnswer":
        """A whole answer from its bytes. Raises NotAnAnswer."""
        doc = read_answer(body)
        if self.is_native(provider):
            if type(doc.get("output")) is not list:
                raise NotAnAnswer("an answer without `output`")
            return ResponsesAnswer(body, doc, usage_of(doc))
        choice, usage = first_choice(doc), usage_of(doc)
        shown = self._response(doc, choice, usage)
        return ResponsesAnswer(orjson.dumps(shown), shown, usage)

    def events(self, provider: str, continues: Continuation | None) -> Events:
        """The observer of one upstream stream."""
        if self.is_native(provider):
            return NativeResponses()
        return TranslatedResponses(self.doc, asked=lambda: estimate(self.text()), continues=continues)

    def error_event(self, error: GatewayError) -> bytes:
        """The one event that ends a stream which cannot be finished."""
        said = {"code": error.code, "message": error.message, "param": error.param, "sequence_number": 0}
        return event(b"error", orjson.dumps({"type": "error", **said, **error.to_openai()}))

    def error_body(self, error: GatewayError) -> bytes:
        """The body of an error."""
        return orjson.dumps(error.to_openai())

    def text(self) -> str:
        """All the text that it sends, for counting."""
        return "\n".join(_texts(self.doc))

    def go_on(self, delivered: str, delivered_tokens: int) -> "ResponsesRequest | None":
        """Ask for the rest in chat's words: `delivered` as the last message, the output limit lowered by its tokens."""
        given = self.doc.get("input")
        items = [{"role": "user", "content": given}] if isinstance(given, str) else list(given or ())
        items.append({"role": "assistant", "content": delivered.rstrip()})
        limit = None if self.max_output is None else max(1, self.max_output - delivered_tokens)
        doc = {**self.doc, "input": items, "max_output_tokens": limit}
        return replace(self, raw=orjson.dumps(doc), doc=doc, max_output=limit, translated=True)

    def is_native(self, provider: str) -> bool:
        """Whether a backend that speaks this gets it as it is."""
        return provider.endswith(RESPONSES) and not self.translated

    def _native_body(self, model: str, max_output: int | None) -> bytes:
        changes: dict[str, bytes] = {}
        if max_output is not None and max_output != self.max_output:
            changes["max_output_tokens"] = b"%d" % max_output
        return with_model(self.raw, self.doc, model, changes)

    def _response(self, doc: Mapping[str, Any], choice: Mapping[str, Any], usage: Usage | None) -> dict[str, Any]:
        said = choice.get("message")
        said = said if isinstance(said, dict) else {}
        if usage is None:
            made = estimate(orjson.dumps(said).decode())
            usage = Usage(input_tokens=estimate(self.text()), output_tokens=made, estimated=True)
        status, cut = ending(choice.get("finish_reason"))
        made_id = response_id(str(doc.get("id") or ""))
        created = doc.get("created")
        return response_of(
            self.doc,
            response_id=made_id,
            model=str(doc.get("model") or ""),
            created=created if type(created) is int else 0,
            output=output_of(said, made_id.removeprefix("resp_")),
            status=status,
            cut=cut,
            usage=usage,
        )


@dataclass(frozen=True, slots=True)
class ResponsesAnswer:
    """A whole response; `doc` is what `body` parses to."""

    body: bytes
    doc: Mapping[str, Any]
    usage: Usage | None

    @property
    def text(self) -> str:
        """All that it says, for counting."""
        return "\n".join(text for item in self.doc["output"] for text in _item_texts(item))

    @property
    def response_id(self) -> str:
        """The backend's id of it."""
        return str(self.doc.get("id") or "")

    @property
    def response_model(self) -> str:
        """The model that the backend says has answered."""
        return str(self.doc.get("model") or "")

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Why it ended, in chat's words."""
        details = self.doc.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        return (_CUT.get(str(reason), "stop"),)


def parse_responses(raw: bytes) -> ResponsesRequest:
    """Read a request body, or say which field is wrong and what to write instead."""
    doc = parse_object(raw)
    model = model_name(doc)
    _check_input(doc)
    _check_types(doc)
    if boolean(doc, "background"):
        raise InvalidRequest(
            "`background` is not possible through this gateway, since what a response costs must be known when it is "
            "answered; leave it out, or stream.",
            param="background",
        )
    return ResponsesRequest(
        raw=without_repeats(raw, doc, _TELLING),
        doc=doc,
        model=model,
        stream=boolean(doc, "stream"),
        max_output=positive(doc, "max_output_tokens"),
        follows=doc.get("previous_response_id"),
    )


def _check_input(doc: Mapping[str, Any]) -> None:
    given = doc.get("input")
    if given is None:
        if not any(doc.get(name) for name in _STARTS):
            raise InvalidRequest(
                "`input` is missing; send a string or a list of items.", code="missing_field", param="input"
            )
        return
    if isinstance(given, str):
        return
    if not isinstance(given, list):
        raise InvalidRequest(f"`input` must be a string or a list of items, not {kind_of(given)}.", param="input")
    for place, item in enumerate(given):
        if not isinstance(item, dict):
            where = f"input[{place}]"
            raise InvalidRequest(
                f'`{where}` must be an item such as {{"role": "user", "content": "…"}}, not {kind_of(item)}.',
                param=where,
            )


def _check_types(doc: Mapping[str, Any]) -> None:
    for name in ("instructions", "previous_response_id"):
        if doc.get(name) is not None and not isinstance(doc[name], str):
            raise InvalidRequest(f"`{name}` must be a string, not {kind_of(doc[name])}.", param=name)
    for name in ("text", "reasoning", "metadata"):
        if doc.get(name) is not None and not isinstance(doc[name], dict):
            raise InvalidRequest(f"`{name}` must be an object, not {kind_of(doc[name])}.", param=name)
    tools = doc.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise InvalidRequest("`tools` must be a list of objects.", param="tools")


def _texts(doc: Mapping[str, Any]) -> Iterator[str]:
    for name in ("instructions", "input"):
        value = doc.get(name)
        if isinstance(value, str):
            yield value
        for item in value if isinstance(value, list) else ():
            yield from _item_texts(item)
    if doc.get("tools"):
        yield orjson.dumps(doc["tools"]).decode()


def _item_texts(item: Any) -> Iterator[str]:
    """The text in one item: said, called with, or told by a function."""
    if not isinstance(item, dict):
        return
    for name in ("content", "output", "summary"):
        value = item.get(name)
        if isinstance(value, str):
            yield value
        for part in value if isinstance(value, list) else ():
            text = part.get("text", part.get("refusal")) if isinstance(part, dict) else None
            if isinstance(text, str):
                yield text
    if isinstance(item.get("arguments"), str):
        yield f"{item.get('name')} {item['arguments']}"
