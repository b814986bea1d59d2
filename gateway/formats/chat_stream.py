"""A chat stream seen from the side: events pass as they came, and what they mean for money and truth is noted."""

import json
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.formats.continuation import Continuation
from gateway.formats.splice import remove_field
from gateway.formats.sse import RecordTooLarge, Splitter, comments_of, data_of
from gateway.formats.usage import Usage, parse_usage

DONE = b"data: [DONE]\n\n"
KEPT = 2**18  # characters of what was delivered that are kept: about 60,000 tokens
_JOINED = 1024  # pieces; a short string costs ten times its length, so that many become one
_USAGE_NULL = b',"usage":null'


class ChatStream:
    """One upstream stream of chat completion chunks. `feed` gives the bytes that the client may see.

    `started` turns true with the first token: a delta with anything but a role, or a finish_reason. `done` is `[DONE]`,
    `finished` every choice's finish_reason. `error` is an error that the backend sent as an event. `malformed` counts
    events that were dropped because they are not JSON objects. `text` is what each choice delivered, in pieces;
    Of a stream beyond KEPT characters the rest is not kept: `unkept` counts them.
    `beyond_text` says that something was delivered that this text alone cannot continue (tool calls, audio, refusals).
    `hide_usage` leaves out the usage that the gateway asked for and the client did not.
    """

    __slots__ = (
        "_choices",
        "_finishes",
        "_hide_usage",
        "_kept",
        "_splitter",
        "beyond_text",
        "broken",
        "continues",
        "created",
        "done",
        "error",
        "malformed",
        "other_text",
        "pieces",
        "response_id",
        "response_model",
        "started",
        "text",
        "unkept",
        "usage",
    )

    def __init__(self, *, hide_usage: bool, continues: Continuation | None = None) -> None:
        self._splitter = Splitter()
        self._hide_usage = hide_usage
        self.continues = continues
        self._choices: set[int] = set()
        self._finishes: dict[int, str] = {}
        self.started = False
        self.done = False
        self.broken = False
        self.error: Mapping[str, Any] | None = None
        self.malformed = 0
        self.usage: Usage | None = None
        self.text: dict[int, list[str]] = {}
        self.other_text: list[str] = []
        self.beyond_text = False
        self.pieces = 0
        self.unkept = 0
        self._kept = 0
        self.response_id = ""
        self.response_model = ""
        self.created = 0

    @property
    def finished(self) -> bool:
        """Whether every choice that spoke has said why it stopped."""
        return bool(self._finishes) and self._finishes.keys() >= self._choices

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """A reason for each choice that has one, in the order of their index."""
        return tuple(reason for _, reason in sorted(self._finishes.items()))

    @property
    def all_text(self) -> str:
        """Everything that was delivered, for counting."""
        return "".join([piece for pieces in self.text.values() for piece in pieces] + self.other_text)

    @property
    def whole(self) -> bool:
        """Whether what was delivered is an answer that the backend meant to end here."""
        return self.error is None and not self.broken and (self.finished or (self.done and self.malformed == 0))

    @property
    def place(self) -> object:
        """Where the client's format stands; chat's chunks have no place."""
        return None

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on for these bytes; after `[DONE]` or an error event, nothing more."""
        try:
            records = self._splitter.feed(data)
        except RecordTooLarge:
            self.broken = True
            return b""
        out: list[bytes] = []
        for record in records:
            if self.done or self.error is not None:
                break
            if record:
                self._take(record, out)
        return b"".join(out)

    def finish(self) -> bytes:
        """The bytes to pass on when the upstream has ended: a last event that lacks its blank line."""
        rest = self._splitter.rest()
        out: list[bytes] = []
        if rest and not self.done and self.error is None:
            self._take(rest, out)
        return b"".join(out)

    def closing(self) -> bytes:
        """What ends a whole stream."""
        return DONE

    def _take(self, record: bytes, out: list[bytes]) -> None:
        data = data_of(record)
        if data is None:
            comments = comments_of(record)
            if comments:
                out.append(comments)
            return
        try:
            doc = read_json(data)
        except ValueError:
            if data.strip() == b"[DONE]":
                self.done = True
            else:
                self.malformed += 1
            return
        if type(doc) is not dict:
            self.malformed += 1
            return
        if doc.get("error") or doc.get("object") == "error":
            self.error = doc
            return
        try:
            self._show(doc, data, out)
        except (orjson.JSONEncodeError, orjson.JSONDecodeError):  # nested too deep to be written, or half a character
            self.malformed += 1

    def _show(self, doc: dict[str, Any], data: bytes, out: list[bytes]) -> None:
        """Note what an event means, and add what the client may see of it."""
        shown = self._shown(doc, data)
        if shown:
            out += (b"data: ", shown.replace(b"\n", b"\ndata: ") if b"\n" in shown else shown, b"\n\n")

    def _shown(self, doc: dict[str, Any], data: bytes) -> bytes:
        """Note what a chunk means; its data as the client may see it, empty when nothing of it is left."""
        if "usage" in doc and self._usage(doc["usage"]):
            only_usage = bool(doc["usage"]) and not doc.get("choices")
            if only_usage:
                return b""
            doc = {name: value for name, value in doc.items() if name != "usage"}
            data = _without_usage(data)
        if self.continues is not None:
            joined = self.continues.rewrite(doc)
            if joined is None:
                return b""
            doc, data = joined, orjson.dumps(joined)
        choices = doc.get("choices")
        if choices and type(choices) is list:
            self._choices_of(doc, choices)
        return data

    def _usage(self, usage: Any) -> bool:
        """Note the usage, of which the last report counts; true when it must be hidden from the client."""
        if type(usage) is dict:
            self.usage = parse_usage(usage) or self.usage
        return self._hide_usage

    def _choices_of(self, doc: Mapping[str, Any], choices: list[Any]) -> None:
        if not self.response_id:
            self.response_id = str(doc.get("id") or "")
            self.response_model = str(doc.get("model") or "")
            created = doc.get("created")
            self.created = created if type(created) is int else 0
        for choice in choices:
            if type(choice) is not dict:
                continue
            index = choice.get("index")
            if type(index) is not int:
                index = 0
            self._choices.add(index)
            delta = choice.get("delta")
            if delta:
                self._delta(index, delta if type(delta) is dict else {"content": delta})
            elif choice.get("text"):
                self._delta(index, {"content": choice["text"]})
            reason = choice.get("finish_reason")
            if reason:
                self.started = True
                self._finishes[index] = str(reason)

    def _delta(self, index: int, delta: Mapping[str, Any]) -> None:
        content = delta.get("content")
        if content and type(content) is str:
            self.started = True
            pieces = self.text.get(index)
            if pieces is None:
                pieces = self.text[index] = []
            self._keep(pieces, content)
            if len(delta) == 1:
                return
        for name, value in delta.items():
            if value and name != "role" and (name != "content" or type(value) is not str):
                self.started = True
                if name in ("reasoning_content", "reasoning") and type(value) is str:
                    self._keep(self.other_text, value)
                else:
                    self.beyond_text = True
                    self._keep(self.other_text, orjson.dumps(value).decode())

    def _keep(self, pieces: list[str], piece: str) -> None:
        """Keep a piece while the whole is short: a stream without end must not need memory without end."""
        self.pieces += 1
        if self._kept + len(piece) > KEPT:
            self.beyond_text = True
            self.unkept += len(piece)
            return
        self._kept += len(piece)
        pieces.append(piece)
        if len(pieces) >= _JOINED:
            pieces[:] = ["".join(pieces)]


def _without_usage(data: bytes) -> bytes:
    """An event's data without its field `usage`; the rest keeps its bytes, so that no number or escape changes."""
    if data.count(_USAGE_NULL) == 1 and data.count(b'"usage"') == 1 and b"\\u00" not in data:
        return data.replace(_USAGE_NULL, b"")
    return remove_field(data, "usage")


def read_json(data: bytes) -> Any:
    """What a backend says; raises ValueError for what is not JSON.

    RFC 8259 section 8.2 lets a string hold half of a surrogate pair, as servers write that split an emoji between two
    tokens; orjson refuses it. Here it reads as `?`, since only the bytes go on to the client.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        if b"\\u" not in data:
            raise
        try:
            doc = json.loads(data, parse_constant=_not_a_number)
            return orjson.loads(json.dumps(doc, ensure_ascii=False).encode("utf-8", "replace"))
        except RecursionError:
            raise ValueError("JSON that is nested too deep") from None


def _not_a_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
