"""What Gemini answers, whole and streamed, read as a chat completion (Google AI Studio and Vertex AI).

https://ai.google.dev/api/generate-content. Every event of a stream has the shape of a whole answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.formats.completion import Choice, Chunks, Label, Misread, ProviderError, Said, ToolCall
from gateway.formats.usage import usage_of

FINISH = {
    "STOP": "stop",
    "FINISH_REASON_UNSPECIFIED": "stop",
    "MAX_TOKENS": "length",
    "MALFORMED_FUNCTION_CALL": "stop",
    "UNEXPECTED_TOOL_CALL": "stop",
    "TOO_MANY_TOOL_CALLS": "stop",
}  # what is not named here was withheld: SAFETY, RECITATION, BLOCKLIST, PROHIBITED_CONTENT, SPII, …
# A call's signature has to come back with the call. Clients send back nothing but its id, so that it travels there, as
# litellm reads it.
_SIGNED = "__thought__"


def read_answer(doc: Mapping[str, Any], label: Label) -> Said:
    """A whole answer. Raises Misread, or ProviderError for an error."""
    _raise_error(doc)
    candidates = doc.get("candidates") or ()
    if not candidates and not _is_blocked(doc):
        raise Misread("an answer without `candidates`")
    choices = [_choice(candidate, label) for candidate in candidates] or [Choice(finish="content_filter")]
    return Said(choices, usage_of(doc), str(doc.get("responseId") or ""), str(doc.get("modelVersion") or ""))


def _choice(candidate: Mapping[str, Any], label: Label) -> Choice:
    parts = _parts(candidate)
    calls = [_call(part, label.call_id(number)) for number, part in enumerate(p for p in parts if "functionCall" in p)]
    return Choice(
        text="".join(part["text"] for part in parts if part.get("text") and not part.get("thought")),
        reasoning="".join(part["text"] for part in parts if part.get("text") and part.get("thought")),
        calls=calls,
        finish=_finish(str(candidate.get("finishReason") or "STOP"), called=bool(calls)),
        images=[url for part in parts if (url := _image(part))],
    )


def _call(part: Mapping[str, Any], made: str) -> ToolCall:
    call = part["functionCall"]
    id_ = str(call.get("id") or made)
    if part.get("thoughtSignature"):
        id_ += _SIGNED + str(part["thoughtSignature"])
    return ToolCall(id_, call["name"], orjson.dumps(call.get("args") or {}).decode())


def _parts(candidate: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    content = candidate.get("content")
    return content.get("parts") or () if isinstance(content, Mapping) else ()


def _image(part: Mapping[str, Any]) -> str:
    data = part.get("inlineData")
    return f"data:{data['mimeType']};base64,{data['data']}" if data else ""


def _finish(reason: str, *, called: bool) -> str:
    found = FINISH.get(reason, "content_filter")
    return "tool_calls" if called and found == "stop" else found


def _is_blocked(doc: Mapping[str, Any]) -> bool:
    feedback = doc.get("promptFeedback")
    return isinstance(feedback, Mapping) and bool(feedback.get("blockReason"))


def _raise_error(doc: Mapping[str, Any]) -> None:
    error = doc.get("error")
    if isinstance(error, Mapping):
        code = error.get("code")
        status = code if type(code) is int and 400 <= code < 600 else 500
        raise ProviderError(status, str(error.get("message") or "the provider failed"), str(error.get("status") or ""))


class Events:
    """Reads a stream."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: dict[int, int] = {}

    def event(self, doc: Mapping[str, Any], kind: str, out: Chunks) -> None:
        """Take one event. Raises ProviderError."""
        _raise_error(doc)
        out.named(str(doc.get("responseId") or ""), str(doc.get("modelVersion") or ""))
        out.usage = usage_of(doc) or out.usage
        for candidate in doc.get("candidates") or ():
            self._candidate(candidate, out)
        if _is_blocked(doc):
            out.finish("content_filter")

    def end(self, out: Chunks) -> None:
        """The stream has ended: that is how Gemini says it, once it gave a finishReason."""
        if out.finished:
            out.close()

    def _candidate(self, candidate: Mapping[str, Any], out: Chunks) -> None:
        index = int(candidate.get("index") or 0)
        for part in _parts(candidate):
            if part.get("text"):
                if part.get("thought"):
                    out.delta({"reasoning_content": part["text"]}, index)
                else:
                    out.text(part["text"], index)
            elif "functionCall" in part:
                number = self._calls.get(index, 0)
                self._calls[index] = number + 1
                call = _call(part, out.call_id(index * 100 + number))
                out.call(number, call.id, call.name, call.arguments, index)
            elif url := _image(part):
                out.delta({"images": [{"type": "image_url", "image_url": {"url": url}}]}, index)
        reason = candidate.get("finishReason")
        if reason:
            out.finish(_finish(str(reason), called=index in self._calls), index)
