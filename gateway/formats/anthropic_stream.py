"""What Anthropic's Messages API answers, whole and streamed, read as a chat completion.

https://docs.anthropic.com/en/api/messages and …/messages-streaming. Amazon and Google serve Claude in the same format.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.formats.completion import Chunks, Misread, ProviderError, Said, ToolCall, choice_of
from gateway.formats.usage import parse_usage

FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def read_answer(doc: Mapping[str, Any], *, names: Mapping[str, str], json_tool: str | None) -> Said:
    """A whole message. `names` maps a tool's name as it was sent to the client's own.

    The arguments of a call of `json_tool` are the answer itself: the tool stands for a JSON schema that was asked for.
    Raises Misread, or ProviderError for an error.
    """
    if doc.get("type") == "error":
        raise error_of(doc)
    blocks = doc.get("content")
    if type(blocks) is not list:
        raise Misread("a message without `content`")
    text: list[str] = []
    thinking: list[Mapping[str, Any]] = []
    calls: list[ToolCall] = []
    as_json = False
    for block in blocks:
        kind = block.get("type")
        if kind == "text":
            text.append(block["text"])
        elif kind == "tool_use" and block.get("name") == json_tool:
            text.append(orjson.dumps(block["input"]).decode())
            as_json = True
        elif kind == "tool_use":
            name = str(block["name"])
            calls.append(ToolCall(block["id"], names.get(name, name), orjson.dumps(block.get("input") or {}).decode()))
        elif kind in ("thinking", "redacted_thinking"):
            thinking.append(block)
    finish = FINISH.get(str(doc.get("stop_reason")), "stop")
    usage = doc.get("usage")
    choice = choice_of(text, thinking, calls, finish, as_json=as_json)
    found = parse_usage(usage) if isinstance(usage, Mapping) else None
    return Said((choice,), found, str(doc.get("id") or ""), str(doc.get("model") or ""))


class Events:
    """Reads a stream. `names` and `json_tool` are as for `read_answer`."""

    __slots__ = ("_as_json", "_blocks", "_empty", "_json_tool", "_names", "_number", "_usage")

    def __init__(self, *, names: Mapping[str, str], json_tool: str | None) -> None:
        self._names = names
        self._json_tool = json_tool
        self._as_json = False
        self._number = -1
        self._blocks: dict[int, str] = {}
        self._empty = False
        self._usage: dict[str, Any] = {}

    def event(self, doc: Mapping[str, Any], kind: str, out: Chunks) -> None:
        """Take one event. Raises ProviderError."""
        kind = doc["type"]
        if kind == "content_block_delta":
            self._delta(doc, out)
        elif kind == "content_block_start":
            self._start(doc, out)
        elif kind == "content_block_stop":
            if self._blocks.pop(doc["index"], "") == "call" and self._empty:
                out.arguments(self._number, "{}")
                self._empty = False
        elif kind == "message_start":
            message = doc["message"]
            out.named(str(message.get("id") or ""), str(message.get("model") or ""))
            self._count(message.get("usage"), out)
            out.begins()
        elif kind == "message_delta":
            self._count(doc.get("usage"), out)
            reason = doc["delta"].get("stop_reason")
            if reason:
                finish = FINISH.get(reason, "stop")
                out.finish("stop" if self._as_json and finish == "tool_calls" else finish)
        elif kind == "message_stop":
            self.end(out)
        elif kind == "ping":
            out.ping()
        elif kind == "error":
            raise error_of(doc)

    def end(self, out: Chunks) -> None:
        """The stream has ended."""
        if out.finished:
            out.close()

    def _start(self, doc: Mapping[str, Any], out: Chunks) -> None:
        block = doc["content_block"]
        kind = block["type"]
        role = kind
        if kind == "tool_use" and block["name"] == self._json_tool:
            role = "json"
            self._as_json = True
        elif kind == "tool_use":
            role = "call"
            self._number += 1
            self._empty = True
            name = block["name"]
            out.call(self._number, block["id"], self._names.get(name, name))
            if block.get("input"):
                self._empty = False
                out.arguments(self._number, orjson.dumps(block["input"]).decode())
        elif kind == "text" and block.get("text"):
            out.text(block["text"])
        elif kind == "redacted_thinking":
            out.delta({"thinking_blocks": [block]})
        self._blocks[doc["index"]] = role

    def _delta(self, doc: Mapping[str, Any], out: Chunks) -> None:
        delta = doc["delta"]
        kind = delta["type"]
        if kind == "text_delta":
            out.text(delta["text"])
        elif kind == "input_json_delta":
            self._input(self._blocks.get(doc["index"], ""), delta["partial_json"], out)
        elif kind == "thinking_delta":
            piece = delta["thinking"]
            block = {"type": "thinking", "thinking": piece}
            out.delta({"reasoning_content": piece, "thinking_blocks": [block]})
        elif kind == "signature_delta":
            block = {"type": "thinking", "thinking": "", "signature": delta["signature"]}
            out.delta({"thinking_blocks": [block]})

    def _input(self, role: str, piece: str, out: Chunks) -> None:
        if not piece:
            return
        if role == "json":
            out.text(piece)
        elif role == "call":
            self._empty = False
            out.arguments(self._number, piece)

    def _count(self, usage: Any, out: Chunks) -> None:
        """`message_delta` repeats the counts of `message_start`, grown; one that it leaves out stands."""
        if isinstance(usage, Mapping):
            self._usage |= {name: value for name, value in usage.items() if value is not None}
            out.usage = parse_usage(self._usage) or out.usage


def error_of(doc: Mapping[str, Any]) -> ProviderError:
    """The error in an error body or event."""
    error = doc.get("error")
    fields = error if isinstance(error, Mapping) else {}
    kind = str(fields.get("type") or "api_error")
    return ProviderError(STATUS.get(kind, 500), str(fields.get("message") or kind), kind)
