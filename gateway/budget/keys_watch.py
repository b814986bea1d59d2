"""Keeps a worker's managed keys current: asks the store twice a second whether they changed."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from gateway.budget.store import ManagedKey, Store

INTERVAL = 0.5  # seconds, so that a revoked key is refused within one, the reading included


class KeysWatch:
    """Calls `changed` with all managed keys when they are first read and whenever one of them changes.

    `keys` are those known now, `known` whether they were ever read. While the store does not answer, the last known go
    on; `trouble` hears of it once, with the reason, and `recovered` with the seconds it took. Neither may raise.
    """

    def __init__(
        self,
        store: Store,
        *,
        changed: Callable[[Sequence[ManagedKey]], None],
        trouble: Callable[[str], None],
        recovered: Callable[[float], None],
        interval: float = INTERVAL,
    ) -> None:
        self.keys: tuple[ManagedKey, ...] = ()
        self.known = False
        self._store = store
        self._changed = changed
        self._trouble = trouble
        self._recovered = recovered
        self._interval = interval
        self._version: int | None = None
        self._down_since: float | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the keys, and go on looking on a task of its own."""
        await self.look()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Look no more. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def look(self) -> None:
        """Ask once, and pass on what changed; a store that does not answer is reported, not raised."""
        try:
            # The version first: a change between the two questions is then seen again the next time.
            version = await self._store.keys_version()
            if version != self._version:
                self.keys = tuple(await self._store.keys())
                self.known = True
                self._changed(self.keys)
        except Exception as error:  # noqa: BLE001 - whatever it is: a watch that ends would never revoke a key again
            self._fail(str(error) or type(error).__name__)
            return
        self._version = version
        if self._down_since is not None:
            self._recovered(time.monotonic() - self._down_since)
            self._down_since = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self.look()

    def _fail(self, reason: str) -> None:
        self._version = None  # a store that has lost its memory counts again from the beginning
        if self._down_since is None:
            self._down_since = time.monotonic()
            self._trouble(reason)
