"""Groq's chat completions: https://console.groq.com/docs/openai names the fields that it does not take."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from tests.providers.openai_request import Chat
from tests.providers.openai_shape import OpenAIShape
from tests.providers.said import Said
from tests.providers.server import Answer, Got, Refused, sse
from tests.providers.shapes import Problem, Wrong


class _Chat(Chat):
    max_completion_tokens: int | None = None
    service_tier: Literal["auto", "on_demand", "flex", "performance"] | None = None
    reasoning_effort: Literal["none", "default", "low", "medium", "high"] | None = None
    reasoning_format: Literal["hidden", "raw", "parsed"] | None = None
    include_reasoning: bool | None = None
    metadata: dict[str, str] | None = None


class Groq(OpenAIShape):
    """The fake. The usage of a stream stands in `x_groq` of its last chunk, asked for or not."""

    name: ClassVar[str] = "groq"
    key: ClassVar[str] = "gsk_fake"
    path: ClassVar[str] = "/openai/v1/chat/completions"
    model: ClassVar[str] = "llama-3.3-70b-versatile"
    request = _Chat

    def unauthorised(self, got: Got) -> Refused:
        return Refused(self.error(401, "Invalid API Key", "invalid_request_error", "invalid_api_key"))

    def wrong(self, problem: Problem) -> Refused:
        text = problem.says if problem.kind == "value_error" else f"'{problem.dotted}' : {problem.says}"
        if problem.kind == "extra_forbidden":
            *outer, name = problem.place
            text = f"property '{name}' is unsupported"
            if outer:
                where = ".".join(map(str, outer[:2]))
                text = f"'{where}' : for 'role:{outer[-1]}' the following must be satisfied[('{where}' : {text})]"
        if problem.kind == "missing":
            text = f"'{problem.dotted}' : property '{problem.place[-1]}' is missing"
        return Refused(self.error(400, text, "invalid_request_error", None))

    def check(self, request: _Chat) -> None:
        if request.model != self.model:
            text = f"The model `{request.model}` does not exist or you do not have access to it."
            raise Refused(self.error(404, text, "invalid_request_error", "model_not_found"))
        if request.n not in (None, 1):
            raise Wrong(Problem("value_error", ("n",), "'n' : number must be at most 1", None))
        if any(getattr(each, "name", None) is not None for each in request.messages):
            raise Wrong(Problem("extra_forbidden", ("messages", 0, "user", "name"), "", None))
        format_ = request.response_format
        if format_ is not None and format_.type == "json_schema" and (request.stream or request.tools):
            text = "json_schema response format does not support streaming or tool use"
            raise Wrong(Problem("value_error", ("response_format",), text, None))

    def headers(self) -> Mapping[str, str]:
        return {
            "x-ratelimit-limit-requests": "14400",
            "x-ratelimit-limit-tokens": "18000",
            "x-ratelimit-remaining-requests": "14370",
            "x-ratelimit-remaining-tokens": "17997",
            "x-ratelimit-reset-requests": "2m59.56s",
            "x-ratelimit-reset-tokens": "7.66s",
        }

    def fail(self, mood: str) -> Answer:
        if mood == "rate_limited":
            text = "Rate limit reached for model `llama-3.3-70b-versatile` in organization `org_fake` on tokens per minute "
            text += (
                "(TPM): Limit 18000, Used 17999, Requested 900. Please try again in 7.66s. Need more tokens? Upgrade."
            )
            return self.error(429, text, "tokens", "rate_limit_exceeded", {"retry-after": "8"})
        if mood == "overloaded":  # Groq's own status
            return self.error(498, "Flex tier capacity exceeded", "invalid_request_error", "capacity_exceeded")
        if mood == "out_of_money":
            return self.error(429, "Your spend limit is reached.", "insufficient_quota", "spend_limit_reached")
        return self.error(503, "Service Unavailable", "internal_server_error", "service_unavailable")

    def broken_event(self) -> bytes:
        return sse(
            {"error": {"message": "over capacity", "type": "internal_server_error", "code": "over_capacity"}}, "error"
        )

    def usage(self, said: Said) -> dict[str, Any]:
        times = {"queue_time": 0.01, "prompt_time": 0.002, "completion_time": 0.03, "total_time": 0.032}
        return {**times, **super().usage(said)}

    def plain(self, said: Said) -> dict[str, Any]:
        extra = {"system_fingerprint": "fp_groq", "x_groq": {"id": "req_groq"}, "service_tier": "on_demand"}
        return {**super().plain(said), **extra}

    def events(self, body: Mapping[str, Any], said: Said) -> Iterator[bytes]:
        first = {"role": "assistant", "content": ""}
        yield sse(
            {**self.shape(".chunk"), "choices": [self.choice(said, None, delta=first)], "x_groq": {"id": "req_groq"}}
        )
        for delta in self.deltas(said):
            yield sse({**self.shape(".chunk"), "choices": [self.choice(said, None, delta=delta)]})
        last = self.choice(said, self.ending(said), delta={})
        x_groq = {"id": "req_groq", "usage": self.usage(said)}
        yield sse({**self.shape(".chunk"), "choices": [last], "x_groq": x_groq})
        if (body.get("stream_options") or {}).get("include_usage"):
            yield sse({**self.shape(".chunk"), "choices": [], "usage": self.usage(said)})
        yield sse("[DONE]")
