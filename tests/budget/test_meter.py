"""Windows by the calendar, rolling windows and the limits that stand on a request."""

from datetime import datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.budget.meter import (
    BUCKETS,
    MAX_AMOUNT,
    NANO,
    Meter,
    MeterLimit,
    Window,
    amount_text,
    bucket_end,
    bucket_of,
    limit_text,
    limits_of,
    span_of,
    units_of,
    window_of,
)
from gateway.policy.schema import Backend, Key, Limit, Model, Policy, Server, Team

ZONES = ("UTC", "Europe/Berlin", "America/St_Johns", "America/Havana", "America/Santiago", "Pacific/Apia")


def _at(zone: str, *parts: int) -> float:
    return datetime(*parts, tzinfo=ZoneInfo(zone)).timestamp()  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("day", "hours"), [((2026, 3, 29), 23), ((2026, 10, 25), 25), ((2026, 7, 1), 24)], ids=["spring", "autumn", "plain"]
)
def test_a_day_is_as_long_as_the_clock_on_the_wall_says(day: tuple[int, int, int], hours: int) -> None:
    """A day in Berlin lasts 23 hours when daylight saving begins and 25 when it ends."""
    span = span_of(window_of("day", "Europe/Berlin"), _at("Europe/Berlin", *day, 12))
    assert (span.id, span.start) == ("{}-{:02}-{:02}".format(*day), _at("Europe/Berlin", *day))
    assert span.end is not None
    assert span.end - span.start == hours * 3600


def test_midnight_is_the_zones_own() -> None:
    """One instant lies in different days in different zones."""
    now = _at("UTC", 2026, 1, 31, 23, 30)
    assert span_of(window_of("day", "UTC"), now).id == "2026-01-31"
    assert span_of(window_of("day", "Europe/Berlin"), now).id == "2026-02-01"
    assert span_of(window_of("month", "Europe/Berlin"), now).id == "2026-02"
    assert span_of(window_of("month", "UTC"), now).id == "2026-01"


def test_a_week_begins_on_monday_and_a_month_on_its_first() -> None:
    """Weeks are named by their Monday, also across a year's end."""
    now = _at("UTC", 2027, 1, 1, 5)
    week = span_of(window_of("week"), now)
    assert (week.id, week.end) == ("2026-12-28", _at("UTC", 2027, 1, 4))
    month = span_of(window_of("month"), _at("UTC", 2028, 2, 29, 1))
    assert (month.id, month.end) == ("2028-02", _at("UTC", 2028, 3, 1))


def test_the_end_belongs_to_the_next_window() -> None:
    """A window holds its first instant and not its last."""
    window = window_of("day")
    midnight = _at("UTC", 2026, 5, 2)
    assert span_of(window, midnight).id == "2026-05-02"
    assert span_of(window, midnight - 0.001).id == "2026-05-01"


def test_a_midnight_that_is_skipped_begins_when_the_clock_skips_it() -> None:
    """Santiago goes from 24:00 to 01:00: the new day begins at that instant, and the two days touch."""
    zone = "America/Santiago"
    after = span_of(window_of("day", zone), _at(zone, 2024, 9, 8, 1))
    before = span_of(window_of("day", zone), _at(zone, 2024, 9, 7, 23, 30))
    assert before.end == after.start == _at(zone, 2024, 9, 8, 1)


@given(
    st.sampled_from(ZONES),
    st.sampled_from(("day", "week", "month")),
    st.datetimes(datetime(1990, 1, 1), datetime(2035, 1, 1)),
    st.integers(0, 86_400),
)
def test_spans_are_a_partition_of_time(zone: str, per: str, moment: datetime, step: int) -> None:
    """Whatever the zone does to its clocks, spans touch, do not overlap, and each instant has one."""
    window = window_of(per, zone)
    now = moment.replace(tzinfo=ZoneInfo("UTC")).timestamp()
    span = span_of(window, now)
    assert span.end is not None
    assert span.start <= now < span.end
    later = now + step
    other = span_of(window, later)
    assert (other == span) == (later < span.end)
    assert span_of(window, span.end).start == span.end
    assert span_of(window, span.end).id != span.id
    assert timedelta(seconds=span.end - span.start) <= timedelta(days=32)


@given(st.floats(0.5, 86_400), st.floats(1e9, 2e9))
def test_a_bucket_is_forgotten_late_and_never_early(seconds: float, at: float) -> None:
    """An amount counts for a whole window and one to two buckets more, wherever in its bucket it lies."""
    window = Window("rolling", "x", seconds)
    end = bucket_end(seconds, bucket_of(window, at))
    rounding = 1e-5
    assert seconds + seconds / BUCKETS - rounding <= end - at <= seconds + 2 * seconds / BUCKETS + rounding


def test_periods_become_windows() -> None:
    """Seconds, minutes, hours and durations roll; day, week and month follow the calendar; `concurrent` has none."""
    assert window_of("minute") == Window("rolling", "minute", 60.0)
    assert window_of("12h") == Window("rolling", "12h", 43_200.0)
    assert window_of("day", "Asia/Tokyo") == Window("day", "day", 0.0, "Asia/Tokyo")
    assert window_of("total").kind == "total"
    assert window_of(None).kind == "running"
    assert span_of(window_of("minute"), 5.0).end is None


def test_a_meter_is_its_scope_name_unit_and_window() -> None:
    """Meters are equal by what they count, however the window was written."""
    one = Meter("key", "alice", "usd", window_of("minute"))
    assert one == Meter("key", "alice", "usd", window_of("60s"))
    assert (
        len({one, Meter("key", "alice", "usd", window_of("60s")), Meter("team", "alice", "usd", window_of("60s"))}) == 2
    )
    assert Meter("key", "a", "usd", window_of("day", "UTC")) != Meter("key", "a", "usd", window_of("day", "Asia/Tokyo"))


def test_money_is_whole_nano_dollars_rounded_down() -> None:
    """A limit is never rounded up, and never above what every store counts exactly."""
    assert units_of(Limit(usd=Decimal("0.1"), per="day")) == 100_000_000
    assert units_of(Limit(usd=Decimal("0.0000000019"), per="day")) == 1
    assert units_of(Limit(usd=Decimal(10**9), per="total")) == MAX_AMOUNT
    assert units_of(Limit(tokens=5, per="day")) == 5


def _policy() -> Policy:
    return Policy(
        server=Server(timezone="Europe/Berlin"),
        backends={"b": Backend(base_url="http://127.0.0.1:1", limits=(Limit(concurrent=4),))},
        models={"m": Model(backend="b", model="x", limits=(Limit(requests=9, per="minute"),))},
        teams={"t": Team(limits=(Limit(usd=Decimal(200), per="month"),))},
        keys={
            "alice": Key(
                hash="sha256:" + "0" * 64, team="t", limits=(Limit(usd=Decimal(5), per="day", alert_at=(0.8,)),)
            )
        },
        limits=(Limit(usd=Decimal(1000), per="month", soft=True),),
    )


def test_a_request_has_the_limits_of_its_key_team_model_backend_and_all() -> None:
    """Every scope contributes, with the zone of the policies and amounts in integer units."""
    found = limits_of(_policy(), "alice", "t", "b", "m")
    assert [(one.meter.id, one.amount, one.soft) for one in found] == [
        ("key:alice:usd:day@Europe/Berlin", 5 * NANO, False),
        ("team:t:usd:month@Europe/Berlin", 200 * NANO, False),
        ("model:m:requests:60s", 9, False),
        ("backend:b:concurrent:running", 4, False),
        ("all::usd:month@Europe/Berlin", 1000 * NANO, True),
    ]
    assert found[0].alert_at == (0.8,)


def test_a_managed_key_brings_its_own_limits() -> None:
    """What the policies do not know has no limits but those it is given."""
    found = limits_of(_policy(), "bob", None, None, None, [Limit(tokens=10, per="minute")])
    assert [one.meter.id for one in found] == ["key:bob:tokens:60s", "all::usd:month@Europe/Berlin"]


def test_of_two_limits_on_one_meter_the_tighter_stands() -> None:
    """One meter is charged once; a soft limit under a hard one lives on as alerts."""
    limits = [
        Limit(tokens=100, per="day"),
        Limit(tokens=50, per="day", soft=True, alert_at=(0.5,)),
        Limit(tokens=200, per="day"),
    ]
    (found, _) = limits_of(_policy(), "bob", None, None, None, limits)
    assert (found.amount, found.soft, found.alert_at) == (100, False, (0.25, 0.5))


def test_limits_are_told_in_words() -> None:
    """Amounts and limits read as a person writes them."""
    meter = Meter("key", "alice", "usd", window_of("day"))
    assert limit_text(MeterLimit(meter, 5 * NANO)) == "the limit of $5.00 per day on key alice"
    assert limit_text(MeterLimit(Meter("all", "", "concurrent", window_of(None)), 1)) == (
        "the limit of 1 concurrent request on everything together"
    )
    assert limit_text(MeterLimit(Meter("team", "t", "tokens", window_of("total")), 3000)) == (
        "the limit of 3,000 tokens in total on team t"
    )
    assert amount_text("usd", 1) == "$0.000000001"
    assert amount_text("usd", 1_230_000_000) == "$1.23"
    assert amount_text("requests", 1) == "1 request"
    assert amount_text("input_tokens", 2) == "2 input tokens"
