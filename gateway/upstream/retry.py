"""What a failure means and what follows from it: again, the next candidate, or the client's own answer. Pure.

failure                                             then
408 409 5xx 529, reset, refused, DNS                again on the same backend within the retry budget, then the next
429 with a short Retry-After                        next; waited for only when nothing else can answer sooner
429 quota or billing, 401, 403                      next; the api key rests
no token within `first_token`                       next, never the silent one again
context_length_exceeded                             next with a larger context, else the client sees it
other 400, 404, 413, 422, other 4xx                 the client sees it
what is not a chat completion                       next
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

import orjson

from gateway.policy.schema import Retry

MAX_WAIT = 5.0
DEFAULT_REST = 30.0
KEY_REST = 60.0
_TRANSIENT = frozenset((408, 409, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529))
_NO_MONEY = ("insufficient_quota", "billing", "quota_exceeded", "credit")
_NO_ROOM = ("context_length_exceeded", "maximum context length", "context window", "exceed_context_size")


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
        return self.kind in (Kind.CLIENT, Kind.TOO_LONG)


def classify(status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes, now: float) -> Failure:
    """What an answer with an error status means; `now` is in seconds since the epoch, for dates in Retry-After."""
    words = _words_of(body)
    wait = retry_after(headers, now)
    kind = _kind_of(status, words)
    return Failure(kind, f"status {status}", status=status, retry_after=wait, headers=headers, body=body)


def _kind_of(status: int, words: str) -> Kind:
    if status == 429:
        return Kind.NO_QUOTA if any(word in words for word in _NO_MONEY) else Kind.RATE_LIMITED
    if status == 402:
        return Kind.NO_QUOTA
    if status in (401, 403, 407):
        return Kind.AUTH
    if status in (400, 413, 422) and any(word in words for word in _NO_ROOM):
        return Kind.TOO_LONG
    if status in _TRANSIENT or status >= 500:
        return Kind.TRANSIENT
    if status >= 400:
        return Kind.CLIENT
    return Kind.INVALID


def _words_of(body: bytes) -> str:
    """The code, type and message of an error body, in lower case, whatever its shape."""
    try:
        doc: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    error = doc.get("error", doc) if isinstance(doc, Mapping) else doc
    if isinstance(error, Mapping):
        return " ".join(str(error.get(name) or "") for name in ("code", "type", "message")).lower()
    return str(error).lower()


def retry_after(headers: Sequence[tuple[bytes, bytes]], now: float) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `retry-after` (a number or a date, RFC 9110 section 10.2.3)."""
    found = {name: value for name, value in headers if name in (b"retry-after", b"retry-after-ms")}
    try:
        if b"retry-after-ms" in found:
            return max(0.0, float(found[b"retry-after-ms"]) / 1000)
        if b"retry-after" not in found:
            return None
        return max(0.0, float(found[b"retry-after"]))
    except ValueError:
        return _seconds_until(found.get(b"retry-after", b"").decode("latin-1"), now)


def _seconds_until(date: str, now: float) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
    except ValueError:
        return None
    return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now)


def backoff(resend: int, settings: Retry, chance: float) -> float:
    """Seconds before the try number `resend` (1 is the first again), with full jitter from `chance` in [0, 1)."""
    return chance * min(settings.backoff * 2.0 ** (resend - 1), settings.max_backoff)


class RetryBudget:
    """At most SHARE of a backend's requests in the last WINDOW seconds may be retries, and never fewer than FLOOR."""

    SHARE = 0.2
    FLOOR = 3
    WINDOW = 60
    _BUCKETS = 12

    __slots__ = ("_requests", "_retries", "_slice")

    def __init__(self) -> None:
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
        if sum(self._retries) >= max(self.FLOOR, int(self.SHARE * sum(self._requests))):
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
