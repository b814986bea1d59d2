"""OpenAI's Responses API: https://platform.openai.com/docs/api-reference/responses, with the responses that it keeps."""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from tests.providers.said import Asked, Call, Said, Tool, picture_of_url, say
from tests.providers.server import Answer, Fake, Got, Refused, as_events, as_json, sse
from tests.providers.shapes import Problem, Shape, Wrong, read_as

CREATED = 1_750_000_000


class _Text(Shape):
    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class _Image(Shape):
    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high"] | None = None


def _parts(value: Any) -> Any:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


class _Message(Shape):
    type: Literal["message"] = "message"
    id: str | None = None
    status: str | None = None
    phase: str | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[list[Annotated[_Text | _Image, Field(discriminator="type")]], BeforeValidator(_parts)]


class _Call(Shape):
    type: Literal["function_call"]
    id: str | None = None
    call_id: str
    name: str
    arguments: str
    status: str | None = None


class _Result(Shape):
    type: Literal["function_call_output"]
    call_id: str
    output: str


def _items(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    return [{"type": "message", **item} if isinstance(item, dict) else item for item in value or ()]


class _Tool(Shape):
    type: Literal["function", "web_search"]
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Format(Shape):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class _TextSettings(Shape):
    format: _Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Wanted(Shape):
    """The body of `POST /v1/responses`."""

    model: str
    input: Annotated[
        list[Annotated[_Message | _Call | _Result, Field(discriminator="type")]], BeforeValidator(_items)
    ] = Field(default_factory=list)
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=16)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: _TextSettings | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    user: str | None = None


class OpenAIResponses(Fake):
    """The fake. A response is known only under the key that it was made with; `keys` are all that it takes."""

    name: ClassVar[str] = "responses"
    key: ClassVar[str] = "sk-responses-1"
    keys: ClassVar[tuple[str, ...]] = ("sk-responses-1", "sk-responses-2")
    model: ClassVar[str] = "gpt-responses"

    def __init__(self, name: str = "a") -> None:
        super().__init__()
        self.kept: dict[str, tuple[str, dict[str, Any]]] = {}
        self._ids = (f"resp_{name}{n:08x}" for n in itertools.count(1))

    def answer(self, got: Got) -> Answer:
        key = got.headers.get("authorization", "").removeprefix("Bearer ")
        if key not in self.keys:
            raise Refused(_error(401, "Incorrect API key provided.", "invalid_api_key"))
        if got.method == "POST" and got.path == "/v1/responses":
            return self._made(got, key)
        response_id, _, rest = got.path.removeprefix("/v1/responses/").partition("/")
        owner, response = self.kept.get(response_id, ("", {}))
        if owner != key:
            raise Refused(_error(404, f"Response with id '{response_id}' not found.", None))
        if got.method == "GET":
            return as_json({"object": "list", "data": []} if rest == "input_items" else response)
        if got.method == "DELETE":
            del self.kept[response_id]
            return as_json({"id": response_id, "object": "response.deleted", "deleted": True})
        if rest == "cancel":
            raise Refused(_error(400, "Cannot cancel a synchronous response.", None))
        raise Refused(_error(405, "Method not allowed.", None))

    def _made(self, got: Got, key: str) -> Answer:
        try:
            wanted = read_as(Wanted, got.body)
        except Wrong as wrong:
            raise Refused(_wrong(wrong.problem)) from wrong
        if wanted.model != self.model:
            raise Refused(_error(404, f"The model '{wanted.model}' does not exist.", "model_not_found", "model"))
        before = ""
        if wanted.previous_response_id is not None:
            owner, earlier = self.kept.get(wanted.previous_response_id, ("", {}))
            if owner != key:
                text = f"Previous response with id '{wanted.previous_response_id}' not found."
                raise Refused(_error(400, text, "previous_response_not_found", "previous_response_id"))
            before = earlier["output"][0]["content"][0]["text"]
        said = say(asked_of(wanted, before))
        response_id = next(self._ids)
        response = whole(wanted, said, response_id)
        self.kept[response_id] = key, response
        return as_events(events(response)) if wanted.stream else as_json(response)

    def fail(self, mood: str) -> Answer:
        if mood == "rate_limited":
            return _error(429, "Rate limit reached.", "rate_limit_exceeded")
        if mood == "failed":
            failed = {"code": "server_error", "message": "The model failed."}
            return as_events([_event(0, "response.failed", response={"id": "resp_x", "error": failed})])
        return _error(500, "The server had an error.", "server_error")

    def broken_event(self) -> bytes:
        failed = {"code": "server_error", "message": "The model failed."}
        return _event(99, "response.failed", response={"id": "resp_x", "status": "failed", "error": failed})


def _error(status: int, message: str, code: str | None, param: str | None = None) -> Answer:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return as_json({"error": error}, status)


def _wrong(problem: Problem) -> Answer:
    return _error(400, f"Invalid value: {problem.says}", "invalid_value", ".".join(map(str, problem.place)))


def asked_of(wanted: Wanted, before: str) -> Asked:
    """What the request asks for; what was said before counts as something known."""
    messages = [item for item in wanted.input if isinstance(item, _Message)]
    users = [part for item in messages if item.role == "user" for part in item.content]
    texts = [part.text for part in users if isinstance(part, _Text)]
    images = [picture_of_url(part.image_url) or "" for part in users if isinstance(part, _Image)]
    results = [item.output for item in wanted.input if isinstance(item, _Result)]
    system = [
        part.text
        for item in messages
        if item.role in ("system", "developer")
        for part in item.content
        if isinstance(part, _Text)
    ]
    format_ = wanted.text.format if wanted.text is not None else None
    return Asked(
        text=texts[-1] if texts else "",
        system=" ".join([*([wanted.instructions] if wanted.instructions else []), *system]),
        images=images,
        results=[*results, *([before] if before else [])],
        tools=[Tool(tool.name or "", (tool.parameters or {}).get("properties", {})) for tool in wanted.tools or ()],
        may_call=wanted.tool_choice != "none",
        wants_json=format_ is not None and format_.type != "text",
        limit=wanted.max_output_tokens,
    )


def _item(said: Said, place: int, call: Call | None, response_id: str) -> dict[str, Any]:
    if call is None:
        part = {"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}
        return {
            "type": "message",
            "id": f"msg_{response_id}",
            "status": "completed",
            "role": "assistant",
            "content": [part],
        }
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    named = {"call_id": f"call_{place}", "name": call.name, "arguments": arguments}
    return {"type": "function_call", "id": f"fc_{place}", "status": "completed", **named}


def whole(wanted: Wanted, said: Said, response_id: str) -> dict[str, Any]:
    """The response object."""
    calls: list[Call | None] = [*said.calls] or [None]
    cut = said.ending == "length"
    return {
        "id": response_id,
        "object": "response",
        "created_at": CREATED,
        "status": "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": wanted.instructions,
        "model": "gpt-responses-2026",
        "output": [_item(said, place, call, response_id) for place, call in enumerate(calls)],
        "parallel_tool_calls": True,
        "previous_response_id": wanted.previous_response_id,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": said.input_tokens,
            "input_tokens_details": {"cached_tokens": said.cached, "cache_write_tokens": 0},
            "output_tokens": said.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": said.input_tokens + said.output_tokens,
        },
    }


def events(response: Mapping[str, Any]) -> Iterator[bytes]:
    """The response as a stream."""
    count = itertools.count()
    head = {**response, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield _event(next(count), "response.created", response=head)
    yield _event(next(count), "response.in_progress", response=head)
    for place, item in enumerate(response["output"]):
        empty: dict[str, Any] = {"arguments": ""} if item["type"] == "function_call" else {"content": []}
        added = {**item, **empty, "status": "in_progress"}
        yield _event(next(count), "response.output_item.added", output_index=place, item=added)
        where: dict[str, Any] = {"item_id": item["id"], "output_index": place}
        if item["type"] == "function_call":
            for piece in _pieces(item["arguments"]):
                yield _event(next(count), "response.function_call_arguments.delta", **where, delta=piece)
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield _event(next(count), "response.function_call_arguments.done", **where, **done)
        else:
            (part,) = item["content"]
            where["content_index"] = 0
            yield _event(next(count), "response.content_part.added", **where, part={**part, "text": ""})
            for piece in _pieces(part["text"]):
                yield _event(next(count), "response.output_text.delta", **where, delta=piece, logprobs=[])
            yield _event(next(count), "response.output_text.done", **where, text=part["text"], logprobs=[])
            yield _event(next(count), "response.content_part.done", **where, part=part)
        yield _event(next(count), "response.output_item.done", output_index=place, item=item)
    yield _event(next(count), f"response.{response['status']}", response=response)


def _pieces(text: str) -> list[str]:
    return [text[n : n + 7] for n in range(0, len(text), 7)]


def _event(number: int, kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, "sequence_number": number, **fields}, kind)
