"""Times what the translation of a provider's format adds, in this process: the wire below answers at once."""

import json
import statistics
import time
from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass

from gateway.policy.schema import Backend
from gateway.upstream.litellm import LitellmWire, open_litellm
from gateway.upstream.wire import Header, Reply, Wire
from tests.bench.backends import CLAUDE, CLAUDE_TOKENS, EVENTS, PROMPT, claude_answer, claude_events

_SENT = ((b"content-type", b"application/json"), (b"authorization", b"Bearer sk-ant-bench"))
_CALL = {"id": "toolu_01", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}}


@dataclass(frozen=True, slots=True)
class Timed:
    """Microseconds that a wire to Anthropic adds to the one below it, each the median of several rounds.

    `request` is a plain request, there and back; `agent` the same with a system prompt, two tools and 29 messages;
    `event` one of the events of a stream that come one a read; `joined` one of those that came all at once.
    """

    request: float
    agent: float
    event: float
    joined: float


class _Instant:
    """A reply that is there: its pieces come one a read, see `gateway.upstream.wire.Reply`."""

    def __init__(self, headers: Sequence[Header], pieces: Sequence[bytes]) -> None:
        self.status = 200
        self.headers = headers
        self._pieces = pieces
        self._next = 0

    @property
    def complete(self) -> bool:
        return self._next == len(self._pieces)

    async def read(self, timeout: float) -> bytes:
        if self.complete:
            return b""
        self._next += 1
        return self._pieces[self._next - 1]

    async def aclose(self) -> None:
        pass


class _InstantWire:
    """Always gives this answer, see `gateway.upstream.wire.Wire`."""

    def __init__(self, kind: bytes, pieces: Sequence[bytes]) -> None:
        self._headers = ((b"content-type", kind), (b"request-id", b"req_bench"))
        self._pieces = pieces

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Sequence[Header],
        body: bytes | AsyncIterable[bytes],
        *,
        connect_timeout: float,
        timeout: float,
    ) -> Reply:
        return _Instant(self._headers, self._pieces)

    async def aclose(self) -> None:
        pass


def request_body(*, agent: bool = False, stream: bool = False) -> bytes:
    """The benchmark's chat request; an agent's has tools and what came of them."""
    body: dict[str, object] = {"model": CLAUDE, "max_tokens": 256, "temperature": 0.5}
    asked: dict[str, object] = {"role": "user", "content": PROMPT}
    if agent:
        turn: list[dict[str, object]] = [
            asked,
            {"role": "assistant", "content": "I shall look.", "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": "toolu_01", "content": "rain, 8 degrees"},
        ]
        system = {"role": "system", "content": PROMPT}
        tools = [_tool("weather"), _tool("forecast")]
        return _dump({**body, "messages": [system, *turn * 9, asked], "tools": tools})
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return _dump({**body, "messages": [asked]})


def _tool(name: str) -> dict[str, object]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {
        "type": "function",
        "function": {"name": name, "description": "Tells the weather in a city.", "parameters": parameters},
    }


async def timed(rounds: int = 5, requests: int = 1_000, streams: int = 100) -> Timed:
    """Measure all four in this process, so many of each a round. Imports litellm, which takes seconds."""
    events = claude_events()
    answer = _InstantWire(b"application/json", [claude_answer()])
    return Timed(
        await _request_time(answer, request_body(), rounds, requests),
        await _request_time(answer, request_body(agent=True), rounds, requests),
        await _event_time(events, rounds, streams),
        await _event_time([b"".join(events)], rounds, streams),
    )


def opened(wire: Wire) -> LitellmWire:
    """A wire to Anthropic over this one."""
    settings = Backend.model_validate({"provider": "anthropic", "base_url": "http://127.0.0.1:9", "api_keys": ("k",)})
    return open_litellm("bench", settings, lambda _: wire)


async def _request_time(below: Wire, body: bytes, rounds: int, requests: int) -> float:
    above = opened(below)
    assert b'"object":"chat.completion"' in await _read(await _send(above, body))
    added = []
    for _ in range(rounds):
        times = []
        for wire in (below, above):
            began = time.perf_counter()
            for _ in range(requests):
                await _read(await _send(wire, body))
            times.append(time.perf_counter() - began)
        added.append(times[1] - times[0])
    return statistics.median(added) / requests * 1e6


async def _event_time(pieces: Sequence[bytes], rounds: int, streams: int) -> float:
    # What it takes until the head is there is a plain request's, so the clock runs from there.
    below = _InstantWire(b"text/event-stream; charset=utf-8", pieces)
    above = opened(below)
    body = request_body(stream=True)
    told = await _read(await _send(above, body))
    assert told.count(b'"content":" token') == CLAUDE_TOKENS
    assert told.endswith(b"data: [DONE]\n\n")
    added = []
    for _ in range(rounds):
        times = []
        for wire in (below, above):
            replies = [await _send(wire, body) for _ in range(streams)]
            began = time.perf_counter()
            for reply in replies:
                await _read(reply)
            times.append(time.perf_counter() - began)
        added.append(times[1] - times[0])
    return statistics.median(added) / streams / EVENTS * 1e6


async def _send(wire: Wire, body: bytes) -> Reply:
    return await wire.send(b"POST", b"/v1/chat/completions", _SENT, body, connect_timeout=1.0, timeout=1.0)


async def _read(reply: Reply) -> bytes:
    pieces = []
    while data := await reply.read(1.0):
        pieces.append(data)
    await reply.aclose()
    return b"".join(pieces)


def _dump(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()
