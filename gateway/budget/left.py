"""What is left of a limit and when it is whole again, from how its account stands; and how that is shown as JSON."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from gateway.budget.meter import MeterLimit, span_of
from gateway.budget.money import format_usd
from gateway.budget.store import Standing


def left_of(limit: MeterLimit, standing: Standing) -> int:
    """What nobody has spent or holds, in the meter's unit; at least 0. `standing.idle` is granted and not held."""
    held = standing.granted - standing.idle
    return max(0, limit.amount - standing.spent - standing.in_doubt - held)


def resets_at(limit: MeterLimit, standing: Standing | None, now: float) -> float | None:
    """The epoch second at which all of a limit is there again; None if never, or if all of it is there already.

    Of a rolling window that is when all that was spent has been forgotten, which needs its standing.
    """
    window = limit.meter.window
    if window.kind == "rolling":
        clears_in = standing.clears_in if standing is not None else None
        return None if clears_in is None else now + clears_in
    return span_of(window, now).end


def described(limit: MeterLimit, standing: Standing | None, now: float) -> Mapping[str, Any]:
    """A limit for orjson: `{scope, name, unit, per, limit, remaining, resets_at, soft}`.

    Dollars are numbers with their exact digits, `resets_at` is ISO 8601 in UTC; `standing` None: `remaining` is null.
    """
    meter = limit.meter
    end = resets_at(limit, standing, now)
    return {
        "scope": meter.scope,
        "name": meter.name or None,
        "unit": meter.unit,
        "per": None if meter.window.kind == "running" else meter.window.name,
        "limit": _number(meter.unit, limit.amount),
        "remaining": None if standing is None else _number(meter.unit, left_of(limit, standing)),
        "resets_at": None if end is None else iso_text(end),
        "soft": limit.soft,
    }


def iso_text(at: float) -> str:
    """An instant in UTC, to the second: `2027-01-01T00:00:00Z`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _number(unit: str, amount: int) -> object:
    return orjson.Fragment(format_usd(amount)) if unit == "usd" else amount
