"""What Amazon Bedrock's Converse API answers, whole and streamed, read as a chat completion.

https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html and …ConverseStream.html.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.formats.completion import Chunks, Misread, ProviderError, Said, ToolCall, choice_of
from gateway.formats.usage import MAX_COUNT, Usage

FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}
STATUS = {
    "validationException": 400,
    "accessDeniedException": 403,
    "resourceNotFoundException": 404,
    "modelTimeoutException": 408,
    "throttlingException": 429,
    "serviceQuotaExceededException": 429,
    "internalServerException": 500,
    "modelStreamErrorException": 500,
    "modelErrorException": 500,
    "serviceUnavailableException": 503,
    "modelNotReadyException": 503,
}


def read_answer(doc: Mapping[str, Any], *, names: Mapping[str, str], json_tool: str | None) -> Said:
    """A whole answer. `names` and `json_tool` are as for `anthropic_stream.read_answer`. Raises Misread."""
    output = doc.get("output")
    if type(output) is not dict:
        raise Misread("an answer without `output`")
    text: list[str] = []
    thinking: list[Mapping[str, Any]] = []
    calls: list[ToolCall] = []
    as_json = False
    for block in output["message"]["content"]:
        if "text" in block:
            text.append(block["text"])
        elif "toolUse" in block:
            use = block["toolUse"]
            given = orjson.dumps(use.get("input") or {}).decode()
            if use["name"] == json_tool:
                text.append(given)
                as_json = True
            else:
                calls.append(ToolCall(use["toolUseId"], names.get(use["name"], use["name"]), given))
        elif "reasoningContent" in block:
            thinking.append(_thought(block["reasoningContent"]))
    finish = FINISH.get(str(doc.get("stopReason")), "stop")
    choice = choice_of(text, thinking, calls, finish, as_json=as_json)
    return Said((choice,), usage_from(doc.get("usage")))


def _thought(content: Mapping[str, Any]) -> Mapping[str, Any]:
    said = content.get("reasoningText")
    if not said:
        return {"type": "redacted_thinking", "data": content.get("redactedContent") or ""}
    signed = {"signature": said["signature"]} if said.get("signature") else {}
    return {"type": "thinking", "thinking": said.get("text") or "", **signed}


def usage_from(doc: Any) -> Usage | None:
    """A usage object, whose `inputTokens` leaves out cached tokens; None when it is not to be trusted."""
    if not isinstance(doc, Mapping):
        return None
    names = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheWriteInputTokens")
    counts = [doc.get(name) or 0 for name in names]
    hour = [each for each in doc.get("cacheDetails") or () if each.get("ttl") == "1h"]
    counts.append(sum(each.get("inputTokens") or 0 for each in hour))
    if any(type(count) is not int or not 0 <= count <= MAX_COUNT for count in counts):
        return None
    taken, made, read, written, kept = counts
    return Usage(taken + read + written, made, cached_input=read, cache_write=written, cache_write_1h=kept)


class Events:
    """Reads a stream. `names` and `json_tool` are as for `anthropic_stream.read_answer`."""

    __slots__ = ("_as_json", "_blocks", "_empty", "_json_tool", "_names", "_number")

    def __init__(self, *, names: Mapping[str, str], json_tool: str | None) -> None:
        self._names = names
        self._json_tool = json_tool
        self._as_json = False
        self._number = -1
        self._blocks: dict[int, str] = {}
        self._empty = False

    def event(self, doc: Mapping[str, Any], kind: str, out: Chunks) -> None:
        """Take one event; `kind` is its `:event-type`. Raises ProviderError."""
        if kind == "contentBlockDelta":
            self._delta(doc["delta"], self._blocks.get(doc["contentBlockIndex"], ""), out)
        elif kind == "contentBlockStart":
            use = doc["start"].get("toolUse")
            if use is not None:
                self._call(doc["contentBlockIndex"], use, out)
        elif kind == "contentBlockStop":
            if self._blocks.pop(doc["contentBlockIndex"], "") == "call" and self._empty:
                out.arguments(self._number, "{}")
        elif kind == "messageStart":
            out.begins()
        elif kind == "messageStop":
            finish = FINISH.get(str(doc.get("stopReason")), "stop")
            out.finish("stop" if self._as_json and finish == "tool_calls" else finish)
        elif kind == "metadata":
            out.usage = usage_from(doc.get("usage"))
            self.end(out)
        elif kind.endswith("Exception"):
            raise ProviderError(STATUS.get(kind, 500), str(doc.get("message") or kind), kind)

    def end(self, out: Chunks) -> None:
        """The stream has ended."""
        if out.finished:
            out.close()

    def _call(self, index: int, use: Mapping[str, Any], out: Chunks) -> None:
        name = use["name"]
        if name == self._json_tool:
            self._blocks[index] = "json"
            self._as_json = True
            return
        self._blocks[index] = "call"
        self._number += 1
        self._empty = True
        out.call(self._number, use["toolUseId"], self._names.get(name, name))

    def _delta(self, delta: Mapping[str, Any], role: str, out: Chunks) -> None:
        if "text" in delta:
            out.text(delta["text"])
        elif "toolUse" in delta:
            piece = delta["toolUse"]["input"]
            if piece and role == "json":
                out.text(piece)
            elif piece:
                self._empty = False
                out.arguments(self._number, piece)
        elif "reasoningContent" in delta:
            content = delta["reasoningContent"]
            if content.get("text"):
                block = {"type": "thinking", "thinking": content["text"]}
                out.delta({"reasoning_content": content["text"], "thinking_blocks": [block]})
            elif content.get("signature"):
                block = {"type": "thinking", "thinking": "", "signature": content["signature"]}
                out.delta({"thinking_blocks": [block]})
            elif content.get("redactedContent"):
                block = {"type": "redacted_thinking", "data": content["redactedContent"]}
                out.delta({"thinking_blocks": [block]})
