"""Azure OpenAI's data plane: https://learn.microsoft.com/azure/ai-services/openai/reference."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tests.providers.openai_request import Chat
from tests.providers.openai_shape import OpenAIShape
from tests.providers.said import Said
from tests.providers.server import Answer, Got, Refused, as_json, sse
from tests.providers.shapes import Problem

VERSIONS = frozenset(("2024-06-01", "2024-10-21", "2025-01-01-preview", "2025-04-01-preview"))
DEPLOYMENT = "gpt-4o-mini"
_SAFE = {"filtered": False, "severity": "safe"}
_FILTER = {"hate": _SAFE, "self_harm": _SAFE, "sexual": _SAFE, "violence": _SAFE}


class _Chat(Chat):
    model: str = ""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, int] | None = None
    reasoning_effort: Literal["low", "medium", "high"] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None


class Azure(OpenAIShape):
    """The fake. The deployment stands in the path, the key in `api-key`, and `api-version` must be known."""

    name: ClassVar[str] = "azure"
    key: ClassVar[str] = "azure-fake"
    path: ClassVar[str] = f"/openai/deployments/{DEPLOYMENT}/chat/completions"
    model: ClassVar[str] = "gpt-4o-mini-2024-07-18"
    request = _Chat

    def authorise(self, got: Got) -> None:
        if got.headers.get("api-key") != self.key:
            text = (
                "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key "
            )
            raise Refused(
                self._coded(401, "401", text + "for an active subscription and use a correct regional endpoint.")
            )
        if got.query.get("api-version") not in VERSIONS:
            raise Refused(self._coded(404, "404", "Resource not found"))

    def unknown_path(self, got: Got) -> Refused:
        if re.fullmatch(r"/openai/deployments/[^/]+/chat/completions", got.path):
            text = "The API deployment for this resource does not exist. If you created the deployment within the last 5 minutes, please wait a moment and try again."
            return Refused(self._coded(404, "DeploymentNotFound", text))
        return Refused(self._coded(404, "404", "Resource not found"))

    def _coded(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Answer:
        return as_json({"error": {"code": code, "message": message}}, status, headers)

    def wrong(self, problem: Problem) -> Refused:
        text = f"Invalid value for '{problem.dotted}': {problem.says}."
        if problem.kind == "extra_forbidden":
            text = f"Unrecognized request argument supplied: {problem.place[-1]}"
        if problem.kind == "missing":
            text = f"Missing required parameter: '{problem.dotted}'."
        body = {"message": text, "type": "invalid_request_error", "param": problem.dotted, "code": None}
        return Refused(as_json({"error": body}, 400))

    def fail(self, mood: str) -> Answer:
        if mood == "rate_limited":
            text = "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-10-21 have exceeded call "
            text += "rate limit of your current OpenAI S0 pricing tier. Please retry after 7 seconds."
            return self._coded(429, "429", text, {"retry-after": "7", "retry-after-ms": "7000"})
        if mood == "overloaded":
            return self._coded(503, "ServiceUnavailable", "The service is temporarily unable to process your request.")
        if mood == "filtered":
            text = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
            inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": _FILTER}
            error = {"message": text, "type": None, "param": "prompt", "code": "content_filter", "status": 400}
            return as_json({"error": {**error, "innererror": inner}}, 400)
        return self._coded(500, "InternalServerError", "Backend returned unexpected response.")

    def broken_event(self) -> bytes:
        text = "The server had an error processing your request. Sorry about that!"
        return sse({"error": {"message": text, "type": "server_error", "param": None, "code": None}})

    def headers(self) -> Mapping[str, str]:
        return {"x-ms-region": "East US", "apim-request-id": "fake", "x-ratelimit-remaining-requests": "99"}

    def plain(self, said: Said) -> dict[str, Any]:
        filtered = [{"prompt_index": 0, "content_filter_results": _FILTER}]
        return {**super().plain(said), "prompt_filter_results": filtered, "system_fingerprint": "fp_azure"}

    def events(self, body: Mapping[str, Any], said: Said) -> Iterator[bytes]:
        filtered = [{"prompt_index": 0, "content_filter_results": _FILTER}]
        head = {"id": "", "object": "", "created": 0, "model": ""}
        yield sse({**head, "choices": [], "prompt_filter_results": filtered})
        yield from super().events(body, said)
