"""Anthropic's messages in chat's words, and a chat completion as Anthropic's message."""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

import orjson

from gateway.errors import InvalidRequest
from gateway.formats.request import Untranslatable
from gateway.formats.rewritten import name_of
from gateway.formats.usage import Usage

_USER_LIMIT = 64  # characters that OpenAI takes as `user`
_AS_THEY_ARE = ("temperature", "top_p")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_ENDINGS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_UNSAID = frozenset(("thinking", "redacted_thinking"))  # what only the model that thought it can use


def to_chat(doc: Mapping[str, Any]) -> dict[str, Any]:
    """The chat request that says the same, without model, stream and output limit.

    Left out is what chat has no word for and an answer is right without: cache marks, thinking and its budget, `top_k`,
    `service_tier`. Raises Untranslatable where the answer would be another: Anthropic's own tools, files kept there.
    """
    chat: dict[str, Any] = {"messages": list(_messages(doc))}
    chat.update({name: doc[name] for name in _AS_THEY_ARE if doc.get(name) is not None})
    if doc.get("stop_sequences"):
        chat["stop"] = doc["stop_sequences"]
    if doc.get("tools"):
        chat["tools"] = [_tool(tool, f"tools[{place}]") for place, tool in enumerate(doc["tools"])]
        chat.update(_tool_choice(doc.get("tool_choice") or {}))
    schema = _schema(doc)
    if schema is not None:
        chat["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    user = (doc.get("metadata") or {}).get("user_id")
    if isinstance(user, str) and user:
        chat["user"] = user if len(user) <= _USER_LIMIT else sha256(user.encode()).hexdigest()
    if doc.get("mcp_servers"):
        raise Untranslatable("`mcp_servers` work only at an Anthropic backend; leave it out.", param="mcp_servers")
    return chat


def message_of(doc: Mapping[str, Any], usage: Usage, stops: Sequence[str], *, thinks: bool) -> dict[str, Any]:
    """Anthropic's message for a whole chat completion, whose `choices` must have one."""
    choice = doc["choices"][0]
    said = choice.get("message")
    said = said if isinstance(said, dict) else {}
    reason, stop = ending(choice, stops)
    return {
        "id": message_id(str(doc.get("id") or "")),
        "type": "message",
        "role": "assistant",
        "model": str(doc.get("model") or ""),
        "content": list(_blocks(said, thinks=thinks)),
        "stop_reason": "refusal" if said.get("refusal") else reason,
        "stop_sequence": stop,
        "usage": usage_doc(usage),
    }


def message_id(response_id: str) -> str:
    """An id as Anthropic's clients know them."""
    return response_id if response_id.startswith("msg_") else f"msg_{response_id or 'unnamed'}"


def ending(choice: Mapping[str, Any], stops: Sequence[str]) -> tuple[str, str | None]:
    """`stop_reason` and `stop_sequence`; which sequence it was only some servers say (vLLM, in `stop_reason`)."""
    found = choice.get("stop_reason")
    if isinstance(found, str) and found in stops:
        return "stop_sequence", found
    return _ENDINGS.get(str(choice.get("finish_reason")), "end_turn"), None


def usage_doc(usage: Usage) -> dict[str, Any]:
    """Usage as Anthropic counts it: `input_tokens` is without what came from or went to the cache."""
    return {
        "input_tokens": max(0, usage.input_tokens - usage.cached_input - usage.cache_write),
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cached_input,
        "output_tokens": usage.output_tokens,
    }


def thought(said: Mapping[str, Any]) -> str:
    """The reasoning in a message or a delta, under either of its names."""
    for name in ("reasoning_content", "reasoning"):
        if isinstance(said.get(name), str):
            return str(said[name])
    return ""


def arguments_of(call: Mapping[str, Any]) -> str:
    """A tool call's arguments as JSON's text; a few servers send the object itself."""
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()


def _blocks(said: Mapping[str, Any], *, thinks: bool) -> Iterator[dict[str, Any]]:
    thinking = thought(said) if thinks else ""
    if thinking:
        yield {"type": "thinking", "thinking": thinking, "signature": ""}
    for text in (said.get("content"), said.get("refusal")):
        if text and isinstance(text, str):
            yield {"type": "text", "text": text}
        for part in text if isinstance(text, list) else ():  # Mistral's, with its reasoning beside
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield {"type": "text", "text": part["text"]}
    for place, call in enumerate(said.get("tool_calls") or ()):
        if isinstance(call, dict):
            yield {
                "type": "tool_use",
                "id": str(call.get("id") or f"toolu_{place}"),
                "name": name_of(call),
                "input": _input(arguments_of(call)),
            }


def _input(arguments: str) -> dict[str, Any]:
    """A tool's input. What a model wrote wrong is wrapped as Anthropic's documentation asks clients to do."""
    try:
        found = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {"INVALID_JSON": arguments}


def _messages(doc: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    system = _plain_text(doc.get("system"))
    if system:
        yield {"role": "system", "content": system}
    for position, message in enumerate(doc["messages"]):
        where = f"messages[{position}]"
        role, content = message["role"], message["content"]
        if role == "assistant":
            yield _assistant(content, f"{where}.content")
        elif role == "system":
            yield {"role": "system", "content": _plain_text(content)}
        elif role != "user":
            raise InvalidRequest(f"`{where}.role` must be `user` or `assistant`.", param=f"{where}.role")
        elif isinstance(content, str):
            yield {"role": "user", "content": content}
        else:
            yield from _user(content, f"{where}.content")


def _plain_text(content: object) -> str:
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else ()
    texts = [block.get("text") for block in blocks if isinstance(block, dict)]
    return "\n\n".join(text for text in texts if isinstance(text, str))


def _user(content: Sequence[Mapping[str, Any]], where: str) -> Iterator[dict[str, Any]]:
    """A turn of the user's: what tools have told comes first, each as its own message, the rest as one."""
    parts: list[dict[str, Any]] = []
    for place, block in enumerate(content):
        if block["type"] == "tool_result":
            text, pictures = _result(block, f"{where}[{place}]")
            yield {"role": "tool", "tool_call_id": _string(block, "tool_use_id", f"{where}[{place}]"), "content": text}
            parts += pictures
        elif block["type"] not in _UNSAID:
            parts.append(_part(block, f"{where}[{place}]"))
    if len(parts) == 1 and parts[0]["type"] == "text":
        yield {"role": "user", "content": parts[0]["text"]}
    elif parts:
        yield {"role": "user", "content": parts}


def _result(block: Mapping[str, Any], where: str) -> tuple[str, list[dict[str, Any]]]:
    """What a tool has told, as text, and the pictures that chat lets only a user show."""
    content = block.get("content")
    if content is None or isinstance(content, str):
        return content or ("error" if block.get("is_error") else ""), []
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise InvalidRequest(f"`{where}.content` must be a string or a list of blocks.", param=f"{where}.content")
    parts = [_part(part, f"{where}.content[{place}]") for place, part in enumerate(content)]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    return "\n".join(texts), [part for part in parts if part["type"] != "text"]


def _part(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": _string(block, "text", where)}
    source = block.get("source")
    source = source if isinstance(source, dict) else {}
    if kind == "image" and source.get("type") == "url":
        return {"type": "image_url", "image_url": {"url": _string(source, "url", f"{where}.source")}}
    if kind == "image" and source.get("type") == "base64":
        return {"type": "image_url", "image_url": {"url": _data_url(source, f"{where}.source")}}
    if kind == "document" and source.get("type") == "text":
        return {"type": "text", "text": _string(source, "data", f"{where}.source")}
    if kind == "document" and source.get("type") == "base64":
        name = block.get("title")
        held = {"filename": name if isinstance(name, str) else "document.pdf"}
        return {"type": "file", "file": {**held, "file_data": _data_url(source, f"{where}.source")}}
    if kind == "search_result":
        return {"type": "text", "text": _plain_text(block.get("content"))}
    what = f"a {kind} from a {source['type']}" if source.get("type") else f"a block of type {kind!r}"
    raise Untranslatable(f"`{where}` is {what}, which only an Anthropic backend can read.", param=where)


def _data_url(source: Mapping[str, Any], where: str) -> str:
    return f"data:{_string(source, 'media_type', where)};base64,{_string(source, 'data', where)}"


def _assistant(content: str | Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for place, block in enumerate(content):
        if block["type"] == "text":
            texts.append(_string(block, "text", f"{where}[{place}]"))
        elif block["type"] == "tool_use":
            calls.append(_call(block, f"{where}[{place}]"))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or (None if calls else "")}
    return {**message, "tool_calls": calls} if calls else message


def _call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {
        "id": _string(block, "id", where),
        "type": "function",
        "function": {
            "name": _string(block, "name", where),
            "arguments": orjson.dumps(block.get("input") or {}).decode(),
        },
    }


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type") or "custom"
    if kind != "custom":
        raise Untranslatable(f"`{where}` is a tool of Anthropic's own, {kind!r}; leave it out here.", param=where)
    schema = tool.get("input_schema")
    if schema is not None and not isinstance(schema, dict):
        raise InvalidRequest(f"`{where}.input_schema` must be a JSON schema.", param=f"{where}.input_schema")
    function: dict[str, Any] = {"name": _string(tool, "name", where)}
    function["parameters"] = schema or {"type": "object", "properties": {}}
    function.update({name: tool[name] for name in ("description", "strict") if tool.get(name) is not None})
    return {"type": "function", "function": function}


def _tool_choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    chat: dict[str, Any] = {}
    kind = choice.get("type")
    if kind == "tool":
        chat["tool_choice"] = {"type": "function", "function": {"name": _string(choice, "name", "tool_choice")}}
    elif kind is not None:
        if kind not in _CHOICES:
            raise InvalidRequest("`tool_choice.type` must be auto, any, tool or none.", param="tool_choice.type")
        chat["tool_choice"] = _CHOICES[kind]
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False
    return chat


def _schema(doc: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON schema that the answer must fit, under its present and its former name."""
    for wanted in ((doc.get("output_config") or {}).get("format"), doc.get("output_format")):
        if isinstance(wanted, dict) and wanted.get("type") == "json_schema" and isinstance(wanted.get("schema"), dict):
            return dict(wanted["schema"])
    return None


def _string(holder: Mapping[str, Any], name: str, where: str) -> str:
    value = holder.get(name)
    if not isinstance(value, str):
        code = "missing_field" if value is None else "invalid_value"
        raise InvalidRequest(f"`{where}.{name}` must be a string.", code=code, param=f"{where}.{name}")
    return value
