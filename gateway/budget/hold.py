"""What one request is permitted to cost, and what is told when a limit is passed: values that the escrow hands out."""

from dataclasses import dataclass
from typing import Literal

from gateway.budget.grant import Grant
from gateway.budget.meter import MeterLimit


class HoldClosed(Exception):
    """The hold was settled or released before: each is done exactly once."""


class HoldExists(Exception):
    """A hold of this id is open."""


class Hold:
    """What one request is permitted to cost, on each of its limits. Its escrow alone changes it.

    `at` is when it was taken (epoch seconds); `parts` are the amounts, each in the window it was taken in.
    """

    __slots__ = ("at", "begun", "id", "parts", "state", "taken")

    def __init__(self, hold_id: str, parts: list[tuple[Grant, int]], at: float, taken: float) -> None:
        self.id = hold_id
        self.parts = parts
        self.at = at
        self.taken = taken  # on the monotonic clock
        self.begun: frozenset[str] = frozenset()  # meters on which it counts already, whatever becomes of it
        self.state: Literal["open", "settled", "released"] = "open"

    def __repr__(self) -> str:
        amounts = ", ".join(f"{grant.key}={amount}" for grant, amount in self.parts)
        return f"<Hold {self.id} {self.state} {amounts}>"


@dataclass(frozen=True, slots=True)
class Overrun:
    """A request cost more than it held: `actual` > `held`, in the unit of the limit's meter. It is charged in full."""

    hold_id: str
    limit: MeterLimit
    held: int
    actual: int


@dataclass(frozen=True, slots=True)
class Alert:
    """`fraction` of a limit is spent; told once per window, by one worker. `spent` in the unit of the limit's meter."""

    limit: MeterLimit
    fraction: float
    spent: int
