"""Mistral's chat completions: https://docs.mistral.ai/api. It takes no field that it does not know."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tests.providers.openai_request import Chosen, Format, ImageUrl, Text, ToolCall, ToolMessage, ToolShape
from tests.providers.openai_shape import OpenAIShape
from tests.providers.said import Said
from tests.providers.server import Answer, Got, Refused, as_json, sse
from tests.providers.shapes import Problem, Shape


class _Image(Shape):
    type: Literal["image_url"]
    image_url: str | ImageUrl


class _System(Shape):
    role: Literal["system"]
    content: str | list[Text]


class _User(Shape):
    role: Literal["user"]
    content: str | list[Annotated[Text | _Image, Field(discriminator="type")]]


class _Assistant(Shape):
    role: Literal["assistant"]
    content: str | list[Text] | None = None
    tool_calls: list[ToolCall] | None = None
    prefix: bool = False


class _Tool(ToolMessage):
    name: str | None = None


class _StreamOptions(Shape):
    """It knows the object and nothing in it: `include_usage` is refused, for the usage comes with every stream."""


class _Chat(Shape):
    model: str
    messages: Annotated[
        list[Annotated[_System | _User | _Assistant | _Tool, Field(discriminator="role")]], Field(min_length=1)
    ]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1.5)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    stop: str | list[str] | None = None
    random_seed: int | None = None
    n: int | None = None
    tools: list[ToolShape] | None = None
    tool_choice: Literal["none", "auto", "any", "required"] | Chosen | None = None
    parallel_tool_calls: bool | None = None
    response_format: Format | None = None
    safe_prompt: bool | None = None
    prediction: dict[str, Any] | None = None
    prompt_mode: Literal["reasoning"] | None = None
    metadata: dict[str, Any] | None = None


class Mistral(OpenAIShape):
    """The fake. The usage stands in the last chunk of every stream, next to its finish_reason."""

    name: ClassVar[str] = "mistral"
    key: ClassVar[str] = "mistral-fake"
    model: ClassVar[str] = "mistral-large-latest"
    request = _Chat
    call_id = "callFake{}"

    def unauthorised(self, got: Got) -> Refused:
        return Refused(as_json({"detail": "Unauthorized"}, 401))

    def unknown_path(self, got: Got) -> Refused:
        return Refused(as_json({"message": "no Route matched with those values", "request_id": "fake"}, 404))

    def wrong(self, problem: Problem) -> Refused:
        detail = {"type": problem.kind, "loc": ["body", *problem.place], "msg": problem.says, "input": problem.found}
        body = {"object": "error", "message": {"detail": [detail]}, "type": "invalid_request_error"}
        return Refused(as_json({**body, "param": None, "code": None, "raw_status_code": 422}, 422))

    def check(self, request: _Chat) -> None:
        if request.model != self.model:
            raise Refused(self._said(400, f"Invalid model: {request.model}", "invalid_model", "1500"))
        last = request.messages[-1]
        if not (isinstance(last, (_User, _Tool)) or (isinstance(last, _Assistant) and last.prefix)):
            text = "Expected last role User or Tool (or Assistant with prefix True) for serving but got "
            raise Refused(self._said(400, text + last.role, "invalid_request_message_order", "3230"))
        called = [
            call.id for each in request.messages if isinstance(each, _Assistant) for call in each.tool_calls or ()
        ]
        told = [each.tool_call_id for each in request.messages if isinstance(each, _Tool)]
        for each in (*called, *told):
            if not re.fullmatch(r"[a-zA-Z0-9]{9}", each):
                text = f"Tool call id was {each} but must be a-z, A-Z, 0-9, with a length of 9."
                raise Refused(self._said(400, text, "invalid_function_call", "3280"))
        if len(called) != len(told):
            text = "Not the same number of function calls and responses"
            raise Refused(self._said(400, text, "invalid_request_message_order", "3230"))

    def _said(self, status: int, message: str, kind: str, code: str) -> Answer:
        body = {"object": "error", "message": message, "type": kind, "param": None, "code": code}
        return as_json({**body, "raw_status_code": status}, status)

    def fail(self, mood: str) -> Answer:
        if mood == "rate_limited":
            return self._said(429, "Rate limit exceeded", "rate_limited", "1300")
        if mood == "overloaded":
            return self._said(503, "Service unavailable.", "internal_server_error", "1000")
        if mood == "out_of_money":
            return as_json({"detail": "Payment required: your workspace has no credit left."}, 402)
        return self._said(500, "Service unavailable.", "internal_server_error", "1000")

    def broken_event(self) -> bytes:
        return sse(
            {"object": "error", "message": "Service unavailable.", "type": "internal_server_error", "code": 1000}
        )

    def headers(self) -> dict[str, str]:
        return {"x-ratelimit-limit-req-minute": "60", "x-ratelimit-remaining-req-minute": "59"}

    def choice(self, said: Said, finish: str | None, **shown: Any) -> dict[str, Any]:
        return {"index": 0, **shown, "finish_reason": finish}

    def usage(self, said: Said) -> dict[str, Any]:
        total = said.input_tokens + said.output_tokens
        counts = {"prompt_tokens": said.input_tokens, "completion_tokens": said.output_tokens, "total_tokens": total}
        return {**counts, "prompt_tokens_details": {"cached_tokens": said.cached}}

    def events(self, body: Any, said: Said) -> Any:
        yield sse(
            {**self.shape(".chunk"), "choices": [self.choice(said, None, delta={"role": "assistant", "content": ""})]}
        )
        for token in said.tokens:
            yield sse({**self.shape(".chunk"), "choices": [self.choice(said, None, delta={"content": token})]})
        calls = self.plain(said)["choices"][0]["message"].get("tool_calls")
        delta = (
            {"content": ""} if calls is None else {"tool_calls": [{**call, "index": n} for n, call in enumerate(calls)]}
        )
        last = self.choice(said, self.ending(said), delta=delta)
        yield sse({**self.shape(".chunk"), "choices": [last], "usage": self.usage(said)})
        yield sse("[DONE]")
