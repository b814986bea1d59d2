"""Both stores under one state machine, in which no step may spend a limit twice."""

import asyncio
import contextlib
import tempfile
from collections.abc import Awaitable, Callable
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

from gateway.budget.escrow import Escrow
from gateway.budget.hold import Hold, HoldClosed, HoldExists
from gateway.budget.meter import Meter, MeterLimit, window_of
from gateway.budget.redis import RedisStore
from gateway.budget.refusal import Refused
from gateway.budget.sqlite import SqliteStore
from gateway.budget.store import (
    Account,
    Reply,
    Report,
    Store,
    StoreDown,
)
from tests.budget.valkey import Clock, emptied

T = TypeVar("T")


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
        await emptied(valkey)

    machine = type("RedisMoney", (Money,), {"make": staticmethod(make), "prepare": staticmethod(prepare)})
    run_state_machine_as_test(machine, settings=settings(SETTINGS, max_examples=60))
