"""One serving process: uvicorn on a socket, signals that drain and reload, and errors of HTTP itself in our shape."""

import asyncio
import gc
import math
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import orjson
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import InvalidRequest
from gateway.proxy import Proxy
from gateway.server.endpoints import RequestIds

_KEEP_ALIVE = 75  # seconds: longer than the 60 of usual load balancers, so that they close first
_LOOK = 0.02


class Corked:
    """A transport that writes what was said in one turn of the loop in one system call.

    uvicorn writes an answer's head and its body apart, which is 7 to 13 % of a small request's time. Nothing leaves
    before the turn is over, in which the request is counted too: what a client has seen is never lost with the worker.
    """

    __slots__ = ("_closing", "_loop", "_pieces", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []
        self._closing = False

    def write(self, data: bytes) -> None:
        """Write at the end of this turn."""
        if not self._pieces:
            self._loop.call_soon(self.flush)
        self._pieces.append(data)

    def flush(self) -> None:
        """Write now."""
        pieces = self._pieces
        if pieces:
            self._pieces = []
            if not self._transport.is_closing():
                self._transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def close(self) -> None:
        """Close at the end of this turn, once everything is written."""
        self._closing = True
        self._loop.call_soon(self._flush_and_close)

    def is_closing(self) -> bool:
        """Whether it is closed, or will be."""
        return self._closing or self._transport.is_closing()

    def _flush_and_close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol; what is not HTTP at all is answered like every other error."""

    ids = RequestIds()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, corked."""
        corked = Corked(cast("asyncio.Transport", transport), self.loop)
        super().connection_made(cast("asyncio.Transport", corked))

    def send_400_response(self, msg: str) -> None:
        """Answer a request that cannot be parsed, and close."""
        error = InvalidRequest(f"This is not a valid HTTP/1.1 request: {msg}", code="invalid_http")
        body = orjson.dumps(error.to_openai())
        head = (
            f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {self.ids.next()}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class Process(uvicorn.Server):
    """Serves `app` until SIGTERM or SIGINT, then drains: no new requests, running ones finish within `drain`."""

    def __init__(self, app: ASGIApp, proxy: Proxy, *, reload: Callable[[], object], ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
        )
        super().__init__(config)
        self._proxy = proxy
        self._reload = reload
        self._ready = ready
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if self.started:
            _settle_memory()
            self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT drain, a second one ends at once, SIGHUP reloads; the exit status stays 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _end(self) -> None:
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        self._proxy.draining = True
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        deadline = time.monotonic() + self._proxy.runtime.policy.server.drain
        while self._proxy.running and time.monotonic() < deadline:  # noqa: ASYNC110 - twice a lifetime
            await asyncio.sleep(_LOOK)
        self.config.timeout_graceful_shutdown = max(0, math.ceil(deadline - time.monotonic()))
        self.should_exit = True


def _settle_memory() -> None:
    """What lives as long as the process is looked at by the garbage collector no more, and the rest less often.

    A request leaves hardly any cycles; looking for them after every 700 new objects took 5 % of its time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def run(process: Process, listener: socket.socket) -> None:
    """Serve on `listener` until the process is told to end."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(process.serve(sockets=[listener]))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host.strip("[]"), port), family=family, backlog=4096)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop  # noqa: PLC0415 - there is none on Windows
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
