"""Writes usage records to the store in batches, off the request path; nothing is dropped while the store is away."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from gateway.budget.store import Store, StoreDown, UsageRecord

GATHER = 0.02  # seconds that a record may wait for others
BATCH = 500
MAX_WAITING = 200_000  # records kept for a store that does not answer
RETRY = 0.5


class Recorder:
    """One worker's usage records on their way; `lost` is told of those that no longer found room."""

    def __init__(self, store: Store, worker: str, *, lost: Callable[[int], None] = lambda _: None) -> None:
        self._store = store
        self._worker = worker
        self._lost = lost
        self._waiting: deque[UsageRecord] = deque()
        self._batch: tuple[str, list[UsageRecord]] | None = None
        self._number = 0
        self._new = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    def add(self, record: UsageRecord) -> None:
        """Keep a record; costs no I/O here."""
        if len(self._waiting) >= MAX_WAITING:
            self._lost(1)
            return
        self._waiting.append(record)
        if not self._new.is_set():
            self._new.set()

    async def start(self) -> None:
        """Begin to write."""
        self._writing = asyncio.create_task(self._run(), name="usage records")

    async def aclose(self) -> None:
        """Write what is left. Raises StoreDown when the store does not take it."""
        if self._writing is not None:
            self._writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writing
        while self._batch is not None or self._waiting:
            await self._write()

    async def _run(self) -> None:
        while True:
            await self._new.wait()
            self._new.clear()
            while self._batch is not None or self._waiting:
                if len(self._waiting) < BATCH:  # what comes while a batch is written waits for others too
                    await asyncio.sleep(GATHER)
                try:
                    await self._write()
                except StoreDown:
                    await asyncio.sleep(RETRY)

    async def _write(self) -> None:
        """Write one batch; its id stays the same until the store has confirmed it, so that it counts once."""
        if self._batch is None:
            self._number += 1
            taken = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            self._batch = (f"{self._worker}/{self._number}", taken)
        await self._store.write_usage(*self._batch)
        self._batch = None
