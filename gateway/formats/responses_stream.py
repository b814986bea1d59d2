"""Streams of responses: those of OpenAI's own, seen from the side, and those that are written from chat's chunks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.formats.chat_stream import ChatStream
from gateway.formats.continuation import Continuation
from gateway.formats.messages_chat import arguments_of
from gateway.formats.responses_chat import (
    call_id,
    call_item,
    ending,
    message_item,
    refusal_part,
    response_id,
    response_of,
    text_part,
    usage_doc,
)
from gateway.formats.rewritten import Rewritten, calls_in, name_of
from gateway.formats.sse import event
from gateway.formats.usage import Usage, usage_of

_BEFORE = frozenset(("response.created", "response.in_progress", "response.queued"))
_ENDS = frozenset(("response.completed", "response.incomplete"))
_JOINED = 1024
_FINISHES = {"max_output_tokens": "length", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a response stands: its object, the number of its next event, its whole items, and the message that is open.

    `item` is the id of that, empty when there is none; `text` what it says so far.
    """

    response: Mapping[str, Any]
    sequence: int
    output: tuple[Mapping[str, Any], ...]
    item: str
    text: str


class ResponseWriter:
    """Writes one response's events. A message is closed when a call begins, calls at the end: they may take turns."""

    __slots__ = ("_arguments", "_calls", "_items", "_kind", "_open", "_response", "_sequence", "_text")

    def __init__(self, place: Place | None) -> None:
        self._response: Mapping[str, Any] = place.response if place is not None else {}
        self._sequence = place.sequence if place is not None else 0
        self._items: list[Mapping[str, Any]] = list(place.output) if place is not None else []
        self._open = place.item if place is not None else ""
        self._kind = "output_text"
        self._text = [place.text] if place is not None else []
        self._calls: dict[int, int] = {}  # the place of each call among the items
        self._arguments: dict[int, list[str]] = {}
        if self._open:
            self._items.append(message_item(self._open, []))

    @property
    def place(self) -> Place:
        """Where it stands; calls that are open have no place in it, since they cannot be gone on with."""
        whole = self._items[:-1] if self._open else self._items
        return Place(self._response, self._sequence, tuple(whole), self._open, "".join(self._text))

    def begin(self, response: Mapping[str, Any]) -> bytes:
        """The head."""
        self._response = response
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def text(self, piece: str) -> bytes:
        """More of the text."""
        more = {"item_id": self._message_id("output_text"), "content_index": 0, "delta": piece, "logprobs": []}
        return self._opened("output_text") + self._add("response.output_text.delta", piece, more)

    def refusal(self, piece: str) -> bytes:
        """More of a refusal."""
        more = {"item_id": self._message_id("refusal"), "content_index": 0, "delta": piece}
        return self._opened("refusal") + self._add("response.refusal.delta", piece, more)

    def call(self, number: int, call: Mapping[str, Any]) -> bytes:
        """More of a tool call; `number` is which of them it is."""
        opened = b""
        if number not in self._calls:
            opened = self._close_message()
            said = (call_id(call, self._suffix, number), name_of(call))
            item = call_item(f"fc_{self._suffix}_{number}", *said, "", "in_progress")
            self._calls[number], self._arguments[number] = len(self._items), []
            self._items.append(item)
            opened += self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)
        piece = arguments_of(call)
        if not piece:
            return opened
        place = self._calls[number]
        _append(self._arguments[number], piece)
        where = {"output_index": place, "item_id": self._items[place]["id"]}
        return opened + self._event("response.function_call_arguments.delta", **where, delta=piece)

    def end(self, status: str, cut: str | None, usage: Usage) -> bytes:
        """What ends it."""
        out = [self._close_message()]
        for number, place in self._calls.items():
            arguments = "".join(self._arguments[number])
            whole = self._items[place] = {**self._items[place], "arguments": arguments, "status": "completed"}
            where = {"output_index": place, "item_id": whole["id"]}
            said = {"name": whole["name"], "arguments": arguments}
            out.append(self._event("response.function_call_arguments.done", **where, **said))
            out.append(self._event("response.output_item.done", output_index=place, item=whole))
        details = None if cut is None else {"reason": cut}
        final = {"status": status, "output": self._items, "incomplete_details": details, "usage": usage_doc(usage)}
        out.append(self._event(f"response.{status}", response={**self._response, **final}))
        return b"".join(out)

    @property
    def _suffix(self) -> str:
        return str(self._response.get("id") or "").removeprefix("resp_")

    def _message_id(self, kind: str) -> str:
        if self._open and self._kind == kind:
            return self._open
        places = len(self._items)
        return f"msg_{self._suffix}_{places}"

    def _opened(self, kind: str) -> bytes:
        """The events that open a message, unless one of this kind is open."""
        if self._open and self._kind == kind:
            return b""
        item_id = self._message_id(kind)
        closed = self._close_message()
        self._open, self._kind, self._text = item_id, kind, []
        self._items.append(message_item(item_id, []))
        place = len(self._items) - 1
        item = message_item(item_id, [], "in_progress")
        added = self._event("response.output_item.added", output_index=place, item=item)
        where = {"output_index": place, "item_id": item_id, "content_index": 0}
        return closed + added + self._event("response.content_part.added", **where, part=self._part(""))

    def _add(self, name: str, piece: str, more: Mapping[str, Any]) -> bytes:
        _append(self._text, piece)
        return self._event(name, output_index=len(self._items) - 1, **more)

    def _close_message(self) -> bytes:
        if not self._open:
            return b""
        place, text = len(self._items) - 1, "".join(self._text)
        part = self._part(text)
        where = {"output_index": place, "item_id": self._open, "content_index": 0}
        said: dict[str, Any] = {"text": text, "logprobs": []} if self._kind == "output_text" else {"refusal": text}
        item = message_item(self._open, [part])
        self._items[place] = item
        self._open, self._text = "", []
        return (
            self._event(f"response.{self._kind}.done", **where, **said)
            + self._event("response.content_part.done", **where, part=part)
            + self._event("response.output_item.done", output_index=place, item=item)
        )

    def _part(self, text: str) -> dict[str, Any]:
        return text_part(text) if self._kind == "output_text" else refusal_part(text)

    def _event(self, kind: str, **fields: Any) -> bytes:
        doc = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return event(kind.encode(), orjson.dumps(doc))


class TranslatedResponses(Rewritten):
    """A stream of chat's chunks, of which the client sees a response's events. `request` is what it sent."""

    __slots__ = ("_ending", "_request", "_writer")

    def __init__(self, request: Mapping[str, Any], *, asked: Callable[[], int], continues: Continuation | None) -> None:
        super().__init__(asked, continues)
        place = continues.place if continues is not None else None
        self._request = request
        self._writer = ResponseWriter(place if isinstance(place, Place) else None)
        self._ending: tuple[str, str | None] = ("completed", None)

    @property
    def place(self) -> Place:
        """Where the response stands."""
        return self._writer.place

    def _begin(self) -> bytes:
        return self._writer.begin(
            response_of(
                self._request,
                response_id=response_id(self.response_id),
                model=self.response_model,
                created=self.created,
            )
        )

    def _end(self, used: Usage) -> bytes:
        return self._writer.end(*self._ending, used)

    def _choice(self, choice: Mapping[str, Any], delta: Mapping[str, Any], out: list[bytes]) -> None:
        writer = self._writer
        said = delta.get("content")
        if said and type(said) is str:
            out.append(writer.text(said))
        refused = delta.get("refusal")
        if refused and type(refused) is str:
            out.append(writer.refusal(refused))
        if delta.get("tool_calls"):
            out += [writer.call(number, call) for number, call in calls_in(delta)]
        if choice.get("finish_reason"):
            self._ending = ending(choice["finish_reason"])


class NativeResponses(ChatStream):
    """A stream of a backend's own, passed on as it came. `done` is `response.completed` or `response.incomplete`."""

    __slots__ = ("_before", "_item", "_output", "_response", "_sequence")

    def __init__(self) -> None:
        super().__init__(hide_usage=False)
        self._response: Mapping[str, Any] = {}
        self._sequence = 0
        self._output: dict[int, Mapping[str, Any]] = {}
        self._item = ""
        self._before = 0  # characters of text before the message that is open

    @property
    def place(self) -> Place:
        """Where the response stands."""
        whole = tuple(item for _, item in sorted(self._output.items()))
        return Place(self._response, self._sequence, whole, self._item, self._said()[self._before :])

    def closing(self) -> bytes:
        """Its last event has ended it."""
        return b""

    def _show(self, doc: dict[str, Any], data: bytes, out: list[bytes]) -> None:
        kind = doc.get("type")
        if type(kind) is not str:
            self.malformed += 1
            return
        if kind == "response.output_text.delta":
            self._text_delta(doc)
        elif kind in _BEFORE or kind in _ENDS or kind == "response.failed":
            self._note_response(kind, doc)
        elif kind == "error":
            self.error = {"error": {name: doc.get(name) for name in ("message", "code", "param")}}
        else:
            self._note(kind, doc)
        if self.error is None:
            number = doc.get("sequence_number")
            self._sequence = number + 1 if type(number) is int else self._sequence + 1
            out.append(event(kind.encode() if kind.isprintable() else b"message", data))

    def _said(self) -> str:
        return "".join(self.text.get(0, ()))

    def _text_delta(self, doc: Mapping[str, Any]) -> None:
        piece = doc.get("delta")
        if piece and type(piece) is str:
            self._delta(0, {"content": piece})

    def _note_response(self, kind: str, doc: Mapping[str, Any]) -> None:
        response = doc.get("response")
        if type(response) is not dict:
            return
        self._choices.add(0)
        self.response_id = self.response_id or str(response.get("id") or "")
        self.response_model = self.response_model or str(response.get("model") or "")
        if kind in _BEFORE:
            self._response = response
            return
        self.started = True
        if kind == "response.failed":
            error = response.get("error")
            self.error = {"error": error if type(error) is dict else {"message": "the response failed"}}
            return
        self.usage = usage_of(doc)
        self.done = True
        details = response.get("incomplete_details")
        reason = details.get("reason") if type(details) is dict else None
        self._finishes[0] = _FINISHES.get(str(reason), "stop")

    def _note(self, kind: str, doc: Mapping[str, Any]) -> None:
        self.started = True
        item = doc.get("item")
        place = doc.get("output_index")
        if kind == "response.output_item.added" and type(item) is dict:
            if item.get("type") == "message":
                self._item, self._before = str(item.get("id") or ""), len(self._said())
            elif item.get("type") != "reasoning":
                self.beyond_text = True
        elif kind == "response.output_item.done" and type(item) is dict and type(place) is int:
            self._output[place] = item
            if item.get("type") == "message":
                self._item, self._before = "", len(self._said())
        elif kind.endswith(".delta"):
            piece = doc.get("delta")
            if piece and type(piece) is str:
                self._keep(self.other_text, piece)
            self.beyond_text = self.beyond_text or "reasoning" not in kind


def _append(pieces: list[str], piece: str) -> None:
    """Add a piece; many become one, since a short string costs ten times its length."""
    pieces.append(piece)
    if len(pieces) >= _JOINED:
        pieces[:] = ["".join(pieces)]
