"""Prompts and answers in the shape that the GenAI conventions give them on spans; only for those who opted in. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson


def asked(doc: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """What a client's request says, whichever endpoint it came to, as messages in OpenAI's shape."""
    said: list[Mapping[str, Any]] = [
        {"role": "system", "content": doc[name]} for name in ("system", "instructions") if doc.get(name)
    ]
    for name in ("messages", "input", "prompt"):
        given = doc.get(name)
        for each in given if isinstance(given, list) else [given]:
            if isinstance(each, Mapping):
                said.append(each)
            elif isinstance(each, str):
                said.append({"role": "user", "content": each})
    return tuple(said)


def input_json(messages: Iterable[Mapping[str, Any]]) -> str:
    """`gen_ai.input.messages` from messages in OpenAI's shape: a list of `{role, parts}`. Images are only named."""
    told = [{"role": message.get("role", "user"), "parts": list(_parts(message))} for message in messages]
    try:
        return orjson.dumps(told).decode()
    except orjson.JSONEncodeError:  # one level deeper than what came, which is too deep
        return orjson.dumps([{"role": "user", "parts": []} for _ in told]).decode()


def output_json(text: str, finish_reasons: tuple[str, ...]) -> str:
    """`gen_ai.output.messages` from the text of an answer."""
    reason = finish_reasons[0] if finish_reasons else "error"
    parts = [{"type": "text", "content": text}]
    return orjson.dumps([{"role": "assistant", "parts": parts, "finish_reason": reason}]).decode()


def _parts(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a client sent may have any shape; what is not of OpenAI's is left out."""
    content, calls = message.get("content"), message.get("tool_calls")
    if message.get("role") == "tool":
        yield {"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}
    elif isinstance(content, str):
        yield {"type": "text", "content": content}
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, Mapping):
                yield {"type": "text", "content": part["text"]} if "text" in part else {"type": str(part.get("type"))}
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            continue
        yield {
            "type": "tool_call",
            "id": call.get("id"),
            "name": function.get("name"),
            "arguments": function.get("arguments"),
        }
