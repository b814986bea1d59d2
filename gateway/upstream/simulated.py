"""What a strict OpenAI server would answer, made up token by token: requests checked, replies composed, no I/O."""

import base64
import hashlib
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.errors import GatewayError, InvalidRequest, MethodNotAllowed, NotFound
from gateway.upstream.instances import instance_of

_TOKEN = re.compile(r"\s*\S{1,8}|\s+$")
_ROLES = ("developer", "system", "user", "assistant", "tool", "function")
_WHO = ("The gateway", "A careful router", "Every request", "This backend", "A patient queue", "The operator")
_DOES = ("sends", "measures", "remembers", "explains", "prefers", "protects", "repeats", "follows")
_WHAT = (
    "the shortest way",
    "what it was asked",
    "one clear rule",
    "the first token",
    "a quiet budget",
    "each answer in turn",
    "the plan it was given",
)
_DIMENSIONS = 256


@dataclass(frozen=True, slots=True)
class Frame:
    """Bytes of a body, due when `position` tokens of the answer exist."""

    position: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """One response; its body is the frames, joined. `tokens` is what the answer cost to produce."""

    status: int
    content_type: bytes
    frames: tuple[Frame, ...]
    tokens: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def is_stream(self) -> bool:
        """Whether the head comes before the tokens."""
        return self.content_type == b"text/event-stream"


@dataclass(frozen=True, slots=True)
class Voice:
    """Who speaks: the backend's name, its seed, and how many tokens an answer has unless the client allows fewer."""

    name: str
    seed: int
    tokens: int


@dataclass(frozen=True, slots=True)
class _Choice:
    index: int
    tokens: tuple[str, ...]
    finish: str
    tool: str | None = None


def respond(method: str, path: str, body: bytes, *, voice: Voice, serial: str, now: int) -> Answer:
    """Answer one request, a bad one with OpenAI's error; `serial` becomes part of ids, `now` is Unix time in seconds.

    The same voice and request make the same text, and a conversation that ends in an assistant's message is
    continued at the token where that message ends.
    """
    try:
        for suffix, compose in _ENDPOINTS.items():
            if path.endswith(suffix):
                if method != "POST":
                    raise MethodNotAllowed(f"{method} is not allowed here; send a POST request")
                return compose(_parse(body), voice, serial, now)
        if path.endswith("/models") or "/models/" in path:
            return _models(method, path, voice, now)
        raise NotFound(f"Invalid URL ({method} {path})", code="unknown_url")
    except GatewayError as error:
        return failure(error)


def failure(error: GatewayError) -> Answer:
    """The error as a response in OpenAI's shape."""
    body = orjson.dumps(error.to_openai())
    return Answer(error.status, b"application/json", (Frame(0, body),), headers=tuple(error.headers()))


def split_tokens(text: str) -> tuple[str, ...]:
    """The text in pieces of at most eight characters with the space before them; joined, they are the text."""
    return tuple(_TOKEN.findall(text))


def _parse(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"We could not parse the JSON body of your request: {error}", code="invalid_json"
        ) from error
    if not isinstance(found, dict):
        raise InvalidRequest("The JSON body of your request must be an object", code="invalid_json")
    if not isinstance(found.get("model"), str) or not found["model"]:
        raise _missing("model")
    return found


def _missing(param: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)


def _wrong(param: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{param}': expected {expected}.", code="invalid_value", param=param)


def _within(request: Mapping[str, Any], param: str, low: float, high: float, *, whole: bool = True) -> None:
    value = request.get(param)
    if value is None:
        return
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise _wrong(param, f"{'an integer' if whole else 'a number'} from {low} to {high}")


def _mapping(request: Mapping[str, Any], param: str) -> Mapping[str, Any]:
    found = request.get(param) or {}
    if not isinstance(found, Mapping):
        raise _wrong(param, "an object")
    return found


def _check_generation(request: Mapping[str, Any]) -> None:
    for param in ("stream", "logprobs") if "messages" in request else ("stream",):  # logprobs was a number before chat
        if not isinstance(request.get(param) or False, bool):
            raise _wrong(param, "a boolean")
    _within(request, "max_tokens", 1, 10**7)
    _within(request, "max_completion_tokens", 1, 10**7)
    _within(request, "n", 1, 128)
    _within(request, "temperature", 0, 2, whole=False)
    _within(request, "top_p", 0, 1, whole=False)
    _within(request, "top_logprobs", 0, 20)
    if _mapping(request, "stream_options") and not request.get("stream"):
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    stop = request.get("stop")
    if isinstance(stop, list) and (len(stop) > 4 or not all(isinstance(each, str) for each in stop)):
        raise _wrong("stop", "at most 4 strings")
    if stop is not None and not isinstance(stop, (str, list)):
        raise _wrong("stop", "a string or at most 4 strings")


def _check_messages(request: Mapping[str, Any]) -> None:
    messages = request.get("messages")
    if messages is None:
        raise _missing("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "an array with at least one message")
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if not isinstance(message, dict):
            raise _wrong(where, "an object")
        if message.get("role") not in _ROLES:
            raise _wrong(f"{where}.role", f"one of {', '.join(_ROLES)}")
        content = message.get("content")
        if content is None and message["role"] != "assistant":
            raise _missing(f"{where}.content")
        if content is not None and not isinstance(content, (str, list)):
            raise _wrong(f"{where}.content", "a string or an array of parts")
        if isinstance(content, list) and not all(isinstance(part, dict) and "type" in part for part in content):
            raise _wrong(f"{where}.content", "parts that are objects with a 'type'")


def _check_tools(request: Mapping[str, Any]) -> None:
    tools = request.get("tools")
    if tools is None:
        if request.get("tool_choice") not in (None, "none"):
            raise InvalidRequest("'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice")
        return
    if not isinstance(tools, list) or not tools:
        raise _wrong("tools", "an array with at least one tool")
    for place, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _missing(f"tools[{place}].function.name")
        _mapping(function, "parameters")


def _check_format(request: Mapping[str, Any]) -> None:
    wanted = _mapping(request, "response_format")
    if not wanted:
        return
    kind = wanted.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise _wrong("response_format.type", "text, json_object or json_schema")
    if kind == "json_schema" and not isinstance(_mapping(wanted, "json_schema").get("schema"), dict):
        raise _missing("response_format.json_schema.schema")
    if kind == "json_object" and not any("json" in _text(each).lower() for each in request["messages"]):
        raise InvalidRequest(
            "'messages' must contain the word 'json' to use 'response_format' of type 'json_object'.", param="messages"
        )


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content or ""


def _count(text: str) -> int:
    return -(-len(text.encode()) // 4)


def _prompt_tokens(request: Mapping[str, Any]) -> int:
    tools = request.get("tools")
    total = _count(orjson.dumps(tools).decode()) if tools else 0
    for message in request["messages"]:
        content = message.get("content")
        images = sum(part.get("type") != "text" for part in content) if isinstance(content, list) else 0
        total += 4 + 85 * images + _count(_text(message))
    return total + 3


def _draws(seed: str) -> Iterator[int]:
    turn = 0
    while True:
        yield from hashlib.sha256(f"{seed}/{turn}".encode()).digest()
        turn += 1


def _prose(voice: Voice, seed: str, tokens: int) -> tuple[str, ...]:
    draws = _draws(f"{voice.seed}/{seed}")
    text = f"This is a simulated answer from {voice.name}; no model was asked."
    found = split_tokens(text)
    while len(found) < tokens:
        who, does, what = (options[next(draws) % len(options)] for options in (_WHO, _DOES, _WHAT))
        found += split_tokens(f" {who} {does} {what}.")
    return (*found[: tokens - 1], found[tokens - 1].rstrip(".;,") + ".")


def _limit(request: Mapping[str, Any]) -> int:
    given = [request[name] for name in ("max_tokens", "max_completion_tokens") if request.get(name) is not None]
    return min(given, default=10**9)


def _stopped(request: Mapping[str, Any], tokens: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    limit = _limit(request)
    text = "".join(tokens[:limit])
    stop = request.get("stop") or []
    found = [text.find(each) for each in ([stop] if isinstance(stop, str) else stop) if each and each in text]
    if found:
        return split_tokens(text[: min(found)]), "stop"
    return tokens[:limit], "length" if len(tokens) > limit else "stop"


def _called_tool(request: Mapping[str, Any]) -> Mapping[str, Any] | None:
    functions: list[Mapping[str, Any]] = [tool["function"] for tool in request.get("tools") or ()]
    wanted = request.get("tool_choice")
    if not functions or wanted == "none":
        return None
    if isinstance(wanted, dict):
        name = _mapping(wanted, "function").get("name")
        found = next((each for each in functions if each["name"] == name), None)
        if found is None:
            raise _wrong("tool_choice", f"the name of a given tool, not {name!r}")
        return found
    last = request["messages"][-1]
    prompt = _text(last).lower() if last["role"] == "user" else ""
    named = next((each for each in functions if each["name"].lower() in prompt), None)
    if wanted == "required" or "tool" in prompt:
        return named or functions[0]
    return named


def _choice(request: Mapping[str, Any], voice: Voice, index: int) -> _Choice:
    called = _called_tool(request)
    if called is not None:
        arguments = orjson.dumps(instance_of(called.get("parameters") or {"type": "object"})).decode()
        tokens = split_tokens(arguments)
        limit = _limit(request)
        return _Choice(index, tokens[:limit], "length" if len(tokens) > limit else "tool_calls", called["name"])
    wanted = request.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        made = split_tokens(orjson.dumps(instance_of(wanted["json_schema"]["schema"])).decode())
        return _Choice(index, *_stopped(request, made))
    if wanted.get("type") == "json_object":
        said = "".join(_prose(voice, str(index), min(voice.tokens, 24)))
        made = split_tokens(orjson.dumps({"simulated": True, "answer": said}).decode())
        return _Choice(index, *_stopped(request, made))
    *before, last = request["messages"]
    begun = split_tokens(_text(last)) if last["role"] == "assistant" else ()
    told = before if begun else request["messages"]
    seed = f"{index}/" + "\n".join(f"{each['role']}: {_text(each)}" for each in told)
    return _Choice(index, *_stopped(request, _prose(voice, seed, voice.tokens)[len(begun) :]))


def _usage(prompt: int, choices: Sequence[_Choice]) -> dict[str, Any]:
    completion = sum(len(choice.tokens) for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _chat(request: dict[str, Any], voice: Voice, serial: str, now: int) -> Answer:
    _check_messages(request)
    _check_generation(request)
    _check_tools(request)
    _check_format(request)
    choices = [_choice(request, voice, index) for index in range(request.get("n") or 1)]
    head = {"id": f"chatcmpl-{serial}", "created": now, "model": request["model"], "system_fingerprint": "fp_simulated"}
    usage = _usage(_prompt_tokens(request), choices)
    if request.get("stream"):
        shape = {**head, "object": "chat.completion.chunk"}
        return _stream(request, shape, usage, choices, lambda each: _chat_deltas(each, request, serial))
    return _plain(
        {
            **head,
            "object": "chat.completion",
            "choices": [_chat_message(each, request, serial) for each in choices],
            "usage": usage,
        },
        choices,
    )


def _tool_call(choice: _Choice, serial: str, arguments: str) -> dict[str, Any]:
    called = {"name": choice.tool, "arguments": arguments}
    return {"id": f"call_{serial}{choice.index}", "type": "function", "function": called}


def _chat_message(choice: _Choice, request: Mapping[str, Any], serial: str) -> dict[str, Any]:
    text = "".join(choice.tokens)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if choice.tool is not None:
        message |= {"content": None, "tool_calls": [_tool_call(choice, serial, text)]}
    logprobs = _logprobs(choice.tokens, request)
    return {"index": choice.index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}


def _logprobs(tokens: Iterable[str], request: Mapping[str, Any]) -> dict[str, Any] | None:
    if not request.get("logprobs"):
        return None
    each = [{"token": token, "logprob": -0.1, "bytes": list(token.encode())} for token in tokens]
    top = min(request.get("top_logprobs") or 0, 1)
    return {"content": [{**entry, "top_logprobs": [entry] * top} for entry in each], "refusal": None}


def _chat_deltas(choice: _Choice, request: Mapping[str, Any], serial: str) -> Iterator[tuple[int, dict[str, Any]]]:
    first: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
    if choice.tool is not None:
        first |= {"content": None, "tool_calls": [{"index": 0, **_tool_call(choice, serial, "")}]}
    yield 0, _delta(choice, first, None, None)
    for place, token in enumerate(choice.tokens):
        part: dict[str, Any] = {"content": token}
        if choice.tool is not None:
            part = {"tool_calls": [{"index": 0, "function": {"arguments": token}}]}
        yield place + 1, _delta(choice, part, _logprobs([token], request), None)
    yield len(choice.tokens), _delta(choice, {}, None, choice.finish)


def _delta(choice: _Choice, delta: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
    return {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _completion(request: dict[str, Any], voice: Voice, serial: str, now: int) -> Answer:
    prompts = _inputs(request, "prompt")
    _check_generation(request)
    count = request.get("n") or 1
    choices = [
        _Choice(place * count + turn, *_stopped(request, _prose(voice, f"{turn}/{prompt}", voice.tokens)))
        for place, prompt in enumerate(prompts)
        for turn in range(count)
    ]
    shape = {"id": f"cmpl-{serial}", "object": "text_completion", "created": now, "model": request["model"]}
    usage = _usage(sum(map(_count_input, prompts)), choices)
    if request.get("stream"):
        return _stream(request, shape, usage, choices, _completion_deltas)
    told = [_completion_choice(each.index, "".join(each.tokens), each.finish) for each in choices]
    return _plain({**shape, "choices": told, "usage": usage}, choices)


def _completion_choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def _completion_deltas(choice: _Choice) -> Iterator[tuple[int, dict[str, Any]]]:
    for place, token in enumerate(choice.tokens):
        yield place + 1, _completion_choice(choice.index, token, None)
    yield len(choice.tokens), _completion_choice(choice.index, "", choice.finish)


def _inputs(request: Mapping[str, Any], param: str) -> list[Any]:
    given = request.get(param)
    if given is None:
        raise _missing(param)
    if isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int)):
        return [given]
    if isinstance(given, list) and given and all(isinstance(each, (str, list)) for each in given):
        return given
    raise _wrong(param, "a string, an array of strings, or arrays of token numbers")


def _count_input(given: str | list[int]) -> int:
    return _count(given) if isinstance(given, str) else len(given)


def _embeddings(request: dict[str, Any], voice: Voice, serial: str, now: int) -> Answer:  # noqa: ARG001  one signature
    given = _inputs(request, "input")
    _within(request, "dimensions", 1, 4096)
    encoding = request.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise _wrong("encoding_format", "float or base64")
    size = request.get("dimensions") or _DIMENSIONS
    data = []
    for index, each in enumerate(given):
        vector = _vector(f"{voice.seed}/{each}", size)
        packed = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode() if encoding == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": packed})
    prompt = sum(map(_count_input, given))
    usage = {"prompt_tokens": prompt, "total_tokens": prompt}
    return _plain({"object": "list", "data": data, "model": request["model"], "usage": usage}, ())


def _vector(seed: str, size: int) -> list[float]:
    draws = _draws(seed)
    raw = [next(draws) - 127.5 for _ in range(size)]
    length = sum(value * value for value in raw) ** 0.5
    return [value / length for value in raw]


def _models(method: str, path: str, voice: Voice, now: int) -> Answer:
    if method != "GET":
        raise MethodNotAllowed(f"{method} is not allowed here; send a GET request")
    one = {"id": voice.name, "object": "model", "created": now, "owned_by": "simulator"}
    name = path.rpartition("/models")[2].lstrip("/")
    return _plain({**one, "id": name} if name else {"object": "list", "data": [one]}, ())


_Compose = Callable[[dict[str, Any], Voice, str, int], Answer]
_ENDPOINTS: Mapping[str, _Compose] = {
    "/chat/completions": _chat,
    "/completions": _completion,
    "/embeddings": _embeddings,
}


def _plain(body: Mapping[str, Any], choices: Sequence[_Choice]) -> Answer:
    total = sum(len(choice.tokens) for choice in choices)
    longest = max((len(choice.tokens) for choice in choices), default=0)
    return Answer(200, b"application/json", (Frame(longest, orjson.dumps(body)),), total)


def _stream(
    request: Mapping[str, Any],
    shape: Mapping[str, Any],
    usage: Mapping[str, Any],
    choices: Sequence[_Choice],
    deltas: Callable[[_Choice], Iterator[tuple[int, dict[str, Any]]]],
) -> Answer:
    counted = bool(_mapping(request, "stream_options").get("include_usage"))
    extra = {"usage": None} if counted else {}
    parts = sorted((part for choice in choices for part in deltas(choice)), key=lambda part: part[0])
    frames = [Frame(position, _event({**shape, "choices": [part], **extra})) for position, part in parts]
    last = frames[-1].position
    if counted:
        frames.append(Frame(last, _event({**shape, "choices": [], "usage": usage})))
    frames.append(Frame(last, b"data: [DONE]\n\n"))
    return Answer(200, b"text/event-stream", tuple(frames), sum(len(choice.tokens) for choice in choices))


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
