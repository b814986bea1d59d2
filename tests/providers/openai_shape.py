"""OpenAI's chat completions as other providers serve them: the shape they share, with a place for each one's ways."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel

from tests.providers.openai_request import Chat, asked_of
from tests.providers.said import Call, Said, say
from tests.providers.server import Answer, Fake, Got, Refused, as_events, as_json, sse
from tests.providers.shapes import Problem, Wrong, read_as

CREATED = 1_750_000_000


class OpenAIShape(Fake):
    """A provider with this shape. Each one sets what is its own."""

    path: ClassVar[str] = "/v1/chat/completions"
    model: ClassVar[str]
    request: ClassVar[type[BaseModel]] = Chat
    limit_field: ClassVar[str] = "max_tokens"
    call_id: ClassVar[str] = "call_fake{}"

    def answer(self, got: Got) -> Answer:
        self.authorise(got)
        if got.method != "POST" or got.path != self.path:
            raise self.unknown_path(got)
        try:
            request = read_as(self.request, got.body)
            self.check(request)
        except Wrong as wrong:
            raise self.wrong(wrong.problem) from wrong
        body = got.json
        said = say(asked_of(body, self.limit_field))
        if body.get("stream"):
            return as_events(self.events(body, said), self.headers())
        return self.whole(self.plain(said), self.headers())

    def authorise(self, got: Got) -> None:
        """Raise Refused unless the key is right and in its place."""
        if got.headers.get("authorization") != f"Bearer {self.key}":
            raise self.unauthorised(got)

    def unauthorised(self, got: Got) -> Refused:
        """What it answers to a wrong key."""
        raise NotImplementedError

    def unknown_path(self, got: Got) -> Refused:
        """What it answers to a URL that it does not have."""
        text = f"Unknown request URL: {got.method} {got.path}."
        return Refused(self.error(404, text, "invalid_request_error", "unknown_url"))

    def wrong(self, problem: Problem) -> Refused:
        """What it answers to a request of the wrong shape."""
        raise NotImplementedError

    def check(self, request: Any) -> None:
        """The rules that are not of shape. Raises Wrong or Refused."""

    def error(
        self, status: int, message: str, kind: str, code: Any, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """The error body, in OpenAI's shape unless the provider has its own."""
        body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
        return as_json(body, status, {**self.headers(), **(headers or {})})

    def headers(self) -> Mapping[str, str]:
        """The headers of every answer."""
        return {}

    def whole(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        """A whole answer on the wire."""
        return as_json(body, headers=headers)

    def shape(self, suffix: str) -> dict[str, Any]:
        """What stands in every object that it sends."""
        head = {"id": f"chatcmpl-{self.name}", "object": f"chat.completion{suffix}", "created": CREATED}
        return {**head, "model": self.model}

    def usage(self, said: Said) -> dict[str, Any]:
        """The usage, as this provider writes it."""
        return {
            "prompt_tokens": said.input_tokens,
            "completion_tokens": said.output_tokens,
            "total_tokens": said.input_tokens + said.output_tokens,
            "prompt_tokens_details": {"cached_tokens": said.cached},
        }

    def ending(self, said: Said) -> str:
        """The finish_reason."""
        return "stop" if said.ending == "stop_sequence" else said.ending

    def choice(self, said: Said, finish: str | None, **shown: Any) -> dict[str, Any]:
        """One choice, whole or in part."""
        return {"index": 0, **shown, "logprobs": None, "finish_reason": finish}

    def plain(self, said: Said) -> dict[str, Any]:
        """The whole answer."""
        calls = [
            {"id": self.call_id.format(n), "type": "function", "function": _called(call)}
            for n, call in enumerate(said.calls)
        ]
        message: dict[str, Any] = {"role": "assistant", "content": None if calls else said.text}
        if calls:
            message["tool_calls"] = calls
        choices = [self.choice(said, self.ending(said), message=message)]
        return {**self.shape(""), "choices": choices, "usage": self.usage(said)}

    def events(self, body: Mapping[str, Any], said: Said) -> Iterator[bytes]:
        """The answer as a stream; usage comes last, without choices, when it was asked for."""
        yield sse(
            {**self.shape(".chunk"), "choices": [self.choice(said, None, delta={"role": "assistant", "content": ""})]}
        )
        for delta in self.deltas(said):
            yield sse({**self.shape(".chunk"), "choices": [self.choice(said, None, delta=delta)]})
        yield sse({**self.shape(".chunk"), "choices": [self.choice(said, self.ending(said), delta={})]})
        if (body.get("stream_options") or {}).get("include_usage"):
            yield sse({**self.shape(".chunk"), "choices": [], "usage": self.usage(said)})
        yield sse("[DONE]")

    def deltas(self, said: Said) -> Iterator[dict[str, Any]]:
        """What changes from chunk to chunk."""
        for token in said.tokens:
            yield {"content": token}
        for n, call in enumerate(said.calls):
            called = {"name": call.name, "arguments": ""}
            yield {"tool_calls": [{"index": n, "id": self.call_id.format(n), "type": "function", "function": called}]}
            for piece in pieces_of(_called(call)["arguments"]):
                yield {"tool_calls": [{"index": n, "function": {"arguments": piece}}]}


def _called(call: Call) -> dict[str, str]:
    return {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}


def pieces_of(text: str) -> list[str]:
    """A text in small pieces."""
    return re.findall(r".{1,7}", text, re.DOTALL)
