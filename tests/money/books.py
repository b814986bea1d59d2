"""Reads what the gateway wrote in its store: the accounts, and the usage records."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

from gateway.budget.meter import Meter, Scope, span_of, window_of
from gateway.budget.store import Account, Standing, Store, UsageRecord, account_of
from gateway.budget.stores import open_store

T = TypeVar("T")
NANO = 10**9
PATIENCE = 60.0  # seconds for what must come true
SOON = 5.0  # seconds for a usage record to be written, on a machine however busy


def account(scope: Scope, name: str, unit: str, per: str | None) -> Account:
    """The account of a limit in the window that is running now."""
    window = window_of(per)
    return account_of(Meter(scope, name, unit, window), span_of(window, time.time()))


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    """The store that the gateways use."""
    store = open_store(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def settled(store: Store, of: Account) -> Standing:
    """How an account stands once nobody holds, or has been granted, any of it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        (standing,) = await store.standings([of])
        if standing.granted == 0 and standing.held == 0:
            return standing
        assert time.monotonic() < deadline, f"still granted or held: {standing}"
        await asyncio.sleep(0.05)


async def recorded(store: Store, expected: Mapping[str, int], *, patience: float = SOON) -> Mapping[str, int]:
    """What the usage records of each key come to, in nano-dollars; those of the last moment may still be on their way."""
    deadline = time.monotonic() + patience
    while True:
        totals = {total.name: total.cost for total in await store.usage("key", 0.0)}
        if totals == expected or time.monotonic() > deadline:
            return totals
        await asyncio.sleep(0.05)


class Books:
    """The same for tests without a loop."""

    def __init__(self, url: str) -> None:
        self.url = url

    def settled(self, scope: Scope, name: str, unit: str = "usd", per: str | None = "total") -> Standing:
        """How a limit stands once nothing of it is held."""
        return self._in(lambda store: settled(store, account(scope, name, unit, per)))

    def records(self, key: str, count: int = 1) -> list[UsageRecord]:
        """The records of a key, the oldest first, once there are so many."""

        async def read(store: Store) -> list[UsageRecord]:
            deadline = time.monotonic() + PATIENCE
            while True:
                found = [record for record in await store.recent_usage(10_000) if record.key == key]
                if len(found) >= count:
                    assert len(found) == count, found
                    return found[::-1]
                assert time.monotonic() < deadline, f"{len(found)} records of {key!r}, not {count}"
                await asyncio.sleep(0.02)

        return self._in(read)

    def everything(self) -> list[UsageRecord]:
        """Every record that there is now, the newest first."""
        return self._in(lambda store: store.recent_usage(10_000))

    def _in(self, work: Callable[[Store], Awaitable[T]]) -> T:
        async def run() -> T:
            async with opened(self.url) as store:
                return await work(store)

        return asyncio.run(run())
