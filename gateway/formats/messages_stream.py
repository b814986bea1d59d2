"""Streams in Anthropic's format: its own, seen from the side, and those that are written from chat's chunks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from gateway.formats.chat_stream import ChatStream
from gateway.formats.continuation import Continuation
from gateway.formats.messages_chat import arguments_of, ending, message_id, thought, usage_doc
from gateway.formats.rewritten import Rewritten, calls_in, name_of
from gateway.formats.sse import event
from gateway.formats.tokens import estimate
from gateway.formats.usage import Usage, usage_of

_STOP = event(b"message_stop", b'{"type":"message_stop"}')
_KNOWN = {
    name: name.encode()
    for name in (
        *("message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta"),
        *("message_stop", "ping"),
    )
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message stands: how many blocks it has begun, and the kind of the last while that is open, else empty."""

    blocks: int
    open: str


class MessageWriter:
    """Writes one message's events: blocks one after another, each opened, filled and closed."""

    __slots__ = ("_blocks", "_calls", "_open")

    def __init__(self, place: Place | None) -> None:
        self._blocks = place.blocks if place is not None else 0
        self._open = place.open if place is not None else ""
        self._calls: dict[int, int] = {}

    @property
    def place(self) -> Place:
        """Where it stands."""
        return Place(self._blocks, self._open)

    def begin(self, response_id: str, model: str) -> bytes:
        """The message's head; what it consumed is known only at its end."""
        message: dict[str, Any] = {
            "id": message_id(response_id),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_doc(Usage()),
        }
        return event(b"message_start", orjson.dumps({"type": "message_start", "message": message}))

    def text(self, piece: str) -> bytes:
        """More of the text."""
        opened = b"" if self._open == "text" else self._begin("text", {"type": "text", "text": ""})
        return opened + _delta(self._blocks - 1, b'{"type":"text_delta","text":%b}' % orjson.dumps(piece))

    def thinking(self, piece: str) -> bytes:
        """More of the reasoning."""
        blank = {"type": "thinking", "thinking": "", "signature": ""}
        opened = b"" if self._open == "thinking" else self._begin("thinking", blank)
        return opened + _delta(self._blocks - 1, b'{"type":"thinking_delta","thinking":%b}' % orjson.dumps(piece))

    def call(self, number: int, call: Mapping[str, Any]) -> bytes:
        """More of a tool call; `number` is which of them it is."""
        opened = b""
        if number not in self._calls:
            call_id = str(call.get("id") or f"toolu_{number}")
            opened = self._begin("call", {"type": "tool_use", "id": call_id, "name": name_of(call), "input": {}})
            self._calls[number] = self._blocks - 1
        piece = arguments_of(call)
        if not piece:
            return opened
        partial = b'{"type":"input_json_delta","partial_json":%b}' % orjson.dumps(piece)
        return opened + _delta(self._calls[number], partial)

    def end(self, reason: str, stop: str | None, usage: Usage) -> bytes:
        """What ends it."""
        told = {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": stop},
            "usage": usage_doc(usage),
        }
        return self._close() + event(b"message_delta", orjson.dumps(told)) + _STOP

    def _begin(self, kind: str, blank: Mapping[str, Any]) -> bytes:
        closed = self._close()
        doc = {"type": "content_block_start", "index": self._blocks, "content_block": blank}
        self._blocks += 1
        self._open = kind
        return closed + event(b"content_block_start", orjson.dumps(doc))

    def _close(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        data = b'{"type":"content_block_stop","index":%d}' % (self._blocks - 1)
        return event(b"content_block_stop", data)


class TranslatedMessages(Rewritten):
    """A stream of chat's chunks, of which the client sees Anthropic's events.

    `stops` are the request's stop sequences, `thinks` whether reasoning is shown.
    """

    __slots__ = ("_stop", "_stops", "_thinks", "_writer")

    def __init__(
        self, *, stops: Sequence[str], thinks: bool, asked: Callable[[], int], continues: Continuation | None
    ) -> None:
        super().__init__(asked, continues)
        place = continues.place if continues is not None else None
        self._writer = MessageWriter(place if isinstance(place, Place) else None)
        self._stops = stops
        self._thinks = thinks
        self._stop: tuple[str, str | None] = ("end_turn", None)

    @property
    def place(self) -> Place:
        """Where the message stands."""
        return self._writer.place

    def _begin(self) -> bytes:
        return self._writer.begin(self.response_id, self.response_model)

    def _end(self, used: Usage) -> bytes:
        return self._writer.end(*self._stop, used)

    def _choice(self, choice: Mapping[str, Any], delta: Mapping[str, Any], out: list[bytes]) -> None:
        writer = self._writer
        if self._thinks and (thinking := thought(delta)):
            out.append(writer.thinking(thinking))
        for name in ("content", "refusal"):
            said = delta.get(name)
            if said and type(said) is str:
                out.append(writer.text(said))
        if delta.get("tool_calls"):
            out += [writer.call(number, call) for number, call in calls_in(delta)]
        if choice.get("finish_reason"):
            self._stop = ending(choice, self._stops)


class NativeMessages(ChatStream):
    """A stream of Anthropic's own, passed on as it came. `done` is `message_stop`.

    What it consumed stands partly at its head, partly at its end: of a stream that was cut, the output is estimated.
    """

    __slots__ = ("_blocks", "_ended", "_open", "_told")

    def __init__(self) -> None:
        self._told: Usage | None = None
        self._ended = False
        super().__init__(hide_usage=False)
        self._blocks = 0
        self._open = ""

    @property
    def usage(self) -> Usage | None:
        """What it consumed."""
        known = self._told
        if known is None or self._ended:
            return known
        text = self.all_text
        counted = estimate(text)
        counted += counted * self.unkept // max(1, len(text))
        return replace(known, output_tokens=max(known.output_tokens, counted, self.pieces), estimated=True)

    @usage.setter
    def usage(self, usage: Usage | None) -> None:
        self._told = usage

    @property
    def place(self) -> Place:
        """Where the message stands."""
        return Place(self._blocks, self._open)

    def closing(self) -> bytes:
        """What ends a whole message, where the backend has not said it itself."""
        return b"" if self.done else _STOP

    def _show(self, doc: dict[str, Any], data: bytes, out: list[bytes]) -> None:
        kind = doc.get("type")
        name = _KNOWN.get(kind) if type(kind) is str else None
        if kind == "content_block_delta":
            delta = doc.get("delta")
            if type(delta) is dict:
                self._piece(delta)
        elif kind == "content_block_start":
            self._block(doc)
        elif kind == "content_block_stop":
            self._open = ""
        elif kind == "message_start":
            self._head(doc)
        elif kind == "message_delta":
            self._tail(doc)
        elif kind == "message_stop":
            self.done = True
        if name is None:
            name = kind.encode() if type(kind) is str and kind.isidentifier() else b"message"
        out.append(event(name, data))

    def _head(self, doc: Mapping[str, Any]) -> None:
        message = doc.get("message")
        if type(message) is dict:
            self.response_id = str(message.get("id") or "")
            self.response_model = str(message.get("model") or "")
        self._choices.add(0)
        self._told = usage_of(doc)

    def _block(self, doc: Mapping[str, Any]) -> None:
        block = doc.get("content_block")
        kind = block.get("type") if type(block) is dict else None
        index = doc.get("index")
        self._blocks = max(self._blocks, index + 1 if type(index) is int else self._blocks + 1)
        self._open = kind if kind in ("text", "thinking") else "other"
        if kind not in ("text", "thinking", "redacted_thinking"):
            self.started = self.beyond_text = True
            if type(block) is dict:
                self._keep(self.other_text, str(block.get("name") or ""))
        elif kind == "text" and type(block) is dict and block.get("text"):
            self._delta(0, {"content": block["text"]})

    def _piece(self, delta: Mapping[str, Any]) -> None:
        text = delta.get("text")
        if text and type(text) is str:
            self._delta(0, {"content": text})
            return
        for name in ("thinking", "partial_json"):
            said = delta.get(name)
            if said and type(said) is str:
                self.started = True
                self._keep(self.other_text, said)
        if delta.get("citation"):
            self.beyond_text = True

    def _tail(self, doc: Mapping[str, Any]) -> None:
        later = usage_of(doc)
        if later is not None:
            self._told = later if self._told is None else self._told.merge(later)
            self._ended = True
        delta = doc.get("delta")
        reason = delta.get("stop_reason") if type(delta) is dict else None
        if reason:
            self.started = True
            self._finishes[0] = str(reason)


def _delta(index: int, delta: bytes) -> bytes:
    data = b'{"type":"content_block_delta","index":%d,"delta":%b}' % (index, delta)
    return b"event: content_block_delta\ndata: %b\n\n" % data
