"""A backend that lives in the process: a wire whose latency, token rate, errors and faults are drawn from one seed."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterable, Iterable, Sequence
from random import Random

from gateway.errors import GatewayError, RateLimited, Unavailable
from gateway.policy.schema import Simulator
from gateway.upstream.simulated import Answer, Frame, Voice, failure, respond
from gateway.upstream.wire import ConnectError, Header, ReadError, ReadTimeout

_WHOLE, _CUT, _STALL = "whole", "cut", "stall"


class SimulatorWire:
    """An OpenAI-compatible server without a socket, behind the seam of `gateway.upstream.wire`.

    Every POST takes the same number of draws from the seed, so that the n-th request of two wires with the same
    settings meets the same fate. GET (health, the list of models) always works and draws nothing.
    """

    def __init__(self, name: str, settings: Simulator) -> None:
        self._settings = settings
        self._voice = Voice(name, settings.seed, settings.tokens)
        self._random = Random(settings.seed)  # noqa: S311  it imitates, it guards nothing
        self._open: set[SimulatedReply] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<SimulatorWire {self._voice.name} seed={self._voice.seed} open={len(self._open)}>"

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Sequence[Header],
        body: bytes | AsyncIterable[bytes],
        *,
        connect_timeout: float,
        timeout: float,
    ) -> "SimulatedReply":
        """Answer when the head is due: at once for a stream or an error, with the last token for a plain answer."""
        whole = body if isinstance(body, bytes) else b"".join([part async for part in body])
        if self._closed:
            raise ConnectError(f"the simulator {self._voice.name} is closed")
        fault, where, serial = self._fate() if method == b"POST" else (None, 0.0, "")
        path = target.partition(b"?")[0].decode("latin-1")
        answer = respond(method.decode(), path, whole, voice=self._voice, serial=serial, now=int(time.time()))
        if answer.status == 200 and fault is not None:
            if fault == "reset":
                raise ReadError("the simulated connection was reset")
            answer = _failed(fault) or answer
        reply = SimulatedReply(answer, self._settings, fault, where, self._open)
        try:
            await reply.wait_for_head(timeout)
        except BaseException:
            await reply.aclose()
            raise
        return reply

    async def aclose(self) -> None:
        """End every reply that is still open; whoever reads one gets ReadError."""
        self._closed = True
        for reply in tuple(self._open):
            await reply.aclose()

    def _fate(self) -> tuple[str | None, float, str]:
        chance, where, serial = self._random.random(), self._random.random(), f"{self._random.getrandbits(96):024x}"
        return choose_fault(self._settings.error_rate, self._settings.faults.items(), chance), where, serial


def choose_fault(error_rate: float, faults: Iterable[tuple[str, float]], chance: float) -> str | None:
    """The fault at `chance` (0 to 1) when `status_503` and then the faults by name lie side by side from 0."""
    edge = 0.0
    for name, share in (("status_503", error_rate), *sorted(faults)):
        edge += share
        if chance < edge:
            return name
    return None


class SimulatedReply:
    """One answer on its way: each frame arrives at its own time, and the end is whole, cut or a stall."""

    def __init__(
        self, answer: Answer, settings: Simulator, fault: str | None, where: float, registry: set["SimulatedReply"]
    ) -> None:
        ending = fault if answer.status == 200 and fault in (_CUT, _STALL) else _WHOLE
        self.status = answer.status
        self.headers: Sequence[Header] = _head(answer)
        self._ending = ending
        self._silent = fault == "silence" and answer.status == 200
        self._loop = asyncio.get_running_loop()
        self._frames = deque(self._timed(answer if ending == _WHOLE else _cut(answer, where), settings))
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self._head_due = self._loop.time() if answer.is_stream else self._frames[0][0]
        self._registry = registry
        registry.add(self)

    def __repr__(self) -> str:
        return f"<SimulatedReply {self.status} frames={len(self._frames)} ending={self._ending}>"

    async def wait_for_head(self, timeout: float) -> None:
        """Return when the head is due. Raises ReadTimeout after `timeout` seconds."""
        wait = self._head_due - self._loop.time()
        if self._silent or wait > timeout:
            await self._pause(timeout)
            raise ReadTimeout(f"no head from the simulator within {timeout:g} s")
        await self._pause(wait)

    @property
    def complete(self) -> bool:
        """See `gateway.upstream.wire.Reply.complete`."""
        return not self._frames and self._ending == _WHOLE

    async def read(self, timeout: float) -> bytes:
        """See `gateway.upstream.wire.Reply.read`. Raises ReadError at once when the reply is closed meanwhile."""
        deadline = self._loop.time() + timeout
        while True:
            if self._closed:
                raise ReadError("the simulated reply was closed")
            now = self._loop.time()
            ready = self._arrived(now)
            if ready:
                return ready
            if not self._frames and self._ending == _WHOLE:
                return b""
            if not self._frames and self._ending == _CUT:
                raise ReadError("the simulated connection was cut")
            if now >= deadline:
                raise ReadTimeout(f"nothing from the simulator for {timeout:g} s")
            due = self._frames[0][0] if self._frames else deadline
            await self._pause(min(due, deadline) - now)

    async def aclose(self) -> None:
        """Stop; a read that waits ends with ReadError."""
        self._closed = True
        self._registry.discard(self)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ReadError("the simulated reply was closed"))

    def _timed(self, answer: Answer, settings: Simulator) -> list[tuple[float, bytes]]:
        start = self._loop.time()
        if answer.status != 200:
            return [(start, frame.data) for frame in answer.frames]
        first = start + settings.latency
        return [(first + frame.position / settings.tokens_per_second, frame.data) for frame in answer.frames]

    def _arrived(self, now: float) -> bytes:
        ready: list[bytes] = []
        while self._frames and self._frames[0][0] <= now:
            ready.append(self._frames.popleft()[1])
        return b"".join(ready)

    async def _pause(self, seconds: float) -> None:
        if self._closed:
            raise ReadError("the simulated reply was closed")
        self._waiter = self._loop.create_future()
        handle = self._loop.call_later(max(0.0, seconds), _wake, self._waiter)
        try:
            await self._waiter
        finally:
            handle.cancel()
            self._waiter = None


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _head(answer: Answer) -> list[Header]:
    found: list[Header] = [(b"content-type", answer.content_type), *answer.headers]
    if not answer.is_stream:
        found.append((b"content-length", b"%d" % sum(len(frame.data) for frame in answer.frames)))
    return found


def _failed(fault: str) -> Answer | None:
    if fault == "status_500":
        return failure(GatewayError("The simulated server had an error while processing your request."))
    if fault == "status_503":
        return failure(Unavailable("The simulated server is overloaded; please try again.", code="overloaded"))
    if fault == "status_429":
        return failure(RateLimited("Rate limit reached at the simulated server; please try again in 1 s."))
    return None


def _cut(answer: Answer, where: float) -> Answer:
    # A stream of several tokens keeps at least one and loses at least one; a plain answer loses the end of its JSON.
    if answer.is_stream:
        last = answer.frames[-1].position
        keep = 1 + int(where * (last - 1)) if last > 1 else 0
        frames = tuple(frame for frame in answer.frames if frame.position <= keep)
        frames = frames if last else frames[:1]
    else:
        only = answer.frames[0]
        frames = (Frame(only.position, only.data[: 1 + int(where * (len(only.data) - 2))]),)
    return Answer(answer.status, answer.content_type, frames, answer.tokens, answer.headers)
