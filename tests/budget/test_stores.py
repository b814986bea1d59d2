"""Both stores: the same verbs, and one state machine in which no step may spend a limit twice."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.budget.escrow import Escrow, Hold, HoldClosed, HoldExists
from gateway.budget.meter import Meter, MeterLimit, window_of
from gateway.budget.redis import RedisStore
from gateway.budget.refusal import Refused
from gateway.budget.sqlite import SqliteStore
from gateway.budget.store import (
    Account,
    Entry,
    KeyExists,
    ManagedKey,
    Reply,
    Report,
    Store,
    StoreDown,
    UnknownKey,
    UsageRecord,
    revoked,
    rotated,
)
from tests.budget.valkey import valkey_url

T = TypeVar("T")
START = 4_000_000_000.0  # far ahead, so that Redis lets nothing of the test expire on its own clock


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.wall = START
        self.steady = 1000.0

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with valkey_url() as url:
        yield url


async def _emptied(url: str) -> None:
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url)
    await client.flushall()
    await client.aclose()


@pytest.fixture(params=["sqlite", "redis"])
async def opened(request: pytest.FixtureRequest, tmp_path: Path, valkey: str) -> AsyncIterator[tuple[Store, Clock]]:
    clock = Clock()
    store: Store
    if request.param == "sqlite":
        store = SqliteStore(tmp_path / "gateway.db", clock=lambda: clock.wall)
    else:
        await _emptied(valkey)
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
    await store.replace_key(rotated(key, "sha256:2", START + 60))
    (found,) = await store.keys()
    assert (found.hash, found.previous, found.grace_until) == ("sha256:2", "sha256:1", START + 60)
    replaced = await store.keys_version()
    await store.replace_key(revoked(found, START + 5))
    (found,) = await store.keys()
    assert (found.revoked_at, found.previous) == (START + 5, None)
    assert len({before, created, replaced, await store.keys_version()}) == 4
    with pytest.raises(UnknownKey):
        await store.replace_key(ManagedKey("nobody", "sha256:3", START))


class Faulty:
    """A store between a worker and the real one that fails as networks do."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.mode = "up"
        self.late: list[Report] = []

    async def sync(self, report: Report) -> Reply:
        if self.mode == "down":
            raise StoreDown("unreachable")
        if self.mode == "late":  # the server was frozen: it will execute this when it thaws
            self.late.append(report)
            raise StoreDown("timed out")
        reply = await self.store.sync(report)
        if self.mode == "deaf":
            raise StoreDown("the answer was lost")
        return reply

    async def thaw(self) -> None:
        for report in self.late:
            await self.store.sync(report)
        self.late.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


LIMITS = (
    MeterLimit(Meter("key", "alice", "usd", window_of("total")), 100),
    MeterLimit(Meter("team", "t", "usd", window_of("day", "Europe/Berlin")), 60),
    MeterLimit(Meter("key", "alice", "requests", window_of("minute")), 6),
    MeterLimit(Meter("backend", "b", "tokens", window_of("minute")), 50),
    MeterLimit(Meter("backend", "b", "concurrent", window_of(None)), 4),
)


@dataclass
class Worker:
    """One escrow behind its own network, and the holds that the test gave it."""

    escrow: Escrow
    network: Faulty
    holds: dict[str, tuple[Hold, dict[str, int]]] = field(default_factory=dict)
    lapsed: set[tuple[str, str]] = field(default_factory=set)  # holds, by meter, that outlived what the store recalls


WHO = st.integers(0, 2)
WHICH = st.integers(0, len(LIMITS) - 1)
SEVERAL = st.frozensets(WHICH, min_size=1)


class Money(RuleBasedStateMachine):
    """Workers that hold, resize, settle, cancel, crash and lose the store; the limits hold at every step."""

    make: Callable[[Clock], Store]
    prepare: Callable[[], Awaitable[None]] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.workers: list[Worker] = []
        self.count = 0
        self.settled: dict[str, int] = {}
        self.lost: dict[str, int] = {}
        self.rolled: list[tuple[str, float, int]] = []  # meter, when, amount
        self.store: Store

    def run(self, work: Awaitable[T]) -> T:
        async def wrapped() -> T:
            return await work

        return self.loop.run_until_complete(wrapped())

    @initialize()
    def open(self) -> None:
        prepare = type(self).prepare
        if prepare is not None:
            self.run(prepare())
        self.store = type(self).make(self.clock)
        self.run(self.store.open())
        for _ in range(3):
            self.add_worker()

    def add_worker(self) -> None:
        self.count += 1
        network = Faulty(self.store)

        async def build() -> Escrow:
            return Escrow(
                network,
                f"worker-{self.count}",
                clock=lambda: self.clock.wall,
                monotonic=lambda: self.clock.steady,
                interval=0.0,
            )

        self.workers.append(Worker(self.run(build()), network))

    def charges(self, usd: int, tokens: int, which: frozenset[int]) -> list[tuple[MeterLimit, int]]:
        amounts = {"usd": usd, "tokens": tokens, "requests": 1, "concurrent": 1}
        return [(LIMITS[index], amounts[LIMITS[index].meter.unit]) for index in sorted(which)]

    @rule(who=WHO, usd=st.integers(0, 40), tokens=st.integers(0, 20), which=SEVERAL)
    def hold(self, who: int, usd: int, tokens: int, which: frozenset[int]) -> None:
        worker = self.workers[who]
        self.count += 1
        hold_id = f"hold-{self.count}"
        try:
            hold = self.run(worker.escrow.hold(hold_id, self.charges(usd, tokens, which)))
        except Refused:
            return
        with pytest.raises(HoldExists):
            worker.escrow.try_hold(hold_id, [])
        worker.holds[hold_id] = (hold, {"usd": usd, "tokens": tokens})

    def pick(self, who: int, index: int) -> tuple[Worker, Hold, dict[str, int]] | None:
        worker = self.workers[who]
        if not worker.holds:
            return None
        hold, amounts = list(worker.holds.values())[index % len(worker.holds)]
        return worker, hold, amounts

    @rule(who=WHO, index=st.integers(0, 9), usd=st.integers(0, 40), tokens=st.integers(0, 20), which=SEVERAL)
    def resize(self, who: int, index: int, usd: int, tokens: int, which: frozenset[int]) -> None:
        found = self.pick(who, index)
        if found is None:
            return
        worker, hold, amounts = found
        before = [(grant.key, amount) for grant, amount in hold.parts]
        try:
            self.run(worker.escrow.resize(hold, self.charges(usd, tokens, which)))
        except Refused:
            assert [(grant.key, amount) for grant, amount in hold.parts] == before
            return
        amounts.update(usd=usd, tokens=tokens)

    @rule(who=WHO, index=st.integers(0, 9), share=st.floats(0, 1), begin=st.booleans())
    def settle(self, who: int, index: int, share: float, begin: bool) -> None:
        found = self.pick(who, index)
        if found is None:
            return
        worker, hold, _ = found
        if begin:
            for grant, amount in hold.parts:
                if grant.unit == "requests" and (hold.id, grant.key) not in worker.lapsed:
                    self.rolled.append((grant.account.id, self.clock.steady, amount))
            worker.escrow.begin(hold)
        self.end(worker, hold, share)

    def end(self, worker: Worker, hold: Hold, share: float) -> None:
        amounts = worker.holds.pop(hold.id)[1]
        actual = {unit: int(amount * share) for unit, amount in amounts.items()}
        parts = list(hold.parts)
        worker.escrow.settle(hold, actual)
        with pytest.raises(HoldClosed):
            worker.escrow.settle(hold, actual)
        with pytest.raises(HoldClosed):
            worker.escrow.release(hold)
        for grant, held in parts:
            if grant.unit == "usd":
                self.settled[grant.account.id] = self.settled.get(grant.account.id, 0) + actual.get("usd", 0)
            elif (hold.id, grant.key) not in worker.lapsed and grant.unit == "tokens":
                self.rolled.append((grant.account.id, self.clock.steady, actual.get("tokens", 0)))
            elif (hold.id, grant.key) not in worker.lapsed and grant.unit == "requests":
                self.rolled.append((grant.account.id, hold.taken, min(actual.get("requests", held), held)))

    @rule(who=WHO, index=st.integers(0, 9))
    def cancel(self, who: int, index: int) -> None:
        found = self.pick(who, index)
        if found is None:
            return
        worker, hold, _ = found
        worker.escrow.release(hold)
        with pytest.raises(HoldClosed):
            worker.escrow.release(hold)
        del worker.holds[hold.id]

    @rule(who=WHO)
    def renew(self, who: int) -> None:
        worker = self.workers[who]
        try:
            self.run(worker.escrow.flush())
        except StoreDown:
            assert worker.network.mode != "up"

    @rule(who=WHO, mode=st.sampled_from(["up", "up", "up", "down", "deaf", "late"]))
    def network(self, who: int, mode: str) -> None:
        network = self.workers[who].network
        if network.mode == "late" and mode != "late":
            network.mode = "up"
            self.run(network.thaw())
        network.mode = mode

    @rule(who=WHO, which=WHICH, settle=st.booleans())
    def grab(self, who: int, which: int, settle: bool) -> None:
        """One worker takes all it can get of one limit: were anything counted wrongly, this would spend it."""
        worker = self.workers[who]
        taken = []
        for amount in (64, 32, 16, 8, 4, 2, 1, 1):
            self.count += 1
            try:
                hold = self.run(worker.escrow.hold(f"grab-{self.count}", [(LIMITS[which], amount)]))
            except Refused:
                continue
            worker.holds[hold.id] = (hold, {LIMITS[which].meter.unit: amount})
            taken.append(hold)
            self.limits_hold()
        for hold in taken:
            self.end(worker, hold, 1.0 if settle else 0.0)

    @rule(who=WHO, which=WHICH, first=st.integers(1, 5), second=st.integers(1, 5))
    def overtaken(self, who: int, which: int, first: int, second: int) -> None:
        """A draw that timed out is executed after what the worker did next."""
        worker = self.workers[who]
        before, worker.network.mode = worker.network.mode, "late"
        for amount, mode in ((first, "up"), (second, "up")):
            self.count += 1
            with contextlib.suppress(Refused):
                hold = self.run(worker.escrow.hold(f"late-{self.count}", [(LIMITS[which], amount)]))
                worker.holds[hold.id] = (hold, {LIMITS[which].meter.unit: amount})
            worker.network.mode = mode
            self.advance(0.3)
        self.run(worker.network.thaw())
        worker.network.mode = before

    @rule(who=WHO)
    def crash(self, who: int) -> None:
        worker = self.workers[who]
        for hold, _ in worker.holds.values():
            for grant, amount in hold.parts:
                if grant.unit == "usd":
                    self.lost[grant.account.id] = self.lost.get(grant.account.id, 0) + amount
                elif (hold.id, grant.key) in worker.lapsed:
                    continue
                elif grant.unit == "tokens":
                    self.rolled.append((grant.account.id, self.clock.steady, amount))
                elif grant.unit == "requests":
                    self.rolled.append((grant.account.id, hold.taken, amount))
        for grant in (*worker.escrow._grants.values(), *worker.escrow._former):
            if grant.unit == "usd":  # what it had settled and not yet told anyone can only be in doubt
                untold = grant.spent - grant.acked
                self.lost[grant.account.id] = self.lost.get(grant.account.id, 0) + untold
                self.settled[grant.account.id] = self.settled.get(grant.account.id, 0) - untold
        self.run(worker.network.thaw())
        self.add_worker()
        self.workers[who] = self.workers.pop()

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 7.0, 11.0, 30.0, 61.0, 6 * 3600.0, 86_400.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.note_lapses()

    def note_lapses(self) -> None:
        # A worker that could not renew its lease is taken for dead. What it was running then is forgotten where
        # forgetting is meant to heal (rolling windows, concurrency); money never is.
        for worker in self.workers:
            for hold, _ in worker.holds.values():
                for grant, _ in hold.parts:
                    forget = grant.account.forget
                    if forget is not None and self.clock.steady >= worker.escrow._leased_until + forget:
                        worker.lapsed.add((hold.id, grant.key))

    @rule(seconds=st.sampled_from([-3600.0, -5.0, 86_400.0]))
    def jump(self, seconds: float) -> None:
        """The wall clock is set; forward only by as much as rolling windows have forgotten anyway."""
        if seconds > 0:
            self.advance(seconds)
        else:
            self.clock.wall += seconds

    @rule()
    def restart(self) -> None:
        self.run(self.store.close())
        for worker in self.workers:  # nobody answers meanwhile
            if not worker.network.late:
                assert self.run(self.refused(worker))
        self.run(self.store.open())

    async def refused(self, worker: Worker) -> bool:
        try:
            await worker.network.store.sync(Report("nobody", 1, 1.0, ()))
        except StoreDown:
            return True
        return False

    def expose(self) -> dict[str, int]:
        total = dict(self.settled)
        for key, amount in self.lost.items():
            total[key] = total.get(key, 0) + amount
        for worker in self.workers:
            for hold, _ in worker.holds.values():
                for grant, amount in hold.parts:
                    if grant.unit in ("usd", "concurrent") and (hold.id, grant.key) not in worker.lapsed:
                        total[grant.account.id] = total.get(grant.account.id, 0) + amount
        return total

    @invariant()
    @precondition(lambda self: self.workers)
    def limits_hold(self) -> None:
        amounts = {limit.meter.id: limit.amount for limit in LIMITS}
        for key, used in self.expose().items():
            assert used <= amounts[key.partition("#")[0]], f"{key}: {used}"
        now = self.clock.steady
        self.rolled = [one for one in self.rolled if one[1] > now - 60.0]
        rolled: dict[str, int] = {}
        for key, _, amount in self.rolled:
            rolled[key] = rolled.get(key, 0) + amount
        for worker in self.workers:
            for hold, _ in worker.holds.values():
                for grant, amount in hold.parts:
                    recent = grant.unit == "tokens" or hold.taken > now - 60.0
                    if grant.account.rolling and recent and (hold.id, grant.key) not in worker.lapsed:
                        rolled[grant.account.id] = rolled.get(grant.account.id, 0) + amount
        for key, used in rolled.items():
            assert used <= amounts[key], f"{key}: {used} in a rolling minute"

    @invariant()
    @precondition(lambda self: self.workers)
    def holds_fit_their_grants(self) -> None:
        for worker in self.workers:
            assert worker.escrow.open_holds == len(worker.holds)
            for grant in (*worker.escrow._grants.values(), *worker.escrow._former):
                held = sum(amount for hold, _ in worker.holds.values() for part, amount in hold.parts if part is grant)
                assert grant.available >= 0
                assert grant.held == held

    def teardown(self) -> None:
        try:
            if self.workers:
                self.quiesce()
        finally:
            if self.workers:
                self.run(self.store.close())
            self.loop.close()

    def quiesce(self) -> None:
        """At rest holds are 0, spent is what was settled, and the rest is in doubt."""
        for who, worker in enumerate(self.workers):
            worker.network.mode = "up"
            self.run(worker.network.thaw())
            while worker.holds:
                self.cancel(who, 0)
            self.run(worker.escrow.aclose())
        self.clock.advance(2 * 86_400.0)  # past every lease, however often the clock was set back
        ids = sorted({*self.settled, *self.lost})
        for key, standing in zip(ids, self.run(self.store.standings([Account(key) for key in ids])), strict=True):
            assert standing.granted == standing.held == 0, f"{key}: {standing}"
            assert standing.spent >= self.settled.get(key, 0), f"{key}: {standing}"
            assert standing.spent + standing.in_doubt >= self.settled.get(key, 0) + self.lost.get(key, 0)
            if not self.lost.get(key):
                assert standing.spent == self.settled.get(key, 0), f"{key}: {standing}"


SETTINGS = settings(
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)


def test_sqlite_never_spends_a_limit_twice() -> None:
    """Whatever happens to workers, clocks and the way to the store, spent and held stay within every limit."""
    memory = "/dev/shm"  # where there is one: the disk's own waiting is not tested here
    with tempfile.TemporaryDirectory(dir=memory if Path(memory).is_dir() else None) as folder:
        count = 0

        def make(clock: Clock) -> Store:
            nonlocal count
            count += 1
            return SqliteStore(Path(folder) / f"{count}.db", clock=lambda: clock.wall)

        machine = type("SqliteMoney", (Money,), {"make": staticmethod(make)})
        run_state_machine_as_test(machine, settings=settings(SETTINGS, max_examples=150))


def test_redis_never_spends_a_limit_twice(valkey: str) -> None:
    """The same, on a real Valkey."""

    def make(clock: Clock) -> Store:
        return RedisStore(valkey, clock=lambda: clock.wall, timeout=2.0)

    async def prepare() -> None:
        await _emptied(valkey)

    machine = type("RedisMoney", (Money,), {"make": staticmethod(make), "prepare": staticmethod(prepare)})
    run_state_machine_as_test(machine, settings=settings(SETTINGS, max_examples=60))
