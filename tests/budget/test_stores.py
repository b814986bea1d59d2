"""Both stores: the same verbs."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gateway.budget.redis import RedisStore
from gateway.budget.sqlite import SqliteStore
from gateway.budget.store import (
    Account,
    Entry,
    KeyExists,
    ManagedKey,
    Reply,
    Report,
    Store,
    UnknownKey,
    UsageRecord,
    revoked,
    rotated,
)
from tests.budget.valkey import START, Clock, emptied

T = TypeVar("T")


@pytest.fixture(params=["sqlite", "redis"])
async def opened(request: pytest.FixtureRequest, tmp_path: Path, valkey: str) -> AsyncIterator[tuple[Store, Clock]]:
    clock = Clock()
    store: Store
    if request.param == "sqlite":
        store = SqliteStore(tmp_path / "gateway.db", clock=lambda: clock.wall)
    else:
        await emptied(valkey)
        store = RedisStore(valkey, clock=lambda: clock.wall, timeout=2.0)
    await store.open()
    yield store, clock
    await store.close()


TOTAL = Account("key:alice:usd:total")
ROLLING = Account("key:alice:requests:60s", rolling=60.0, forget=60.5)


async def _sync(store: Store, worker: str, number: int, *entries: Entry, **more: Any) -> Reply:
    return await store.sync(Report(worker, number, 10.0, entries, **more))


async def test_a_draw_takes_its_need_and_a_share_of_the_rest(opened: tuple[Store, Clock]) -> None:
    """Far from the limit a draw gets all it wants; near it, its need and an eighth of what is left beyond."""
    store, _ = opened
    reply = await _sync(store, "a", 1, Entry(TOTAL, 1000, need=10, want=30))
    assert reply.applied
    assert (reply.standings[0].drawn, reply.standings[0].granted, reply.standings[0].spent) == (30, 30, 0)
    reply = await _sync(store, "b", 1, Entry(TOTAL, 100, need=10, want=70))
    assert reply.standings[0].drawn == 10 + (100 - 30 - 10) // 8


async def test_a_draw_is_all_or_nothing(opened: tuple[Store, Clock]) -> None:
    """When one of a report's draws does not fit, none is granted, and the one that did not fit is recalled."""
    store, _ = opened
    other = Account("key:alice:tokens:total")
    await _sync(store, "a", 1, Entry(TOTAL, 100, granted=95))
    reply = await _sync(store, "b", 1, Entry(TOTAL, 100, need=6, want=6), Entry(other, 100, need=5, want=5))
    assert [one.drawn for one in reply.standings] == [0, 0]
    assert reply.standings[0].idle == 95
    seen = await _sync(store, "a", 2, Entry(TOTAL, 100, granted=95), Entry(other, 100))
    assert [one.recall for one in seen.standings] == [True, False]
    own = await _sync(store, "b", 2, Entry(TOTAL, 100))
    assert not own.standings[0].recall


async def test_a_report_counts_once(opened: tuple[Store, Clock]) -> None:
    """The same report again, and an older one that comes late, change nothing."""
    store, _ = opened
    await _sync(store, "a", 1, Entry(TOTAL, 100, need=50, want=50))
    first = await _sync(store, "a", 2, Entry(TOTAL, 100, spent=((0.0, 20),), granted=30))
    again = await _sync(store, "a", 2, Entry(TOTAL, 100, spent=((0.0, 20),), granted=30))
    late = await _sync(store, "a", 1, Entry(TOTAL, 100, need=50, want=50))
    assert (first.applied, again.applied, late.applied) == (True, False, False)
    (standing,) = await store.standings([TOTAL])
    assert (standing.spent, standing.granted) == (20, 30)


async def test_stating_again_under_a_new_number_counts_once(opened: tuple[Store, Clock]) -> None:
    """What a worker states is absolute: after a lost answer it states more, and only the difference is added."""
    store, _ = opened
    for number, spent in enumerate((20, 20, 25), start=1):
        await _sync(store, "a", number, Entry(TOTAL, 100, spent=((0.0, spent),), granted=3, held=2))
    (standing,) = await store.standings([TOTAL])
    assert (standing.spent, standing.granted, standing.held) == (25, 3, 2)


async def test_a_dead_workers_grant_is_in_doubt_until_released(opened: tuple[Store, Clock]) -> None:
    """When the lease has run out the grant counts as spent; an operator gives it back, once."""
    store, clock = opened
    await _sync(store, "a", 1, Entry(TOTAL, 100, granted=40, held=40))
    clock.advance(10.5)
    (standing,) = await store.standings([TOTAL])
    assert (standing.granted, standing.held, standing.in_doubt) == (0, 0, 40)
    refused = await _sync(store, "b", 1, Entry(TOTAL, 100, need=61, want=61))
    assert refused.standings[0].drawn == 0
    assert await store.release(TOTAL) == 40
    assert await store.release(TOTAL) == 0
    granted = await _sync(store, "b", 2, Entry(TOTAL, 100, need=61, want=61))
    assert granted.standings[0].drawn == 61


async def test_a_release_leaves_living_workers_alone(opened: tuple[Store, Clock]) -> None:
    """Only what is in doubt is given back."""
    store, _ = opened
    await _sync(store, "a", 1, Entry(TOTAL, 100, granted=40))
    assert await store.release(TOTAL) == 0
    assert (await store.standings([TOTAL]))[0].granted == 40


async def test_a_worker_that_comes_back_settles_its_doubt(opened: tuple[Store, Clock]) -> None:
    """A worker that was only slow states what it spent, and nothing is in doubt any more."""
    store, clock = opened
    await _sync(store, "a", 1, Entry(TOTAL, 100, granted=40, held=40))
    clock.advance(60.0)
    reply = await _sync(store, "a", 2, Entry(TOTAL, 100, spent=((0.0, 15),), granted=25))
    assert (reply.standings[0].spent, reply.standings[0].granted, reply.standings[0].in_doubt) == (15, 25, 0)


async def test_a_rolling_window_forgets_late_and_says_when(opened: tuple[Store, Clock]) -> None:
    """An amount counts for a full minute from when it was spent, and at most half a second more."""
    store, clock = opened
    await _sync(store, "a", 1, Entry(ROLLING, 60, spent=((20.0, 40), (0.0, 60))))
    refused = (await _sync(store, "b", 1, Entry(ROLLING, 60, need=1, want=1))).standings[0]
    assert (refused.spent, refused.drawn) == (60, 0)
    assert refused.frees_in is not None
    assert refused.clears_in is not None
    assert 40.25 <= refused.frees_in <= 40.5
    assert 60.25 <= refused.clears_in <= 60.5
    clock.advance(40.2)
    assert (await _sync(store, "b", 2, Entry(ROLLING, 60, need=1, want=1))).standings[0].drawn == 0
    clock.advance(0.31)
    granted = (await _sync(store, "b", 3, Entry(ROLLING, 60, need=1, want=1))).standings[0]
    assert (granted.spent, granted.drawn) == (20, 1)
    clock.advance(20.1)
    assert (await store.standings([ROLLING]))[0].spent == 0


async def test_doubt_in_a_rolling_window_passes_with_it(opened: tuple[Store, Clock]) -> None:
    """What a dead worker may have spent is forgotten once the window has passed over the end of its lease."""
    store, clock = opened
    await _sync(store, "a", 1, Entry(ROLLING, 60, granted=60))
    clock.advance(69.0)
    assert (await _sync(store, "b", 1, Entry(ROLLING, 60, need=1, want=1))).standings[0].in_doubt == 60
    clock.advance(2.0)
    assert (await _sync(store, "b", 2, Entry(ROLLING, 60, need=60, want=60))).standings[0].drawn == 60


async def test_large_amounts_are_exact(opened: tuple[Store, Clock]) -> None:
    """Nano-dollars up to nine million dollars are counted to the last one."""
    store, _ = opened
    limit = 2**53 - 1
    reply = await _sync(store, "a", 1, Entry(TOTAL, limit, spent=((0.0, limit - 1),), need=1, want=5))
    assert (reply.standings[0].spent, reply.standings[0].drawn) == (limit - 1, 1)
    assert (await store.standings([TOTAL]))[0].spent == limit - 1


async def test_a_closing_worker_leaves_nothing(opened: tuple[Store, Clock]) -> None:
    """After `gone` the worker has no grant, and what it spent stays."""
    store, _ = opened
    await _sync(store, "a", 1, Entry(TOTAL, 100, spent=((0.0, 7),), granted=10))
    await _sync(store, "a", 2, Entry(TOTAL, 100, base=7, gone=True))
    await _sync(store, "a", 3, closing=True)
    (standing,) = await store.standings([TOTAL])
    assert (standing.spent, standing.granted, standing.in_doubt) == (7, 0, 0)


async def test_once_is_once(opened: tuple[Store, Clock]) -> None:
    """The first caller of a mark is told so, and no other."""
    store, _ = opened
    assert await store.once("alert", 60.0)
    assert not await store.once("alert", 60.0)
    assert await store.once("other", 60.0)


def _record(at: float, **more: Any) -> UsageRecord:
    fields = {"key": "alice", "team": "t", "task": "", "route": "fast", "model": "m", "backend": "b", **more}
    return UsageRecord(at=at, request_id="r", input_tokens=10, output_tokens=5, cost=3 * 2**40, **fields)


async def test_usage_is_summed_by_hours_and_written_once(opened: tuple[Store, Clock]) -> None:
    """A batch counts once; sums are by any dimension, from an hour on, with days in a zone."""
    store, _ = opened
    at = START - START % 86_400 + 86_400  # midnight in UTC
    batch = [_record(at - 1), _record(at + 1, key="bob"), _record(at + 2, model="n"), _record(at - 7200)]
    for _ in range(2):
        await store.write_usage("batch-1", batch)
    keys = await store.usage("key", at - 10_000)
    assert [(one.name, one.requests, one.input_tokens, one.output_tokens, one.cost) for one in keys] == [
        ("alice", 3, 30, 15, 9 * 2**40),
        ("bob", 1, 10, 5, 3 * 2**40),
    ]
    assert [(one.name, one.requests) for one in await store.usage("model", at)] == [("m", 1), ("n", 1)]
    assert [one.requests for one in await store.usage("day", at - 10_000)] == [2, 2]
    assert [one.requests for one in await store.usage("day", at - 10_000, "Asia/Tokyo")] == [4]
    assert [one.at for one in await store.recent_usage(2)] == [at + 2, at + 1]
    assert (await store.recent_usage(1))[0] == batch[2]


async def test_single_records_go_after_thirty_days_and_their_sums_stay(opened: tuple[Store, Clock]) -> None:
    """Rows are kept 30 days, hours for good."""
    store, clock = opened
    await store.write_usage("one", [_record(clock.wall)])
    clock.advance(31 * 86_400)
    await store.write_usage("two", [_record(clock.wall)])
    assert [one.at for one in await store.recent_usage(9)] == [clock.wall]
    assert [one.requests for one in await store.usage("team", START)] == [2]


async def test_managed_keys_have_a_version(opened: tuple[Store, Clock]) -> None:
    """Every change of a key changes the version; names and secrets are unique."""
    store, _ = opened
    key = ManagedKey("carol", "sha256:1", START, "t", ("fast", "task:*"), '[{"usd": 5, "per": "day"}]', START + 9)
    before = await store.keys_version()
    await store.create_key(key)
    created = await store.keys_version()
    with pytest.raises(KeyExists):
        await store.create_key(key)
    with pytest.raises(KeyExists):
        await store.create_key(ManagedKey("dave", "sha256:1", START))
    assert await store.keys() == [key]
    assert await store.replace_key(rotated(key, "sha256:2", START + 60), created)
    (found,) = await store.keys()
    assert (found.hash, found.previous, found.grace_until) == ("sha256:2", "sha256:1", START + 60)
    replaced = await store.keys_version()
    assert await store.replace_key(revoked(found, START + 5), replaced)
    (found,) = await store.keys()
    assert (found.revoked_at, found.previous) == (START + 5, None)
    assert len({before, created, replaced, await store.keys_version()}) == 4
    with pytest.raises(UnknownKey):
        await store.replace_key(ManagedKey("nobody", "sha256:3", START), await store.keys_version())


async def test_a_key_that_changed_meanwhile_is_not_replaced(opened: tuple[Store, Clock]) -> None:
    """Who rotates a key that was revoked after it was read changes nothing, and is told to read it again."""
    store, _ = opened
    key = ManagedKey("carol", "sha256:1", START)
    unborn = await store.keys_version()
    await store.create_key(key)
    created = await store.keys_version()
    assert not await store.replace_key(rotated(key, "sha256:2", START + 60), unborn)
    assert await store.replace_key(revoked(key, START + 5), created)
    assert not await store.replace_key(rotated(key, "sha256:2", START + 60), created)
    assert await store.keys() == [revoked(key, START + 5)]
    assert await store.replace_key(revoked(key, START + 6), await store.keys_version())
