"""What the fault upstream says when nothing is wrong: correct answers in pieces, so that a fault can leave some out."""

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

CREATED = 1_750_000_000
ARGUMENTS = '{"location":"Paris","unit":"celsius"}'
_USUAL = {
    "ok": "tokens",
    "flapping": "times",
    "status_429": "retry_after",
    "insufficient_quota": "retry_after",
    "slow": "gap",
    "drip": "gap",
    "big": "size",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What a request meets. Times are in seconds.

    `after` tokens are delivered before the fault, a whole answer has `tokens`; `delay` is before the head, `gap`
    between tokens (or bytes, for `drip`), `pause` before a connection is ended. `size` is in bytes, `times` counts bad answers.
    """

    name: str = "ok"
    after: int = 3
    tokens: int = 10
    gap: float = 0.0
    delay: float = 0.0
    pause: float = 0.02
    retry_after: str | None = None
    size: int = 1_000_000
    times: int = 1

    @classmethod
    def parse(cls, given: "Fault | str | Mapping[str, Any]") -> "Fault":
        """Read `name`, `name:3`, `name:after=3,gap=0.05` or a mapping with the same fields."""
        if isinstance(given, Fault):
            return given
        if isinstance(given, str):
            name, _, rest = given.partition(":")
            pairs = (part.partition("=") for part in rest.split(",") if part)
            named = {key if eq else _USUAL.get(name, "after"): value if eq else key for key, eq, value in pairs}
            given = {"name": name, **named}
        kinds = {each.name: each.type for each in fields(cls)}
        return cls(**{key: _as(kinds[key], value) for key, value in given.items()})


def _as(kind: object, value: object) -> Any:
    if kind is int:
        return int(str(value))
    return float(str(value)) if kind is float else value


@dataclass(slots=True)
class Seen:
    """One request, as the upstream saw it; times are `time.monotonic()`.

    `closed_at` is when the peer hung up before its answer was whole; `reason` is `answered`, `faulted` (this server ended
    the connection), or what the peer did: `eof` or `reset`. Tokens are those that were produced, delivered or not.
    """

    connection: int
    at: float
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    fault: Fault
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    head_at: float | None = None
    finished_at: float | None = None
    closed_at: float | None = None
    reason: str = ""

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


def prompt_tokens(request: Mapping[str, Any]) -> int:
    """Words of the prompt and one a message; at least one."""
    given = request.get("messages") or [{"content": request.get("prompt") or request.get("input") or ""}]
    return sum(1 + len(str(each.get("content") or "").split()) for each in given)


def text(count: int, start: int = 0) -> str:
    """What an answer of `count` tokens says from token `start` on: `tok0 tok1 …`."""
    return "".join(f"tok{place} " for place in range(start, count))


def kind_of(path: str) -> str:
    """`chat`, `text` or `embedding`, by the end of the path; empty for what this server does not know."""
    path = path.partition("?")[0]
    if path.endswith("/chat/completions"):
        return "chat"
    return "text" if path.endswith("/completions") else "embedding" if path.endswith("/embeddings") else ""


class Composed:
    """A correct answer in pieces; a request that ends with an assistant's message is continued where that ends."""

    def __init__(self, path: str, request: Mapping[str, Any], fault: Fault, port: int) -> None:
        self.request, self.fault, self.kind = request, fault, kind_of(path)
        self.is_chat = self.kind == "chat"
        told = json.dumps(request.get("messages") or request.get("prompt"), sort_keys=True)
        self.id = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{port}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
        self.n = int(request.get("n") or 1)
        asked = (request.get("stream_options") or {}).get("include_usage")
        self.counts = bool(asked) and fault.name != "no_usage"
        self.calls_tool = fault.name == "tools" or (request.get("tools") and request.get("tool_choice") == "required")
        pieces = self._all_pieces()
        limit = min(int(request.get(name) or 10**9) for name in ("max_tokens", "max_completion_tokens"))
        self.ending = "length" if len(pieces) > limit else "tool_calls" if self.calls_tool else "stop"
        self.pieces = pieces[:limit]
        self.total = len(self.pieces) * self.n

    def _all_pieces(self) -> list[str]:
        if self.kind not in ("chat", "text"):
            return []
        if self.calls_tool:
            return [ARGUMENTS[place : place + 6] for place in range(0, len(ARGUMENTS), 6)]
        if self.fault.name == "big":
            return ["x" * 1023 + " "] * (self.fault.size // 1024)
        messages = self.request.get("messages") or [{}]
        begun = str(messages[-1].get("content") or "") if messages[-1].get("role") == "assistant" else ""
        return [text(place + 1, place) for place in range(len(begun.split()), self.fault.tokens)]

    @property
    def tokens(self) -> list[bytes]:
        """One event a token; several choices take turns."""
        return [self._event(self._delta(index, piece)) for piece in self.pieces for index in range(self.n)]

    def first(self) -> list[bytes]:
        """The events that name the role (and the tool)."""
        if not self.is_chat:
            return []
        delta: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
        if self.calls_tool:
            delta = {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **self._call("")}]}
        return [self._event(self._choice(index, delta=delta)) for index in range(self.n)]

    def finish(self, *, inline_usage: bool = False) -> list[bytes]:
        """The events that carry the finish_reason, with the usage in the last of them if so asked."""
        empty: dict[str, Any] = {"delta": {}} if self.is_chat else {"text": ""}
        *before, last = [self._choice(index, finish=self.ending, **empty) for index in range(self.n)]
        extra = {"usage": self._usage()} if inline_usage else {}
        return [*map(self._event, before), self._event(last, **extra)]

    def usage_event(self) -> bytes:
        """The chunk with usage and without choices."""
        return self._event(None, usage=self._usage())

    def plain(self) -> dict[str, Any]:
        """The whole answer in one body."""
        if self.kind == "embedding":
            return self._embeddings()
        said = "".join(self.pieces)
        message: dict[str, Any] = {"role": "assistant", "content": said, "refusal": None}
        if self.calls_tool:
            message |= {"content": None, "tool_calls": [self._call(said)]}
        shown: dict[str, Any] = {"message": message} if self.is_chat else {"text": said}
        choices = [self._choice(index, finish=self.ending, **shown) for index in range(self.n)]
        body = self._shape("") | {"choices": choices}
        return body if self.fault.name == "no_usage" else body | {"usage": self._usage()}

    def _embeddings(self) -> dict[str, Any]:
        given = self.request.get("input") or ""
        vector: Any = [0.6, 0.8]
        if self.request.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack("<2f", *vector)).decode()
        count = len(given) if isinstance(given, list) else 1
        data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(count)]
        prompt = prompt_tokens(self.request)
        usage = {"prompt_tokens": prompt, "total_tokens": prompt}
        return {"object": "list", "data": data, "model": self.request.get("model"), "usage": usage}

    def _delta(self, index: int, piece: str) -> dict[str, Any]:
        if not self.is_chat:
            return self._choice(index, text=piece)
        if self.calls_tool:
            return self._choice(index, delta={"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        return self._choice(index, delta={"content": piece}, said=piece)

    def _choice(self, index: int, *, finish: str | None = None, said: str = "", **shown: Any) -> dict[str, Any]:
        logprobs = None
        if self.request.get("logprobs") and (said or "message" in shown):
            each = [said] if said else self.pieces
            listed = [{"token": one, "logprob": -0.5, "bytes": list(one.encode()), "top_logprobs": []} for one in each]
            logprobs = {"content": listed, "refusal": None}
        return {"index": index, **shown, "logprobs": logprobs, "finish_reason": finish}

    def _call(self, arguments: str) -> dict[str, Any]:
        tools = self.request.get("tools") or [{"function": {"name": "get_weather"}}]
        called = {"name": tools[0]["function"]["name"], "arguments": arguments}
        return {"id": "call_fault", "type": "function", "function": called}

    def _usage(self) -> dict[str, Any]:
        prompt = prompt_tokens(self.request)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.total,
            "total_tokens": prompt + self.total,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }

    def _shape(self, suffix: str) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self.is_chat else "text_completion"
        named = {"model": self.request.get("model"), "system_fingerprint": "fp_fault"}
        return {"id": self.id, "object": kind, "created": CREATED, **named}

    def _event(self, choice: dict[str, Any] | None, **extra: Any) -> bytes:
        if self.counts:
            extra = {"usage": None, **extra}
        body = self._shape(".chunk") | {"choices": [choice] if choice else []} | extra
        return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
