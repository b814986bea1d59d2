"""The escrow of a worker: admission in memory, draws, refusals, recalls, windows and a store that goes away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.budget.escrow import Escrow
from gateway.budget.hold import Alert, HoldClosed, HoldExists, Overrun
from gateway.budget.meter import NANO, Meter, MeterLimit, window_of
from gateway.budget.refusal import Refused
from gateway.budget.sqlite import SqliteStore
from gateway.budget.store import Account, Reply, Report, Standing, StoreDown

START = 4_000_000_000.0
USD = MeterLimit(Meter("key", "alice", "usd", window_of("total")), 1000)
DAY = MeterLimit(Meter("key", "alice", "usd", window_of("day")), 1000)
RATE = MeterLimit(Meter("key", "alice", "requests", window_of("minute")), 60)
TOKENS = MeterLimit(Meter("key", "alice", "tokens", window_of("minute")), 100)
RUNNING = MeterLimit(Meter("backend", "b", "concurrent", window_of(None)), 2)
SOFT = MeterLimit(Meter("team", "t", "usd", window_of("total")), 10, soft=True)


class World:
    """A clock, a store that can be cut off, and the workers that share it."""

    def __init__(self, path: Path) -> None:
        self.wall = START
        self.steady = 1000.0
        self.down = False
        self.syncs = 0
        self.store = SqliteStore(path, clock=lambda: self.wall)
        self.alerts: list[Alert] = []
        self.overruns: list[Overrun] = []

    async def sync(self, report: Report) -> Reply:
        self.syncs += 1
        if self.down:
            raise StoreDown("cut off")
        return await self.store.sync(report)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds

    def escrow(self, worker: str = "a", **more: Any) -> Escrow:
        return Escrow(
            self,
            worker,
            clock=lambda: self.wall,
            monotonic=lambda: self.steady,
            interval=more.pop("interval", 0.0),
            on_alert=self.alerts.append,
            on_overrun=self.overruns.append,
            **more,
        )

    async def stands(self, limit: MeterLimit, window: str = "") -> Standing:
        (standing,) = await self.store.standings([Account(limit.meter.id + window, limit.meter.window.seconds)])
        return standing


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path / "gateway.db")
    await world.store.open()
    yield world
    await world.store.close()


async def _refused(escrow: Escrow, *charges: tuple[MeterLimit, int]) -> Refused:
    with pytest.raises(Refused) as caught:
        await escrow.hold("refused", charges)
    return caught.value


async def test_a_hold_becomes_its_cost(world: World) -> None:
    """What was held and not spent is there again; what was spent is stated to the store."""
    escrow = world.escrow()
    hold = await escrow.hold("one", [(USD, 600)])
    escrow.settle(hold, {"usd": 250})
    await escrow.flush()
    assert escrow.remaining(USD) == 750
    assert (await world.stands(USD)).spent == 250
    assert escrow.open_holds == 0


async def test_a_unit_without_an_actual_costs_what_was_held(world: World) -> None:
    """Nothing is free because nobody knows: a missing unit costs its hold, `concurrent` nothing."""
    escrow = world.escrow()
    escrow.settle(await escrow.hold("one", [(USD, 30), (RUNNING, 1)]), {})
    await escrow.aclose()
    assert (await world.stands(USD)).spent == 30
    assert (await world.stands(RUNNING)).spent == 0


async def test_a_hold_ends_once(world: World) -> None:
    """A second settlement or release is an error, and so is resizing what has ended; ids of open holds are unique."""
    escrow = world.escrow()
    hold = await escrow.hold("one", [(USD, 10)])
    with pytest.raises(HoldExists, match="one"):
        await escrow.hold("one", [(USD, 10)])
    escrow.settle(hold, {"usd": 10})
    for again in (lambda: escrow.settle(hold, {}), lambda: escrow.release(hold), lambda: escrow.try_resize(hold, [])):
        with pytest.raises(HoldClosed, match="settled"):
            again()
    await escrow.aclose()
    assert (await world.stands(USD)).spent == 10


async def test_a_grant_at_hand_needs_no_store(world: World) -> None:
    """A draw takes a hundredth of the limit more than it needs, and later requests live on that."""
    escrow = world.escrow()
    await escrow.hold("one", [(USD, 1)])
    before = world.syncs
    for number in range(10):
        assert escrow.try_hold(f"more-{number}", [(USD, 1)]) is not None
    assert world.syncs == before
    assert escrow.try_hold("too many", [(USD, 1)]) is None


async def test_a_hold_is_all_or_nothing(world: World) -> None:
    """When one limit has no room, nothing is taken from the others."""
    escrow = world.escrow()
    refused = await _refused(escrow, (USD, 10), (RUNNING, 3))
    assert refused.limit is RUNNING
    await escrow.flush()
    assert (await world.stands(USD)).granted == 0


async def test_resizing_takes_and_gives_back(world: World) -> None:
    """A fallback has other limits: those it leaves get their part back; one that does not fit changes nothing."""
    escrow = world.escrow()
    hold = await escrow.hold("one", [(USD, 600), (RUNNING, 1)])
    await escrow.resize(hold, [(USD, 900), (DAY, 100)])
    with pytest.raises(Refused) as caught:
        await escrow.resize(hold, [(USD, 1001)])
    assert caught.value.reason == "exceeded"
    assert escrow.remaining(USD) == 100
    assert escrow.remaining(RUNNING) == 2
    assert escrow.try_resize(hold, [(USD, 1)])
    assert escrow.remaining(USD) == 999
    escrow.release(hold)
    await escrow.flush()
    assert escrow.remaining(USD) == 1000


async def test_an_overrun_is_charged_in_full_and_told(world: World) -> None:
    """A backend that produced more than it was permitted is paid, counted and reported."""
    escrow = world.escrow()
    escrow.settle(await escrow.hold("one", [(USD, 100)]), {"usd": 1200})
    assert world.overruns == [Overrun("one", USD, 100, 1200)]
    assert escrow.overruns == 1
    await escrow.flush()
    assert (await world.stands(USD)).spent == 1200
    refused = await _refused(escrow, (USD, 1))
    assert (refused.reason, refused.remaining, refused.reset_at) == ("exceeded", 0, None)


async def test_a_soft_limit_counts_and_never_refuses(world: World) -> None:
    """What goes beyond a soft limit passes without a draw, is counted, and is told as an alert."""
    escrow = world.escrow()
    for number in range(3):
        hold = escrow.try_hold(str(number), [(SOFT, 6)])
        assert hold is not None
        escrow.settle(hold, {"usd": 6})
    await escrow.flush()
    assert (await world.stands(SOFT)).spent == 18
    assert [(one.fraction, one.spent) for one in world.alerts] == [(1.0, 18)]


async def test_an_alert_is_told_once_whatever_the_worker(world: World) -> None:
    """Two workers see the same share of a limit spent; one of them says so."""
    limit = MeterLimit(USD.meter, 1000, alert_at=(0.5, 0.8))
    one, two = world.escrow("a"), world.escrow("b")
    one.settle(await one.hold("one", [(limit, 600)]), {"usd": 600})
    two.settle(await two.hold("two", [(limit, 100)]), {"usd": 0})
    for escrow in (one, two, one, two):
        await escrow.flush()
    assert [one.fraction for one in world.alerts] == [0.5]
    two.settle(await two.hold("three", [(limit, 300)]), {"usd": 300})
    await two.flush()
    assert [one.fraction for one in world.alerts] == [0.5, 0.8]


async def test_what_another_worker_holds_is_held_and_what_it_spent_is_exceeded(world: World) -> None:
    """The refusal says whether waiting helps."""
    one, two = world.escrow("a"), world.escrow("b")
    hold = await one.hold("one", [(DAY, 900)])
    await one.flush()
    refused = await _refused(two, (DAY, 200))
    assert (refused.reason, refused.needed, refused.retry_after) == ("held", 200, 1.0)
    one.settle(hold, {"usd": 900})
    for _ in range(3):
        await one.flush()
    world.advance(1.0)
    refused = await _refused(two, (DAY, 200))
    assert (refused.reason, refused.remaining) == ("exceeded", 100)
    assert refused.reset_at == refused.limit.meter.window.seconds + (START // 86_400 + 1) * 86_400
    assert refused.retry_after == refused.reset_at - world.wall


async def test_a_refusal_is_remembered_for_a_moment(world: World) -> None:
    """A client that hammers on an empty budget does not hammer on the store; smaller requests are not refused by it."""
    escrow = world.escrow()
    escrow.settle(await escrow.hold("one", [(USD, 990)]), {"usd": 990})
    await _refused(escrow, (USD, 20))
    before = world.syncs
    for _ in range(50):
        await _refused(escrow, (USD, 20))
    assert world.syncs == before
    escrow.release(await escrow.hold("small", [(USD, 10)]))


async def test_idle_grants_are_recalled(world: World) -> None:
    """A draw that others' idle grants could cover waits for them to be returned, and tries once more."""
    one, two = world.escrow("a"), world.escrow("b", interval=0.01)
    hold = await one.hold("one", [(USD, 995)])
    one.release(hold)  # idle now, and still granted to this worker
    waiting = asyncio.create_task(two.hold("two", [(USD, 500)]))
    while not (await world.stands(USD)).recall:
        await asyncio.sleep(0)
    await one.flush()
    assert (await waiting).state == "open"
    assert one.remaining(USD) == 0 or (await world.stands(USD)).granted <= 1000


async def test_idle_grants_go_back_by_themselves(world: World) -> None:
    """After two quiet rounds a worker keeps nothing."""
    escrow = world.escrow()
    escrow.release(await escrow.hold("one", [(USD, 100)]))
    for _ in range(3):
        await escrow.flush()
    assert (await world.stands(USD)).granted == 0


async def test_a_hold_settles_into_the_window_it_was_taken_in(world: World) -> None:
    """Held before midnight, settled after: yesterday pays, and today is whole."""
    escrow = world.escrow()
    midnight = (START // 86_400 + 1) * 86_400
    world.wall = midnight - 1.0
    hold = await escrow.hold("late", [(DAY, 700)])
    world.advance(2.0)
    today = await escrow.hold("early", [(DAY, 1000)])
    escrow.settle(hold, {"usd": 650})
    escrow.release(today)
    await escrow.flush()
    await escrow.flush()
    assert (await world.stands(DAY, "#2096-10-02")).spent == 650
    assert (await world.stands(DAY, "#2096-10-03")).spent == 0
    assert escrow._former == []


async def test_a_clock_set_back_returns_to_the_grant_of_that_day(world: World) -> None:
    """There is one grant for one day, however often midnight is crossed, so that nothing is stated twice."""
    escrow = world.escrow()
    midnight = (START // 86_400 + 1) * 86_400
    world.wall = midnight - 1.0
    hold = await escrow.hold("before", [(DAY, 400)])
    world.wall = midnight + 1.0
    escrow.release(await escrow.hold("after", [(DAY, 1)]))
    world.wall = midnight - 1.0
    escrow.settle(await escrow.hold("again", [(DAY, 300)]), {"usd": 300})
    escrow.settle(hold, {"usd": 400})
    await escrow.aclose()
    assert (await world.stands(DAY, "#2096-10-02")).spent == 700


async def test_a_rate_is_exact_over_workers(world: World) -> None:
    """60 requests a minute over three workers under pressure: never more in any minute, and nearly all in each."""
    workers = [world.escrow(name) for name in "abc"]
    sent: list[float] = []
    for step in range(4 * 60 * 5):
        for number, escrow in enumerate(workers):
            for more in range(3):
                try:
                    hold = await escrow.hold(f"{step}-{number}-{more}", [(RATE, 1)])
                except Refused as refused:
                    assert refused.retry_after is not None  # noqa: PT017
                    continue
                escrow.begin(hold)
                sent.append(world.steady)
                escrow.settle(hold, {"requests": 1})
            if step % 2 == 0:
                await escrow.flush()
        world.advance(0.2)
    for at in sent:
        assert sum(at <= other < at + 60.0 for other in sent) <= 60
    begin = sent[0]
    for minute in range(3):
        assert sum(begin + 60 * minute <= at < begin + 60 * (minute + 1) for at in sent) >= 57


async def test_a_rate_says_when_to_come_back(world: World) -> None:
    """After the retry time a refusal named there is room, and not before."""
    escrow = world.escrow()
    limit = MeterLimit(RATE.meter, 2)
    for name in ("one", "two"):
        escrow.settle(await escrow.hold(name, [(limit, 1)]), {"requests": 1})
        world.advance(10.0)
    refused = await _refused(escrow, (limit, 1))
    assert refused.retry_after is not None
    assert 40.0 < refused.retry_after <= 40.5
    world.advance(refused.retry_after - 0.3)
    await _refused(escrow, (limit, 1))
    world.advance(0.31)
    await escrow.hold("three", [(limit, 1)])


async def test_a_long_request_counts_once_it_is_sent(world: World) -> None:
    """`begin` starts the minute: a request that runs for longer does not hold the rate down."""
    escrow = world.escrow()
    limit = MeterLimit(RATE.meter, 1)
    hold = await escrow.hold("long", [(limit, 1), (USD, 5)])
    world.advance(30.0)
    escrow.begin(hold)
    await escrow.resize(hold, [(limit, 1), (USD, 7)])  # a fallback is the same request
    for _ in range(11):
        await escrow.flush()
        world.advance(5.0)
    await _refused(escrow, (limit, 1))
    world.advance(6.0)
    await escrow.flush()
    other = await escrow.hold("next", [(limit, 1)])
    escrow.release(hold)
    escrow.release(other)


async def test_tokens_count_from_their_end(world: World) -> None:
    """Tokens are counted a full minute after the request that produced them has ended."""
    escrow = world.escrow()
    hold = await escrow.hold("one", [(TOKENS, 100)])
    for _ in range(10):
        await escrow.flush()
        world.advance(5.0)
    escrow.settle(hold, {"tokens": 100})
    world.advance(59.0)
    await _refused(escrow, (TOKENS, 1))
    world.advance(2.0)
    await escrow.hold("two", [(TOKENS, 100)])


async def test_idle_rate_does_not_outlive_its_lease(world: World) -> None:
    """A worker that was away longer than its lease must ask again: what it had may be another's by now."""
    one, two = world.escrow("a"), world.escrow("b")
    one.release(await one.hold("one", [(TOKENS, 100)]))
    world.advance(100.0)
    await two.hold("two", [(TOKENS, 100)])
    assert one.try_hold("stale", [(TOKENS, 1)]) is None
    assert (await _refused(one, (TOKENS, 1))).reason == "held"


async def test_a_renewed_lease_does_not_bring_back_what_was_forgotten(world: World) -> None:
    """What a worker held through a lapse and then released is another's, until it was stated again."""
    one, two = world.escrow("a"), world.escrow("b")
    hold = await one.hold("one", [(TOKENS, 100)])
    world.advance(100.0)
    await two.hold("two", [(TOKENS, 100)])
    await one.hold("renews", [(USD, 1)])
    one.release(hold)
    assert one.try_hold("stale", [(TOKENS, 1)]) is None
    assert (await _refused(one, (TOKENS, 1))).reason == "held"


async def test_money_at_hand_outlives_a_store_that_is_down(world: World) -> None:
    """Grants go on being spent; then hard limits are refused at once, and what was spent is stated later, once."""
    escrow = world.escrow()
    escrow.release(await escrow.hold("one", [(USD, 100)]))
    world.down = True
    world.advance(100.0)
    hold = await escrow.hold("two", [(USD, 100)])
    assert (await _refused(escrow, (USD, 50))).reason == "store_down"
    assert escrow.is_store_down
    before = world.syncs
    await _refused(escrow, (USD, 50))
    assert world.syncs == before, "a store that did not answer a moment ago is not asked for each request"
    escrow.settle(hold, {"usd": 70})
    with pytest.raises(StoreDown):
        await escrow.flush()
    world.down = False
    await escrow.flush()
    await escrow.flush()
    assert not escrow.is_store_down
    assert (await world.stands(USD)).spent == 70


async def test_a_store_that_is_down_lets_pass_if_the_policy_says_so(world: World) -> None:
    """`store_down: allow`: admitted without a grant, and counted when the store is back."""
    escrow = world.escrow(store_down="allow")
    world.down = True
    hold = await escrow.hold("one", [(USD, 5000), (RUNNING, 1), (RATE, 1)])
    escrow.settle(hold, {"usd": 4000})
    world.down = False
    await escrow.flush()
    assert (await world.stands(USD)).spent == 4000
    assert (await _refused(escrow, (USD, 1))).reason == "exceeded"


async def test_a_lost_answer_costs_nothing(world: World) -> None:
    """A draw that was granted and whose answer was lost is returned by the next round."""
    escrow = world.escrow()
    real = world.store.sync

    async def deaf(report: Report) -> Reply:
        await real(report)
        raise StoreDown("the answer was lost")

    world.store.sync = deaf  # type: ignore[method-assign]
    await _refused(escrow, (USD, 600))
    world.store.sync = real  # type: ignore[method-assign]
    assert (await world.stands(USD)).granted >= 600
    await escrow.flush()
    assert (await world.stands(USD)).granted == 0


async def test_closing_returns_everything(world: World) -> None:
    """After `aclose` nothing is granted, and what still runs is in doubt."""
    escrow = world.escrow()
    await escrow.start()
    escrow.settle(await escrow.hold("one", [(USD, 50)]), {"usd": 20})
    await escrow.hold("running", [(DAY, 30)])
    await escrow.aclose()
    standing = await world.stands(USD)
    assert (standing.spent, standing.granted, standing.in_doubt) == (20, 0, 0)
    assert (await world.stands(DAY, "#2096-10-02")).in_doubt == 30


async def test_the_rounds_run_by_themselves(world: World) -> None:
    """Once started, what is settled reaches the store without anyone asking."""
    escrow = world.escrow(interval=0.01)
    await escrow.start()
    escrow.settle(await escrow.hold("one", [(USD, 50)]), {"usd": 20})
    async with asyncio.timeout(10):
        while (await world.stands(USD)).spent != 20:
            await asyncio.sleep(0.01)
    await escrow.aclose()


async def test_a_hook_that_fails_does_not_end_the_rounds(world: World) -> None:
    """The failure is told to the event loop, and the next round comes."""
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context["exception"])))

    def fail(alert: Alert) -> None:
        raise ValueError(f"hook at {alert.fraction}")

    escrow = Escrow(world, "a", interval=0.01, on_alert=fail)
    await escrow.start()
    limit = MeterLimit(USD.meter, 1000, alert_at=(0.5,))
    escrow.settle(await escrow.hold("one", [(limit, 600)]), {})
    async with asyncio.timeout(10):
        while not told:
            await asyncio.sleep(0.01)
        escrow.settle(await escrow.hold("two", [(limit, 100)]), {})
        while (await world.stands(USD)).spent != 700:
            await asyncio.sleep(0.01)
    await escrow.aclose()
    assert told == ["hook at 0.5"]


async def test_a_store_that_answered_just_before_is_asked_twice(world: World) -> None:
    """One missed answer, as a busy event loop may cause, refuses nobody."""
    escrow = world.escrow()
    await escrow.hold("one", [(USD, 1)])
    real = world.store.sync
    missed: list[int] = []

    async def miss_once(report: Report) -> Reply:
        reply = await real(report)
        if not missed:
            missed.append(report.number)
            raise StoreDown("too late")
        return reply

    world.store.sync = miss_once  # type: ignore[method-assign]
    await escrow.hold("two", [(USD, 500)])
    assert len(missed) == 1
    assert (await world.stands(USD)).granted < 550


async def test_a_cancelled_draw_leaves_nothing_held(world: World) -> None:
    """A client that leaves while the store is asked holds nothing, and the next round returns what was drawn."""
    escrow = world.escrow()
    real, asked = world.store.sync, asyncio.Event()

    async def slow(report: Report) -> Reply:
        await real(report)
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    world.store.sync = slow  # type: ignore[method-assign]
    task = asyncio.create_task(escrow.hold("one", [(USD, 600)]))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    world.store.sync = real  # type: ignore[method-assign]
    await escrow.flush()
    assert escrow.open_holds == 0
    assert (await world.stands(USD)).granted == 0


async def test_many_at_once_share_one_budget_to_the_last(world: World) -> None:
    """500 clients on three workers: exactly what the limit pays for is admitted, and nothing more."""
    limit = MeterLimit(USD.meter, 400 * NANO)
    workers = [world.escrow(name) for name in "abc"]

    async def client(number: int) -> int:
        escrow = workers[number % 3]
        try:
            hold = await escrow.hold(str(number), [(limit, NANO)])
        except Refused:
            return 0
        await asyncio.sleep(0)
        escrow.settle(hold, {"usd": NANO})
        return 1

    first = sum(await asyncio.gather(*(client(number) for number in range(500))))
    assert first <= 400
    second = 0
    for number in range(500, 600):
        for escrow in workers:
            await escrow.flush()
        world.advance(0.6)
        second += await client(number)
    assert first + second == 400
    for escrow in workers:
        await escrow.aclose()
    standing = await world.stands(limit)
    assert (standing.spent, standing.granted, standing.in_doubt) == (400 * NANO, 0, 0)


@pytest.mark.parametrize(
    ("change", "left"), [(lambda: MeterLimit(USD.meter, 500), 400), (lambda: MeterLimit(USD.meter, 2000), 1900)]
)
async def test_a_changed_limit_holds_at_once(world: World, change: Callable[[], MeterLimit], left: int) -> None:
    """After a reload the new amount stands, and what was spent under the old one counts."""
    escrow = world.escrow()
    escrow.settle(await escrow.hold("one", [(USD, 900)]), {"usd": 100})
    limit = change()
    refused = await _refused(escrow, (limit, left + 1))
    assert refused.reason == "exceeded"
    await escrow.hold("fits", [(limit, left)])


async def test_survey_asks_only_for_what_is_unknown(world: World) -> None:
    """What is left of a limit is known after it was asked for, and then stays known without asking."""
    escrow = world.escrow()
    assert escrow.remaining(USD) is None
    await escrow.survey([USD, RATE])
    assert (escrow.remaining(USD), escrow.remaining(RATE)) == (1000, 60)
    before = world.syncs
    await escrow.survey([USD, RATE])
    assert world.syncs == before
    assert escrow.resets_in(DAY) == (START // 86_400 + 1) * 86_400 - START
    assert escrow.resets_in(RATE) == 0.0
    assert escrow.resets_in(USD) is None


async def test_a_window_that_was_used_is_whole_again_after_its_time(world: World) -> None:
    """From the first request on, whether the store has heard of it or not; then it counts down, and at the end it is 0."""
    escrow = world.escrow()
    for _ in range(3):
        escrow.settle(await escrow.hold("one", [(RATE, 1)]), {})
        resets_in = escrow.resets_in(RATE)
        assert resets_in is not None
        assert 60 <= resets_in <= 61  # what is counted stands a part of the window longer
    await escrow.flush()
    world.advance(20)
    left = escrow.resets_in(RATE)
    assert left is not None
    assert 39 <= left <= 45
    world.advance(50)
    await escrow.flush()
    assert escrow.resets_in(RATE) == 0


async def test_memory_is_bounded_by_what_is_used(world: World) -> None:
    """Grants that nothing has used for an hour are dropped, and their spending is not counted again."""
    escrow = world.escrow()
    escrow.settle(await escrow.hold("one", [(USD, 50), (RATE, 1)]), {"usd": 20})
    for _ in range(3):
        await escrow.flush()
        world.advance(4000.0)
    await escrow.flush()
    assert escrow._grants == {}
    escrow.settle(await escrow.hold("two", [(USD, 50)]), {"usd": 5})
    await escrow.aclose()
    assert (await world.stands(USD)).spent == 25
