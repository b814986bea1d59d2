"""Each worker's escrow: requests are admitted against grants in memory; the store is asked only when a grant is short.

    cost <= hold                 the caller sees to it: what is sent upstream permits no more than the hold pays for
    holds + spent <= grant       here, synchronously, for each account
    grants + spent <= limit      in the store, one transaction for all of a request's limits

A background round, about twice a second, tells the store what was spent, returns what lies idle and renews the lease.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gateway.budget.grant import Grant
from gateway.budget.hold import Alert, Hold, HoldClosed, HoldExists, Overrun
from gateway.budget.meter import MeterLimit, Span, span_of
from gateway.budget.refusal import Reason, Refused
from gateway.budget.store import RECALL, Entry, Reply, Report, Standing, Store, StoreDown

Charges = Sequence[tuple[MeterLimit, int]]
_Wanted = Sequence[tuple[Grant, int, int]]  # what is wanted of a grant now, and in all

INTERVAL = 0.5  # seconds between two rounds
LEASE = 10.0  # seconds after which a worker that is not heard of is taken for dead
PROBE = 0.25  # seconds for which a store that did not answer is not asked again
_ENTRIES = 200  # accounts in one report of a round: what a store takes well within its timeout
_FORGET = 3600.0  # seconds after which an account that is not used is dropped from memory
_REMEMBER = {"exceeded": 0.5, "held": 0.05}  # seconds for which a refusal is given again without asking
_ALWAYS = 10 * 365 * 86_400.0  # seconds for which an alert on a limit that never resets is not repeated


@dataclass(frozen=True, slots=True)
class _Ask:
    """`more` is wanted of a grant, `amount` in all with what is held already; `need` of it is not at hand."""

    grant: Grant
    more: int
    amount: int
    need: int


class Escrow:
    """One worker's grants and holds. `worker` must be new for every start of a process.

    `clock` gives epoch seconds, `monotonic` seconds that only rise; `store_down` may be set again at any time.
    `on_overrun` and `on_alert` are called in the event loop and must not block.
    """

    def __init__(
        self,
        store: Store,
        worker: str,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        interval: float = INTERVAL,
        lease: float = LEASE,
        store_down: Literal["deny", "allow"] = "deny",
        on_overrun: Callable[[Overrun], None] | None = None,
        on_alert: Callable[[Alert], None] | None = None,
    ) -> None:
        self.store_down = store_down
        self.overruns = 0
        self._store = store
        self._worker = worker
        self._clock = clock
        self._monotonic = monotonic
        self._interval = interval
        self._lease = lease
        self._on_overrun = on_overrun
        self._on_alert = on_alert
        self._grants: dict[str, Grant] = {}
        self._former: list[Grant] = []  # of windows that are over, until the store knows all of them
        self._holds: dict[str, Hold] = {}
        self._desk = asyncio.Lock()  # one exchange with the store at a time
        self._number = 0
        self._epoch = ""
        self._leased_until = 0.0
        self._down_until = 0.0
        self._answered = False
        self._wake = asyncio.Event()
        self._rounds: asyncio.Task[None] | None = None

    @property
    def open_holds(self) -> int:
        """How many holds are neither settled nor released."""
        return len(self._holds)

    @property
    def is_store_down(self) -> bool:
        """Whether the last exchange failed, a moment ago."""
        return self._monotonic() < self._down_until

    # In memory, without I/O.

    def try_hold(self, hold_id: str, charges: Charges) -> Hold | None:
        """Hold all of the charges, no meter named twice, if the grants at hand cover them; else None, and no change."""
        if hold_id in self._holds:
            raise HoldExists(f"a hold {hold_id!r} is open already")
        now = self._clock()
        monotonic = self._monotonic()
        leased = monotonic < self._leased_until
        grants = self._grants
        parts = []
        for limit, amount in charges:
            grant = grants.get(limit.meter.id)
            if grant is None or not grant.start <= now < grant.end or grant.limit is not limit:
                grant = self._grant(limit, now)
            if amount > grant.available and not grant.soft:
                return None
            if grant.fading and amount and not grant.soft and (grant.void or not leased):
                return None
            parts.append((grant, amount))
        for grant, amount in parts:
            grant.holds += 1
            grant.held += amount
            grant.used += amount
            grant.used_at = monotonic
            if not grant.soft:
                grant.available -= amount
        hold = self._holds[hold_id] = Hold(hold_id, parts, now, monotonic)
        return hold

    def try_resize(self, hold: Hold, charges: Charges) -> bool:
        """Make a hold one of these charges, all or nothing; limits it no longer names get their part back."""
        self._check_open(hold)
        now = self._clock()
        monotonic = self._monotonic()
        parts = self._parts(hold, charges, now)
        before = {id(grant): amount for grant, amount in hold.parts}
        for grant, amount in parts:
            more = amount - before.get(id(grant), 0)
            lapsed = grant.fading and (grant.void or monotonic >= self._leased_until)
            if more > 0 and not grant.soft and (more > grant.available or lapsed):
                return False
        for grant, amount in hold.parts:
            grant.holds -= 1
            grant.give(amount, 0, monotonic)
        for grant, amount in parts:
            grant.holds += 1
            grant.held += amount
            grant.used += max(amount - before.get(id(grant), 0), 0)
            grant.used_at = monotonic
            if not grant.soft:
                grant.available -= amount
        self._wake_for(hold.parts, monotonic)
        hold.parts = parts
        return True

    def begin(self, hold: Hold) -> None:
        """The request is being sent: from now on it counts in rolling windows of `requests`, whatever becomes of it."""
        self._check_open(hold)
        at = self._monotonic()
        for index, (grant, amount) in enumerate(hold.parts):
            if amount and grant.unit == "requests" and grant.rolling:
                grant.give(amount, amount, at)
                hold.parts[index] = (grant, 0)
                hold.begun |= {grant.key}

    def settle(self, hold: Hold, actual: Mapping[str, int]) -> None:
        """The hold becomes its cost: `actual` by unit. A unit that is missing costs what was held, `concurrent` 0.

        Raises `HoldClosed` the second time. What cost more than was held is charged in full and told to `on_overrun`.
        """
        self._close(hold, "settled")
        at = self._monotonic()
        for grant, amount in hold.parts:
            grant.holds -= 1
            unit = grant.unit
            if unit == "concurrent":
                grant.give(amount, 0, at)
            elif unit == "requests":
                grant.give(amount, min(actual.get(unit, amount), amount), hold.taken)
            else:
                cost = actual.get(unit, amount)
                if grant.give(amount, cost, at) and not grant.soft:
                    self._overrun(Overrun(hold.id, grant.limit, amount, cost))
        self._wake_for(hold.parts, at)

    def release(self, hold: Hold) -> None:
        """The request produced nothing: the hold costs nothing. Raises `HoldClosed` the second time."""
        self._close(hold, "released")
        at = self._monotonic()
        for grant, amount in hold.parts:
            grant.holds -= 1
            grant.give(amount, 0, at)
        self._wake_for(hold.parts, at)

    def remaining(self, limit: MeterLimit) -> int | None:
        """What, as far as is known, a request may still hold of a limit; None if the store was not asked yet."""
        grant = self._grants.get(limit.meter.id)
        if (
            grant is None
            or (grant.limit is not limit and grant.limit != limit)
            or not grant.start <= self._clock() < grant.end
        ):
            return None
        return grant.remaining(self._monotonic())

    def budgets(self) -> list[tuple[MeterLimit, float]]:
        """Every limit in dollars that is in use here, and when the store was last asked about it."""
        return [(grant.limit, grant.standing_at) for grant in self._grants.values() if grant.unit == "usd"]

    def resets_in(self, limit: MeterLimit) -> float | None:
        """Seconds until all of a limit is there again, as far as is known; None if never, or unknown."""
        window = limit.meter.window
        if window.kind != "rolling":
            now = self._clock()
            span = span_of(window, now)
            return None if span.end is None else span.end - now
        grant = self._grants.get(limit.meter.id)
        if grant is None or grant.standing is None:
            return None
        now = self._monotonic()
        clears_in = (grant.standing.clears_in or 0.0) - (now - grant.standing_at)
        if clears_in > 0:
            return clears_in
        is_whole = (grant.remaining(now) or 0) >= limit.amount
        return 0.0 if is_whole else float(window.seconds)  # used since the store was asked

    # With the store, when memory does not suffice.

    async def hold(self, hold_id: str, charges: Charges) -> Hold:
        """Hold all of the charges, drawing from the store what is short; raises `Refused`."""

        def attempt() -> Hold | None:
            return self.try_hold(hold_id, charges)

        def wanted() -> _Wanted:
            now = self._clock()
            return [(self._grant(limit, now), amount, amount) for limit, amount in charges]

        return await self._obtain(attempt, wanted)

    async def resize(self, hold: Hold, charges: Charges) -> Hold:
        """As `try_resize`, drawing from the store what is short; raises `Refused`, and then the hold is as it was."""

        def attempt() -> Hold | None:
            return hold if self.try_resize(hold, charges) else None

        def wanted() -> _Wanted:
            before = {id(grant): amount for grant, amount in hold.parts}
            parts = self._parts(hold, charges, self._clock())
            return [(grant, amount - before.get(id(grant), 0), amount) for grant, amount in parts]

        return await self._obtain(attempt, wanted)

    async def survey(self, limits: Sequence[MeterLimit]) -> None:
        """Ask the store about limits of which `remaining` knows nothing; raises `StoreDown`."""
        if all(self.remaining(limit) is not None for limit in limits):
            return
        async with self._desk:
            unknown = [limit for limit in limits if self.remaining(limit) is None]
            if unknown:
                await self._exchange([(self._grant(limit, self._clock()), 0) for limit in unknown])

    async def standings(self, limits: Sequence[MeterLimit]) -> list[Standing]:
        """How limits stand in the store, this worker's newest numbers included; raises `StoreDown`.

        `idle` is what is granted and not held, whoever has it.
        """
        async with self._desk:
            grants = [self._grant(limit, self._clock()) for limit in limits]
            standings = (await self._exchange([(grant, 0) for grant in grants])).standings
        return [replace(one, idle=one.idle + grant.available) for grant, one in zip(grants, standings, strict=True)]

    async def flush(self) -> None:
        """One round: state what changed, return what is idle, renew the lease, tell alerts; raises `StoreDown`."""
        async with self._desk:
            now = self._monotonic()
            due = [grant for grant in (*self._grants.values(), *self._former) if self._is_due(grant, now)]
            for grant in due:
                grant.return_idle(now, everything=self._grants.get(grant.key) is not grant)
            renew = now > self._leased_until - self._lease / 2
            for some in _chunks(due) or [due] * renew:
                await self._exchange([(grant, 0) for grant in some], probe=True)
            await self._drop_unused(self._monotonic())
            await self._tell_alerts(due)

    async def start(self) -> None:
        """Begin the rounds."""
        self._rounds = asyncio.create_task(self._run(), name=f"escrow {self._worker}")

    async def aclose(self) -> None:
        """End the rounds, state everything and return all that is not held; raises `StoreDown` if that cannot be told.

        What is held still is in doubt from then on, so close after the last request.
        """
        if self._rounds is not None:
            self._rounds.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._rounds
            self._rounds = None
        async with self._desk:
            grants = [*self._grants.values(), *self._former]
            for grant in grants:
                grant.return_idle(self._monotonic(), everything=True)
            for some in _chunks(grants):
                await self._exchange([(grant, 0) for grant in some], probe=True)
            for some in _chunks([grant for grant in grants if grant.is_idle()]):
                await self._exchange([(grant, 0) for grant in some], probe=True, gone=True)
            await self._exchange([], probe=True, closing=True)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self.flush()
            except StoreDown:
                pass  # noted in `is_store_down`; the next round states it all again
            except Exception as error:  # noqa: BLE001  (a hook's failure must not end the rounds, and with them the lease)
                context = {"message": "a round of the escrow failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)
            await asyncio.sleep(self._interval / 25)  # settlements that free contested money come in bursts

    async def _obtain(self, attempt: Callable[[], Hold | None], wanted: Callable[[], _Wanted]) -> Hold:
        recalled = False
        while True:
            found = attempt()
            if found is not None:
                return found
            refused, worth_waiting = (None if recalled else self._remembered(wanted())), False
            if refused is None:
                async with self._desk:
                    found = attempt()
                    if found is not None:
                        return found
                    asks = self._short(wanted())
                    refused, worth_waiting = await self._draw(asks)
                    if refused is not None and refused.reason == "store_down" and self.store_down == "allow":
                        self._borrow(asks)
                        refused = None
                    found = attempt()
                    if found is not None:
                        return found
            if refused is None:
                continue  # the window rolled while the store was asked
            if recalled or not worth_waiting:
                raise refused
            recalled = True
            await asyncio.sleep(self._interval * 1.2)  # the others see the recall in their next round

    def _short(self, wanted: _Wanted) -> list[_Ask]:
        self._note_lapse(self._monotonic())
        asks = []
        for grant, more, amount in wanted:
            if grant.void:
                grant.available = 0
            if more > grant.available and not grant.soft:
                asks.append(_Ask(grant, more, amount, more - grant.available))
        return asks

    async def _draw(self, asks: list[_Ask]) -> tuple[Refused | None, bool]:
        """None when all was granted; else the refusal, and whether others have idle what is missing."""
        if not asks:
            return None, False
        try:
            reply = await self._exchange([(ask.grant, ask.need) for ask in asks])
        except StoreDown:
            return self._refusal(asks[0], "store_down", 1.0), False
        if reply.recovering:
            return self._refusal(asks[0], "store_down", 1.0), False
        if all(standing.drawn for standing in reply.standings):
            return None, False
        blocked = [pair for pair in zip(asks, reply.standings, strict=True) if pair[0].grant.room < pair[0].need]
        if not blocked:
            return None, False  # the limit was changed meanwhile: ask again under the new one
        refusals = [self._judge(ask, standing) for ask, standing in blocked]
        refused = next((one for one in refusals if one.reason == "exceeded"), refusals[0])
        covered = all(standing.idle + ask.grant.room >= ask.need for ask, standing in blocked)
        return refused, covered and refused.reason == "held"

    def _judge(self, ask: _Ask, standing: Standing) -> Refused:
        grant = ask.grant
        if standing.spent + standing.in_doubt + ask.amount <= grant.amount:
            refused = self._refusal(ask, "held", 1.0)
        else:
            ends_in = None if grant.end == float("inf") else grant.end - self._clock()
            refused = self._refusal(ask, "exceeded", standing.frees_in if grant.account.rolling else ends_in)
        lasts = _REMEMBER[refused.reason]
        if refused.retry_after is not None:
            lasts = min(lasts, refused.retry_after)
        grant.refusal, grant.refusal_need, grant.refusal_until = refused, ask.more, self._monotonic() + lasts
        return refused

    def _refusal(self, ask: _Ask, reason: Reason, retry_after: float | None) -> Refused:
        grant = ask.grant
        reset_in = self.resets_in(grant.limit)
        reset_at = None if reset_in is None else self._clock() + reset_in
        left = grant.remaining(self._monotonic()) or 0
        return Refused(grant.limit, reason, ask.amount, left, reset_at, retry_after)

    def _remembered(self, wanted: _Wanted) -> Refused | None:
        now = self._monotonic()
        for grant, more, amount in wanted:
            if grant.refusal is None or now >= grant.refusal_until:
                continue
            if more >= grant.refusal_need and more > grant.available:
                return replace(grant.refusal, needed=amount)
        return None

    def _borrow(self, asks: list[_Ask]) -> None:
        # `store_down: allow`: the books learn of it as of any grant, and may then stand above the limit.
        self._leased_until = max(self._leased_until, self._monotonic() + PROBE)
        for ask in asks:
            ask.grant.available += ask.need
            ask.grant.void = False

    async def _exchange(
        self,
        asks: Sequence[tuple[Grant, int]],
        *,
        probe: bool = False,
        gone: bool = False,
        closing: bool = False,
    ) -> Reply:
        if not probe and self._monotonic() < self._down_until:
            raise StoreDown("the store did not answer a moment ago")
        entries, sent, reply = await self._state(asks, gone=gone, closing=closing)
        self._down_until = 0.0
        if reply.epoch != self._epoch:
            self._meet(reply.epoch)
        if not reply.applied:
            raise StoreDown("the store has lost its books; they are being stated again")
        self._leased_until = sent + self._lease
        for (grant, _), entry, standing in zip(asks, entries, reply.standings, strict=True):
            grant.take(entry, standing, self._monotonic())
            if standing.recall:
                grant.contested_until = self._monotonic() + RECALL
        self._wake_for([(grant, 0) for grant, _ in asks], self._monotonic())
        return reply

    async def _state(
        self, asks: Sequence[tuple[Grant, int]], *, gone: bool, closing: bool
    ) -> tuple[tuple[Entry, ...], float, Reply]:
        while True:
            sent = self._monotonic()
            self._note_lapse(sent)
            entries = tuple(self._entry(grant, need, sent, gone=gone) for grant, need in asks)
            self._number += 1
            report = Report(self._worker, self._number, self._lease, entries, self._epoch, closing)
            try:
                reply = await self._store.sync(report)
            except StoreDown:
                # A store that answered just before gets a second chance: a busy event loop can miss a short timeout.
                if not self._answered:
                    self._down_until = self._monotonic() + PROBE
                    raise
                self._answered = False
                continue
            self._answered = True
            return entries, sent, reply

    def _note_lapse(self, now: float) -> None:
        # Renewing the lease does not bring back what the store has forgotten meanwhile: each grant must be stated anew.
        if now >= self._leased_until:
            for grant in (*self._grants.values(), *self._former):
                grant.void = grant.fading

    def _entry(self, grant: Grant, need: int, now: float, *, gone: bool) -> Entry:
        if grant.void:
            grant.available = 0
        grant.stated = None
        spare = 0 if grant.unit == "concurrent" or now < grant.contested_until else grant.amount // 100
        return grant.state(now, need=need, want=need + spare if need else 0, gone=gone)

    def _meet(self, epoch: str) -> None:
        if self._epoch:
            for grant in (*self._grants.values(), *self._former):
                grant.forget_store()
            self._wake.set()
        self._epoch = epoch

    def _grant(self, limit: MeterLimit, now: float) -> Grant:
        key = limit.meter.id
        grant = self._grants.get(key)
        if grant is not None and not grant.start <= now < grant.end:
            grant.available = 0
            self._former.append(grant)
            grant = None
        if grant is None:
            grant = self._grants[key] = self._former_or_new(limit, span_of(limit.meter.window, now))
        if grant.limit is not limit:
            if grant.limit != limit:
                grant.set_limit(limit)
            grant.limit = limit
        return grant

    def _former_or_new(self, limit: MeterLimit, span: Span) -> Grant:
        # A clock set back returns to a window that was over: an account has one grant, or its numbers would part.
        for grant in self._former:
            if grant.key == limit.meter.id and grant.start == span.start:
                self._former.remove(grant)
                return grant
        return Grant(limit, span)

    def _parts(self, hold: Hold, charges: Charges, now: float) -> list[tuple[Grant, int]]:
        mine = {grant.key: grant for grant, _ in hold.parts}
        return [
            (mine.get(limit.meter.id) or self._grant(limit, now), 0 if limit.meter.id in hold.begun else amount)
            for limit, amount in charges
        ]

    def _check_open(self, hold: Hold) -> None:
        if hold.state != "open":
            raise HoldClosed(f"the hold {hold.id!r} was {hold.state} before")

    def _close(self, hold: Hold, state: Literal["settled", "released"]) -> None:
        self._check_open(hold)
        hold.state = state
        del self._holds[hold.id]

    def _overrun(self, overrun: Overrun) -> None:
        self.overruns += 1
        if self._on_overrun is not None:
            self._on_overrun(overrun)

    def _wake_for(self, parts: Sequence[tuple[Grant, int]], now: float) -> None:
        for grant, _ in parts:
            if now < grant.contested_until and grant.available:
                self._wake.set()
                return

    def _is_due(self, grant: Grant, now: float) -> bool:
        watched = grant.account.rolling and now - grant.used_at < grant.account.rolling
        return bool(grant.available or watched or not grant.is_stated())

    async def _drop_unused(self, now: float) -> None:
        former = [grant for grant in self._former if grant.is_idle()]
        unused = [grant for grant in self._grants.values() if now - grant.used_at > _FORGET and grant.is_idle()]
        for some in _chunks([*former, *unused]):
            await self._exchange([(grant, 0) for grant in some], probe=True, gone=True)
        self._former = [grant for grant in self._former if grant not in former or not grant.is_idle()]
        for grant in unused:
            if grant.is_idle() and self._grants.get(grant.key) is grant:
                del self._grants[grant.key]

    async def _tell_alerts(self, grants: Sequence[Grant]) -> None:
        for grant in grants:
            used = grant.standing.spent + grant.standing.in_doubt if grant.standing is not None else 0
            for fraction in grant.fractions:
                if used == 0 or used < fraction * grant.amount:
                    grant.alerted.discard(fraction)
                elif fraction not in grant.alerted:
                    lasts = grant.account.rolling or min(grant.end - self._clock(), _ALWAYS)
                    first = await self._store.once(f"alert:{grant.account.id}:{fraction}", lasts)
                    grant.alerted.add(fraction)
                    if first and self._on_alert is not None:
                        self._on_alert(Alert(grant.limit, fraction, used))


def _chunks(grants: Sequence[Grant]) -> list[Sequence[Grant]]:
    return [grants[start : start + _ENTRIES] for start in range(0, len(grants), _ENTRIES)]
