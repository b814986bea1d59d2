"""Writes chat completions, whole and in chunks, from what a provider said in a format of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from gateway.formats.chat_stream import DONE
from gateway.formats.usage import Usage

PING = b": ping\n\n"
FINISHES = frozenset(("stop", "length", "tool_calls", "content_filter"))


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call: `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What one choice says. `finish` is OpenAI's; `thinking` are signed blocks that a client sends back."""

    text: str = ""
    reasoning: str = ""
    calls: Sequence[ToolCall] = ()
    finish: str = "stop"
    thinking: Sequence[Mapping[str, Any]] = ()
    images: Sequence[str] = ()  # data URLs


def choice_of(
    text: Sequence[str],
    thinking: Sequence[Mapping[str, Any]],
    calls: Sequence[ToolCall],
    finish: str,
    *,
    as_json: bool,
) -> Choice:
    """What the blocks of one answer say; `as_json`: a call of the tool that stands for a schema was its text."""
    return Choice(
        text="".join(text),
        reasoning="".join(str(block.get("thinking") or "") for block in thinking),
        calls=calls,
        finish="stop" if as_json and finish == "tool_calls" else finish,
        thinking=thinking,
    )


@dataclass(frozen=True, slots=True)
class Said:
    """A whole answer of a provider, before it has a format. Empty `id` and `model` mean that it named none."""

    choices: Sequence[Choice]
    usage: Usage | None
    id: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """What every chunk of an answer carries. `serial` is unique; it names what the provider left without an id."""

    serial: str
    created: int
    model: str

    def call_id(self, number: int) -> str:
        """An id for the call of this number."""
        return f"call_{self.serial}{number:02d}"


class Misread(ValueError):
    """What came is not an answer in the provider's format; the message holds nothing of it."""


class ProviderError(Exception):
    """An error that a provider sent inside a stream, or with a good status; `status` is what it would have been."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


class Reader(Protocol):
    """Reads one stream of a provider's events and writes what they mean into a `Chunks`."""

    def event(self, doc: Mapping[str, Any], kind: str, out: "Chunks") -> None:
        """Take one event; `kind` is its name where the framing has names. Raises ProviderError or Misread."""
        ...

    def end(self, out: "Chunks") -> None:
        """The stream has ended."""
        ...


def usage_fields(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage, which `parse_usage` reads back to the same."""
    given = {
        "cached_tokens": usage.cached_input,
        "cache_write_tokens": usage.cache_write,
        "cache_write_1h_tokens": usage.cache_write_1h,
        "audio_tokens": usage.audio_input,
    }
    made = {
        "reasoning_tokens": usage.reasoning,
        "audio_tokens": usage.audio_output,
        "image_tokens": usage.image_output,
    }
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {name: count for name, count in given.items() if count or name == "cached_tokens"},
        "completion_tokens_details": {
            name: count for name, count in made.items() if count or name == "reasoning_tokens"
        },
    }


def completion(said: Said, label: Label) -> dict[str, Any]:
    """The chat completion that says it."""
    found: dict[str, Any] = {
        "id": said.id or f"chatcmpl-{label.serial}",
        "object": "chat.completion",
        "created": label.created,
        "model": said.model or label.model,
        "choices": [_choice(index, choice) for index, choice in enumerate(said.choices)],
    }
    if said.usage is not None:
        found["usage"] = usage_fields(said.usage)
    return found


def _choice(index: int, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text or None, "refusal": None}
    if choice.calls:
        message["tool_calls"] = [_call(call) for call in choice.calls]
    elif not choice.text:
        message["content"] = ""
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.thinking:
        message["thinking_blocks"] = list(choice.thinking)
    if choice.images:
        message["images"] = [{"type": "image_url", "image_url": {"url": url}} for url in choice.images]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": choice.finish}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


class Chunks:
    """Writes the events of one stream. `take` gives the bytes written since it was last called.

    A usage is told once, at the end, in a chunk without choices. `finished` is whether a choice has told why it ended.
    """

    __slots__ = ("_head", "_id", "_label", "_model", "_out", "_roles", "_text", "done", "finished", "usage")

    def __init__(self, label: Label) -> None:
        self._label = label
        self._id = ""
        self._model = label.model
        self._out: list[bytes] = []
        self._roles: set[int] = set()
        self._head = self._text = b""
        self.usage: Usage | None = None
        self.finished = False
        self.done = False

    def named(self, id_: str, model: str) -> None:
        """The provider's own id and model; what a chunk has already carried stays."""
        if not self._head:
            self._id = id_ or self._id
            self._model = model or self._model

    def call_id(self, number: int) -> str:
        """An id for a call that the provider gave none."""
        return self._label.call_id(number)

    def text(self, piece: str, index: int = 0) -> None:
        """A piece of text."""
        if index or not self._text or 0 not in self._roles:
            self.delta({"content": piece}, index)
            return
        self._out += (self._text, orjson.dumps(piece), b'},"logprobs":null,"finish_reason":null}]}\n\n')

    def delta(self, fields: Mapping[str, Any], index: int = 0, finish: str | None = None) -> None:
        """A chunk with these fields in its delta; the first of each choice tells the role too."""
        if index not in self._roles:
            self._roles.add(index)
            fields = (
                {"role": "assistant", "content": "", **fields} if finish is None else {"role": "assistant", **fields}
            )
        choice = {"index": index, "delta": fields, "logprobs": None, "finish_reason": finish}
        self._write([choice])

    def begins(self, index: int = 0) -> None:
        """The first chunk, with the role alone."""
        if index not in self._roles:
            self.delta({}, index)

    def call(self, number: int, id_: str, name: str, arguments: str = "", index: int = 0) -> None:
        """A call begins; `number` is its place among the calls of its choice."""
        function = {"name": name, "arguments": arguments}
        self.delta({"tool_calls": [{"index": number, "id": id_, "type": "function", "function": function}]}, index)

    def arguments(self, number: int, piece: str, index: int = 0) -> None:
        """A piece of the arguments of a call that has begun."""
        self.delta({"tool_calls": [{"index": number, "function": {"arguments": piece}}]}, index)

    def finish(self, reason: str, index: int = 0) -> None:
        """A choice has ended."""
        self.finished = True
        self.delta({}, index, reason)

    def ping(self) -> None:
        """Nothing yet, but the provider is alive."""
        self._out.append(PING)

    def malformed(self) -> None:
        """An event that could not be read: handed on as such, without its content, to be counted like any other."""
        self._out.append(b"data: an event of the provider that could not be read\n\n")

    def close(self) -> None:
        """The provider says that the answer is whole."""
        if self.done:
            return
        self.done = True
        if self.usage is not None:
            self._write([], usage_fields(self.usage))
        self._out.append(DONE)

    def take(self) -> bytes:
        """What was written since the last call."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def _write(self, choices: list[Any], usage: Mapping[str, Any] | None = None) -> None:
        if not self._head:
            self._name()
        told = b"" if usage is None else b',"usage":' + orjson.dumps(usage)
        self._out += (self._head, orjson.dumps(choices), told, b"}\n\n")

    def _name(self) -> None:
        fixed = {
            "id": self._id or f"chatcmpl-{self._label.serial}",
            "object": "chat.completion.chunk",
            "created": self._label.created,
            "model": self._model,
        }
        self._head = b"data: " + orjson.dumps(fixed)[:-1] + b',"choices":'
        self._text = self._head + b'[{"index":0,"delta":{"content":'


def error_event(error: ProviderError) -> bytes:
    """The event that tells of an error inside a stream."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    fields = {"message": error.message, "type": kind, "param": None, "code": error.code, "status": error.status}
    return b"data: " + orjson.dumps({"error": fields}) + b"\n\n"


def chunks_of(said: Said, label: Label) -> bytes:
    """A whole answer as a stream, for a model that cannot stream."""
    chunks = Chunks(label)
    chunks.named(said.id, said.model)
    for index, choice in enumerate(said.choices):
        chunks.begins(index)
        if choice.reasoning:
            chunks.delta({"reasoning_content": choice.reasoning}, index)
        if choice.text:
            chunks.text(choice.text, index)
        for number, call in enumerate(choice.calls):
            chunks.call(number, call.id, call.name, call.arguments, index)
        chunks.finish(choice.finish, index)
    chunks.usage = said.usage
    chunks.close()
    return chunks.take()
