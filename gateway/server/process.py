"""One serving process: uvicorn's server with our connections on a socket, and signals that drain and reload."""

import asyncio
import gc
import math
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import uvicorn
from uvicorn.server import ServerState

from gateway.outbox import Outbox
from gateway.proxy import Proxy
from gateway.server.connection import ClientConnection, Site

_LOOK = 0.02
_SAME = 1.0  # seconds: a terminal or systemd tells every process, and whoever started this one passes it on


class Process(uvicorn.Server):
    """Serves `site` until SIGTERM or SIGINT, then drains: no new requests, running ones finish within `drain`."""

    def __init__(self, site: Site, proxy: Proxy, *, reload: Callable[[], object], ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            site.router,
            http=cast("type[asyncio.Protocol]", _connections_to(site)),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
        )
        super().__init__(config)
        self._proxy = proxy
        self._reload = reload
        self._ready = ready
        self._draining: asyncio.Task[None] | None = None
        self._told_at = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if self.started:
            _settle_memory()
            self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT drain, one more after a second ends at once, SIGHUP reloads; the exit status stays 0."""
        loop = asyncio.get_running_loop()

        def told(*_: object) -> None:
            self._proxy.draining = True  # at once: what comes after the signal is not overtaken by a turn of the loop
            loop.call_soon_threadsafe(self._end)

        before = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGINT)}
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            loop.remove_signal_handler(signal.SIGHUP)

    def _end(self) -> None:
        now = time.monotonic()
        if self._draining is not None:
            if now - self._told_at > _SAME:
                self.should_exit = self.force_exit = True
            return
        self._told_at = now
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        deadline = time.monotonic() + self._proxy.runtime.policy.server.drain
        while self._proxy.running and time.monotonic() < deadline:  # noqa: ASYNC110 - twice a lifetime
            await asyncio.sleep(_LOOK)
        self.config.timeout_graceful_shutdown = max(0, math.ceil(deadline - time.monotonic()))
        self.should_exit = True


def _connections_to(site: Site) -> Callable[..., ClientConnection]:
    """What uvicorn makes a protocol of for each connection."""
    outbox: Outbox | None = None

    def connection(*, server_state: ServerState, **_: object) -> ClientConnection:
        nonlocal outbox
        loop = asyncio.get_running_loop()
        outbox = outbox or Outbox(loop)
        return ClientConnection(site, server_state, loop, outbox)

    return connection


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
