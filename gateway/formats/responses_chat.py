"""OpenAI's responses in chat's words: the request as a conversation, the answer as output items."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.errors import InvalidRequest
from gateway.formats.messages_chat import arguments_of
from gateway.formats.request import Untranslatable
from gateway.formats.rewritten import name_of
from gateway.formats.usage import Usage

_AS_THEY_ARE = ("temperature", "top_p", "parallel_tool_calls", "user")
_KEPT_THERE = ("previous_response_id", "conversation", "prompt")
_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}
_CUT = {"length": "max_output_tokens", "content_filter": "content_filter"}
_SHOWN = ("instructions", "max_output_tokens", "temperature", "top_p", "user")


def to_chat(doc: Mapping[str, Any]) -> dict[str, Any]:
    """The chat request that says the same, without model, stream and output limit.

    Left out is what an answer is right without: `reasoning`, `store`, `include`, `truncation`, `metadata`. Raises
    Untranslatable where the answer would be another: what only the backend keeps, and tools that it runs itself.
    """
    for name in _KEPT_THERE:
        if doc.get(name) is not None:
            raise Untranslatable(
                f"`{name}` works only at a backend that has the Responses API itself; send the whole `input` instead.",
                param=name,
            )
    chat: dict[str, Any] = {"messages": list(_messages(doc))}
    chat.update({name: doc[name] for name in _AS_THEY_ARE if doc.get(name) is not None})
    if doc.get("tools"):
        chat["tools"] = [_tool(tool, f"tools[{place}]") for place, tool in enumerate(doc["tools"])]
        choice = doc.get("tool_choice")
        if choice is not None:
            chat["tool_choice"] = _tool_choice(choice)
    else:
        chat.pop("parallel_tool_calls", None)
    chat.update(_response_format((doc.get("text") or {}).get("format")))
    return chat


def response_of(
    doc: Mapping[str, Any],
    *,
    response_id: str,
    model: str,
    created: int,
    output: Sequence[Mapping[str, Any]] = (),
    status: str = "in_progress",
    cut: str | None = None,
    usage: Usage | None = None,
) -> dict[str, Any]:
    """The response object; `doc` is the request, `cut` why it is incomplete."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None if cut is None else {"reason": cut},
        "model": model,
        "output": list(output),
        "parallel_tool_calls": doc.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "text": doc.get("text") or {"format": {"type": "text"}},
        "tool_choice": doc.get("tool_choice") or "auto",
        "tools": doc.get("tools") or [],
        "truncation": "disabled",
        "metadata": doc.get("metadata") or {},
        "usage": None if usage is None else usage_doc(usage),
        **{name: doc.get(name) for name in _SHOWN},
    }


def output_of(said: Mapping[str, Any], suffix: str) -> list[dict[str, Any]]:
    """The items for a whole message of chat's; `suffix` makes their ids."""
    parts = []
    content = said.get("content")
    if content and isinstance(content, str):
        parts.append(text_part(content))
    if said.get("refusal"):
        parts.append(refusal_part(str(said["refusal"])))
    calls = [call for call in said.get("tool_calls") or () if isinstance(call, dict)]
    items = [message_item(f"msg_{suffix}", parts)] if parts or not calls else []
    return items + [
        call_item(f"fc_{suffix}_{place}", call_id(call, suffix, place), name_of(call), arguments_of(call))
        for place, call in enumerate(calls)
    ]


def text_part(text: str) -> dict[str, Any]:
    """Text, as a part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def refusal_part(text: str) -> dict[str, Any]:
    """A refusal, as a part of a message."""
    return {"type": "refusal", "refusal": text}


def message_item(item_id: str, parts: list[dict[str, Any]], status: str = "completed") -> dict[str, Any]:
    """A message, as an item."""
    return {"type": "message", "id": item_id, "status": status, "role": "assistant", "content": parts}


def call_item(item_id: str, call: str, name: str, arguments: str, status: str = "completed") -> dict[str, Any]:
    """A function call, as an item."""
    said = {"call_id": call, "name": name, "arguments": arguments}
    return {"type": "function_call", "id": item_id, "status": status, **said}


def call_id(call: Mapping[str, Any], suffix: str, place: int) -> str:
    """A call's own id, by which its result is sent back; made up for a server that gives none."""
    return str(call.get("id") or f"call_{suffix}_{place}")


def response_id(chat_id: str) -> str:
    """An id as the clients of responses know them."""
    return chat_id if chat_id.startswith("resp_") else f"resp_{chat_id or 'unnamed'}"


def ending(finish_reason: object) -> tuple[str, str | None]:
    """`status`, and why it is incomplete."""
    cut = _CUT.get(str(finish_reason))
    return ("completed", None) if cut is None else ("incomplete", cut)


def usage_doc(usage: Usage) -> dict[str, Any]:
    """Usage as responses have it."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_input, "cache_write_tokens": usage.cache_write},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.total_tokens,
    }


def _messages(doc: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if doc.get("instructions"):
        yield {"role": "system", "content": doc["instructions"]}
    given = doc.get("input")
    if isinstance(given, str):
        yield {"role": "user", "content": given}
        return
    calling: dict[str, Any] | None = None  # the assistant's message to which more calls are added
    for place, item in enumerate(given or ()):
        where = f"input[{place}]"
        kind = item.get("type") or "message"
        if kind == "reasoning":
            continue
        if kind == "function_call":
            if calling is None:
                calling = {"role": "assistant", "content": None}
            calling.setdefault("tool_calls", []).append(_call(item, where))
            continue
        message = _item(item, kind, where)
        if calling is not None:
            yield calling
        calling = message if message["role"] == "assistant" else None
        if calling is None:
            yield message
    if calling is not None:
        yield calling


def _item(item: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    if kind == "function_call_output":
        told = {"tool_call_id": _string(item, "call_id", where)}
        return {"role": "tool", **told, "content": _plain_text(item.get("output"), f"{where}.output")}
    if kind != "message":
        raise Untranslatable(
            f"`{where}` is of type {kind!r}, which only a backend with the Responses API can read.", param=where
        )
    role = _ROLES.get(_string(item, "role", where))
    if role is None:
        raise InvalidRequest(f"`{where}.role` must be user, assistant, system or developer.", param=f"{where}.role")
    content = item.get("content")
    if isinstance(content, str):
        return {"role": role, "content": content}
    if role != "user":
        return {"role": role, "content": _plain_text(content, f"{where}.content")}
    parts = [_part(part, f"{where}.content[{n}]") for n, part in enumerate(_list(content, f"{where}.content"))]
    return {"role": role, "content": parts}


def _plain_text(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for place, part in enumerate(_list(content, where)):
        text = part.get("text", part.get("refusal"))
        if not isinstance(text, str):
            kind = part.get("type")
            raise Untranslatable(f"`{where}[{place}]` is {kind!r}, and chat takes only text there.", param=where)
        texts.append(text)
    return "".join(texts)


def _list(content: object, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise InvalidRequest(f"`{where}` must be a string or a list of parts.", param=where)
    return content


def _part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": _string(part, "text", where)}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        detail = {} if part.get("detail") is None else {"detail": part["detail"]}
        return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
    if kind == "input_file" and isinstance(part.get("file_data"), str):
        name = {} if part.get("filename") is None else {"filename": part["filename"]}
        return {"type": "file", "file": {**name, "file_data": part["file_data"]}}
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    raise Untranslatable(
        f"`{where}` is of type {kind!r} without its data, or unknown to chat; send the data itself.", param=where
    )


def _call(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = {"name": _string(item, "name", where), "arguments": _string(item, "arguments", where)}
    return {"id": _string(item, "call_id", where), "type": "function", "function": function}


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind != "function":
        raise Untranslatable(
            f"`{where}` is the tool {kind!r}, which only a backend with the Responses API runs; leave it out here.",
            param=where,
        )
    named = ("description", "parameters", "strict")
    function = {"name": _string(tool, "name", where)}
    return {
        "type": "function",
        "function": {**function, **{name: tool[name] for name in named if tool.get(name) is not None}},
    }


def _tool_choice(choice: object) -> object:
    if isinstance(choice, str):
        return choice
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": _string(choice, "name", "tool_choice")}}
    raise Untranslatable(
        "`tool_choice` must be auto, none, required or a function for this backend.", param="tool_choice"
    )


def _response_format(wanted: object) -> dict[str, Any]:
    if not isinstance(wanted, dict) or wanted.get("type") in (None, "text"):
        return {}
    if wanted["type"] == "json_schema":
        schema = {name: value for name, value in wanted.items() if name != "type"}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {"response_format": {"type": wanted["type"]}}


def _string(holder: Mapping[str, Any], name: str, where: str) -> str:
    value = holder.get(name)
    if not isinstance(value, str):
        code = "missing_field" if value is None else "invalid_value"
        raise InvalidRequest(f"`{where}.{name}` must be a string.", code=code, param=f"{where}.{name}")
    return value
