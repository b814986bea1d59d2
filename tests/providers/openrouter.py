"""OpenRouter's chat completions: https://openrouter.ai/docs. Its errors carry their status, also inside of an answer."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from tests.providers.openai_request import Message
from tests.providers.openai_shape import OpenAIShape
from tests.providers.said import Said
from tests.providers.server import Answer, Got, Refused, as_json, sse
from tests.providers.shapes import Loose, Problem


class _Chat(Loose):
    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    provider: dict[str, Any] | None = None
    models: list[str] | None = None
    usage: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None


class OpenRouter(OpenAIShape):
    """The fake. Every stream begins with comments and ends with the usage, asked for or not."""

    name: ClassVar[str] = "openrouter"
    key: ClassVar[str] = "sk-or-v1-fake"
    path: ClassVar[str] = "/api/v1/chat/completions"
    model: ClassVar[str] = "meta-llama/llama-3.3-70b-instruct"
    request = _Chat

    def unauthorised(self, got: Got) -> Refused:
        text = "No auth credentials found" if "authorization" not in got.headers else "User not found."
        return Refused(self._said(401, text))

    def unknown_path(self, got: Got) -> Refused:
        return Refused(Answer(404, {"content-type": "text/html"}, (b"<!DOCTYPE html><title>Not Found</title>",)))

    def wrong(self, problem: Problem) -> Refused:
        return Refused(self._said(400, f"{problem.dotted}: {problem.says}"))

    def check(self, request: _Chat) -> None:
        if request.model != self.model:
            raise Refused(self._said(400, f"{request.model} is not a valid model ID"))

    def _said(self, code: int, message: str, headers: Mapping[str, str] | None = None, **metadata: Any) -> Answer:
        extra = {"metadata": metadata} if metadata else {}
        return as_json({"error": {"message": message, "code": code, **extra}, "user_id": "user_fake"}, code, headers)

    def fail(self, mood: str) -> Answer:
        if mood == "rate_limited":
            raw = "meta-llama/llama-3.3-70b-instruct is temporarily rate-limited upstream. Please retry shortly."
            return self._said(429, "Provider returned error", {"retry-after": "7"}, raw=raw, provider_name="Fake")
        if mood == "overloaded":
            return self._said(503, "No instances available", provider_name="Fake")
        if mood == "out_of_money":
            return self._said(402, "This request requires more credits, or fewer max_tokens.")
        return self._said(502, "Provider returned error", provider_name="Fake")

    def broken_event(self) -> bytes:
        choice = {"index": 0, "delta": {"content": ""}, "finish_reason": "error", "native_finish_reason": "error"}
        error = {"code": 502, "message": "Provider disconnected"}
        return sse({**self.shape(".chunk"), "error": error, "choices": [choice]})

    def shape(self, suffix: str) -> dict[str, Any]:
        return {**super().shape(suffix), "id": "gen-fake", "provider": "Fake"}

    def choice(self, said: Said, finish: str | None, **shown: Any) -> dict[str, Any]:
        return {**super().choice(said, finish, **shown), "native_finish_reason": finish}

    def usage(self, said: Said) -> dict[str, Any]:
        made = {"completion_tokens_details": {"reasoning_tokens": 0}}
        return {**super().usage(said), **made, "cost": 0.00014, "is_byok": False}

    def events(self, body: Mapping[str, Any], said: Said) -> Iterator[bytes]:
        yield b": OPENROUTER PROCESSING\n\n"
        yield b": OPENROUTER PROCESSING\n\n"
        *chunks, done = super().events({}, said)
        yield from chunks
        empty = self.choice(said, None, delta={"role": "assistant", "content": ""})
        yield sse({**self.shape(".chunk"), "choices": [empty], "usage": self.usage(said)})
        yield done
