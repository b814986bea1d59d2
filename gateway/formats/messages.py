"""A request to Anthropic's `/v1/messages`: passed on in its bytes to who speaks it, translated to chat for others."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import orjson

from gateway.errors import GatewayError, InvalidRequest
from gateway.formats.chat import boolean, kind_of, model_name, parse_object, positive, read_answer, without_repeats
from gateway.formats.continuation import Continuation
from gateway.formats.messages_chat import message_of, to_chat
from gateway.formats.messages_stream import NativeMessages, TranslatedMessages
from gateway.formats.request import EVENTS, TEXT, Events, Extent, NotAnAnswer
from gateway.formats.rewritten import chat_body, first_choice
from gateway.formats.splice import with_model
from gateway.formats.sse import event
from gateway.formats.tokens import estimate, image_size, image_tokens
from gateway.formats.usage import Usage, usage_of

NATIVE = "anthropic"
_TELLING = tuple(b'"%s"' % name for name in (b"model", b"messages", b"system", b"stream", b"max_tokens"))
_LEAST_THINKING = 1024  # tokens; a smaller `budget_tokens` is refused
_UNSIGNED = (b'"signature":""', b'"signature": ""')
_IMAGE_HEAD = 128 * 1024  # characters of base64 in which a picture's size is looked for
_PER_MESSAGE = 4  # tokens that the marks around a message come to


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    """`POST /v1/messages`, parsed once.

    `translated` says that it goes as chat even to a backend that speaks this format: the rest of an answer does, since
    that is asked for in chat's words.
    """

    raw: bytes
    doc: Mapping[str, Any]
    model: str
    stream: bool
    max_output: int | None
    translated: bool = False

    n: ClassVar[int] = 1
    mode: ClassVar[str] = "chat"
    operation: ClassVar[str] = "chat"
    content_type: ClassVar[bytes] = b"application/json"
    accept: ClassVar[bytes] = EVENTS
    extent: ClassVar[Extent] = TEXT

    def path(self, provider: str) -> bytes:
        """The path below the backend's base URL."""
        return b"/v1/messages" if self._is_native(provider) else b"/chat/completions"

    def encode(
        self, model: str, *, provider: str = "openai", max_output: int | None = None, output_field: str = "max_tokens"
    ) -> bytes:
        """The body for a backend. Raises Untranslatable for what chat cannot say."""
        if self._is_native(provider):
            return self._native_body(model, max_output)
        limit = self.max_output if max_output is None else max_output
        return chat_body(
            to_chat(self.doc), model, provider=provider, limit=limit, output_field=output_field, stream=self.stream
        )

    def read(self, body: bytes, content_type: bytes, provider: str) -> "MessagesAnswer":
        """A whole answer from its bytes. Raises NotAnAnswer."""
        doc = read_answer(body)
        if self._is_native(provider):
            if type(doc.get("content")) is not list:
                raise NotAnAnswer("an answer without `content`")
            return MessagesAnswer(body, doc, usage_of(doc))
        choice, usage = first_choice(doc), usage_of(doc)
        message = message_of(doc, usage or self._estimated(choice), self.stops, thinks=self.thinks)
        return MessagesAnswer(orjson.dumps(message), message, usage)

    def events(self, provider: str, continues: Continuation | None) -> Events:
        """The observer of one upstream stream."""
        if self._is_native(provider):
            return NativeMessages()
        return TranslatedMessages(
            stops=self.stops, thinks=self.thinks, asked=lambda: estimate(self.text()), continues=continues
        )

    def error_event(self, error: GatewayError) -> bytes:
        """The one event that ends a stream which cannot be finished."""
        return event(b"error", orjson.dumps({"type": "error", **error.to_openai()}))

    def error_body(self, error: GatewayError) -> bytes:
        """The body of an error."""
        return error_body(error.to_openai(), None)

    def text(self) -> str:
        """All the text that it sends, for counting."""
        return "\n".join(_texts(self.doc))

    def go_on(self, delivered: str, delivered_tokens: int) -> "MessagesRequest | None":
        """Ask for the rest in chat's words: `delivered` as the last message, the output limit lowered by its tokens."""
        messages = [*self.doc["messages"], {"role": "assistant", "content": delivered.rstrip()}]
        limit = None if self.max_output is None else max(1, self.max_output - delivered_tokens)
        doc = {**self.doc, "messages": messages, "max_tokens": limit}
        return replace(self, raw=orjson.dumps(doc), doc=doc, max_output=limit, translated=True)

    @property
    def stops(self) -> tuple[str, ...]:
        """Its stop sequences."""
        return tuple(self.doc.get("stop_sequences") or ())

    @property
    def thinks(self) -> bool:
        """Whether the client wants to see the model's reasoning."""
        thinking = self.doc.get("thinking")
        return isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive")

    def _is_native(self, provider: str) -> bool:
        return provider == NATIVE and not self.translated

    def _native_body(self, model: str, max_output: int | None) -> bytes:
        changes: dict[str, bytes] = {}
        if max_output is not None and max_output != self.max_output:
            changes["max_tokens"] = b"%d" % max_output
            changes.update(self._less_thinking(max_output))
        if any(mark in self.raw for mark in _UNSIGNED):
            changes["messages"] = orjson.dumps([_without_unsigned(message) for message in self.doc["messages"]])
        return with_model(self.raw, self.doc, model, changes)

    def _less_thinking(self, max_output: int) -> dict[str, bytes]:
        """The thinking must be less than the whole output."""
        thinking = self.doc.get("thinking")
        budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
        if type(budget) is not int or budget < max_output:
            return {}
        if max_output <= _LEAST_THINKING:
            return {"thinking": b'{"type":"disabled"}'}
        return {"thinking": orjson.dumps({**self.doc["thinking"], "budget_tokens": max_output - 1})}

    def _estimated(self, choice: Mapping[str, Any]) -> Usage:
        message = choice.get("message")
        said = orjson.dumps(message).decode() if message else ""
        return Usage(input_tokens=estimate(self.text()), output_tokens=estimate(said), estimated=True)


@dataclass(frozen=True, slots=True)
class CountRequest(MessagesRequest):
    """`POST /v1/messages/count_tokens`."""

    def path(self, provider: str) -> bytes:
        """The path below the backend's base URL."""
        return b"/v1/messages/count_tokens"

    def read(self, body: bytes, content_type: bytes, provider: str) -> "MessagesAnswer":
        """The count, passed on as it came. Raises NotAnAnswer."""
        doc = read_answer(body)
        if type(doc.get("input_tokens")) is not int:
            raise NotAnAnswer("an answer without `input_tokens`")
        return MessagesAnswer(body, {"content": []}, None)

    def count(self, model: str) -> int:
        """About how many input tokens it has, pictures included."""
        pictures = sum(
            image_tokens(image_size(data[:_IMAGE_HEAD]) if data else None, model) for data in _pictures(self.doc)
        )
        return estimate(self.text()) + _PER_MESSAGE * len(self.doc["messages"]) + pictures


@dataclass(frozen=True, slots=True)
class MessagesAnswer:
    """A whole message in Anthropic's format; `doc` is what `body` parses to."""

    body: bytes
    doc: Mapping[str, Any]
    usage: Usage | None

    @property
    def text(self) -> str:
        """All that it says, for counting."""
        return "\n".join(text for block in self.doc["content"] for text in _block_texts(block))

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
        """Why it ended."""
        reason = self.doc.get("stop_reason")
        return (reason,) if isinstance(reason, str) else ()


R = TypeVar("R", bound=MessagesRequest)


def parse_messages(raw: bytes) -> MessagesRequest:
    """Read a request body, or say which field is wrong and what to write instead."""
    return _parsed(raw, MessagesRequest)


def parse_count(raw: bytes) -> CountRequest:
    """The same for `/v1/messages/count_tokens`, which needs no `max_tokens`."""
    return _parsed(raw, CountRequest)


def error_body(doc: Mapping[str, Any], request_id: str | None) -> bytes:
    """An error `{"error": {…}}` so that it is one in Anthropic's shape as well."""
    more = {} if request_id is None else {"request_id": request_id}
    return orjson.dumps({"type": "error", "error": doc["error"], **more})


def _parsed(raw: bytes, kind: type[R]) -> R:
    doc = parse_object(raw)
    model = model_name(doc)
    limit = positive(doc, "max_tokens")
    counting = kind is CountRequest
    if limit is None and not counting:
        raise InvalidRequest(
            "`max_tokens` is missing; say how many tokens the answer may have at most.",
            code="missing_field",
            param="max_tokens",
        )
    _check_messages(doc)
    _check_types(doc)
    return kind(
        raw=without_repeats(raw, doc, _TELLING),
        doc=doc,
        model=model,
        stream=boolean(doc, "stream") and not counting,
        max_output=limit,
    )


def _check_messages(doc: Mapping[str, Any]) -> None:
    messages = doc.get("messages")
    if messages is None:
        raise InvalidRequest("`messages` is missing; send a list of messages.", code="missing_field", param="messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("`messages` must be a list with at least one message.", param="messages")
    for position, message in enumerate(messages):
        where = f"messages[{position}]"
        if not isinstance(message, dict):
            raise InvalidRequest(
                f'`{where}` must be an object such as {{"role": "user", "content": "…"}}, not {kind_of(message)}.',
                param=where,
            )
        if not isinstance(message.get("role"), str):
            code = "invalid_value" if message.get("role") is not None else "missing_field"
            raise InvalidRequest(f"`{where}.role` must be `user` or `assistant`.", code=code, param=f"{where}.role")
        _check_content(message.get("content"), f"{where}.content")


def _check_content(content: object, where: str) -> None:
    if isinstance(content, str):
        return
    if content is None:
        raise InvalidRequest(f"`{where}` is missing; send a string or blocks.", code="missing_field", param=where)
    if not isinstance(content, list):
        raise InvalidRequest(f"`{where}` must be a string or a list of blocks, not {kind_of(content)}.", param=where)
    for place, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise InvalidRequest(
                f'`{where}[{place}]` must be a block such as {{"type": "text", "text": "…"}}.',
                param=f"{where}[{place}]",
            )


def _check_types(doc: Mapping[str, Any]) -> None:
    for name in ("metadata", "tool_choice", "thinking", "output_config"):
        if doc.get(name) is not None and not isinstance(doc[name], dict):
            raise InvalidRequest(f"`{name}` must be an object, not {kind_of(doc[name])}.", param=name)
    system = doc.get("system")
    if system is not None:
        _check_content(system, "system")
    tools = doc.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise InvalidRequest("`tools` must be a list of objects.", param="tools")
    stops = doc.get("stop_sequences")
    if stops is not None and not (isinstance(stops, list) and all(isinstance(stop, str) for stop in stops)):
        raise InvalidRequest("`stop_sequences` must be a list of strings.", param="stop_sequences")


def _without_unsigned(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without the thinking that another backend showed: only what Anthropic has signed is taken back there."""
    content = message["content"]
    if not isinstance(content, list):
        return message
    kept = [block for block in content if block["type"] != "thinking" or block.get("signature")]
    return {**message, "content": kept or [{"type": "text", "text": "…"}]}


def _texts(doc: Mapping[str, Any]) -> Iterator[str]:
    for content in (doc.get("system"), *(message["content"] for message in doc["messages"])):
        if isinstance(content, str):
            yield content
        for block in content if isinstance(content, list) else ():
            yield from _block_texts(block)
    if doc.get("tools"):
        yield orjson.dumps(doc["tools"]).decode()


def _block_texts(block: Any) -> Iterator[str]:
    """The text in one block: said, thought, passed to a tool or told by one."""
    if not isinstance(block, dict):
        return
    for name in ("text", "thinking"):
        if isinstance(block.get(name), str):
            yield block[name]
    if block.get("input"):
        yield f"{block.get('name')} {orjson.dumps(block['input']).decode()}"
    content = block.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            yield from _block_texts(part)


def _pictures(doc: Mapping[str, Any]) -> Iterator[str]:
    """The base64 of each picture, empty where it is only pointed at."""
    lists = [message["content"] for message in doc["messages"] if isinstance(message["content"], list)]
    blocks = [block for content in lists for block in content]
    blocks += [part for block in blocks if isinstance(block.get("content"), list) for part in block["content"]]
    for block in blocks:
        if isinstance(block, dict) and block.get("type") == "image":
            source = block.get("source")
            data = source.get("data") if isinstance(source, dict) else None
            yield data if isinstance(data, str) else ""
