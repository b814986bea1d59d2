"""What the real OpenAI SDK made of an answer, whole or in chunks, after the checks that hold for every one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk


@dataclass(frozen=True, slots=True)
class Heard:
    """What an SDK made of an answer, whole or streamed."""

    text: str
    calls: list[tuple[str, Any]]
    finish: str | None
    usage: Mapping[str, Any] | None
    headers: Mapping[str, str]
    objects: frozenset[str]


def heard(found: Any, headers: Mapping[str, str]) -> Heard:
    """The same, whether it came whole or in chunks."""
    return _heard_whole(found, headers) if isinstance(found, ChatCompletion) else _heard_chunks(found, headers)


def _heard_whole(found: ChatCompletion, headers: Mapping[str, str]) -> Heard:
    (choice,) = found.choices
    assert choice.message.role == "assistant"
    calls: list[Any] = list(choice.message.tool_calls or ())
    assert len({each.id for each in calls}) == len(calls)
    said = [(each.function.name, json.loads(each.function.arguments)) for each in calls]
    usage = found.usage.model_dump(exclude_none=True) if found.usage else None
    return Heard(choice.message.content or "", said, choice.finish_reason, usage, headers, frozenset((found.object,)))


def _heard_chunks(chunks: list[ChatCompletionChunk], headers: Mapping[str, str]) -> Heard:
    text, finish, usage = "", None, None
    calls: dict[int, list[str]] = {}
    ids: dict[int, str] = {}
    assert len({chunk.id for chunk in chunks if chunk.id}) == 1
    for chunk in chunks:
        usage = chunk.usage.model_dump(exclude_none=True) if chunk.usage else usage
        for choice in chunk.choices:
            assert finish is None or not (choice.delta.content or choice.delta.tool_calls), "text after the end"
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or ():
                assert call.function is not None
                ids.setdefault(call.index, call.id or "")
                parts = calls.setdefault(call.index, ["", ""])
                parts[0] += call.function.name or ""
                parts[1] += call.function.arguments or ""
    assert len(set(ids.values())) == len(ids)
    said = [(name, json.loads(arguments)) for _, (name, arguments) in sorted(calls.items())]
    return Heard(text, said, finish, usage, headers, frozenset(chunk.object for chunk in chunks if chunk.object))
