"""DeepSeek's chat completions: https://api-docs.deepseek.com. It sends blank lines and comments while one waits."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tests.providers.openai_request import Chosen, StreamOptions, ToolShape
from tests.providers.openai_shape import OpenAIShape
from tests.providers.said import Said
from tests.providers.server import Answer, Got, Refused, as_json, sse
from tests.providers.shapes import Loose, Problem, Wrong, flat

_BLANK = b"\n\n\n"


class _Text(Loose):
    type: Literal["text"]
    text: str


class _Call(Loose):
    id: str
    type: Literal["function"]
    function: dict[str, Any]


class _Said(Loose):
    role: Literal["system", "user"]
    content: str | list[_Text]


class _Assistant(Loose):
    role: Literal["assistant"]
    content: str | list[_Text] | None = None
    tool_calls: list[_Call] | None = None
    prefix: bool | None = None


class _Tool(Loose):
    role: Literal["tool"]
    content: str | list[_Text]
    tool_call_id: str


class _Format(Loose):
    type: Literal["text", "json_object"]


class _Chat(Loose):
    model: str
    messages: Annotated[list[Annotated[_Said | _Assistant | _Tool, Field(discriminator="role")]], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    tools: Annotated[list[ToolShape], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Chosen | None = None
    response_format: _Format | None = None


class DeepSeek(OpenAIShape):
    """The fake. Unknown fields are ignored, as serde does; images and JSON schemas are refused."""

    name: ClassVar[str] = "deepseek"
    key: ClassVar[str] = "sk-deepseek-fake"
    path: ClassVar[str] = "/chat/completions"
    model: ClassVar[str] = "deepseek-chat"
    request = _Chat

    def unauthorised(self, got: Got) -> Refused:
        if "authorization" not in got.headers:
            text = "Authentication Fails (auth header format should be Bearer sk-...)"
        else:
            text = f"Authentication Fails, Your api key: ****{got.headers['authorization'][-4:]} is invalid"
        return Refused(self.error(401, text, "authentication_error", "invalid_request_error"))

    def wrong(self, problem: Problem) -> Refused:
        if problem.place[:1] == ("response_format",):
            text = f"This response_format type is unavailable now ({problem.says})"
            return self._invalid(400, text)
        if "image_url" in json.dumps(problem.found):
            problem = Problem(problem.kind, problem.place, "unknown variant `image_url`, expected `text`", None)
        if problem.kind == "value_error":
            return self._invalid(400, problem.says)
        text = f"Failed to deserialize the JSON body into the target type: {problem.dotted}: {problem.says}"
        return self._invalid(422, f"{text} at line 1 column 1")

    def _invalid(self, status: int, text: str) -> Refused:
        return Refused(self.error(status, text, "invalid_request_error", "invalid_request_error"))

    def check(self, request: _Chat) -> None:
        if request.model != self.model:
            raise Wrong(Problem("value_error", (), "Model Not Exist", None))
        if request.max_tokens is not None and not 1 <= request.max_tokens <= 8192:
            text = "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]"
            raise Wrong(Problem("value_error", (), text, None))
        if request.temperature is not None and not 0 <= request.temperature <= 2:
            text = "Invalid temperature value, the valid range of temperature is [0, 2]"
            raise Wrong(Problem("value_error", (), text, None))
        told = " ".join(flat(each.model_dump()["content"]) for each in request.messages)
        wants_json = request.response_format is not None and request.response_format.type == "json_object"
        if wants_json and "json" not in told.lower():
            text = "Prompt must contain the word 'json' in some form to use 'response_format' of type 'json_object'."
            raise Wrong(Problem("value_error", (), text, None))
        called = [
            call.id for each in request.messages if isinstance(each, _Assistant) for call in each.tool_calls or ()
        ]
        told_ids = [each.tool_call_id for each in request.messages if isinstance(each, _Tool)]
        if called != told_ids:
            text = "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'."
            raise Wrong(Problem("value_error", (), text, None))

    def fail(self, mood: str) -> Answer:
        if mood == "rate_limited":
            return self.error(429, "Rate limit reached", "rate_limit_error", "rate_limit_reached")
        if mood == "out_of_money":
            return self.error(402, "Insufficient Balance", "unknown_error", "invalid_request_error")
        status = 503 if mood == "overloaded" else 500
        return self.error(status, "Service is too busy. Please try again later.", "service_unavailable_error", None)

    def broken_event(self) -> bytes:
        return sse({"error": {"message": "Internal error", "type": "server_error", "param": None, "code": None}})

    def whole(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        found = as_json(body, headers=headers)
        return Answer(200, found.headers, (_BLANK + found.pieces[0],))

    def usage(self, said: Said) -> dict[str, Any]:
        hits = {"prompt_cache_hit_tokens": said.cached, "prompt_cache_miss_tokens": said.input_tokens - said.cached}
        return {**super().usage(said), **hits}

    def events(self, body: Mapping[str, Any], said: Said) -> Iterator[bytes]:
        for place, event in enumerate(super().events(body, said)):
            if place < 3:
                yield b": keep-alive\n\n"
            yield event
