"""The values that stores share, and the arithmetic of a draw."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.budget.meter import Meter, span_of, window_of
from gateway.budget.store import Account, ManagedKey, UsageTotal, account_of, drawn_of, revoked, rotated, summed


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_draw_never_takes_more_than_is_free(need: int, more: int, rest: int) -> None:
    """A draw that fits gets its need, at most what it wanted, and at most a share of what is left beyond."""
    drawn = drawn_of(need, need + more, need + rest)
    assert need <= drawn <= min(need + more, need + rest)
    assert drawn - need <= rest // 8


def test_accounts_are_kept_per_window() -> None:
    """Calendar windows have an account for each run, others one for good; what heals by itself says when."""
    day = Meter("key", "a", "usd", window_of("day"))
    assert account_of(day, span_of(day.window, 0.0)) == Account("key:a:usd:day@UTC#1970-01-01", ends=86_400.0)
    minute = Meter("key", "a", "requests", window_of("minute"))
    assert account_of(minute, span_of(minute.window, 0.0)) == Account("key:a:requests:60s", 60.0, forget=60.5)
    running = Meter("key", "a", "concurrent", window_of(None))
    assert account_of(running, span_of(running.window, 0.0)) == Account("key:a:concurrent:running", forget=0.0)
    total = Meter("all", "", "usd", window_of("total"))
    assert account_of(total, span_of(total.window, 0.0)) == Account("all::usd:total")


def test_a_rotated_key_keeps_its_old_secret_for_a_while() -> None:
    """Rotation moves the old hash aside; revocation leaves neither."""
    key = rotated(ManagedKey("carol", "sha256:1", 1.0), "sha256:2", 60.0)
    assert (key.hash, key.previous, key.grace_until) == ("sha256:2", "sha256:1", 60.0)
    gone = revoked(key, 30.0)
    assert (gone.revoked_at, gone.previous, gone.grace_until) == (30.0, None, None)


def test_hours_become_days_of_a_zone() -> None:
    """Hours are added to the day they begin in."""
    rows = [(22, 1, 2, 3, 4), (23, 1, 2, 3, 4), (24, 1, 1, 1, 1)]
    assert summed(rows, "day", "UTC") == [UsageTotal("1970-01-01", 2, 4, 6, 8), UsageTotal("1970-01-02", 1, 1, 1, 1)]
    assert summed(rows, "day", "Europe/Berlin") == [
        UsageTotal("1970-01-01", 1, 2, 3, 4),
        UsageTotal("1970-01-02", 2, 3, 4, 5),
    ]
    assert summed([("b", 1, 1, 1, 1), ("a", 2, 2, 2, 2)], "key", "UTC")[0].name == "a"
