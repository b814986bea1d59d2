"""vLLM's OpenAI-compatible server: https://docs.vllm.ai. Its errors are an object of their own, also in a stream."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from tests.providers.openai_request import Chosen, Format, Message, StreamOptions, ToolShape, asked_of
from tests.providers.openai_shape import OpenAIShape
from tests.providers.said import Said, say
from tests.providers.server import Answer, Got, Refused, as_json, sse
from tests.providers.shapes import Loose, Problem

CONTEXT = 8192


class _Chat(Loose):
    model: str | None = None
    messages: list[Message]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    seed: int | None = None
    tools: list[ToolShape] | None = None
    tool_choice: str | Chosen | None = None
    response_format: Format | None = None
    guided_json: Any = None
    continue_final_message: bool = False
    add_generation_prompt: bool = True


class VLLM(OpenAIShape):
    """The fake, started with `--api-key` and without `--enable-auto-tool-choice` when `tools` is false."""

    name: ClassVar[str] = "vllm"
    key: ClassVar[str] = "token-fake"
    model: ClassVar[str] = "Qwen/Qwen2.5-7B-Instruct"
    request = _Chat
    call_id = "chatcmpl-tool-fake{}"
    tools: ClassVar[bool] = True

    def unauthorised(self, got: Got) -> Refused:
        return Refused(as_json({"error": "Unauthorized"}, 401))

    def unknown_path(self, got: Got) -> Refused:
        return Refused(as_json({"detail": "Not Found"}, 404))

    def wrong(self, problem: Problem) -> Refused:
        detail = {"type": problem.kind, "loc": ("body", *problem.place), "msg": problem.says, "input": problem.found}
        return Refused(self._said(400, f"[{detail}]", "BadRequestError"))

    def check(self, request: _Chat) -> None:
        if request.model not in (None, self.model):
            raise Refused(self._said(404, f"The model `{request.model}` does not exist.", "NotFoundError"))
        if request.stream_options is not None and not request.stream:
            raise Refused(self._said(400, "Stream options can only be defined when `stream=True`.", "BadRequestError"))
        if request.continue_final_message and request.add_generation_prompt:
            text = "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
            raise Refused(self._said(400, text, "BadRequestError"))
        if request.tools and not self.tools and request.tool_choice in (None, "auto"):
            text = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            raise Refused(self._said(400, text, "BadRequestError"))
        asked = asked_of(request.model_dump(exclude_none=True, by_alias=True))
        used = say(asked).input_tokens
        output = request.max_completion_tokens or request.max_tokens or 1
        if used + output > CONTEXT:
            text = f"This model's maximum context length is {CONTEXT} tokens. However, you requested {used + output} tokens "
            text += f"({used} in the messages, {output} in the completion). Please reduce the length of the messages."
            raise Refused(self._said(400, text, "BadRequestError"))

    def _said(self, status: int, message: str, kind: str) -> Answer:
        return as_json({"object": "error", "message": message, "type": kind, "param": None, "code": status}, status)

    def fail(self, mood: str) -> Answer:
        if mood == "rate_limited":
            return self._said(429, "Too many requests", "RateLimitError")
        if mood == "overloaded":
            return self._said(503, "The server is overloaded", "ServiceUnavailableError")
        return self._said(500, "EngineCore encountered an issue.", "InternalServerError")

    def broken_event(self) -> bytes:
        text = "EngineCore encountered an issue."
        return sse({"object": "error", "message": text, "type": "InternalServerError", "param": None, "code": 500})

    def choice(self, said: Said, finish: str | None, **shown: Any) -> dict[str, Any]:
        return {**super().choice(said, finish, **shown), "stop_reason": said.stopped_by if finish else None}

    def plain(self, said: Said) -> dict[str, Any]:
        body = super().plain(said)
        body["choices"][0]["message"] |= {
            "reasoning_content": None,
            "tool_calls": body["choices"][0]["message"].get("tool_calls", []),
        }
        return {**body, "prompt_logprobs": None, "kv_transfer_params": None}

    def usage(self, said: Said) -> dict[str, Any]:
        found: Mapping[str, Any] = super().usage(said)
        return {**found, "prompt_tokens_details": {"cached_tokens": said.cached} if said.cached else None}
