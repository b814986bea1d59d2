"""Chat completions read as what they say, for where they are told again: as a stream, or without a tool in it."""

from collections.abc import Mapping
from typing import Any

from gateway.formats.completion import FINISHES, Choice, Chunks, Misread, ProviderError, Said, ToolCall
from gateway.formats.usage import usage_of


def read_answer(doc: Mapping[str, Any], *, json_tool: str | None) -> Said:
    """A whole answer. The arguments of a call of `json_tool` are the text: the tool stands for a JSON schema.

    Raises Misread, or ProviderError for an error that came with a good status.
    """
    error = doc.get("error")
    if isinstance(error, Mapping):
        raise ProviderError(500, str(error.get("message") or "the provider failed"))
    if type(doc.get("choices")) is not list:
        raise Misread("an answer without `choices`")
    choices = [_choice(choice, json_tool) for choice in doc["choices"]]
    return Said(choices, usage_of(doc), str(doc.get("id") or ""), str(doc.get("model") or ""))


def _choice(choice: Mapping[str, Any], json_tool: str | None) -> Choice:
    message = choice["message"]
    made = [call["function"] | {"id": call["id"]} for call in message.get("tool_calls") or ()]
    as_json = [call["arguments"] for call in made if call["name"] == json_tool]
    calls = [ToolCall(call["id"], call["name"], call["arguments"]) for call in made if call["name"] != json_tool]
    reason = choice.get("finish_reason")
    finish = reason if reason in FINISHES else "stop"
    return Choice(
        text=str(message.get("content") or "") + "".join(as_json),
        reasoning=str(message.get("reasoning_content") or message.get("reasoning") or ""),
        calls=calls,
        finish="stop" if as_json and not calls and finish == "tool_calls" else finish,
    )


class Events:
    """Reads chunks. What calls themselves no place stands in the order in which its id came."""

    __slots__ = ("_places",)

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def event(self, doc: Mapping[str, Any], kind: str, out: Chunks) -> None:
        """Take one chunk."""
        for choice in doc["choices"]:
            index, delta = choice.get("index") or 0, choice.get("delta") or {}
            if delta.get("reasoning_content"):
                out.delta({"reasoning_content": delta["reasoning_content"]}, index)
            if delta.get("content"):
                out.text(delta["content"], index)
            for call in delta.get("tool_calls") or ():
                self._call(call, out, index)
            reason = choice.get("finish_reason")
            if reason:
                out.finish(reason if reason in FINISHES else "stop", index)
        out.usage = usage_of(doc) or out.usage

    def end(self, out: Chunks) -> None:
        """The stream has ended; only a choice that told why makes it whole."""
        if out.finished:
            out.close()

    def _call(self, call: Mapping[str, Any], out: Chunks, index: int) -> None:
        function, id_ = call["function"], str(call.get("id") or "")
        name, arguments = function.get("name"), function.get("arguments") or ""
        if name and id_ not in self._places:
            self._places[id_] = len(self._places)
            out.call(self._places[id_], id_ or out.call_id(self._places[id_]), name, arguments, index)
        elif arguments and self._places:
            out.arguments(self._places.get(id_, len(self._places) - 1), arguments, index)
