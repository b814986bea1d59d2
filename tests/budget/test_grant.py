"""One worker's part of one account, without a store."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gateway.budget.grant import Grant
from gateway.budget.meter import Meter, MeterLimit, span_of, window_of
from gateway.budget.store import Standing

TOTAL = MeterLimit(Meter("key", "a", "usd", window_of("total")), 1000)
RATE = MeterLimit(Meter("key", "a", "requests", window_of("minute")), 60)


def _grant(limit: MeterLimit, available: int = 0) -> Grant:
    grant = Grant(limit, span_of(limit.meter.window, 0.0))
    grant.available = available
    return grant


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 80)), max_size=20))
def test_what_was_granted_is_spent_held_or_available(requests: list[tuple[int, int]]) -> None:
    """Settling keeps the sum, but for what overran and found nothing available."""
    grant = _grant(TOTAL, 1000)
    unpaid = 0
    for wanted, cost in requests:
        held = min(wanted, grant.available)  # as the escrow does: it never holds what is not there
        grant.available -= held
        grant.held += held
        before = grant.available
        over = grant.give(held, cost, 0.0)
        assert over == max(cost - held, 0)
        unpaid += max(over - before, 0)
    assert grant.held == 0
    assert grant.available >= 0
    assert grant.available + grant.spent == 1000 + unpaid


def test_points_of_a_rolling_window_keep_their_age() -> None:
    """What is stated says how long ago it was spent; what lies within half a bucket is one point, at the later time."""
    grant = _grant(RATE)
    for at in (10.0, 10.1, 12.0):
        grant.count(1, at)
    entry = grant.state(20.0)
    assert [(round(age, 3), total) for age, total in entry.spent] == [(9.9, 2), (8.0, 3)]
    grant.take(entry, Standing(spent=3), 20.0)
    assert grant.state(21.0).spent == ()
    assert grant.is_stated()


def test_after_a_loss_of_memory_all_of_the_window_is_stated_again() -> None:
    """Points are kept for as long as they count, also when the store knew them."""
    grant = _grant(RATE)
    for at in (10.0, 50.0):
        grant.count(1, at)
    grant.take(grant.state(50.0), Standing(spent=2), 50.0)
    grant.forget_store()
    assert [total for _, total in grant.state(51.0).spent] == [1, 2]
    grant.take(grant.state(75.0), Standing(spent=1), 75.0)
    grant.forget_store()
    entry = grant.state(76.0)
    assert (entry.base, [total for _, total in entry.spent]) == (1, [2])


def test_points_are_bounded() -> None:
    """However irregular the times, memory is bounded, and nothing that was counted is left out."""
    grant = _grant(RATE)
    for number in range(5000):
        grant.count(1, float(number % 7) * 5)
    assert len(grant.points) <= 1000
    assert grant.state(100.0).spent[-1][1] == 5000


def test_idle_is_returned_but_for_what_use_suggests() -> None:
    """A worker keeps no more than it lately used, a little of what is free, and nothing that others wait for."""
    grant = _grant(TOTAL, 300)
    grant.room, grant.used = 400, 40
    grant.return_idle(0.0)
    assert grant.available == 40
    grant.return_idle(0.0)
    assert grant.available == 40
    grant.return_idle(0.0)
    assert grant.available == 0
    grant.available, grant.used, grant.contested_until = 100, 100, 5.0
    grant.return_idle(1.0)
    assert grant.available == 0


def test_a_new_limit_is_drawn_anew() -> None:
    """What is idle under an old amount is not used under the new one."""
    grant = _grant(TOTAL, 300)
    grant.set_limit(replace(TOTAL, amount=10))
    assert (grant.available, grant.amount) == (0, 10)


def test_what_a_rolling_window_forgot_is_remaining_again() -> None:
    """Between two answers of the store, a window that has passed is known to be empty."""
    grant = _grant(RATE)
    assert grant.remaining(0.0) is None
    grant.take(grant.state(0.0), Standing(spent=60, clears_in=30.0), 0.0)
    assert grant.remaining(10.0) == 0
    assert grant.remaining(31.0) == 60
