"""Shows what is left of every limit in dollars that is in use, window after window."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.budget.escrow import Escrow
from gateway.budget.left import left_of
from gateway.budget.meter import MeterLimit, span_of
from gateway.budget.store import StoreDown


class Gauge(Protocol):
    """A number that is shown."""

    def set(self, value: float) -> None:
        """This is how much there is now, in nano-dollars."""
        ...


@dataclass(slots=True)
class _Shown:
    limit: MeterLimit
    gauge: Gauge
    known: tuple[int, float] | None = None  # what was left, and when the store said so
    until: float = 0.0  # epoch seconds: the end of the window it was said of


class BudgetGauges:
    """One worker's share of the gauges: it sets what it has learnt since, and asks about windows that have begun anew.

    `gauge` makes the gauge of a scope, a name and a window; `clock` gives epoch seconds.
    """

    def __init__(
        self, escrow: Escrow, gauge: Callable[[str, str, str], Gauge], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._escrow = escrow
        self._gauge = gauge
        self._clock = clock
        self._shown: dict[str, _Shown] = {}

    async def show(self) -> None:
        """Set what has changed. A store that does not answer is asked again the next time."""
        for limit, asked_at in self._escrow.budgets():
            left = self._escrow.remaining(limit)
            if left is None:
                continue
            shown = self._shown.get(limit.meter.id)
            if shown is None:
                meter = limit.meter
                shown = _Shown(limit, self._gauge(meter.scope, meter.name, meter.window.name))
                self._shown[limit.meter.id] = shown
            if shown.known != (left, asked_at):  # else another worker may know better
                shown.limit, shown.known = limit, (left, asked_at)
                self._set(shown, left)
        over = [shown for shown in self._shown.values() if self._clock() >= shown.until]
        if not over:
            return
        with contextlib.suppress(StoreDown):
            standings = await self._escrow.standings([shown.limit for shown in over])
            for shown, standing in zip(over, standings, strict=True):
                self._set(shown, left_of(shown.limit, standing))

    def _set(self, shown: _Shown, left: int) -> None:
        end = span_of(shown.limit.meter.window, self._clock()).end
        shown.until = float("inf") if end is None else end
        shown.gauge.set(left)
