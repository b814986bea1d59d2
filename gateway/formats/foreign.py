"""Turns a provider's own bytes into those of an OpenAI-compatible server: whole answers, and streams in any framing."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import orjson

from gateway.formats.aws_events import BadFrame, Messages
from gateway.formats.chat_stream import read_json
from gateway.formats.completion import (
    Chunks,
    Label,
    Misread,
    ProviderError,
    Reader,
    Said,
    chunks_of,
    completion,
    error_event,
)
from gateway.formats.sse import MAX_RECORD, RecordTooLarge, Splitter, data_of

MAX_ANSWER = 256 * 2**20
_MISSHAPEN = (KeyError, TypeError, AttributeError, IndexError, ValueError)
_SPACE = b" "  # JSON may begin with it
_COMMENT = b": the provider is still at it\n\n"


class Unreadable(ValueError):
    """Bytes of which nothing can be made; the message holds none of them."""


class Translation(Protocol):
    """One answer on its way. `idle` are bytes that mean nothing, for when the provider has said nothing whole yet."""

    idle: bytes

    def feed(self, data: bytes) -> bytes:
        """The bytes that these bytes mean. Raises Unreadable."""
        ...

    def finish(self) -> bytes:
        """The bytes that the end means. Raises Unreadable."""
        ...


class WholeAnswer:
    """An answer in one piece; `as_stream` for a client that asked for a stream where the model has none."""

    __slots__ = ("_as_stream", "_label", "_pieces", "_read", "_size", "idle")

    def __init__(self, read: Callable[[dict[str, Any]], Said], label: Label, *, as_stream: bool = False) -> None:
        self._read = read
        self._label = label
        self._as_stream = as_stream
        self._pieces: list[bytes] = []
        self._size = 0
        self.idle = _COMMENT if as_stream else _SPACE

    def feed(self, data: bytes) -> bytes:
        """Keep the bytes until all are there."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > MAX_ANSWER:
            raise Unreadable(f"an answer of more than {MAX_ANSWER} bytes")
        return b""

    def finish(self) -> bytes:
        """The chat completion; an error that came with a good status stays an error."""
        try:
            doc = read_json(b"".join(self._pieces))
        except ValueError:
            raise Unreadable("an answer that is not JSON") from None
        if type(doc) is not dict:
            raise Unreadable("an answer that is not a JSON object")
        try:
            said = self._read(doc)
        except ProviderError as error:
            event = error_event(error)
            return event if self._as_stream else event[len(b"data: ") :].rstrip()
        except Misread as error:
            raise Unreadable(str(error)) from None
        except _MISSHAPEN as error:
            raise Unreadable(f"an answer that has not the provider's shape ({type(error).__name__})") from None
        return chunks_of(said, self._label) if self._as_stream else orjson.dumps(completion(said, self._label))


class Framing(Protocol):
    """Cuts a stream into events: name and JSON of each."""

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """The events that are whole now. Raises Unreadable."""
        ...

    def rest(self) -> list[tuple[str, bytes]]:
        """What the end makes whole. Raises Unreadable."""
        ...


class Sse:
    """Server-sent events; the provider names its events inside their data."""

    __slots__ = ("_splitter",)

    def __init__(self) -> None:
        self._splitter = Splitter()

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """The events that are whole now. Raises Unreadable."""
        try:
            records = self._splitter.feed(data)
        except RecordTooLarge as error:
            raise Unreadable(str(error)) from None
        return [("", found) for record in records if (found := data_of(record)) and found != b"[DONE]"]

    def rest(self) -> list[tuple[str, bytes]]:
        """A last event without its blank line."""
        found = data_of(self._splitter.rest())
        return [("", found)] if found and found != b"[DONE]" else []


class JsonLines:
    """One JSON object a line."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """The lines that are whole now. Raises Unreadable."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_RECORD:
            raise Unreadable(f"a line of more than {MAX_RECORD} bytes")
        return [("", line) for line in lines if line.strip()]

    def rest(self) -> list[tuple[str, bytes]]:
        """A last line without its end."""
        rest, self._rest = self._rest, b""
        return [("", rest)] if rest.strip() else []


class AwsEvents:
    """AWS's event stream."""

    __slots__ = ("_messages",)

    def __init__(self) -> None:
        self._messages = Messages()

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """The messages that are whole now. Raises Unreadable."""
        try:
            found = self._messages.feed(data)
        except BadFrame as error:
            raise Unreadable(str(error)) from None
        return [(_kind(message.headers), message.payload) for message in found]

    def rest(self) -> list[tuple[str, bytes]]:
        """Nothing: a message that is cut off is none."""
        return []


def _kind(headers: Mapping[str, str]) -> str:
    return headers.get(":exception-type") or headers.get(":event-type") or headers.get(":error-code") or ""


class StreamAnswer:
    """A stream. After an error of the provider's, or the end it told, nothing more is read."""

    __slots__ = ("_failed", "_framing", "_out", "_reader", "idle")

    def __init__(self, framing: Framing, reader: Reader, label: Label) -> None:
        self._framing = framing
        self._reader = reader
        self._out = Chunks(label)
        self._failed = False
        self.idle = _COMMENT

    def feed(self, data: bytes) -> bytes:
        """The chunks that these bytes mean. Raises Unreadable."""
        return self._read(self._framing.feed(data))

    def finish(self) -> bytes:
        """The chunks that the end means. Raises Unreadable."""
        last = self._read(self._framing.rest())
        if not self._failed:
            self._reader.end(self._out)
        return last + self._out.take()

    def _read(self, events: list[tuple[str, bytes]]) -> bytes:
        out = self._out
        for kind, data in events:
            if self._failed or out.done:
                break
            try:
                self._reader.event(_object(data), kind, out)
            except ProviderError as error:
                self._failed = True
                return out.take() + error_event(error)
            except _MISSHAPEN:
                out.malformed()
        return out.take()


def _object(data: bytes) -> dict[str, Any]:
    doc = read_json(data)
    if type(doc) is not dict:
        raise Misread("an event that is not a JSON object")
    return doc
