"""What a stream of chunks tells once it is put together, as a client does it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.formats.completion import Label, Reader
from gateway.formats.foreign import Framing, StreamAnswer, Translation

LABEL = Label("00ff", 1_700_000_000, "asked-for")


@dataclass
class Told:
    """One stream. `calls` are name and arguments, by their place; `usage` as the chunk without choices said it."""

    text: str = ""
    reasoning: str = ""
    calls: dict[int, list[str]] = field(default_factory=dict)
    ids: dict[int, str] = field(default_factory=dict)
    finish: list[str] = field(default_factory=list)
    usage: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    roles: int = 0
    done: bool = False
    malformed: int = 0
    chunks: list[Mapping[str, Any]] = field(default_factory=list)


def read(out: bytes) -> Told:
    """Put the chunks together. Every chunk with choices must be of one answer, and nothing may come after the end."""
    told = Told()
    for record in out.split(b"\n\n")[:-1]:
        if record.startswith(b":"):
            continue
        assert not told.done, "something came after [DONE]"
        assert record.startswith(b"data: ")
        data = record[6:]
        if data == b"[DONE]":
            told.done = True
            continue
        try:
            doc = orjson.loads(data)
        except orjson.JSONDecodeError:
            told.malformed += 1
            continue
        _take(doc, told)
    with_choices = [chunk for chunk in told.chunks if chunk["choices"]]
    assert len({(chunk["id"], chunk["model"], chunk["created"]) for chunk in with_choices}) <= 1
    return told


def _take(doc: Mapping[str, Any], told: Told) -> None:
    if "error" in doc:
        told.error = doc["error"]
        return
    told.chunks.append(doc)
    told.usage = doc.get("usage") or told.usage
    for choice in doc["choices"]:
        delta = choice["delta"]
        told.roles += delta.get("role") == "assistant"
        told.text += delta.get("content") or ""
        told.reasoning += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls") or ():
            if call.get("id"):
                told.ids[call["index"]] = call["id"]
            kept = told.calls.setdefault(call["index"], ["", ""])
            kept[0] += call["function"].get("name") or ""
            kept[1] += call["function"].get("arguments") or ""
        if choice["finish_reason"]:
            told.finish.append(choice["finish_reason"])


def play(translation: Translation, data: bytes, step: int | None = None) -> Told:
    """Feed the bytes, all at once or `step` at a time, to the end."""
    pieces: Iterable[bytes] = (
        [data] if step is None else [data[place : place + step] for place in range(0, len(data), step)]
    )
    return read(b"".join([translation.feed(piece) for piece in pieces]) + translation.finish())


def stream(framing: Framing, reader: Reader) -> StreamAnswer:
    """A translation with the label of these tests."""
    return StreamAnswer(framing, reader, LABEL)


def sse(*events: Mapping[str, Any]) -> bytes:
    """Events as Anthropic sends them, with their type as their name too."""
    return b"".join(
        b"event: " + str(event.get("type", "message")).encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"
        for event in events
    )
