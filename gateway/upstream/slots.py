"""A backend's concurrent requests: so many slots, and a fair queue in front of them."""

import asyncio

from gateway.errors import Unavailable
from gateway.upstream.queue import FairQueue, Ticket


class Slots:
    """At most `count` requests at once; at most `size` wait, each at most `timeout` seconds."""

    def __init__(self, backend: str, count: int, size: int, timeout: float) -> None:
        self._backend = backend
        self._count = count
        self._size = size
        self._timeout = timeout
        self._taken = 0
        self._queue = FairQueue()
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether a request that came now would be turned away."""
        return self._taken >= self._count and len(self._queue) >= self._size

    def take_now(self) -> bool:
        """Take a slot if one is free and nobody waits for it."""
        if self._taken >= self._count or len(self._queue):
            return False
        self._taken += 1
        return True

    async def take(self, key: str, priority: int) -> int:
        """Wait for a slot; the place in the queue at which the waiting began (0: it was free).

        Raises Unavailable with `queue_full` or `queue_timeout`. Cancelling gives the place up.
        """
        if self.take_now():
            return 0
        if len(self._queue) >= self._size:
            raise Unavailable(
                f"Backend {self._backend!r} has {self._count} running and {self._size} waiting requests.",
                code="queue_full",
            )
        ticket = Ticket(key, priority)
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._queue.push(ticket)
        self._waiting[ticket] = turn
        place = self._queue.position(ticket)
        timer = loop.call_later(self._timeout, self._give_up, ticket)
        try:
            await turn
        except asyncio.CancelledError:
            self._leave(ticket, turn)
            raise
        finally:
            timer.cancel()
            self._waiting.pop(ticket, None)
        return place

    def release(self) -> None:
        """Give a slot back: the next in the queue has it at once."""
        while (ticket := self._queue.pop()) is not None:
            turn = self._waiting[ticket]
            if not turn.done():
                turn.set_result(None)
                return
        self._taken -= 1

    def _leave(self, ticket: Ticket, turn: "asyncio.Future[None]") -> None:
        if not self._queue.remove(ticket) and turn.done() and not turn.cancelled() and turn.exception() is None:
            self.release()

    def _give_up(self, ticket: Ticket) -> None:
        turn = self._waiting[ticket]
        if self._queue.remove(ticket) and not turn.done():
            turn.set_exception(
                Unavailable(
                    f"No slot of backend {self._backend!r} came free within {self._timeout:g} s; try again soon.",
                    code="queue_timeout",
                )
            )
