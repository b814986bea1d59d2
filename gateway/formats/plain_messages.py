"""Chat messages in words that providers other than OpenAI know too, before they are put into each one's own."""

from collections.abc import Mapping
from typing import Any

import orjson

# Gemini's calls are told apart by their place alone, and litellm takes one that says the same for a repetition.
_MARK = "gateway call"


def plain(messages: list[Any], *, developer: bool) -> list[Any]:
    """The messages with `system` for the role `developer`, unless that is known, and `{}` for arguments left empty."""
    return [_plain(message, developer) if isinstance(message, dict) else message for message in messages]


def _plain(message: dict[str, Any], developer: bool) -> dict[str, Any]:
    if message.get("role") == "developer" and not developer:
        return {**message, "role": "system"}
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or all(_arguments(call) != "" for call in calls):
        return message
    return {**message, "tool_calls": [_with(call, "{}") if _arguments(call) == "" else call for call in calls]}


def told_apart(messages: list[Any]) -> list[Any]:
    """The messages with a mark among the arguments of each call that says the same as one before it in its message.

    `unmarked` takes it out again.
    """
    return [_told_apart(message) if isinstance(message, dict) else message for message in messages]


def _told_apart(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or len(calls) < 2:
        return message
    seen: set[bytes] = set()
    marked = []
    for number, call in enumerate(calls):
        arguments = _parsed(call)
        if arguments is None:
            marked.append(call)
            continue
        said = orjson.dumps((call["function"].get("name"), arguments), option=orjson.OPT_SORT_KEYS)
        again = said in seen
        seen.add(said)
        marked.append(_with(call, orjson.dumps({**arguments, _MARK: number}).decode()) if again else call)
    return {**message, "tool_calls": marked}


def unmarked(parts: list[dict[str, Any]]) -> None:
    """Take the marks out of Gemini's parts, where they stand."""
    for part in parts:
        call = part.get("function_call")
        if isinstance(call, dict) and isinstance(call.get("args"), dict):
            call["args"].pop(_MARK, None)


def _parsed(call: Any) -> dict[str, Any] | None:
    try:
        found = orjson.loads(_arguments(call) or "null")
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _arguments(call: Any) -> str | None:
    function = call.get("function") if isinstance(call, Mapping) else None
    found = function.get("arguments") if isinstance(function, Mapping) else None
    return found if isinstance(found, str) else None


def _with(call: dict[str, Any], arguments: str) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "arguments": arguments}}
