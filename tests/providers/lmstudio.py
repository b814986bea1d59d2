"""LM Studio's OpenAI-compatible server: https://lmstudio.ai/docs. It answers 200 to a URL that it does not have."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tests.providers.openai_request import Message, ToolShape
from tests.providers.openai_shape import OpenAIShape
from tests.providers.said import Said
from tests.providers.server import Answer, Got, Refused, as_json, sse
from tests.providers.shapes import Loose, Problem


class _Chat(Loose):
    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    tools: list[ToolShape] | None = None
    response_format: dict[str, Any] | None = None


class LMStudio(OpenAIShape):
    """The fake; it asks for no key."""

    name: ClassVar[str] = "lmstudio"
    key: ClassVar[str] = ""
    model: ClassVar[str] = "qwen2.5-7b-instruct"
    request = _Chat
    call_id = "36522786{}"

    def authorise(self, got: Got) -> None:
        return

    def unknown_path(self, got: Got) -> Refused:
        return Refused(as_json({"error": f"Unexpected endpoint or method. ({got.method} {got.path})"}))

    def wrong(self, problem: Problem) -> Refused:
        return Refused(as_json({"error": f"'{problem.dotted}' field is wrong: {problem.says}"}, 400))

    def check(self, request: _Chat) -> None:
        if request.response_format is not None and request.response_format.get("type") not in ("json_schema", "text"):
            raise Refused(as_json({"error": "'response_format.type' must be 'json_schema' or 'text'"}, 400))
        if request.model != self.model:
            error = {
                "message": f'Model "{request.model}" not found. Please specify a valid model.',
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
            }
            raise Refused(as_json({"error": error}, 404))

    def fail(self, mood: str) -> Answer:
        if mood == "too_long":
            text = "The number of tokens to keep from the initial prompt is greater than the context length. "
            return as_json({"error": text + "Try to load the model with a larger context length."}, 400)
        return as_json({"error": "The model has crashed without additional information. (Exit code: 6)"}, 500)

    def broken_event(self) -> bytes:
        return sse({"error": {"message": "The model has crashed without additional information."}}, "error")

    def plain(self, said: Said) -> dict[str, Any]:
        return {**super().plain(said), "stats": {}, "system_fingerprint": self.model}

    def usage(self, said: Said) -> dict[str, Any]:
        total = said.input_tokens + said.output_tokens
        return {"prompt_tokens": said.input_tokens, "completion_tokens": said.output_tokens, "total_tokens": total}
