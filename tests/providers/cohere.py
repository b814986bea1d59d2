"""Cohere's chat, version 2: https://docs.cohere.com/v2/reference/chat and its stream of typed events."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tests.providers.openai_request import Image, Text, ToolCall, ToolShape, asked_of
from tests.providers.openai_shape import pieces_of
from tests.providers.said import Said, picture_of_url, say
from tests.providers.server import Answer, Fake, Got, Refused, as_events, as_json, sse
from tests.providers.shapes import Problem, Shape, Wrong, read_as

_ENDING = {"stop": "COMPLETE", "length": "MAX_TOKENS", "tool_calls": "TOOL_CALL", "stop_sequence": "STOP_SEQUENCE"}
_INTERNAL = "an unexpected error has occurred on our side"


class _System(Shape):
    role: Literal["system", "developer"]
    content: str | list[Text]


class _User(Shape):
    role: Literal["user"]
    content: str | list[Annotated[Text | Image, Field(discriminator="type")]]


class _Assistant(Shape):
    role: Literal["assistant"]
    content: str | list[Text] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_plan: str | None = None
    citations: list[Any] | None = None


class _Document(Shape):
    type: Literal["document"]
    document: dict[str, Any]


class _Tool(Shape):
    role: Literal["tool"]
    content: str | list[Annotated[Text | _Document, Field(discriminator="type")]]
    tool_call_id: str


class _Format(Shape):
    type: Literal["text", "json_object"]
    json_schema: dict[str, Any] | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class _Chat(Shape):
    model: str
    messages: Annotated[
        list[Annotated[_System | _User | _Assistant | _Tool, Field(discriminator="role")]], Field(min_length=1)
    ]
    stream: bool = False
    tools: list[ToolShape] | None = None
    strict_tools: bool | None = None
    tool_choice: Literal["REQUIRED", "NONE"] | None = None
    documents: list[Any] | None = None
    citation_options: dict[str, Any] | None = None
    response_format: _Format | None = None
    safety_mode: Literal["CONTEXTUAL", "STRICT", "OFF"] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop_sequences: Annotated[list[str], Field(max_length=5)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=1)] | None = None
    k: Annotated[int, Field(ge=0, le=500)] | None = None
    p: Annotated[float, Field(ge=0.01, le=0.99)] | None = None
    logprobs: bool | None = None
    thinking: dict[str, Any] | None = None


class Cohere(Fake):
    """The fake."""

    name: ClassVar[str] = "cohere"
    key: ClassVar[str] = "cohere-fake"
    model: ClassVar[str] = "command-a-03-2025"

    def answer(self, got: Got) -> Answer:
        if got.headers.get("authorization", "").lower() != f"bearer {self.key}".lower():
            text = "no api key supplied" if "authorization" not in got.headers else "invalid api token"
            raise Refused(self.error(401, text))
        if got.method != "POST" or got.path != "/v2/chat":
            raise Refused(self.error(404, "page not found"))
        try:
            request = read_as(_Chat, got.body)
            self.check(request)
        except Wrong as wrong:
            raise Refused(self.error(400, _told(wrong.problem))) from wrong
        said = say(asked_of(_as_openai(got.json)))
        if not request.stream:
            return as_json(self.plain(said))
        return as_events((sse(each, each["type"]) for each in self.events(said)), kind="text/event-stream")

    def check(self, request: _Chat) -> None:
        """The rules that are not of shape. Raises Wrong or Refused."""
        if request.model != self.model:
            text = (
                f"model '{request.model}' not found, make sure the correct model ID was used and that you have access."
            )
            raise Refused(self.error(404, text))
        if request.response_format is not None and request.response_format.type == "json_object" and request.tools:
            text = "cannot specify both response_format and tools"
            raise Wrong(Problem("value_error", (), text, None))
        if request.tool_choice is not None and not request.tools:
            raise Wrong(Problem("value_error", (), "tool_choice requires tools to be specified", None))
        called = [
            call.id for each in request.messages if isinstance(each, _Assistant) for call in each.tool_calls or ()
        ]
        told = [each.tool_call_id for each in request.messages if isinstance(each, _Tool)]
        if set(called) != set(told):
            text = "all tool calls must be answered with tool results: "
            raise Wrong(Problem("value_error", (), text + ", ".join(sorted({*called} ^ {*told})), None))
        for each in request.messages:
            parts = each.content if isinstance(each, _User) and isinstance(each.content, list) else ()
            if any(isinstance(part, Image) and picture_of_url(part.image_url.url) is None for part in parts):
                raise Wrong(Problem("value_error", (), "failed to fetch image", None))
        if request.messages[-1].role == "assistant":
            text = "the last message must be from the user or a tool"
            raise Wrong(Problem("value_error", (), text, None))

    def error(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> Answer:
        """The error body."""
        return as_json({"id": "fake-request", "message": message}, status, headers)

    def fail(self, mood: str) -> Answer:
        if mood == "rate_limited":
            text = "You are using a Trial key, which is limited to 10 API calls / minute. You can continue to use the Trial "
            return self.error(429, f"{text}key for free or upgrade to a Production key with higher rate limits.")
        if mood == "overloaded":
            return self.error(503, "the service is currently overloaded")
        if mood == "out_of_money":
            return self.error(402, "you have reached your billing limit")
        return self.error(500, _INTERNAL)

    def broken_event(self) -> bytes:
        delta = {"finish_reason": "ERROR", "error": _INTERNAL}
        return sse({"type": "message-end", "id": "fake", "delta": delta}, "message-end")

    def usage(self, said: Said) -> dict[str, Any]:
        """Tokens that are billed and tokens that the model saw."""
        counts = {"input_tokens": said.input_tokens, "output_tokens": said.output_tokens}
        return {"billed_units": counts, "tokens": counts, "cached_tokens": said.cached}

    def plain(self, said: Said) -> dict[str, Any]:
        """The whole answer."""
        message: dict[str, Any] = {"role": "assistant"}
        if said.calls:
            message |= {"tool_plan": "I will look.", "tool_calls": _calls(said)}
        else:
            message["content"] = [{"type": "text", "text": said.text}]
        return {"id": "fake", "finish_reason": _ENDING[said.ending], "message": message, "usage": self.usage(said)}

    def events(self, said: Said) -> Iterator[dict[str, Any]]:
        """The events of the stream."""
        empty = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
        yield {"id": "fake", "type": "message-start", "delta": {"message": empty}}
        if said.tokens:
            yield {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}}
            for token in said.tokens:
                yield {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": token}}}}
            yield {"type": "content-end", "index": 0}
        if said.calls:
            yield {"type": "tool-plan-delta", "delta": {"message": {"tool_plan": "I will look."}}}
        for n, call in enumerate(_calls(said)):
            arguments = call["function"]["arguments"]
            begun = {**call, "function": {**call["function"], "arguments": ""}}
            yield {"type": "tool-call-start", "index": n, "delta": {"message": {"tool_calls": begun}}}
            for piece in pieces_of(arguments):
                more = {"message": {"tool_calls": {"function": {"arguments": piece}}}}
                yield {"type": "tool-call-delta", "index": n, "delta": more}
            yield {"type": "tool-call-end", "index": n}
        delta = {"finish_reason": _ENDING[said.ending], "usage": self.usage(said)}
        yield {"type": "message-end", "delta": delta}


def _calls(said: Said) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{call.name}_fake{n}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for n, call in enumerate(said.calls)
    ]


def _as_openai(body: Mapping[str, Any]) -> dict[str, Any]:
    choice = {"REQUIRED": "required", "NONE": "none"}.get(body.get("tool_choice", ""))
    told = {**body, "stop": body.get("stop_sequences"), "tool_choice": choice}
    told["messages"] = [
        {**each, "content": _documents(each["content"])} if each["role"] == "tool" else each
        for each in body["messages"]
    ]
    return told


def _documents(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [{"text": part["document"].get("data", "")} if part["type"] == "document" else part for part in content]


def _told(problem: Problem) -> str:
    if problem.kind == "extra_forbidden":
        return f"invalid request: unknown field {problem.dotted}"
    if problem.kind == "missing":
        return f"invalid request: {problem.dotted} is required"
    return f"invalid request: {problem.dotted}: {problem.says}" if problem.place else f"invalid request: {problem.says}"
