"""One worker's part of one account: what it was granted, what its requests hold of that and what they spent.

    available + held = granted        what the store has granted and not yet been told is spent
    spent                             all that this worker ever spent of the account; only rises

Pure arithmetic: `at` and `now` are seconds of a monotonic clock, amounts are in the meter's integer unit.
"""

from collections import deque

from gateway.budget.meter import BUCKETS, MeterLimit, Span
from gateway.budget.refusal import Refused
from gateway.budget.store import Account, Entry, Standing, account_of

_MOST_POINTS = 4 * BUCKETS  # points of a rolling window that are kept; more are merged, to the later time
_NEVER = float("inf")


class Grant:
    """What a worker may admit against without asking anyone; changed only by the escrow that owns it."""

    __slots__ = (
        "account",
        "acked",
        "alerted",
        "amount",
        "available",
        "base",
        "contested_until",
        "end",
        "fading",
        "fractions",
        "grain",
        "held",
        "holds",
        "key",
        "limit",
        "points",
        "refusal",
        "refusal_need",
        "refusal_until",
        "rolling",
        "room",
        "soft",
        "spent",
        "standing",
        "standing_at",
        "start",
        "stated",
        "unit",
        "used",
        "used_at",
        "used_before",
        "void",
    )

    def __init__(self, limit: MeterLimit, span: Span) -> None:
        self.key = limit.meter.id
        self.unit = limit.meter.unit
        self.account: Account = account_of(limit.meter, span)
        self.rolling = self.account.rolling
        self.grain = (self.rolling or 0.0) / BUCKETS / 2  # seconds; what is nearer than that is one point
        self.fading = self.account.forget is not None  # not to be used once the lease has run out
        self.start = span.start
        self.end = _NEVER if span.end is None else span.end
        self.available = self.held = self.spent = 0
        self.holds = 0  # how many, those of nothing included: they may be resized, or overrun
        self.acked = self.base = 0
        self.points: deque[tuple[float, int]] = deque()
        self.used = self.used_before = 0
        self.used_at = 0.0
        self.contested_until = 0.0
        self.void = False  # the lease ran out since it was last stated: others may have drawn it
        self.stated: tuple[int, int, int] | None = None
        self.standing: Standing | None = None
        self.standing_at = 0.0
        self.room = 0
        self.alerted: set[float] = set()
        self.set_limit(limit)

    def __repr__(self) -> str:
        return f"<Grant {self.account.id} available={self.available} held={self.held} spent={self.spent}>"

    def set_limit(self, limit: MeterLimit) -> None:
        """Stand under this limit from now on; what is idle is drawn anew under it."""
        self.limit = limit
        self.amount = limit.amount
        self.soft = limit.soft
        self.fractions = (*limit.alert_at, 1.0) if limit.soft else limit.alert_at
        self.available = 0
        self.refusal: Refused | None = None
        self.refusal_need = 0
        self.refusal_until = 0.0

    @property
    def granted(self) -> int:
        """What the store must keep for this worker."""
        return self.available + self.held

    def give(self, held: int, cost: int, at: float) -> int:
        """End a hold of `held` that cost `cost`; returns by how much that was too little."""
        self.held -= held
        over = cost - held
        if not self.soft:
            self.available = self.available - over if over < self.available else 0  # negative `over` gives back
        if cost:
            self.count(cost, at)
        return max(over, 0)

    def count(self, cost: int, at: float) -> None:
        """Add to what is spent."""
        self.spent += cost
        if not self.rolling:
            return
        points = self.points
        if points:
            last = points[-1][0]
            if -self.grain < at - last < self.grain or len(points) >= _MOST_POINTS:
                points[-1] = (max(last, at), self.spent)
                return
        points.append((at, self.spent))

    def state(self, now: float, *, need: int = 0, want: int = 0, gone: bool = False) -> Entry:
        """What to tell the store."""
        if not self.rolling:
            spent: tuple[tuple[float, int], ...] = ((0.0, self.spent),) if self.spent > self.acked else ()
        else:
            spent = tuple((max(now - at, 0.0), total) for at, total in self.points if total > self.acked)
        return Entry(
            self.account, self.amount, spent, self.acked, self.granted, self.held, need=need, want=want, gone=gone
        )

    def take(self, entry: Entry, standing: Standing, now: float) -> None:
        """Learn what the store made of `entry`."""
        told = entry.spent[-1][1] if entry.spent else self.acked
        self.acked = max(self.acked, told)
        self.available += standing.drawn
        self.void = False
        self.stated = (told, entry.granted + standing.drawn, entry.held)
        self.standing = standing
        self.standing_at = now
        self.room = self.amount - standing.spent - standing.in_doubt - standing.granted
        self._trim(now)

    def forget_store(self) -> None:
        """The store has lost its memory: everything is to be stated again."""
        self.acked = self.base
        self.stated = None
        self.standing = None
        self.refusal = None

    def is_stated(self) -> bool:
        """Whether the store knows all there is to know."""
        return self.stated == (self.spent, self.available + self.held, self.held)

    def is_idle(self) -> bool:
        """Whether nothing of it is needed any more, and the store knows."""
        return self.holds == 0 and self.available == 0 and self.spent == self.acked and self.is_stated()

    def return_idle(self, now: float, *, everything: bool = False) -> None:
        """Lower `available` to what recent use makes likely to be needed; nothing, when others wait for it."""
        keep = 0
        if not everything and now >= self.contested_until and self.room > 0:
            keep = min(max(self.used, self.used_before), self.room // 8 + self.amount // 100)
        self.used_before, self.used = self.used, 0
        self.available = min(self.available, keep)

    def remaining(self, now: float) -> int | None:
        """What is known to be left for this worker to hold; None if the store was not asked yet."""
        if self.standing is None:
            return None
        cleared = self.standing.clears_in
        forgotten = self.standing.spent if cleared is not None and now - self.standing_at > cleared else 0
        return max(self.room + forgotten, 0) + self.available

    def _trim(self, now: float) -> None:
        lasting = self.account.forget or 0.0
        while self.points and self.points[0][1] <= self.acked and now - self.points[0][0] > lasting:
            self.base = self.points.popleft()[1]
