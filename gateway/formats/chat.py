"""A chat request as the gateway needs to see it: a few fields read, everything else left in its own bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.errors import InvalidRequest
from gateway.formats.splice import names_twice, replace_fields, replace_model

_OUTPUT_FIELDS = ("max_completion_tokens", "max_tokens")
_TELLING = tuple(
    b'"%s"' % name
    for name in (b"model", b"messages", b"stream", b"stream_options", b"max_tokens", b"max_completion_tokens", b"n")
)
MAX_MODEL_NAME = 256
_DEEPEST = 250  # levels; orjson reads more than it writes


@dataclass(frozen=True, slots=True)
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

    def encode(
        self,
        model: str,
        *,
        ask_usage: bool,
        max_output: int | None = None,
        output_field: str = "max_completion_tokens",
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
        if not changes:
            return self.raw if model == self.model else replace_model(self.raw, self.doc, orjson.dumps(model))
        if model != self.model:
            changes["model"] = orjson.dumps(model)
        return replace_fields(self.raw, self.doc, changes)


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
                f'`{where}` must be an object such as {{"role": "user", "content": "…"}}, not {_kind(message)}.',
                param=where,
            )
        if not isinstance(message.get("role"), str):
            where = f"messages[{position}].role"
            code = "invalid_value" if message.get("role") is not None else "missing_field"
            raise InvalidRequest(f"`{where}` must be a string such as `user`.", code=code, param=where)
    options = doc.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise InvalidRequest(f"`stream_options` must be an object, not {_kind(options)}.", param="stream_options")
    return ChatRequest(
        raw=_without_repeats(raw, doc),
        doc=doc,
        model=model,
        stream=boolean(doc, "stream"),
        include_usage=bool(options and boolean(options, "include_usage", "stream_options.")),
        max_output=min(filter(None, (positive(doc, name) for name in _OUTPUT_FIELDS)), default=None),
        n=positive(doc, "n") or 1,
    )


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
        raise InvalidRequest(f"The body must be a JSON object, not {_kind(doc)}.", code="invalid_json")
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
        raise InvalidRequest(f"`model` must be a string, not {_kind(model)}.", param="model")
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
    raise InvalidRequest(f"`{prefix}{name}` must be true or false, not {_kind(value)}.", param=prefix + name)


def positive(doc: Mapping[str, Any], name: str) -> int | None:
    """An optional whole number of at least 1."""
    value = doc.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequest(f"`{name}` must be a whole number of at least 1.", param=name)
    return value


def _without_repeats(raw: bytes, doc: Mapping[str, Any]) -> bytes:
    """A field that counts for money or routing, named twice or in escapes, must mean the same to every reader."""
    if b"\\u00" in raw or any(raw.count(name) > 1 for name in _TELLING):
        return orjson.dumps(doc) if names_twice(raw) else raw
    return raw


def _is_too_deep(doc: Any) -> bool:
    try:
        orjson.dumps(doc)
    except orjson.JSONEncodeError:
        return True
    return False


def _kind(value: object) -> str:
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
