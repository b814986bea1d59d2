"""A chat request as the gateway needs to see it: a few fields read, everything else left in its own bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import orjson

from gateway.errors import GatewayError, InvalidRequest
from gateway.formats.chat_stream import ChatStream, read_json
from gateway.formats.continuation import Continuation
from gateway.formats.request import EVENTS, TEXT, Extent, NotAnAnswer
from gateway.formats.splice import names_twice, replace_fields, with_model
from gateway.formats.usage import Usage, parse_usage
from gateway.values import value

_OUTPUT_FIELDS = ("max_completion_tokens", "max_tokens")
_TELLING = tuple(
    b'"%s"' % name
    for name in (b"model", b"messages", b"stream", b"stream_options", b"max_tokens", b"max_completion_tokens", b"n")
)
MAX_MODEL_NAME = 256
_DEEPEST = 250  # levels; orjson reads more than it writes


@value
class ChatRequest:
    """`POST /v1/chat/completions`, parsed once.

    `raw` is what the client sent and `doc` what it parses to. `max_output` is the client's own limit in tokens for each
    of `n` choices. `include_usage` is whether the client asked to see a stream's usage.
    """

    raw: bytes
    doc: Mapping[str, Any]
    model: str
    stream: bool
    include_usage: bool
    max_output: int | None
    n: int

    mode: ClassVar[str] = "chat"
    operation: ClassVar[str] = "chat"
    content_type: ClassVar[bytes] = b"application/json"
    accept: ClassVar[bytes] = EVENTS

    @property
    def extent(self) -> Extent:
        """One prompt, and text for an answer."""
        return TEXT

    def path(self, provider: str) -> bytes:
        """The path below the backend's base URL."""
        return b"/chat/completions"

    def encode(
        self,
        model: str,
        *,
        provider: str = "openai",
        ask_usage: bool = True,
        max_output: int | None = None,
        output_field: str = "max_tokens",
    ) -> bytes:
        """The body for a backend: `model` as the backend calls it, usage asked for, the output limit lowered.

        `output_field` names the limit when the client sent none; with both fields present both are lowered.
        """
        changes: dict[str, bytes] = {}
        if ask_usage and self.stream and not self.include_usage:
            options = self.doc.get("stream_options") or {}
            changes["stream_options"] = orjson.dumps({**options, "include_usage": True})
        if max_output is not None and max_output != self.max_output:
            present = [name for name in _OUTPUT_FIELDS if self.doc.get(name) is not None]
            changes.update(dict.fromkeys(present or [output_field], b"%d" % max_output))
        return with_model(self.raw, self.doc, model, changes)

    def read(self, body: bytes, content_type: bytes, provider: str) -> "ChatAnswer":
        """A whole answer from its bytes. Raises NotAnAnswer."""
        doc = read_answer(body)
        if type(doc.get("choices")) is not list:
            raise NotAnAnswer("an answer without `choices`")
        return ChatAnswer(body, doc)

    def events(self, provider: str, continues: Continuation | None) -> ChatStream:
        """The observer of one upstream stream."""
        return ChatStream(hide_usage=not self.include_usage, continues=continues)

    def error_event(self, error: GatewayError) -> bytes:
        """The one event that ends a stream which cannot be finished."""
        return b"data: " + orjson.dumps(error.to_openai()) + b"\n\n"

    def error_body(self, error: GatewayError) -> bytes:
        """The body of an error."""
        return orjson.dumps(error.to_openai())

    def text(self) -> str:
        """All the text that it sends, for counting."""
        return text_of(self.doc)

    def go_on(self, delivered: str, delivered_tokens: int) -> "ChatRequest | None":
        """Ask for the rest: `delivered` as the last message, the output limit lowered by its tokens.

        Trailing white space is left out of it, since some backends refuse an assistant message that ends with it.
        None for several choices, which cannot be continued together.
        """
        if self.n != 1:
            return None
        beginning = {"role": "assistant", "content": delivered.rstrip()}
        messages = orjson.dumps([*self.doc["messages"], beginning])
        raw = replace_fields(self.raw, self.doc, {"messages": messages})
        rest = replace(self, raw=raw, doc={**self.doc, "messages": [*self.doc["messages"], beginning]})
        limit = None if self.max_output is None else max(1, self.max_output - delivered_tokens)
        if limit is None or limit == self.max_output:
            return rest
        lowered = rest.encode(self.model, ask_usage=False, max_output=limit)
        return replace(rest, raw=lowered, max_output=limit)


class ChatAnswer:
    """A whole chat completion, passed on as it came. `doc` is what `body` parses to."""

    __slots__ = ("body", "doc", "usage")

    def __init__(self, body: bytes, doc: dict[str, Any]) -> None:
        self.body = body
        self.doc = doc
        usage = doc.get("usage")
        self.usage: Usage | None = parse_usage(usage) if type(usage) is dict else None

    @property
    def text(self) -> str:
        """All that the answer says, for counting."""
        messages = [choice.get("message") for choice in self.doc["choices"] if isinstance(choice, dict)]
        said = [message for message in messages if isinstance(message, dict)]
        calls = [orjson.dumps(message["tool_calls"]).decode() for message in said if message.get("tool_calls")]
        return "\n".join([str(message["content"]) for message in said if message.get("content")] + calls)

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
        """Why each choice ended."""
        reasons = (choice.get("finish_reason") for choice in self.doc["choices"] if isinstance(choice, dict))
        return tuple(reason for reason in reasons if isinstance(reason, str))


def read_answer(body: bytes) -> dict[str, Any]:
    """The JSON object that an answer must be. Raises NotAnAnswer, with the error that came instead of one."""
    try:
        doc = read_json(body)
    except ValueError:
        raise NotAnAnswer("an answer that is not JSON") from None
    if type(doc) is not dict:
        raise NotAnAnswer("an answer that is not a JSON object")
    if doc.get("error") and not doc.get("choices"):
        raise NotAnAnswer("an error instead of an answer", doc)
    return doc


def parse_chat(raw: bytes) -> ChatRequest:
    """Read a request body, or say which field is wrong and what to write instead."""
    doc = parse_object(raw)
    model = model_name(doc)
    messages = doc.get("messages")
    if messages is None:
        raise InvalidRequest("`messages` is missing; send a list of messages.", code="missing_field", param="messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("`messages` must be a list with at least one message.", param="messages")
    for position, message in enumerate(messages):
        if not isinstance(message, dict):
            where = f"messages[{position}]"
            raise InvalidRequest(
                f'`{where}` must be an object such as {{"role": "user", "content": "…"}}, not {kind_of(message)}.',
                param=where,
            )
        if not isinstance(message.get("role"), str):
            where = f"messages[{position}].role"
            code = "invalid_value" if message.get("role") is not None else "missing_field"
            raise InvalidRequest(f"`{where}` must be a string such as `user`.", code=code, param=where)
    options = doc.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise InvalidRequest(f"`stream_options` must be an object, not {kind_of(options)}.", param="stream_options")
    return ChatRequest(
        raw=without_repeats(raw, doc),
        doc=doc,
        model=model,
        stream=boolean(doc, "stream"),
        include_usage=bool(options and boolean(options, "include_usage", "stream_options.")),
        max_output=_output_limit(doc),
        n=positive(doc, "n") or 1 if "n" in doc else 1,
    )


def _output_limit(doc: Mapping[str, Any]) -> int | None:
    """The smaller of the two limits, where a client sends both."""
    newer = positive(doc, "max_completion_tokens") if "max_completion_tokens" in doc else None
    older = positive(doc, "max_tokens") if "max_tokens" in doc else None
    if newer is None or older is None:
        return newer or older
    return min(newer, older)


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object that a body must be."""
    try:
        doc = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"The body is not valid JSON: {error.msg} at byte {error.pos}.", code="invalid_json"
        ) from None
    if raw.count(b"[") + raw.count(b"{") > _DEEPEST and _is_too_deep(doc):
        raise InvalidRequest(
            f"The body is nested too deeply; send at most {_DEEPEST} levels of lists and objects.", code="invalid_json"
        )
    if not isinstance(doc, dict):
        raise InvalidRequest(f"The body must be a JSON object, not {kind_of(doc)}.", code="invalid_json")
    return doc


def model_name(doc: Mapping[str, Any]) -> str:
    """The name that the client asks for."""
    model = doc.get("model")
    if model is None or model == "":
        raise InvalidRequest(
            "`model` is missing; name an alias, a task (`task:…`) or a model: GET /v1/models lists them.",
            code="missing_field",
            param="model",
        )
    if not isinstance(model, str):
        raise InvalidRequest(f"`model` must be a string, not {kind_of(model)}.", param="model")
    if len(model) > MAX_MODEL_NAME or not model.isprintable():
        raise InvalidRequest(
            f"`model` must be at most {MAX_MODEL_NAME} printable characters; GET /v1/models lists the names.",
            param="model",
        )
    return model


def boolean(doc: Mapping[str, Any], name: str, prefix: str = "") -> bool:
    """An optional boolean field; absent and null are false."""
    value = doc.get(name)
    if value is None or value is False:
        return False
    if value is True:
        return True
    raise InvalidRequest(f"`{prefix}{name}` must be true or false, not {kind_of(value)}.", param=prefix + name)


def positive(doc: Mapping[str, Any], name: str) -> int | None:
    """An optional whole number of at least 1."""
    value = doc.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequest(f"`{name}` must be a whole number of at least 1.", param=name)
    return value


def without_repeats(raw: bytes, doc: Mapping[str, Any], telling: Sequence[bytes] = _TELLING) -> bytes:
    """A field that counts for money or routing, named twice or in escapes, must mean the same to every reader."""
    if b"\\u00" not in raw:
        for name in telling:
            if raw.count(name) > 1:
                break
        else:
            return raw
    return orjson.dumps(doc) if names_twice(raw) else raw


def _is_too_deep(doc: Any) -> bool:
    try:
        orjson.dumps(doc)
    except orjson.JSONEncodeError:
        return True
    return False


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    return {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}[type(value)]


def text_of(doc: Mapping[str, Any]) -> str:
    """The text of every message, for counting; images and audio are left out."""
    pieces: list[str] = []
    for message in doc.get("messages") or ():
        content = message.get("content")
        if isinstance(content, str):
            pieces.append(content)
        elif isinstance(content, list):
            pieces += [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if message.get("tool_calls"):
            pieces.append(orjson.dumps(message["tool_calls"]).decode())
    if doc.get("tools"):
        pieces.append(orjson.dumps(doc["tools"]).decode())
    return "\n".join(pieces)
