"""What a failure means and what follows from it: again, the next candidate, or the client's own answer. Pure.

failure                                             then
408 409 498 5xx 529, reset, refused, DNS            again on the same backend within the retry budget, then the next
429 with a short Retry-After                        next; waited for only when nothing else can answer sooner
429 quota or billing, 401, 403                      next; the api key rests
no token within `first_token`                       next, never the silent one again
context_length_exceeded                             next with a larger context, else the client sees it
an earlier response that is not known here          the backend's other api keys, then the next, else the client sees it
other 400, 404, 413, 422, other 4xx                 the client sees it
what is not a chat completion                       next
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum
from math import isfinite
from typing import Any

import orjson

from gateway.policy import router
from gateway.policy.schema import Retry

MAX_WAIT = router.MAX_WAIT
MAX_REST = 86_400.0
KEY_REST = 60.0
_TRANSIENT = frozenset((408, 409, 425, 498, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529))
_NO_MONEY = ("insufficient_quota", "exceeded_current_quota", "billing", "insufficient balance", "credit")
_NO_MONEY_400 = ("your credit balance is too low", "you have reached your specified api usage limits")
_NO_ROOM = (
    *("context_length_exceeded", "exceed_context_size", "context length", "context window", "context limit"),
    *("context size", "prompt is too long", "input is too long", "exceeds the maximum number of tokens"),
    "tokens + `max_new_tokens` must be",
)
_UNKNOWN_ANSWER = "previous_response_not_found"
_COME_BACK = re.compile(r"(?:retry|try again) in (?:(\d{1,4})m)?(\d{1,9}(?:\.\d{1,9})?)(ms|s)\b")


class Kind(Enum):
    """What went wrong, as the metric `gateway_attempts_total` calls it."""

    TRANSIENT = "server_error"
    REFUSED = "connect_error"
    CUT = "read_error"
    SILENT = "timeout"
    STALLED = "stalled"
    RATE_LIMITED = "rate_limited"
    NO_QUOTA = "quota"
    AUTH = "auth"
    TOO_LONG = "context_length"
    CLIENT = "client_error"
    ELSEWHERE = "not_here"
    INVALID = "invalid_response"


AGAIN = frozenset((Kind.TRANSIENT, Kind.REFUSED, Kind.CUT))
COUNTED = frozenset((Kind.TRANSIENT, Kind.REFUSED, Kind.CUT, Kind.SILENT, Kind.STALLED, Kind.INVALID))


@dataclass(frozen=True, slots=True)
class Failure:
    """One try that did not give an answer. `retry_after` is in seconds; `body` is kept only to be passed through."""

    kind: Kind
    detail: str
    status: int | None = None
    retry_after: float | None = None
    headers: Sequence[tuple[bytes, bytes]] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)

    @property
    def passes_through(self) -> bool:
        """Whether the client may see the backend's own answer."""
        return self.kind in (Kind.CLIENT, Kind.TOO_LONG, Kind.ELSEWHERE)


def classify(status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes, now: float) -> Failure:
    """What an answer with an error status means; `now` is in seconds since the epoch, for dates in Retry-After."""
    labels, message = _said_in(body)
    kind = _kind_of(status, labels, message)
    wait = retry_after(headers, now)
    if wait is None and kind is Kind.RATE_LIMITED:
        wait = _said_wait(message)
    return Failure(kind, f"status {status}", status=status, retry_after=wait, headers=headers, body=body)


def _kind_of(status: int, labels: str, message: str) -> Kind:
    if status == 402:
        return Kind.NO_QUOTA
    if status == 429:
        return Kind.NO_QUOTA if _is_about_money(labels, message) else Kind.RATE_LIMITED
    if status in (401, 403, 407):
        return Kind.AUTH
    if status in (400, 404) and _UNKNOWN_ANSWER in labels:
        return Kind.ELSEWHERE
    if status in (400, 413, 422):
        if "billing" in labels or message.startswith(_NO_MONEY_400):
            return Kind.NO_QUOTA
        if any(words in labels or words in message for words in _NO_ROOM):
            return Kind.TOO_LONG
    if status in _TRANSIENT or status >= 500:
        return Kind.TRANSIENT
    if status >= 400:
        return Kind.CLIENT
    return Kind.INVALID


def _is_about_money(labels: str, message: str) -> bool:
    """Of a 429: what it calls itself counts first, for messages about rates advise to look at one's billing."""
    if any(words in labels for words in _NO_MONEY):
        return True
    if "rate_limit" in labels or "rate limit" in message or _COME_BACK.search(message):
        return False
    return any(words in message for words in _NO_MONEY)


def _said_in(body: bytes) -> tuple[str, str]:
    """What an error body calls itself (code, type, status) and its message, in lower case, whatever its shape."""
    try:
        doc: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", ""
    if isinstance(doc, list) and doc:  # Gemini's
        doc = doc[0]
    error = doc.get("error", doc) if isinstance(doc, Mapping) else doc
    if isinstance(error, Mapping):
        labels = " ".join(_word(error.get(name)) for name in ("code", "type", "status"))
        return labels, _word(error.get("message"))
    return "", _word(error)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, (str, int)) else ""


def _said_wait(message: str) -> float | None:
    """Seconds to wait, from a message: `try again in 1m2.5s`, `retry in 800ms` (OpenAI, Groq, Gemini)."""
    found = _COME_BACK.search(message)
    if found is None:
        return None
    seconds = float(found[2]) / (1000 if found[3] == "ms" else 1)
    return min(int(found[1] or 0) * 60 + seconds, MAX_REST)


def retry_after(headers: Sequence[tuple[bytes, bytes]], now: float) -> float | None:
    """Seconds to wait, at most MAX_REST, from `retry-after-ms` or `retry-after` (RFC 9110 section 10.2.3).

    The latter is a number or a date, for which `now` is in seconds since the epoch. None when neither can be read.
    """
    found = {name: value.decode("latin-1") for name, value in headers if name.startswith(b"retry-after")}
    milliseconds = _number(found.get(b"retry-after-ms", ""))
    if milliseconds is not None:
        return min(milliseconds / 1000, MAX_REST)
    value = found.get(b"retry-after", "")
    seconds = _number(value)
    if seconds is None:
        seconds = _seconds_until(value, now)
    return None if seconds is None else min(seconds, MAX_REST)


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return max(0.0, number) if isfinite(number) else None


def _seconds_until(date: str, now: float) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
    except ValueError:
        return None
    return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now)


def backoff(resend: int, settings: Retry, chance: float) -> float:
    """Seconds before the try number `resend` (1 is the first again), with full jitter from `chance` in [0, 1)."""
    return chance * min(settings.backoff * 2.0 ** (resend - 1), settings.max_backoff)


RETRY_SHARE, RETRY_FLOOR = 0.2, 3
HEDGE_SHARE, HEDGE_FLOOR = 0.05, 1


class RetryBudget:
    """At most `share` of the requests in the last WINDOW seconds may be sent again, and never fewer than `floor`."""

    WINDOW = 60
    _BUCKETS = 12

    __slots__ = ("_floor", "_requests", "_retries", "_share", "_slice")

    def __init__(self, share: float = RETRY_SHARE, floor: int = RETRY_FLOOR) -> None:
        self._share = share
        self._floor = floor
        self._requests = [0] * self._BUCKETS
        self._retries = [0] * self._BUCKETS
        self._slice = 0

    def request(self, now: float) -> None:
        """A request was sent for the first time."""
        self._roll(now)
        self._requests[self._slice % self._BUCKETS] += 1

    def retry(self, now: float) -> bool:
        """Ask to send one again; true when the budget allows it, and then it is counted."""
        self._roll(now)
        if sum(self._retries) >= max(self._floor, int(self._share * sum(self._requests))):
            return False
        self._retries[self._slice % self._BUCKETS] += 1
        return True

    def _roll(self, now: float) -> None:
        current = int(now * self._BUCKETS / self.WINDOW)
        if current == self._slice:
            return
        for passed in range(max(self._slice + 1, current - self._BUCKETS + 1), current + 1):
            self._requests[passed % self._BUCKETS] = self._retries[passed % self._BUCKETS] = 0
        self._slice = current
