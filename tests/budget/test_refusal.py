"""Refusals become the errors that the contract names, with messages that tell what to do."""

import pytest

from gateway.budget.meter import NANO, Meter, MeterLimit, window_of
from gateway.budget.refusal import Reason, Refused, to_error

DAY = MeterLimit(Meter("key", "alice", "usd", window_of("day")), 5 * NANO)
RATE = MeterLimit(Meter("key", "alice", "requests", window_of("minute")), 60)
TOTAL = MeterLimit(Meter("key", "alice", "tokens", window_of("total")), 100)
RUNNING = MeterLimit(Meter("backend", "b", "concurrent", window_of(None)), 4)


def _error(
    limit: MeterLimit, reason: Reason, *, needed: int = 50, retry_after: float | None = 7.5
) -> tuple[int, str, str]:
    error = to_error(Refused(limit, reason, needed, 3, 1_772_323_200.0, retry_after))
    return error.status, error.code, error.type


@pytest.mark.parametrize(
    ("limit", "reason", "expected"),
    [
        (DAY, "exceeded", (429, "budget_exceeded", "insufficient_quota")),
        (DAY, "held", (429, "budget_held", "insufficient_quota")),
        (DAY, "store_down", (503, "store_unavailable", "service_unavailable_error")),
        (RATE, "exceeded", (429, "rate_limit_exceeded", "rate_limit_error")),
        (RATE, "held", (429, "rate_limit_exceeded", "rate_limit_error")),
        (TOTAL, "exceeded", (429, "budget_exceeded", "insufficient_quota")),
        (TOTAL, "held", (429, "budget_held", "insufficient_quota")),
        (RUNNING, "held", (429, "concurrency_exceeded", "rate_limit_error")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_each_refusal_has_its_error(limit: MeterLimit, reason: Reason, expected: tuple[int, str, str]) -> None:
    """Money is a budget, tokens and requests per time are a rate, and a silent store is neither."""
    assert _error(limit, reason) == expected


def test_a_used_up_budget_names_limit_rest_and_reset() -> None:
    """The message has everything a reader needs, and tells SDKs not to come back at once."""
    error = to_error(Refused(DAY, "exceeded", NANO, NANO // 4, 1_772_323_200.0, 100.0))
    assert error.message == (
        "the limit of $5.00 per day on key alice is used up: $0.25 left, and this request may need $1.00;"
        " it resets at 2026-03-01 00:00:00 UTC"
    )
    assert (b"x-should-retry", b"false") in error.headers()


def test_a_request_larger_than_its_limit_is_told_so() -> None:
    """Waiting will not help a request that no window can pay for; the limit and its reset are named all the same."""
    error = to_error(Refused(DAY, "exceeded", 6 * NANO, 5 * NANO, 1_772_323_200.0, None))
    assert error.message == (
        "the limit of $5.00 per day on key alice is smaller than this request: $5.00 left, and this request may need"
        " $6.00; ask for less output or send less; it resets at 2026-03-01 00:00:00 UTC"
    )


def test_a_request_larger_than_a_rate_is_not_to_be_sent_again() -> None:
    """No minute has room for it; SDKs that obey leave it at that, and one that would fit later is told when."""
    larger = to_error(Refused(RATE, "exceeded", 61, 60, 1_772_323_200.0, None))
    assert (larger.status, larger.code) == (429, "rate_limit_exceeded")
    assert dict(larger.headers()) == {b"retry-after": b"1", b"retry-after-ms": b"1000", b"x-should-retry": b"false"}
    assert b"x-should-retry" not in dict(to_error(Refused(RATE, "exceeded", 60, 3, 1_772_323_200.0, 7.5)).headers())


def test_a_limit_that_never_resets_says_so() -> None:
    """`total` has no reset."""
    assert "it never resets" in to_error(Refused(TOTAL, "exceeded", 50, 3, None, None)).message


def test_a_rate_says_when_to_come_back() -> None:
    """The exact wait is in both headers that SDKs read."""
    error = to_error(Refused(RATE, "exceeded", 1, 0, None, 1.25))
    assert error.headers() == [(b"retry-after", b"2"), (b"retry-after-ms", b"1250")]
