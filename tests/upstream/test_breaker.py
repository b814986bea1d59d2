"""The breaker's table, row by row, and what holds for every sequence of events."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from gateway.policy.schema import Breaker as BreakerSettings
from gateway.upstream.breaker import MAX_OPEN, Breaker, Permit, State

FAILURES, OPEN, SUCCESSES = 3, 10.0, 2


def breaker(*, failures: int = FAILURES, seconds: str = "10s", successes: int = SUCCESSES) -> Breaker:
    document = {"failures": failures, "open": seconds, "successes": successes}
    return Breaker(BreakerSettings.model_validate(document))


def permit(one: Breaker, now: float) -> Permit:
    given = one.permit(now)
    assert given is not None
    return given


def opened(one: Breaker, now: float = 0.0, failures: int = FAILURES) -> Breaker:
    for _ in range(failures):
        one.failed(permit(one, now), now)
    assert one.state(now) is State.OPEN
    return one


def test_it_is_closed_at_first() -> None:
    """Every request may go."""
    one = breaker()
    assert one.state(0.0) is State.CLOSED
    assert one.open_until == 0.0
    assert not permit(one, 0.0).probe


def test_failures_in_a_row_open_it() -> None:
    """The last of them says that it opened; then nobody may go."""
    one = breaker()
    told = [one.failed(permit(one, 1.0), 1.0) for _ in range(FAILURES)]
    assert told == [False, False, True]
    assert one.state(1.0) is State.OPEN
    assert one.permit(1.0) is None
    assert one.open_until == 1.0 + OPEN


def test_a_success_between_failures_starts_the_count_again() -> None:
    """Only failures in a row count."""
    one = breaker()
    for _ in range(5):
        for _ in range(FAILURES - 1):
            one.failed(permit(one, 0.0), 0.0)
        one.succeeded(permit(one, 0.0))
    assert one.state(0.0) is State.CLOSED


def test_half_open_lets_one_probe_through() -> None:
    """The second waits until the first has an outcome."""
    one = opened(breaker())
    assert one.permit(OPEN - 0.001) is None
    assert one.state(OPEN) is State.HALF_OPEN
    probe = permit(one, OPEN)
    assert probe.probe
    assert one.permit(OPEN) is None
    assert one.succeeded(probe) is False
    assert permit(one, OPEN).probe


def test_successes_close_it() -> None:
    """As many probes as the policy asks for."""
    one = opened(breaker())
    assert [one.succeeded(permit(one, OPEN)) for _ in range(SUCCESSES)] == [False, True]
    assert one.state(OPEN) is State.CLOSED
    assert not permit(one, OPEN).probe


def test_a_failed_probe_doubles_the_time() -> None:
    """Up to five minutes."""
    one, now, waits = opened(breaker()), 0.0, []
    for _ in range(8):
        waits.append(one.open_until - now)
        now = one.open_until
        assert one.failed(permit(one, now), now) is True
    assert waits == [10, 20, 40, 80, 160, MAX_OPEN, MAX_OPEN, MAX_OPEN]


def test_a_failed_probe_never_shortens_the_time() -> None:
    """A policy that leaves a backend alone for longer than five minutes means it."""
    one = opened(breaker(seconds="10m"))
    now = one.open_until
    one.failed(permit(one, now), now)
    assert one.open_until - now == 600.0


def test_it_opens_for_the_first_time_again_after_it_was_closed() -> None:
    """What it was doubled to is forgotten."""
    one = opened(breaker())
    one.failed(permit(one, OPEN), OPEN)
    now = one.open_until
    for _ in range(SUCCESSES):
        one.succeeded(permit(one, now))
    opened(one, now)
    assert one.open_until - now == OPEN


def test_an_abandoned_probe_makes_room_for_another() -> None:
    """A client that leaves does not keep a backend out for ever."""
    one = opened(breaker())
    one.abandoned(permit(one, OPEN))
    assert permit(one, OPEN).probe


def test_answers_of_an_older_generation_are_ignored() -> None:
    """What was sent before it opened says nothing about the backend now."""
    one = breaker()
    old = [permit(one, 0.0) for _ in range(4)]
    opened(one)
    until = one.open_until
    assert one.failed(old[0], 5.0) is False
    assert one.succeeded(old[1]) is False
    assert (one.state(5.0), one.open_until) == (State.OPEN, until)
    probe = permit(one, OPEN)
    assert one.failed(old[2], OPEN) is False
    one.abandoned(old[3])
    assert one.permit(OPEN) is None, "the probe is still on its way"
    assert one.succeeded(probe) is False


def test_the_last_candidate_is_tried_even_if_open() -> None:
    """Its failure does not keep the backend out longer, and its success does not let everybody in."""
    one = opened(breaker())
    until = one.open_until
    for now in (1.0, 2.0, 3.0, 4.0):
        assert one.failed(one.permit_anyway(now), now) is False
    assert one.succeeded(one.permit_anyway(5.0)) is False
    assert (one.state(5.0), one.open_until) == (State.OPEN, until)


@pytest.mark.parametrize("state", ["closed", "half-open"])
def test_anyway_is_an_ordinary_permit_where_one_is_given(state: str) -> None:
    """Only where there is none it makes an exception."""
    one = breaker() if state == "closed" else opened(breaker())
    assert one.permit_anyway(OPEN).probe is (state == "half-open")


class AnySequence(RuleBasedStateMachine):
    """Permits are asked for and answered in any order and at any time, beside a count kept by hand."""

    permits = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker = breaker()
        self.probes: list[Permit] = []

    @rule(seconds=st.sampled_from((0.0, 1.0, OPEN, 2 * OPEN, MAX_OPEN)))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=permits)
    def ask(self) -> Permit:
        before = self.breaker.state(self.now)
        found = self.breaker.permit(self.now)
        assert (found is None) is (before is State.OPEN or (before is State.HALF_OPEN and bool(self.probes)))
        if found is None:
            return multiple()  # type: ignore[return-value]  # nothing for the bundle
        assert found.probe is (before is State.HALF_OPEN)
        if found.probe:
            self.probes = [found]
        return found

    @rule(target=permits)
    def insist(self) -> Permit:
        if (found := self.breaker.permit_anyway(self.now)).probe:
            self.probes = [found]
        return found

    @rule(one=consumes(permits))
    def succeed(self, one: Permit) -> None:
        until, state = self.breaker.open_until, self.breaker.state(self.now)
        closed = self.breaker.succeeded(one)
        assert closed is (state is not State.CLOSED and self.breaker.state(self.now) is State.CLOSED)
        assert closed or self.breaker.open_until == until
        assert one.probe or not closed, "only a probe can close it"
        self.answered(one)

    @rule(one=consumes(permits))
    def fail(self, one: Permit) -> None:
        until = self.breaker.open_until
        if self.breaker.failed(one, self.now):
            seconds = self.breaker.open_until - self.now
            assert OPEN - 1e-6 <= seconds <= MAX_OPEN + 1e-6
            assert self.breaker.permit(self.now) is None
            self.probes = []
        else:
            assert self.breaker.open_until == until, "it opens only when it says so"
        self.answered(one)

    @rule(one=consumes(permits))
    def abandon(self, one: Permit) -> None:
        state = self.breaker.state(self.now)
        self.breaker.abandoned(one)
        assert self.breaker.state(self.now) is state, "no outcome is no change"
        self.answered(one)

    def answered(self, one: Permit) -> None:
        if one in self.probes:
            self.probes = []

    @invariant()
    def it_never_stays_out_for_ever(self) -> None:
        assert self.breaker.open_until <= self.now + MAX_OPEN
        if not self.probes:
            later = max(self.now, self.breaker.open_until)
            found = self.breaker.permit(later)
            assert found is not None
            self.breaker.abandoned(found)


TestAnySequence = AnySequence.TestCase
