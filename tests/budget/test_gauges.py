"""The gauges say what is left of each limit in dollars, and begin anew with its window."""

from pathlib import Path

from gateway.budget.escrow import Escrow
from gateway.budget.gauges import BudgetGauges
from gateway.budget.meter import Meter, MeterLimit, window_of
from gateway.budget.sqlite import SqliteStore
from tests.budget.valkey import Clock


class Shown:
    """A gauge that keeps what was set, and how often."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def set(self, value: float) -> None:
        self.values.append(value)


async def test_a_gauge_follows_its_budget_into_the_next_window(tmp_path: Path) -> None:
    """Set when something changes and not otherwise; at midnight, without any request, all of it is left again."""
    clock = Clock()
    store = SqliteStore(tmp_path / "gauges.db", clock=lambda: clock.wall)
    await store.open()
    escrow = Escrow(store, "one", clock=lambda: clock.wall, monotonic=lambda: clock.steady)
    made: dict[tuple[str, str, str], Shown] = {}

    def gauge(scope: str, name: str, window: str) -> Shown:
        return made.setdefault((scope, name, window), Shown())

    gauges = BudgetGauges(escrow, gauge, clock=lambda: clock.wall)
    day = MeterLimit(Meter("key", "alice", "usd", window_of("day")), 1000)
    rate = MeterLimit(Meter("key", "alice", "requests", window_of("minute")), 10)
    await gauges.show()
    assert made == {}, "nothing is in use yet"
    hold = await escrow.hold("a", [(day, 300), (rate, 1)])
    await gauges.show()
    assert list(made) == [("key", "alice", "day")], "requests are no money"
    assert made["key", "alice", "day"].values == [700]
    await gauges.show()
    assert made["key", "alice", "day"].values == [700], "what did not change is another worker's to say"
    escrow.settle(hold, {"usd": 120})
    await gauges.show()
    assert made["key", "alice", "day"].values[-1] == 880
    clock.advance(86_400)
    await gauges.show()
    assert made["key", "alice", "day"].values[-1] == 1000
    await escrow.aclose()
    await store.close()
