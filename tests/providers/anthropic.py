"""Anthropic's Messages API: https://docs.anthropic.com/en/api/messages, its streaming, errors and rate limits."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from tests.providers.anthropic_request import Messages, Prompt, asked_of, check, said_of
from tests.providers.said import Said, say
from tests.providers.server import Answer, Fake, Got, Refused, as_events, as_json, sse
from tests.providers.shapes import Problem, Wrong, read_as

VERSIONS = frozenset(("2023-06-01", "2026-10-21"))
_OUTPUTS = "structured-outputs-2025-11-13"
_Shape = TypeVar("_Shape", bound=Prompt)
_ID = {"request-id": "req_fake"}
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "overloaded_error": 529,
}
_ENDING = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "stop_sequence": "stop_sequence"}


class Anthropic(Fake):
    """The fake; the key comes in `x-api-key` or, as its SDKs send it now, as a bearer; `anthropic-version` must be there."""

    name: ClassVar[str] = "anthropic"
    key: ClassVar[str] = "sk-ant-fake"
    model: ClassVar[str] = "claude-haiku-4-5"
    prefix: ClassVar[str] = ""

    def answer(self, got: Got) -> Answer:
        self.authorise(got)
        if got.headers.get("anthropic-version") is None:
            raise self.refusal("invalid_request_error", "anthropic-version: header is required")
        if got.headers["anthropic-version"] not in VERSIONS:
            wrong = got.headers["anthropic-version"]
            raise self.refusal("invalid_request_error", f'anthropic-version: "{wrong}" is not a valid version')
        if got.method != "POST" or got.path not in (
            f"{self.prefix}/v1/messages",
            f"{self.prefix}/v1/messages/count_tokens",
        ):
            raise self.refusal("not_found_error", "Not Found")
        if not got.headers.get("content-type", "").startswith("application/json"):
            raise self.refusal("invalid_request_error", "content-type: must be application/json")
        if got.path.endswith("/count_tokens"):
            return as_json({"input_tokens": say(asked_of(self.read(Prompt, got))).input_tokens}, headers=_ID)
        request = self.read(Messages, got)
        said = say(asked_of(request))
        if request.stream:
            return as_events(events(request.model, said), {**_ID, **_limits("49")})
        return as_json(message(request.model, said), headers={**_ID, **_limits("49")})

    def authorise(self, got: Got) -> None:
        """Raise Refused unless the key is right and in its place."""
        given = got.headers.get("x-api-key") or got.headers.get("authorization", "").removeprefix("Bearer ")
        if not given:
            raise self.refusal("authentication_error", "x-api-key header is required")
        if given != self.key:
            raise self.refusal("authentication_error", "invalid x-api-key")

    def read(self, shape: type[_Shape], got: Got) -> _Shape:
        """The request. Raises Refused."""
        try:
            request = read_as(shape, got.body)
            check(request)
            if (
                isinstance(request, Messages)
                and request.output_format
                and _OUTPUTS not in got.headers.get("anthropic-beta", "")
            ):
                raise Wrong(Problem("extra_forbidden", ("output_format",), "Extra inputs are not permitted", None))
        except Wrong as wrong:
            raise self.refusal("invalid_request_error", said_of(wrong.problem)) from wrong
        if request.model != self.model:
            raise self.refusal("not_found_error", f"model: {request.model}")
        return request

    def refusal(self, kind: str, message: str) -> Refused:
        """An error of this kind."""
        return Refused(self.error(kind, message))

    def error(self, kind: str, message: str, headers: Mapping[str, str] | None = None) -> Answer:
        """The error body with the status that belongs to it."""
        return as_json(_error(kind, message), _STATUS[kind], {**_ID, **(headers or {})})

    def fail(self, mood: str) -> Answer:
        if mood == "rate_limited":
            text = "This request would exceed your organization's rate limit of 50 requests per minute."
            return self.error("rate_limit_error", text, {"retry-after": "7", **_limits("0")})
        if mood == "overloaded":
            return self.error("overloaded_error", "Overloaded", {"x-should-retry": "true"})
        if mood == "out_of_money":
            text = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing."
            return self.error("invalid_request_error", text)
        if mood == "too_long":
            return self.error("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum")
        return self.error("api_error", "Internal server error")

    def broken_event(self) -> bytes:
        return sse(_error("overloaded_error", "Overloaded"), "error")


def _error(kind: str, message: str) -> Mapping[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_fake"}


def _limits(left: str) -> dict[str, str]:
    found = {"limit": "50", "remaining": left, "reset": "2026-01-01T00:00:07Z"}
    return {f"anthropic-ratelimit-requests-{name}": value for name, value in found.items()}


def _content(said: Said) -> list[dict[str, Any]]:
    text = [{"type": "text", "text": said.text}] if said.tokens else []
    calls = [
        {"type": "tool_use", "id": f"toolu_fake{n}", "name": call.name, "input": dict(call.arguments)}
        for n, call in enumerate(said.calls)
    ]
    return text + calls


def usage(said: Said) -> dict[str, Any]:
    """The usage, whose `input_tokens` are those neither read from a cache nor written to it."""
    return {
        "input_tokens": said.input_tokens - said.cached - said.written,
        "cache_creation_input_tokens": said.written,
        "cache_read_input_tokens": said.cached,
        "cache_creation": {"ephemeral_5m_input_tokens": said.written, "ephemeral_1h_input_tokens": 0},
        "output_tokens": said.output_tokens,
        "service_tier": "standard",
    }


def message(model: str, said: Said) -> dict[str, Any]:
    """The whole answer."""
    ending = {"stop_reason": _ENDING[said.ending], "stop_sequence": said.stopped_by}
    head = {"id": "msg_fake", "type": "message", "role": "assistant", "model": model}
    return {**head, "content": _content(said), **ending, "usage": usage(said)}


def events(model: str, said: Said) -> Iterator[bytes]:
    """The same as a stream."""
    for each in payloads(model, said):
        yield sse(each, each["type"])


def payloads(model: str, said: Said) -> Iterator[dict[str, Any]]:
    """The events of the stream, before they have a frame."""
    head = {**message(model, said), "content": [], "stop_reason": None, "stop_sequence": None}
    yield {"type": "message_start", "message": {**head, "usage": {**usage(said), "output_tokens": 1}}}
    for index, block in enumerate(_content(said)):
        is_text = block["type"] == "text"
        empty = {**block, "text": ""} if is_text else {**block, "input": {}}
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        if index == 0:
            yield {"type": "ping"}
        for piece in said.tokens if is_text else ("", *_pieces(block["input"])):
            delta = (
                {"type": "text_delta", "text": piece}
                if is_text
                else {"type": "input_json_delta", "partial_json": piece}
            )
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    ending = {"stop_reason": _ENDING[said.ending], "stop_sequence": said.stopped_by}
    yield {"type": "message_delta", "delta": ending, "usage": {"output_tokens": said.output_tokens}}
    yield {"type": "message_stop"}


def _pieces(value: Any) -> list[str]:
    return re.findall(r".{1,7}", json.dumps(value, ensure_ascii=False), re.DOTALL)
