"""A raw server on loopback whose every connection plays a script, and what it saw."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

PATIENCE = 5.0  # seconds: a bound on what should take milliseconds


@dataclass
class Peer:
    """One accepted connection."""

    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def request(self) -> tuple[bytes, bytes]:
        """Read one request: its head with lower-case field names kept as sent, and its body, chunks decoded."""
        head = await self.head()
        body = b""
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            while size := int((await self.reader.readuntil(b"\r\n")).strip(), 16):
                body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
        elif b"content-length: " in lower:
            body = await self.reader.readexactly(int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]))
        self.requests.append((head, body))
        return head, body

    async def head(self) -> bytes:
        """Read a request's head only."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def say(self, data: bytes) -> None:
        """Send and wait until the kernel has room."""
        self.writer.write(data)
        await self.writer.drain()

    async def left(self) -> None:
        """Wait until the client has closed."""
        await asyncio.wait_for(self._drain(), PATIENCE)

    async def _drain(self) -> None:
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass


Script = Callable[[Peer], Awaitable[None]]


@dataclass
class Upstream:
    """The server: its port, and its connections in order."""

    port: int = 0
    peers: list[Peer] = field(default_factory=list)

    @property
    def requests(self) -> list[tuple[bytes, bytes]]:
        """Every request read, in the order of connections."""
        return [request for peer in self.peers for request in peer.requests]


@asynccontextmanager
async def upstream(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    """Run a server; a connection is closed when its script ends, and a script's failure fails the test."""
    seen = Upstream()
    tasks: list[asyncio.Task[None]] = []

    async def play(peer: Peer) -> None:
        try:
            await script(peer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            peer.gone.set()
            peer.writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(len(seen.peers), reader, writer)
        seen.peers.append(peer)
        tasks.append(asyncio.get_running_loop().create_task(play(peer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for peer in seen.peers:
            peer.writer.transport.abort()
        await asyncio.sleep(0)
        failures = [each for each in outcomes if isinstance(each, Exception)]
        if failures:
            raise failures[0]
