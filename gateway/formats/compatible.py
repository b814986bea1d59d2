"""A chat completion read as what it says, for where it has to be told again: as a stream, or without the tool in it."""

from collections.abc import Mapping
from typing import Any

from gateway.formats.completion import FINISHES, Choice, Misread, ProviderError, Said, ToolCall
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
