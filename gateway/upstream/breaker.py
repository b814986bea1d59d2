"""When a backend that keeps failing is left alone: a circuit breaker as a pure table, with `now` as an argument.

state      event                      next
closed     failure x `failures`       open for `open` seconds
open       its time is over           half-open
half-open  permit                     one probe at a time
half-open  success x `successes`      closed
half-open  failure                    open, twice as long as before, at most MAX_OPEN (or `open`, if that is longer)

A permit carries the generation it was given in; an answer from an older generation is ignored (gobreaker).
The numbers are those of the route whose request it was: a backend has one breaker, whoever asks it.
"""

from dataclasses import dataclass
from enum import Enum

from gateway.policy.schema import Breaker as BreakerSettings

MAX_OPEN = 300.0


class State(Enum):
    """The three states; the values are those of the metric `gateway_breaker_state`."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to try once. `probe` is the one try that a half-open breaker lets through."""

    generation: int
    probe: bool = False


class Breaker:
    """One backend's breaker. Times are seconds of any clock that only goes forward."""

    __slots__ = (
        "_closed",
        "_failures",
        "_generation",
        "_open_for",
        "_open_until",
        "_probing",
        "_settings",
        "_successes",
    )

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self._generation = 0
        self._failures = 0
        self._successes = 0
        self._open_for = 0.0
        self._open_until = 0.0
        self._probing = False
        self._closed = Permit(0)

    def state(self, now: float) -> State:
        """What it would do with a request at `now`."""
        if not self._open_for:
            return State.CLOSED
        return State.OPEN if now < self._open_until else State.HALF_OPEN

    @property
    def open_until(self) -> float:
        """When the next probe may go; 0.0 while closed."""
        return self._open_until if self._open_for else 0.0

    def permits(self, now: float) -> bool:
        """Whether `permit` would give leave."""
        return not self._open_for or (now >= self._open_until and not self._probing)

    def permit(self, now: float) -> Permit | None:
        """Leave to send one request, or None."""
        if not self._open_for:
            return self._closed
        if not self.permits(now):
            return None
        self._probing = True
        return Permit(self._generation, probe=True)

    def permit_anyway(self, now: float) -> Permit:
        """Leave for the last candidate, which is tried even if open; its failure does not keep it open longer."""
        return self.permit(now) or self._closed

    def succeeded(self, permit: Permit, settings: BreakerSettings | None = None) -> bool:
        """The backend answered. True when this closed the breaker. `settings` are the route's, if it has its own."""
        if permit.generation != self._generation:
            return False
        self._failures = 0
        if not permit.probe:
            return False
        self._probing = False
        self._successes += 1
        if self._successes < (settings or self._settings).successes:
            return False
        self._turn()
        self._open_for = 0.0
        return True

    def failed(self, permit: Permit, now: float, settings: BreakerSettings | None = None) -> bool:
        """The backend failed. True when this opened the breaker. `settings` are the route's, if it has its own."""
        if permit.generation != self._generation:
            return False
        settings = settings or self._settings
        if permit.probe:
            self._open(now, max(settings.open, min(self._open_for * 2, MAX_OPEN)))
            return True
        self._failures += 1
        if self._open_for or self._failures < settings.failures:
            return False
        self._open(now, settings.open)
        return True

    def probed(self, now: float, *, reachable: bool) -> None:
        """A probe beside the requests came back: a reachable backend need not rest longer, an unreachable one does."""
        if not self._open_for:
            return
        if reachable:
            self._open_until = min(self._open_until, now)
        elif now >= self._open_until and not self._probing:
            self._open(now, max(self._settings.open, min(self._open_for * 2, MAX_OPEN)))

    def abandoned(self, permit: Permit) -> None:
        """The try ended without an outcome (the client left): another probe may go."""
        if permit.probe and permit.generation == self._generation:
            self._probing = False

    def _open(self, now: float, seconds: float) -> None:
        self._turn()
        self._open_for = seconds
        self._open_until = now + seconds

    def _turn(self) -> None:
        self._generation += 1
        self._failures = 0
        self._successes = 0
        self._probing = False
        self._closed = Permit(self._generation)
