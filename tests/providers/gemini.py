"""Gemini's generateContent: https://ai.google.dev/api/generate-content, its streams and its errors."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from tests.providers.gemini_request import Generate, asked_of, check
from tests.providers.said import Said, say
from tests.providers.server import Answer, Fake, Got, Refused, as_events, as_json, sse
from tests.providers.shapes import Problem, Wrong, read_as

_PATH = re.compile(r"/v1(?:beta|alpha)?/models/([^/:]+):(\w+)")
_INFO = "type.googleapis.com/google.rpc."
_CODES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
}


class Gemini(Fake):
    """The fake. A wrong key is a 400 there, and a stream is SSE only with `alt=sse`."""

    name: ClassVar[str] = "gemini"
    key: ClassVar[str] = "AIza-fake"
    model: ClassVar[str] = "gemini-2.5-flash"

    def answer(self, got: Got) -> Answer:
        self.authorise(got)
        found = _PATH.fullmatch(got.path)
        if found is None or got.method != "POST":
            raise Refused(Answer(404, {"content-type": "text/html; charset=UTF-8"}, (b"<title>Error 404</title>",)))
        name, verb = found.groups()
        if verb not in ("generateContent", "streamGenerateContent", "countTokens") or name != self.model:
            text = (
                f"models/{name} is not found for API version v1beta, or is not supported for {verb}. Call ListModels."
            )
            raise Refused(self.error("NOT_FOUND", text))
        strange = set(got.query) - {"alt", "key", "prettyPrint"}
        if strange:
            text = f'Invalid JSON payload received. Unknown name "{min(strange)}": Cannot bind query parameter.'
            raise Refused(self.error("INVALID_ARGUMENT", text))
        try:
            request = read_as(Generate, got.body)
            check(request)
        except Wrong as wrong:
            raise Refused(self.error("INVALID_ARGUMENT", _told(wrong.problem))) from wrong
        said = say(asked_of(request))
        if verb == "generateContent":
            return as_json(self.chunk(said, said.tokens, said.calls, last=True))
        if got.query.get("alt") != "sse":
            return as_json([self.chunk(said, said.tokens, said.calls, last=True)])
        return as_events(self.events(said), kind="text/event-stream")

    def authorise(self, got: Got) -> None:
        """Raise Refused unless the key is right and in its place."""
        given = got.headers.get("x-goog-api-key") or got.query.get("key")
        if given is None:
            text = "Method doesn't allow unregistered callers (callers without established identity). Please use API Key or "
            raise Refused(
                self.error("PERMISSION_DENIED", f"{text}other form of API consumer identity to call this API.")
            )
        if given != self.key:
            info = {"@type": f"{_INFO}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
            text = "API key not valid. Please pass a valid API key."
            raise Refused(self.error("INVALID_ARGUMENT", text, info))

    def error(self, status: str, message: str, *details: Mapping[str, Any]) -> Answer:
        """The error body with the HTTP status that belongs to it."""
        body = {"code": _CODES[status], "message": message, "status": status}
        return as_json({"error": {**body, "details": details} if details else {"error": body}["error"]}, _CODES[status])

    def fail(self, mood: str) -> Answer:
        if mood == "rate_limited":
            metric = "generativelanguage.googleapis.com/generate_content_free_tier_requests"
            text = f"You exceeded your current quota, please check your plan and billing details. * Quota exceeded for metric: {metric}, limit: 10\nPlease retry in 7.5s."
            retry = {"@type": f"{_INFO}RetryInfo", "retryDelay": "7s"}
            quota = {"@type": f"{_INFO}QuotaFailure", "violations": [{"quotaMetric": metric, "quotaValue": "10"}]}
            return self.error("RESOURCE_EXHAUSTED", text, quota, retry)
        if mood == "overloaded":
            return self.error("UNAVAILABLE", "The model is overloaded. Please try again later.")
        if mood == "blocked":
            feedback = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
            usage = {"promptTokenCount": 9, "totalTokenCount": 9}
            return as_json({**feedback, "usageMetadata": usage, "modelVersion": self.model, "responseId": "fake"})
        if mood == "too_long":
            text = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."
            return self.error("INVALID_ARGUMENT", text)
        return self.error("INTERNAL", "An internal error has occurred. Please retry or report.")

    def broken_event(self) -> bytes:
        body = {"code": 503, "message": "The model is overloaded. Please try again later.", "status": "UNAVAILABLE"}
        return sse({"error": body}, end=b"\r\n\r\n")

    def events(self, said: Said) -> Iterator[bytes]:
        """The answer as a stream; a call comes whole, and the finishReason with the last of it."""
        tokens = list(said.tokens)
        for place, token in enumerate(tokens):
            last = not said.calls and place == len(tokens) - 1
            yield sse(self.chunk(said, (token,), (), last=last), end=b"\r\n\r\n")
        if said.calls or not tokens:
            yield sse(self.chunk(said, (), said.calls, last=True), end=b"\r\n\r\n")

    def chunk(self, said: Said, tokens: Any, calls: Any, *, last: bool) -> dict[str, Any]:
        """A part of the answer, or all of it."""
        parts: list[dict[str, Any]] = [{"text": "".join(tokens)}] if tokens else []
        parts += [{"functionCall": {"name": call.name, "args": dict(call.arguments)}} for call in calls]
        candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
        if last:
            candidate["finishReason"] = "MAX_TOKENS" if said.ending == "length" else "STOP"
        counted = said.output_tokens if last else len(tokens)
        usage = {
            "promptTokenCount": said.input_tokens,
            "candidatesTokenCount": counted,
            "totalTokenCount": said.input_tokens + counted,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": said.input_tokens}],
        }
        if said.cached:
            usage["cachedContentTokenCount"] = said.cached
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": self.model, "responseId": "fake"}


def _told(problem: Problem) -> str:
    place = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, problem.place[:-1])))
    if problem.kind == "extra_forbidden":
        where = f" at '{place}'" if place else ""
        return f'Invalid JSON payload received. Unknown name "{problem.place[-1]}"{where}: Cannot find field.'
    if problem.kind == "value_error":
        return problem.says
    return f"Invalid value at '{problem.dotted}': {problem.says}"
