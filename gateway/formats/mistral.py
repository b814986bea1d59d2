"""Where Mistral's chat differs from OpenAI's: ids of calls, an answer's beginning, and thoughts among the content."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import orjson

from gateway.formats.chat_stream import read_json
from gateway.formats.foreign import MAX_ANSWER, Unreadable
from gateway.formats.sse import RecordTooLarge, Splitter, data_of

_ID_LENGTH = 9
_FINISH = {"model_length": "length", "error": "stop"}


def to_mistral(messages: list[Any]) -> list[Any]:
    """The messages with ids of calls as Mistral wants them, and the answer's beginning marked as such.

    A tool's empty answer becomes a space: litellm leaves out what is empty, and each call needs its answer.
    """
    mended = [_with_short_ids(message) if isinstance(message, dict) else message for message in messages]
    last = mended[-1] if mended else None
    if isinstance(last, dict) and last.get("role") == "assistant" and not last.get("tool_calls"):
        mended[-1] = {**last, "prefix": True}
    return mended


def _with_short_ids(message: dict[str, Any]) -> dict[str, Any]:
    if isinstance(message.get("tool_call_id"), str):
        return {**message, "tool_call_id": _short(message["tool_call_id"]), "content": message.get("content") or " "}
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    mended = [
        {**call, "id": _short(call["id"])} if isinstance(call, dict) and isinstance(call.get("id"), str) else call
        for call in calls
    ]
    return {**message, "tool_calls": mended}


def _short(id_: str) -> str:
    if len(id_) == _ID_LENGTH and id_.isascii() and id_.isalnum():
        return id_
    return sha256(id_.encode("utf-8", "replace")).hexdigest()[:_ID_LENGTH]


class MendedAnswer:
    """A whole answer, as it came unless its content is a list."""

    __slots__ = ("_pieces", "_size", "idle")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self.idle = b" "

    def feed(self, data: bytes) -> bytes:
        """Keep the bytes until all are there."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > MAX_ANSWER:
            raise Unreadable(f"an answer of more than {MAX_ANSWER} bytes")
        return b""

    def finish(self) -> bytes:
        """The chat completion."""
        return _mended(b"".join(self._pieces))


class MendedStream:
    """A stream, each event as it came unless its content is a list."""

    __slots__ = ("_splitter", "idle")

    def __init__(self) -> None:
        self._splitter = Splitter()
        self.idle = b": the provider is still at it\n\n"

    def feed(self, data: bytes) -> bytes:
        """The events that are whole now. Raises Unreadable."""
        try:
            records = self._splitter.feed(data)
        except RecordTooLarge as error:
            raise Unreadable(str(error)) from None
        return b"".join(map(_event, records))

    def finish(self) -> bytes:
        """A last event without its blank line."""
        rest = self._splitter.rest()
        return _event(rest) if rest else b""


def _event(record: bytes) -> bytes:
    data = data_of(record)
    if data is None or data == b"[DONE]":
        return record + b"\n\n"
    return b"data: " + _mended(data) + b"\n\n"


def _mended(body: bytes) -> bytes:
    try:
        doc = read_json(body)
    except ValueError:
        return body  # whoever reads it next counts it as malformed
    choices = doc.get("choices") if isinstance(doc, dict) else None
    changed = False
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        if choice.get("finish_reason") in _FINISH:
            choice["finish_reason"] = _FINISH[choice["finish_reason"]]
            changed = True
        for name in ("message", "delta"):
            said = choice.get(name)
            if isinstance(said, dict) and isinstance(said.get("content"), list):
                said.update(_parted(said["content"]))
                changed = True
    return orjson.dumps(doc) if changed else body


def _parted(parts: list[Any]) -> Mapping[str, Any]:
    known = [part for part in parts if isinstance(part, Mapping)]
    text = "".join(str(part.get("text") or "") for part in known if part.get("type") == "text")
    thoughts = [inner for part in known if part.get("type") == "thinking" for inner in part.get("thinking") or ()]
    thought = "".join(str(inner.get("text") or "") for inner in thoughts if isinstance(inner, Mapping))
    return {"content": text, **({"reasoning_content": thought} if thought else {})}
