"""Why a hold was refused, and how that is told to a client."""

from dataclasses import dataclass
from typing import Literal

from gateway.budget.meter import MeterLimit, amount_text, limit_text, time_text
from gateway.errors import BudgetExceeded, BudgetHeld, GatewayError, LargerThanRate, RateLimited, Unavailable

Reason = Literal["exceeded", "held", "store_down"]


@dataclass(eq=False)
class Refused(Exception):
    """No hold, because of one limit.

    `exceeded`: what is spent, or in doubt, leaves too little. `held`: running requests hold what is missing, or another
    worker does. `store_down`: the store did not answer, and the limit is hard. `needed` and `remaining` are in the
    meter's unit; `reset_at` in epoch seconds, None if it never resets; `retry_after` in seconds, None if waiting is no
    use.
    """

    limit: MeterLimit
    reason: Reason
    needed: int
    remaining: int
    reset_at: float | None
    retry_after: float | None


def to_error(refused: Refused) -> GatewayError:
    """The answer for a client: by CONTRACT section 3.

    Money, and whatever never resets, is a budget; tokens and requests per time are a rate, with the time to come back.
    """
    limit = refused.limit
    unit = limit.meter.unit
    if refused.reason == "store_down":
        return Unavailable(
            f"{limit_text(limit)} cannot be checked: the gateway's store does not answer; try again shortly",
            code="store_unavailable",
        )
    if unit == "concurrent":
        return RateLimited(
            f"{limit_text(limit)} is reached; wait for one of the running requests to end",
            code="concurrency_exceeded",
            retry_after=refused.retry_after,
        )
    message = _message(refused)
    if unit != "usd" and limit.meter.window.kind != "total":
        kind = LargerThanRate if refused.needed > limit.amount else RateLimited
        return kind(message, retry_after=refused.retry_after)
    if refused.reason == "held":
        return BudgetHeld(message, retry_after=refused.retry_after)
    return BudgetExceeded(message)


def _message(refused: Refused) -> str:
    unit = refused.limit.meter.unit
    left = f"{amount_text(unit, refused.remaining)} left, and this request may need {amount_text(unit, refused.needed)}"
    if refused.reason == "held":
        return f"{limit_text(refused.limit)} is held by running requests: {left}; try again when one of them has ended"
    when = "it never resets" if refused.reset_at is None else f"it resets at {time_text(refused.reset_at)}"
    if refused.needed > refused.limit.amount:
        advice = "ask for less output or send less"
        return f"{limit_text(refused.limit)} is smaller than this request: {left}; {advice}; {when}"
    return f"{limit_text(refused.limit)} is used up: {left}; {when}"
