"""What Cohere's Chat API v2 answers, whole and streamed, read as a chat completion (https://docs.cohere.com/reference/chat)."""

from collections.abc import Mapping
from typing import Any

from gateway.formats.completion import Choice, Chunks, Misread, ProviderError, Said, ToolCall
from gateway.formats.usage import MAX_COUNT, Usage

FINISH = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "TOOL_CALL": "tool_calls",
    "ERROR_TOXIC": "content_filter",
}
_FAILED = ("ERROR", "TIMEOUT", "ERROR_LIMIT")


def read_answer(doc: Mapping[str, Any]) -> Said:
    """A whole answer. Raises Misread, or ProviderError for one that failed."""
    message = doc.get("message")
    if type(message) is not dict:
        raise Misread("an answer without `message`")
    blocks = message.get("content") or ()
    calls = [
        ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    ]
    thought = "".join(block.get("thinking") or "" for block in blocks if block.get("type") == "thinking")
    choice = Choice(
        text="".join(block.get("text") or "" for block in blocks if block.get("type") == "text"),
        reasoning=str(message.get("tool_plan") or "") + thought,
        calls=calls,
        finish=_finish(doc.get("finish_reason")),
    )
    return Said((choice,), usage_from(doc.get("usage")), str(doc.get("id") or ""))


def _finish(reason: Any) -> str:
    if reason in _FAILED:
        raise ProviderError(500, f"the provider ended the answer with {reason}", str(reason))
    return FINISH.get(str(reason), "stop")


def usage_from(doc: Any) -> Usage | None:
    """The tokens that went through the model, whether billed or not; None when they are not to be trusted."""
    if not isinstance(doc, Mapping):
        return None
    tokens = doc.get("tokens") or doc.get("billed_units") or {}
    counts = [tokens.get("input_tokens") or 0, tokens.get("output_tokens") or 0, doc.get("cached_tokens") or 0]
    if any(type(count) not in (int, float) or not 0 <= count <= MAX_COUNT for count in counts):
        return None
    taken, made, cached = (int(count) for count in counts)
    return Usage(max(taken, cached), made, cached_input=cached) if taken or made else None


class Events:
    """Reads a stream."""

    __slots__ = ()

    def event(self, doc: Mapping[str, Any], kind: str, out: Chunks) -> None:
        """Take one event. Raises ProviderError."""
        kind = doc["type"]
        if kind == "content-delta":
            content = doc["delta"]["message"]["content"]
            if content.get("thinking"):
                out.delta({"reasoning_content": content["thinking"]})
            elif content.get("text"):
                out.text(content["text"])
        elif kind == "tool-plan-delta":
            out.delta({"reasoning_content": doc["delta"]["message"]["tool_plan"]})
        elif kind == "tool-call-start":
            call = doc["delta"]["message"]["tool_calls"]
            out.call(doc["index"], call["id"], call["function"]["name"], call["function"].get("arguments") or "")
        elif kind == "tool-call-delta":
            out.arguments(doc["index"], doc["delta"]["message"]["tool_calls"]["function"]["arguments"])
        elif kind == "message-start":
            out.named(str(doc.get("id") or ""), "")
            out.begins()
        elif kind == "message-end":
            delta = doc["delta"]
            out.usage = usage_from(delta.get("usage"))
            out.finish(_finish(delta.get("finish_reason")))
            self.end(out)

    def end(self, out: Chunks) -> None:
        """The stream has ended."""
        if out.finished:
            out.close()
