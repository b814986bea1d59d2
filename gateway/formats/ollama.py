"""What Ollama's own API answers, whole and streamed, read as a chat completion (its docs/api.md, `POST /api/chat`).

Every line of a stream has the shape of a whole answer; the last has `done` and the counts.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.formats.completion import Choice, Chunks, Label, Misread, ProviderError, Said, ToolCall
from gateway.formats.usage import MAX_COUNT, Usage


def read_answer(doc: Mapping[str, Any], label: Label) -> Said:
    """A whole answer. Raises Misread, or ProviderError for an error."""
    _raise_error(doc)
    message = doc.get("message")
    if type(message) is not dict:
        raise Misread("an answer without `message`")
    calls = [_call(call, label.call_id(number)) for number, call in enumerate(message.get("tool_calls") or ())]
    choice = Choice(
        text=str(message.get("content") or ""),
        reasoning=str(message.get("thinking") or ""),
        calls=calls,
        finish=_finish(doc, called=bool(calls)),
    )
    return Said((choice,), usage_from(doc), "", str(doc.get("model") or ""))


def _call(call: Mapping[str, Any], made: str) -> ToolCall:
    function = call["function"]
    return ToolCall(
        str(call.get("id") or made), function["name"], orjson.dumps(function.get("arguments") or {}).decode()
    )


def _finish(doc: Mapping[str, Any], *, called: bool) -> str:
    return "tool_calls" if called else "length" if doc.get("done_reason") == "length" else "stop"


def _raise_error(doc: Mapping[str, Any]) -> None:
    if doc.get("error"):
        raise ProviderError(500, str(doc["error"]))


def usage_from(doc: Mapping[str, Any]) -> Usage | None:
    """The counts; None when there are none to be trusted. A prompt that was still in memory is left out by Ollama."""
    taken, made = doc.get("prompt_eval_count") or 0, doc.get("eval_count") or 0
    if any(type(count) is not int or not 0 <= count <= MAX_COUNT for count in (taken, made)) or not taken + made:
        return None
    return Usage(taken, made)


class Events:
    """Reads a stream."""

    __slots__ = ("_number",)

    def __init__(self) -> None:
        self._number = 0

    def event(self, doc: Mapping[str, Any], kind: str, out: Chunks) -> None:
        """Take one line. Raises ProviderError."""
        _raise_error(doc)
        out.named("", str(doc.get("model") or ""))
        message = doc.get("message") or {}
        if message.get("thinking"):
            out.delta({"reasoning_content": message["thinking"]})
        if message.get("content"):
            out.text(message["content"])
        for each in message.get("tool_calls") or ():
            call = _call(each, out.call_id(self._number))
            out.call(self._number, call.id, call.name, call.arguments)
            self._number += 1
        if doc.get("done"):
            out.usage = usage_from(doc)
            out.finish(_finish(doc, called=self._number > 0))
            out.close()

    def end(self, out: Chunks) -> None:
        """The stream has ended; only a line with `done` makes it whole."""
