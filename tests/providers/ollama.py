"""Ollama's own API, `/api/chat`: https://github.com/ollama/ollama/blob/main/docs/api.md. A stream is JSON lines."""

import json
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from tests.providers.said import Asked, Said, Tool, picture_of, say
from tests.providers.server import Answer, Fake, Got, Refused, as_events, as_json
from tests.providers.shapes import Loose, Problem, Wrong, read_as

_SEEN = {"iVBOR": "image/png", "/9j/": "image/jpeg"}
_OPTIONS = {
    **dict.fromkeys(
        ("num_predict", "num_ctx", "num_keep", "seed", "top_k", "repeat_last_n", "num_gpu", "num_thread"), int
    ),
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"), float
    ),
    **dict.fromkeys(("typical_p", "tfs_z", "mirostat_tau", "mirostat_eta"), float),
    "stop": list,
}


class _Function(Loose):
    name: str
    arguments: dict[str, Any]


class _Call(Loose):
    function: _Function


class _Message(Loose):
    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str = ""
    images: list[str] | None = None
    tool_calls: list[_Call] | None = None
    tool_name: str = ""


class _Declared(Loose):
    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None


class _Tool(Loose):
    type: str = "function"
    function: _Declared


class _Chat(Loose):
    model: str
    messages: list[_Message] | None = None
    stream: bool = True
    format: str | dict[str, Any] | None = None
    tools: list[_Tool] | None = None
    options: dict[str, Any] | None = None
    keep_alive: str | int | float | None = None
    think: bool | str | None = None


class Ollama(Fake):
    """The fake. It asks for no key; fields that it does not know are ignored, wrong types are not."""

    name: ClassVar[str] = "ollama"
    key: ClassVar[str] = ""
    model: ClassVar[str] = "llama3.2"

    def answer(self, got: Got) -> Answer:
        if got.path == "/api/show" and got.method == "POST":
            details = {"family": "llama", "parameter_size": "3.2B"}
            return as_json({"details": details, "capabilities": ["completion", "tools"], "template": ""})
        if got.path != "/api/chat":
            raise Refused(Answer(404, {"content-type": "text/plain"}, (b"404 page not found",)))
        if got.method != "POST":
            raise Refused(Answer(405, {"content-type": "text/plain"}, (b"405 method not allowed",)))
        try:
            request = read_as(_Chat, got.body)
            self.check(request)
        except Wrong as wrong:
            raise Refused(self.error(400, _told(wrong.problem))) from wrong
        said = say(_asked_of(request))
        if request.stream:
            return as_events(self.lines(said), kind="application/x-ndjson")
        return as_json(self.line(said, said.text, calls=True, done=True))

    def check(self, request: _Chat) -> None:
        """The rules that are not of shape. Raises Wrong or Refused."""
        if request.model != self.model:
            raise Refused(self.error(404, f"model '{request.model}' not found"))
        for name, value in (request.options or {}).items():
            wanted = _OPTIONS.get(name)
            if wanted is not None and not isinstance(value, (int, float) if wanted is float else wanted):
                raise Refused(self.error(400, f'option "{name}" must be of type {wanted.__name__}'))
        for each in request.messages or ():
            for image in each.images or ():
                if picture_of("image", image) is None:
                    raise Refused(self.error(400, "illegal base64 data at input byte 4"))
        if isinstance(request.format, str) and request.format not in ("", "json"):
            raise Refused(self.error(400, f'invalid format: "{request.format}"; expected "json" or a JSON schema'))
        if request.think:
            raise Refused(self.error(400, f'"{self.model}" does not support thinking'))

    def error(self, status: int, message: str) -> Answer:
        """The error body."""
        return as_json({"error": message}, status)

    def fail(self, mood: str) -> Answer:
        if mood in ("overloaded", "rate_limited"):
            return self.error(503, "server busy, please try again.  maximum pending requests exceeded")
        return self.error(500, "llama runner process has terminated: exit status 2")

    def broken_event(self) -> bytes:
        return json.dumps({"error": "an error was encountered while running the model"}).encode() + b"\n"

    def lines(self, said: Said) -> Iterator[bytes]:
        """The answer as JSON lines; calls come whole, before the last line."""
        for token in said.tokens:
            yield _line(self.line(said, token, calls=False, done=False))
        if said.calls:
            yield _line(self.line(said, "", calls=True, done=False))
        yield _line(self.line(said, "", calls=False, done=True))

    def line(self, said: Said, text: str, *, calls: bool, done: bool) -> dict[str, Any]:
        """A part of the answer, or all of it."""
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls and said.calls:
            message["tool_calls"] = [
                {"function": {"index": n, "name": call.name, "arguments": dict(call.arguments)}}
                for n, call in enumerate(said.calls)
            ]
        body = {"model": self.model, "created_at": "2026-01-01T00:00:00.000000001Z", "message": message, "done": done}
        if not done:
            return body
        counts = {"prompt_eval_count": said.input_tokens, "eval_count": said.output_tokens}
        times = {"total_duration": 9_000, "load_duration": 1_000, "prompt_eval_duration": 2_000, "eval_duration": 6_000}
        return {**body, "done_reason": "length" if said.ending == "length" else "stop", **times, **counts}


def _line(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode() + b"\n"


def _asked_of(request: _Chat) -> Asked:
    messages = request.messages or []
    users = [place for place, each in enumerate(messages) if each.role == "user"]
    last = messages[users[-1]] if users else _Message(role="user")
    options = request.options or {}
    limit = options.get("num_predict")
    kinds = [
        (next((kind for start, kind in _SEEN.items() if image.startswith(start)), "image/png"), image)
        for image in last.images or ()
    ]
    return Asked(
        text=last.content,
        system=" ".join(each.content for each in messages if each.role == "system"),
        images=[picture_of(kind, image) or "" for kind, image in kinds],
        results=[each.content for each in messages[users[-1] if users else 0 :] if each.role == "tool"],
        tools=[
            Tool(each.function.name, (each.function.parameters or {}).get("properties") or {})
            for each in request.tools or ()
        ],
        wants_json=bool(request.format),
        begun=messages[-1].content if messages and messages[-1].role == "assistant" else "",
        limit=limit if limit is not None and limit > 0 else None,
        stop=options.get("stop") or (),
    )


def _told(problem: Problem) -> str:
    if problem.kind == "missing":
        return f"{problem.place[-1]} is required"
    field = ".".join(str(each) for each in problem.place if not isinstance(each, int))
    found = type(problem.found).__name__
    return f"json: cannot unmarshal {found} into Go struct field ChatRequest.{field}"
