"""Short ways to open a wire, send on it and read from it, for the tests that every wire passes."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from gateway.upstream.direct import DirectReply, DirectWire
from gateway.upstream.over_httpx import HttpxReply, HttpxWire
from gateway.upstream.wire import Bounds, Header, Origin
from tests.upstream.loopback import PATIENCE, Peer, Script, Upstream, upstream

AnyWire = DirectWire | HttpxWire
AnyReply = DirectReply | HttpxReply
Open = Callable[[Origin, Bounds], AnyWire]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
HEAD_OK = b"HTTP/1.1 200 OK\r\n"
SHORT = 0.2  # seconds: a time limit that is meant to run out


@asynccontextmanager
async def wired(
    open_one: Open, script: Script, bounds: Bounds | None = None
) -> AsyncIterator[tuple[AnyWire, Upstream]]:
    async with upstream(script) as seen:
        wire = open_one(Origin("http", "127.0.0.1", seen.port), bounds or Bounds())
        try:
            yield wire, seen
        finally:
            await wire.aclose()


async def send(
    wire: AnyWire,
    method: bytes = b"POST",
    target: bytes = b"/v1/chat",
    headers: Sequence[Header] = (),
    body: bytes | AsyncIterator[bytes] = b"{}",
    timeout: float = PATIENCE,
) -> AnyReply:
    return await wire.send(method, target, headers, body, connect_timeout=PATIENCE, timeout=timeout)


async def read_all(reply: AnyReply, timeout: float = PATIENCE) -> bytes:
    parts = []
    while part := await reply.read(timeout):
        parts.append(part)
    return b"".join(parts)


async def whole(reply: AnyReply) -> bytes:
    try:
        return await read_all(reply)
    finally:
        await reply.aclose()


async def answer_ok(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.say(OK)
