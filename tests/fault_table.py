"""Every fault by name: what the fault upstream writes, and how it ends the connection."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

from tests.fault_answers import Composed, Fault, Seen


class Line(Protocol):
    """The connection below an exchange."""

    reset_next: bool

    async def write(self, data: bytes) -> None:
        """Write, and wait while the peer does not read."""

    async def flush(self) -> None:
        """Wait until all that was written is with the kernel."""

    def count(self, tokens: int) -> None:
        """Note tokens as produced by the current request."""

    def close(self) -> None:
        """Close in order, as a part of the fault."""

    def reset(self) -> None:
        """End with a TCP RST."""


@dataclass(slots=True)
class Exchange:
    """One request with the means to answer it, or not. `framing` is `chunked`, `length` or `close`."""

    line: Line
    seen: Seen
    request: Mapping[str, Any]
    answer: Composed
    framing: str = "chunked"

    @property
    def fault(self) -> Fault:
        return self.seen.fault

    @property
    def streams(self) -> bool:
        return bool(self.request.get("stream"))

    async def head(self, status: int = 200, content_type: str = "application/json", **headers: str) -> None:
        """Write status line and headers; `framing` says how the body will end."""
        lines = [f"HTTP/1.1 {status} {_reason(status)}", f"content-type: {content_type}", "x-request-id: req_fault"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if self.framing == "chunked":
            lines.append("transfer-encoding: chunked")
        elif self.framing == "close":
            lines.append("connection: close")
        self.seen.head_at = time.monotonic()
        await self.line.write("\r\n".join(lines).encode() + b"\r\n\r\n")

    async def part(self, data: bytes, tokens: int = 0) -> None:
        """Write a piece of the body that carries so many tokens."""
        if tokens and self.fault.gap and self.fault.name != "drip":
            await asyncio.sleep(self.fault.gap)
        if tokens:
            self.line.count(tokens)
        await self.line.write(b"%x\r\n%b\r\n" % (len(data), data) if self.framing == "chunked" else data)

    async def end(self) -> None:
        """End the body as its framing says."""
        if self.framing == "chunked":
            await self.line.write(b"0\r\n\r\n")
        elif self.framing == "close":
            await self.fin()

    async def fin(self) -> None:
        """Close the connection in order, after all that was written."""
        await self.line.flush()
        await asyncio.sleep(self.fault.pause)
        self.line.close()

    async def rst(self) -> None:
        """Reset the connection, after all that was written."""
        await self.line.flush()
        await asyncio.sleep(self.fault.pause)
        self.line.reset()

    async def forever(self) -> None:
        """Do nothing until the peer leaves."""
        await asyncio.get_running_loop().create_future()

    async def json(self, body: object, status: int = 200, *, tokens: int = 0, **headers: str) -> None:
        """A whole plain answer that carries so many tokens."""
        data = json.dumps(body, separators=(",", ":")).encode()
        self.framing = "length"
        await self.head(status, content_length=str(len(data)), **headers)
        await self.part(data, tokens)

    async def begin(self, tokens: int | None = None) -> None:
        """The beginning of a correct answer: the head and the first `tokens` tokens, or half of a plain body."""
        if self.streams:
            await self.head(content_type="text/event-stream; charset=utf-8")
            for event in self.answer.first():
                await self.part(event)
            for event in self.answer.tokens[:tokens]:
                await self.part(event, 1)
            return
        data = json.dumps(self.answer.plain()).encode()
        if self.framing == "chunked":
            self.framing = "length"
        if self.framing == "close":
            await self.head()
        else:
            await self.head(content_length=str(len(data)))
        await self.part(data[: len(data) // 2], self.answer.total)

    async def rest(self, start: int | None = None, *, finish: bool = True, done: bool = True) -> None:
        """The end of a stream that has begun, from token `start` on, with or without its last events."""
        for event in () if start is None else self.answer.tokens[start:]:
            await self.part(event, 1)
        last = self.answer.finish(inline_usage=self.fault.name == "usage_in_finish") if finish else []
        if finish and self.answer.counts and self.fault.name != "usage_in_finish":
            last.append(self.answer.usage_event())
        for event in [*last, b"data: [DONE]\n\n"] if done else last:
            await self.part(event)
        await self.end()


async def _ok(x: Exchange) -> None:
    if x.streams:
        await x.begin()
        await x.rest()
    else:
        await x.json(x.answer.plain(), tokens=x.answer.total)


async def _reset(x: Exchange) -> None:
    await x.rst()


async def _silence(x: Exchange) -> None:
    await x.forever()


async def _headers_silence(x: Exchange) -> None:
    if not x.streams:
        x.framing = "length"
        await x.head(content_length="1000")
    else:
        await x.head(content_type="text/event-stream; charset=utf-8")
    await x.forever()


async def _cut_rst(x: Exchange) -> None:
    await x.begin(x.fault.after)
    await x.rst()


async def _cut_fin(x: Exchange) -> None:
    await x.begin(x.fault.after)
    await x.fin()


async def _cut_close(x: Exchange) -> None:
    x.framing = "close"
    await x.begin(x.fault.after)
    await x.fin()


async def _close_delimited(x: Exchange) -> None:
    x.framing = "close"
    if x.streams:
        await x.begin()
        await x.rest()
    else:
        await x.head()
        await x.part(json.dumps(x.answer.plain()).encode(), x.answer.total)
        await x.end()


async def _stall(x: Exchange) -> None:
    await x.begin(x.fault.after)
    await x.forever()


async def _malformed(x: Exchange) -> None:
    if not x.streams:
        await _text(x, 200, "application/json", b'{"id": "broken", "choices": [')
        return
    await x.begin(x.fault.after)
    await x.part(b'data: {"id": "broken", "choices": [\n\n')
    await x.rest(x.fault.after)


async def _malformed_end(x: Exchange) -> None:
    await x.begin(x.fault.after)
    await x.part(b'data: {"id": "broken", "choices": [\n\n')
    await x.rest(finish=False, done=False)


async def _no_done(x: Exchange) -> None:
    await x.begin()
    await x.rest(done=False)


async def _no_finish(x: Exchange) -> None:
    await x.begin()
    await x.rest(finish=False, done=False)


async def _done_only(x: Exchange) -> None:
    await x.begin()
    await x.rest(finish=False)


async def _long_length(x: Exchange) -> None:
    await _lie(x, 50)
    await x.fin()


async def _short_length(x: Exchange) -> None:
    await _lie(x, -50)
    await x.fin()


async def _lie(x: Exchange, more: int) -> None:
    data = json.dumps(x.answer.plain()).encode()
    kind = "application/json"
    if x.streams:
        data = b"".join([*x.answer.first(), *x.answer.tokens, *x.answer.finish(), b"data: [DONE]\n\n"])
        kind = "text/event-stream"
    x.framing = "length"
    await x.head(content_type=kind, content_length=str(len(data) + more))
    await x.part(data, x.answer.total)


async def _drip(x: Exchange) -> None:
    collected = _Collected(x.line)
    await _ok(Exchange(collected, x.seen, x.request, x.answer))
    for byte in b"".join(collected.data):
        await asyncio.sleep(x.fault.gap or 0.001)
        await x.line.write(bytes((byte,)))


class _Collected:
    """A line that keeps what is written, to be sent otherwise."""

    def __init__(self, line: Line) -> None:
        self.data: list[bytes] = []
        self.reset_next = False
        self.flush, self.count, self.close, self.reset = line.flush, line.count, line.close, line.reset

    async def write(self, data: bytes) -> None:
        self.data.append(data)


async def _endless_header(x: Exchange) -> None:
    await x.line.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        await x.line.write(b"x-filler: " + b"a" * 1000 + b"\r\n")
        await asyncio.sleep(0)


async def _vllm_error(x: Exchange) -> None:
    # vLLM ends such a stream with [DONE], as if it were whole.
    error = {"object": "error", "message": "the engine died", "type": "InternalServerError", "param": None, "code": 500}
    await x.begin(x.fault.after)
    await x.part(b"data: " + json.dumps(error).encode() + b"\n\n")
    await x.rest(finish=False)


async def _stream_error(x: Exchange) -> None:
    error = {"message": "The server had an error", "type": "server_error", "param": None, "code": "server_error"}
    await x.begin(x.fault.after)
    await x.part(b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
    await x.rest(finish=False, done=False)


async def _stale_fin(x: Exchange) -> None:
    await _ok(x)
    await x.fin()


async def _stale_reset(x: Exchange) -> None:
    await _ok(x)
    x.line.reset_next = True


async def _not_http(x: Exchange) -> None:
    await x.line.write(b"SSH-2.0-OpenSSH_9.9\r\n")
    await x.fin()


async def _interim(x: Exchange) -> None:
    await x.line.write(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
    await _ok(x)


async def _text(x: Exchange, status: int, content_type: str, data: bytes) -> None:
    x.framing = "length"
    await x.head(status, content_type, content_length=str(len(data)))
    await x.part(data)


async def _html_502(x: Exchange) -> None:
    await _text(x, 502, "text/html", b"<html><body><h1>502 Bad Gateway</h1></body></html>")


async def _not_json(x: Exchange) -> None:
    await _text(x, 200, "text/html", b"<html><body>Welcome to the captive portal</body></html>")


async def _empty(x: Exchange) -> None:
    await _text(x, 200, "application/json", b"")


# status, type, param, code, message: bodies as OpenAI sends them
ERRORS: Mapping[str, tuple[int, str, str | None, str | None, str]] = {
    "insufficient_quota": (429, "insufficient_quota", None, "insufficient_quota", "You exceeded your current quota."),
    "context_length_exceeded": (
        400,
        "invalid_request_error",
        "messages",
        "context_length_exceeded",
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
    ),
    "content_policy": (
        400,
        "invalid_request_error",
        None,
        "content_policy_violation",
        "Your request was rejected by our safety system.",
    ),
    "status_400": (400, "invalid_request_error", "temperature", "invalid_value", "Invalid value for 'temperature'."),
    "status_401": (401, "invalid_request_error", None, "invalid_api_key", "Incorrect API key provided."),
    "status_403": (403, "permission_error", None, None, "You are not allowed to use this model."),
    "status_404": (404, "invalid_request_error", None, "model_not_found", "The model does not exist."),
    "status_413": (413, "invalid_request_error", None, "request_too_large", "The request is too large."),
    "status_422": (422, "invalid_request_error", "messages", None, "Unprocessable input."),
    "status_429": (429, "requests", None, "rate_limit_exceeded", "Rate limit reached for requests."),
}


async def _status(x: Exchange) -> None:
    name = x.fault.name
    status = int(name.removeprefix("status_")) if name.startswith("status_") else 0
    usual = (status, "server_error", None, None, f"The server answers {status}.")
    status, kind, param, code, message = ERRORS.get(name, usual)
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    if x.fault.retry_after is None:
        await x.json(body, status)
    else:
        await x.json(body, status, retry_after=x.fault.retry_after)


FAULTS: Mapping[str, Callable[[Exchange], Awaitable[None]]] = {
    "ok": _ok,
    "slow": _ok,
    "big": _ok,
    "tools": _ok,
    "no_usage": _ok,
    "usage_in_finish": _ok,
    "flapping": _ok,
    "reset": _reset,
    "silence": _silence,
    "headers_silence": _headers_silence,
    "cut_rst": _cut_rst,
    "cut_fin": _cut_fin,
    "cut_close": _cut_close,
    "close_delimited": _close_delimited,
    "stall": _stall,
    "malformed": _malformed,
    "malformed_end": _malformed_end,
    "no_done": _no_done,
    "no_finish": _no_finish,
    "done_only": _done_only,
    "long_length": _long_length,
    "short_length": _short_length,
    "drip": _drip,
    "endless_header": _endless_header,
    "vllm_error": _vllm_error,
    "stream_error": _stream_error,
    "stale_fin": _stale_fin,
    "stale_reset": _stale_reset,
    "not_http": _not_http,
    "interim": _interim,
    "html_502": _html_502,
    "not_json": _not_json,
    "empty": _empty,
    **dict.fromkeys(ERRORS, _status),
}


def check(fault: Fault) -> Fault:
    """The fault itself. Raises ValueError for a name that this table does not have."""
    if fault.name in FAULTS or (fault.name.startswith("status_") and fault.name[7:].isdigit()):
        return fault
    raise ValueError(f"{fault.name!r} is no fault; write status_NNN or one of {', '.join(FAULTS)}")


async def answer(x: Exchange) -> None:
    """Answer, or fail, as the request's fault says."""
    if x.fault.delay:
        await asyncio.sleep(x.fault.delay)
    await FAULTS.get(x.fault.name, _status)(x)


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
