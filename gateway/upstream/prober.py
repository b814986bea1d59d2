"""Asks backends that are down whether they are back, so that no client has to find out by waiting."""

import asyncio
import time
from collections.abc import Callable, Mapping

from gateway.upstream.backend import Backend
from gateway.upstream.breaker import State
from gateway.upstream.retry import Kind
from gateway.upstream.wire import WireError

LOOK = 1.0  # seconds between two looks at all backends
LOCAL_EVERY = 5.0  # seconds between two probes of a local backend that is down: cheap, and it often starts by hand
TIMEOUT = 2.0
_UNREACHABLE = frozenset((Kind.REFUSED, Kind.CUT, Kind.SILENT))


class Prober:
    """Probes with `GET /models` while a breaker is open, once per interval; nothing is sent to a backend that works.

    A probe that is answered at all ends the interval: whether requests are answered too, the next request finds out.
    """

    def __init__(self, backends: Callable[[], Mapping[str, Backend]]) -> None:
        self._backends = backends
        self._asked: dict[str, float] = {}

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            now = time.monotonic()
            due = [backend for backend in self._backends().values() if self._is_due(backend, now)]
            await asyncio.gather(*(self._probe(backend) for backend in due))

    def _is_due(self, backend: Backend, now: float) -> bool:
        if backend.breaker.state(now) is State.CLOSED or backend.last_failure not in _UNREACHABLE:
            self._asked.pop(backend.name, None)
            return False
        asked = self._asked.get(backend.name, 0.0)
        if backend.settings.local:
            return now - asked >= LOCAL_EVERY
        return backend.breaker.state(now) is State.HALF_OPEN and asked < backend.breaker.open_until

    async def _probe(self, backend: Backend) -> None:
        now = time.monotonic()
        self._asked[backend.name] = now
        key = backend.pick_key(now) or backend.keys[0]
        try:
            reply = await backend.wire.send(
                b"GET", backend.prefix + b"/models", key.headers, b"", connect_timeout=TIMEOUT, timeout=TIMEOUT
            )
        except WireError:
            backend.breaker.probed(time.monotonic(), reachable=False)
            return
        await reply.aclose()
        backend.breaker.probed(time.monotonic(), reachable=reply.status < 500)
