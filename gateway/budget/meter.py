"""What is counted: a meter is a scope, a unit and a window; the arithmetic of windows, as pure functions of `now`.

Three kinds of window. *Calendar* windows (day, week, month) begin at local midnight in a time zone. *Rolling* windows
count in sub-buckets, a 240th of the window each: an amount counts until its bucket has been over for a full window and
one bucket more. So it is forgotten between one and two buckets late (0.4 to 0.8 % of the window: what clocks and the
way to a backend may jitter) and never early. *Total* never ends. A `concurrent` meter counts what is running now.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Literal, cast
from zoneinfo import ZoneInfo

from gateway.policy.schema import CALENDAR, ROLLING, Limit, Policy, parse_duration

NANO = 10**9  # nano-dollars in a dollar
MAX_AMOUNT = 2**53 - 1  # what Redis's Lua counts exactly: above nine million dollars in nano-dollars
BUCKETS = 240  # of a rolling window

Scope = Literal["key", "team", "backend", "model", "all"]
Kind = Literal["rolling", "day", "week", "month", "total", "running"]


@dataclass(frozen=True, slots=True)
class Window:
    """When counting begins again. `seconds` is the length of a rolling window, `zone` the time zone of a calendar one.

    `name` is the policy's own word: `minute`, `12h`, `day`, `total`.
    """

    kind: Kind
    name: str
    seconds: float = 0.0
    zone: str = "UTC"

    @property
    def bucket(self) -> float:
        """Seconds in a sub-bucket of a rolling window; 0 for the others."""
        return self.seconds / BUCKETS


@dataclass(frozen=True, slots=True)
class Span:
    """One run of a window: its id, and where it starts and ends in epoch seconds (`end` None: never)."""

    id: str
    start: float
    end: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Meter:
    """One thing that is counted. `name` is the key's, team's, backend's or model's; empty for `all`."""

    scope: Scope
    name: str
    unit: str
    window: Window
    id: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        window = self.window
        when = f"{window.seconds:g}s" if window.kind == "rolling" else window.kind
        zone = f"@{window.zone}" if window.kind in CALENDAR else ""
        object.__setattr__(self, "id", f"{self.scope}:{self.name}:{self.unit}:{when}{zone}")

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Meter) and self.id == other.id


@dataclass(frozen=True, slots=True)
class MeterLimit:
    """So much of a meter: `amount` in its unit (nano-dollars for `usd`). A `soft` limit counts and never refuses.

    `alert_at` are fractions of the amount, ascending; above 1 only on a soft limit.
    """

    meter: Meter
    amount: int
    soft: bool = False
    alert_at: tuple[float, ...] = ()


def window_of(per: str | None, zone: str = "UTC") -> Window:
    """The window for a policy's `per`; None is what `concurrent` has."""
    if per is None:
        return Window("running", "running")
    if per in CALENDAR:
        return Window(cast("Kind", per), per, zone=zone)
    if per == "total":
        return Window("total", per)
    return Window("rolling", per, ROLLING[per] if per in ROLLING else parse_duration(per))


def span_of(window: Window, now: float) -> Span:
    """The run of `window` that `now` (epoch seconds) falls into; a rolling window has one run, without an end."""
    if window.kind not in CALENDAR:
        return Span("", 0.0, None)
    zone = ZoneInfo(window.zone)
    day = _first_day(window.kind, datetime.fromtimestamp(now, zone).date())
    # A clock set back across midnight shows a day twice: the order of the starts decides, not the date on the wall.
    while now < _midnight(day, zone):
        day = _first_day(window.kind, day - timedelta(days=1))
    while now >= _midnight(_next(window.kind, day), zone):
        day = _next(window.kind, day)
    name = day.strftime("%Y-%m") if window.kind == "month" else day.isoformat()
    return Span(name, _midnight(day, zone), _midnight(_next(window.kind, day), zone))


def bucket_of(window: Window, at: float) -> int:
    """The number of the sub-bucket of a rolling window in which `at` (epoch seconds) lies."""
    return int(at // window.bucket)


def bucket_end(window: float, index: int) -> float:
    """The epoch second from which a sub-bucket of a rolling window of `window` seconds no longer counts."""
    return (index + 2) * (window / BUCKETS) + window


def limits_of(
    policy: Policy,
    key_name: str | None,
    team: str | None,
    backend: str | None,
    model: str | None,
    key_limits: Sequence[Limit] | None = None,
) -> tuple[MeterLimit, ...]:
    """Every limit on a request of this key and team to this model at this backend, the key's own first.

    `key_limits` are those of a managed key, which the policies do not hold. Names that the policies do not know
    have no limits. Of several limits on one meter the tightest hard one stands; soft ones below it become alerts.
    """
    zone = policy.server.timezone
    key = policy.keys.get(key_name) if key_name is not None else None
    group = policy.teams.get(team) if team is not None else None
    server = policy.backends.get(backend) if backend is not None else None
    target = policy.models.get(model) if model is not None else None
    own = key_limits if key_limits is not None else key.limits if key else ()
    found = [
        *_meters("key", key_name or "", own, zone),
        *_meters("team", team or "", group.limits if group else (), zone),
        *_meters("model", model or "", target.limits if target else (), zone),
        *_meters("backend", backend or "", server.limits if server else (), zone),
        *_meters("all", "", policy.limits, zone),
    ]
    return _tightest(found)


def units_of(limit: Limit) -> int:
    """The limit's amount in its meter's integer unit: whole nano-dollars, tokens or requests."""
    exact = limit.amount * NANO if limit.unit == "usd" else limit.amount
    return min(int(exact), MAX_AMOUNT)


def amount_text(unit: str, amount: int) -> str:
    """An amount as a reader wants it: `$1.25`, `3,000 tokens`, `1 request`."""
    if unit == "usd":
        dollars = f"{amount // NANO:,}.{amount % NANO:09d}".rstrip("0")
        whole, _, cents = dollars.partition(".")
        return f"${whole}.{cents:0<2}"
    noun = {"requests": "requests", "concurrent": "concurrent requests"}.get(unit, unit.replace("_", " "))
    return f"{amount:,} {noun[:-1] if amount == 1 else noun}"


def limit_text(limit: MeterLimit) -> str:
    """The limit in one phrase: `the limit of $5.00 per day on key alice`."""
    meter = limit.meter
    amount = amount_text(meter.unit, limit.amount)
    period = {"total": " in total", "running": ""}.get(meter.window.kind, f" per {meter.window.name}")
    place = "everything together" if meter.scope == "all" else f"{meter.scope} {meter.name}"
    return f"the limit of {amount}{period} on {place}"


def time_text(at: float) -> str:
    """An instant in UTC: `2026-03-29 22:00:00 UTC`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _meters(scope: Scope, name: str, limits: Iterable[Limit], zone: str) -> Iterable[MeterLimit]:
    for limit in limits:
        meter = Meter(scope, name, limit.unit, window_of(limit.per, zone))
        yield MeterLimit(meter, units_of(limit), limit.soft, tuple(sorted(limit.alert_at)))


def _tightest(limits: Iterable[MeterLimit]) -> tuple[MeterLimit, ...]:
    kept: dict[Meter, MeterLimit] = {}
    for limit in limits:
        known = kept.get(limit.meter)
        kept[limit.meter] = limit if known is None else _merge(known, limit)
    return tuple(kept.values())


def _merge(one: MeterLimit, two: MeterLimit) -> MeterLimit:
    first, second = sorted((one, two), key=lambda limit: (limit.soft, limit.amount))
    alerts = {*first.alert_at}
    if second.amount < first.amount:  # a soft limit under a hard one: reaching it is an alert
        alerts |= {second.amount * share / first.amount for share in (*second.alert_at, 1.0)}
    return replace(first, alert_at=tuple(sorted(alerts)))


def _first_day(kind: Kind, day: date) -> date:
    if kind == "month":
        return day.replace(day=1)
    return day - timedelta(days=day.weekday()) if kind == "week" else day


def _next(kind: Kind, day: date) -> date:
    if kind == "month":
        return (day.replace(day=28) + timedelta(days=4)).replace(day=1)
    return day + timedelta(days=7 if kind == "week" else 1)


@lru_cache(maxsize=256)
def _midnight(day: date, zone: ZoneInfo) -> float:
    # fold=0: the first of two midnights; where midnight does not exist, the instant at which the clock skips it.
    return datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()
