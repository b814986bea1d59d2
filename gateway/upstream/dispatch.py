"""Walks a plan: tries each candidate, and on a failure does what `retry` says follows from it. It knows no money."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, Self, TypeVar

from gateway.errors import GatewayError, InvalidRequest, Unavailable, UpstreamFailed, UpstreamTimeout
from gateway.formats.continuation import Continuation
from gateway.formats.request import Request, Untranslatable
from gateway.policy.router import RESTS, Candidate, Dice, Plan
from gateway.telemetry.records import AttemptRecord
from gateway.telemetry.tracing import RequestTrace
from gateway.upstream import openai
from gateway.upstream.answer import LOST_HEDGE, Answer, Place
from gateway.upstream.backend import ApiKey, Backend
from gateway.upstream.breaker import Permit, State
from gateway.upstream.openai import Failed
from gateway.upstream.retry import AGAIN, COUNTED, MAX_WAIT, Failure, Kind, RetryBudget, backoff
from gateway.upstream.slots import Slots
from gateway.upstream.wire import Header
from gateway.values import value

CANCELLED = "cancelled"
_INTERRUPTED = "interrupted"
_LATER = 0.005  # seconds added to a wait for a backend's rest, since a timer may be early by a millisecond
# what says nothing of the backend's other keys
_ONE_KEYS = frozenset((Kind.AUTH, Kind.NO_QUOTA, Kind.RATE_LIMITED, Kind.ELSEWHERE))


class Skip(Exception):
    """What `admit` raises when this candidate does not fit but another may; `error` is for when none does."""

    def __init__(self, error: GatewayError) -> None:
        super().__init__(error.message)
        self.error = error


class PassThrough(Exception):
    """A backend's own refusal of the request, which the client sees as it is."""

    def __init__(self, failure: Failure, backend: str) -> None:
        super().__init__(failure.detail)
        self.failure = failure
        self.backend = backend


@dataclass(frozen=True, slots=True)
class Pin:
    """Where something that the request refers to is kept: at this backend, under the api key with this label."""

    backend: str
    api_key: str


@value
class Call:
    """What is sent upstream: the client's request, and the headers of it that go on. `pin` says where it must go."""

    request: Request
    headers: Sequence[Header]
    key: str
    priority: int = 0
    trace: RequestTrace | None = None
    pin: Pin | None = None


class Reporter(Protocol):
    """Who is told what an operator should see as it happens."""

    def event(self, name: str, /, **fields: object) -> None:
        """Something happened to a backend or to one of its keys."""
        ...


class Gate(Protocol):
    """Who is asked before each try, and told when it goes out."""

    async def admit(self, candidate: Candidate) -> int | None:
        """The output limit to send, None to leave the client's. Raises Skip, or the GatewayError for the client."""
        ...

    def sending(self) -> None:
        """The request goes out now."""
        ...

    def rival(self) -> Self:
        """A gate of its own for the same request sent to a second candidate at the same time."""
        ...

    def release(self) -> None:
        """Nothing came of it."""
        ...


G = TypeVar("G", bound=Gate)


class Walk(Generic[G]):
    """One request's way along its plan. `tried` counts candidates, `records` every single try.

    `unsent` are tries that ended in a backend's queue. The record of a stream is whole once its Answer is closed.
    """

    def __init__(
        self,
        plan: Plan,
        call: Call,
        *,
        backends: Mapping[str, Backend],
        slots: Mapping[str, Slots],
        gate: G,
        clock: Callable[[], float],
        dice: Dice,
        report: Reporter,
        hedges: RetryBudget | None = None,
    ) -> None:
        self.plan = plan
        self.tried = 0
        self.queue_position = 0
        self.answered = False
        self.records: list[AttemptRecord] = []
        self.unsent: list[AttemptRecord] = []
        self.candidate: Candidate | None = None
        self._call = call
        self._backends = backends
        self._slots = slots
        self.gate = gate
        self._hedges = hedges
        self._clock = clock
        self._dice = dice
        self._report = report
        self._pending = deque(_pinned(plan.chosen, call.pin))
        self._failure: Failure | None = None
        self._error: GatewayError | None = None
        self._too_long = 0
        self._continuation: Continuation | None = None
        self._waited: list[Candidate] = []
        now = clock()
        self._resting = [(now + each.wait, each) for each in plan.candidates if each.wait is not None]

    async def run(self) -> Answer:
        """The first answer that a candidate gives.

        Raises PassThrough with a backend's own refusal, or a GatewayError when every candidate failed.
        """
        while True:
            while self._pending:
                candidate = self._pending.popleft()
                if self._too_long and (candidate.target.facts.context or 0) <= self._too_long:
                    continue
                self.candidate = candidate
                try:
                    if self._hedges is not None and self._pending:
                        answer = await self._race(candidate, self._hedges)
                    else:
                        answer = await self._try(candidate, self.gate, last=not self._pending)
                except Skip as skip:
                    self._error = skip.error
                except Unavailable as error:
                    self._error = error
                except Failed as failed:
                    self._failed(self.candidate, failed.failure)
                else:
                    self.answered = True
                    return answer
            if not await self._wait_for_one():
                raise self._verdict()

    async def go_on(self, request: Request, continuation: Continuation) -> Answer:
        """Continue a stream that was cut: at a later candidate whose model takes the assistant's beginning."""
        self._call = replace(self._call, request=request)
        self._continuation = continuation
        able = (candidate for candidate in self._pending if candidate.target.facts.prefill)
        self._pending = deque(
            replace(each, reason=f"{each.reason}; goes on with a stream that was cut") for each in able
        )
        self._resting.clear()
        self._failure = self._error = None
        return await self.run()

    def broke(self, answer: Answer, failure: Failure) -> None:
        """The stream of this answer failed after it had begun."""
        answer.whole = False
        answer.outcome = failure.kind.value if failure.kind is Kind.STALLED else _INTERRUPTED
        self._count(answer.backend, answer.permit, failure, self._clock())

    @property
    def was_in_flight(self) -> bool:
        """Whether the walk was cancelled while a backend was working on the request."""
        return bool(self.records) and self.records[-1].outcome == CANCELLED

    async def _wait_for_one(self) -> bool:
        """Nothing else can answer: wait for the first that asked for a short rest. False when there is none."""
        now = self._clock()
        soon = [(at, n) for n, (at, _) in enumerate(self._resting) if at - now <= MAX_WAIT]
        if not soon:
            return False
        at, candidate = self._resting.pop(min(soon)[1])
        await asyncio.sleep(max(0.0, at - now) + _LATER)
        self._pending.append(candidate)
        return True

    def _failed(self, candidate: Candidate, failure: Failure) -> None:
        self._failure = failure
        if failure.kind is Kind.CLIENT:
            raise PassThrough(failure, candidate.target.backend)
        if failure.kind is Kind.TOO_LONG:
            self._too_long = max(self._too_long, candidate.target.facts.context or 0, 1)
        backend = self._backends[candidate.target.backend]
        now = self._clock()
        if failure.kind in _ONE_KEYS and self._has_another_key(backend, now):
            self._pending.append(candidate)
        elif failure.kind is Kind.RATE_LIMITED and failure.retry_after is not None and candidate not in self._waited:
            self._waited.append(candidate)
            obstacle = backend.obstacle(now)
            wait = obstacle.seconds if obstacle is not None and obstacle.sure else failure.retry_after
            self._resting.append((now + wait, candidate))

    def _has_another_key(self, backend: Backend, now: float) -> bool:
        """Whether the backend has a key that this request has not tried, and that does not rest."""
        tries = sum(record.backend == backend.name for record in self.records)
        return tries < len(backend.keys) and backend.obstacle(now) is None

    async def _race(self, candidate: Candidate, hedges: RetryBudget) -> Answer:
        """Try a candidate, and the next one beside it when no token came in time; the first token wins."""
        hedges.request(self._clock())
        first = asyncio.create_task(self._try(candidate, self.gate, last=False))
        racing, gates, candidates = [first], [self.gate], [candidate]
        try:
            await asyncio.wait(racing, timeout=self._hedge_after(candidate))
            if not first.done() and self._may_hedge() and hedges.retry(self._clock()):
                gates.append(self.gate.rival())
                rival = replace(self._pending.popleft(), reason=f"hedge: {candidate.target.backend} was slow")
                candidates.append(rival)
                racing.append(asyncio.create_task(self._try(rival, gates[1], last=False)))
            winner = await _first_answer(racing)
        except BaseException:
            for task in racing:
                await _discard(task)
            for gate in gates[1:]:
                gate.release()
            raise
        for task in racing:
            if task is not winner:
                await _discard(task)
        self._note_lost()
        self.candidate = candidates[racing.index(winner)]
        try:
            answer = winner.result()
        except BaseException:
            for gate in gates[1:]:
                gate.release()
            raise
        self.gate = gates.pop(racing.index(winner))
        for gate in gates:
            gate.release()
        return answer

    def _note_lost(self) -> None:
        """What was cancelled while the walk itself goes on has lost against another."""
        for place, record in enumerate(self.records):
            if record.outcome == CANCELLED:
                self.records[place] = replace(record, outcome=LOST_HEDGE)

    def _may_hedge(self) -> bool:
        """Whether the next candidate may be asked beside this one: it is not to be troubled for nothing."""
        if not self._pending:
            return False
        backend = self._backends[self._pending[0].target.backend]
        now = self._clock()
        return backend.breaker.permits(now) and backend.obstacle(now) is None

    def _hedge_after(self, candidate: Candidate) -> float | None:
        """Seconds without a token after which a second candidate is asked; None for never."""
        hedge = self.plan.route.hedge
        if hedge is None:
            return None
        if hedge.after == "p95":
            return self._backends[candidate.target.backend].slow_after()
        return hedge.after

    async def _try(self, candidate: Candidate, gate: Gate, *, last: bool) -> Answer:
        backend = self._backends[candidate.target.backend]
        now = self._clock()
        if not last and not backend.breaker.permits(now):
            raise _left_alone(backend)
        if self.records:
            self._let_rest(candidate, backend, now)
        slots = self._slots.get(backend.name)
        queued = 0.0
        taken = False
        permit = answer = None
        self.tried += 1
        try:
            output = await gate.admit(candidate)
            if slots is not None:
                if not slots.take_now():
                    queued = await self._queue(slots, candidate, backend)
                taken = True
                if queued:
                    self._let_rest(candidate, backend, now + queued)
            now += queued
            permit = backend.breaker.permit_anyway(now) if last else backend.breaker.permit(now)
            if permit is None:
                raise _left_alone(backend)
            answer = await self._persist(candidate, backend, gate, permit, output, queued)
            answer.slots = slots
        except Untranslatable as error:
            self.tried -= 1
            raise Skip(error) from error
        except (GatewayError, Skip):
            self.tried -= 1
            raise
        finally:
            if answer is None:
                if permit is not None:
                    backend.breaker.abandoned(permit)
                if taken and slots is not None:
                    slots.release()
        return answer

    async def _queue(self, slots: Slots, candidate: Candidate, backend: Backend) -> float:
        """Wait for a slot; for how many seconds."""
        began = self._clock()
        self.queue_position = slots.waiting + 1
        outcome = CANCELLED
        try:
            self.queue_position = await slots.take(self._call.key, self._call.priority)
            outcome = ""
        except Unavailable as turned_away:
            outcome = turned_away.code
            raise
        finally:
            queued = self._clock() - began
            if outcome:
                self.unsent.append(_unsent(candidate, backend, outcome, began + queued, queued))
        return queued

    def _let_rest(self, candidate: Candidate, backend: Backend, now: float) -> None:
        """Leave a backend alone that has asked for it since the plan was made. Raises Skip."""
        obstacle = backend.obstacle(now)
        if obstacle is None or not obstacle.sure:
            return
        if candidate not in self._waited:
            self._waited.append(candidate)
            self._resting.append((now + obstacle.seconds, candidate))
        reason = f"Backend {backend.name!r} rests for {obstacle.seconds:.0f} s more: {obstacle.why}."
        raise Skip(Unavailable(reason, retry_after=obstacle.seconds))

    async def _persist(
        self, candidate: Candidate, backend: Backend, gate: Gate, permit: Permit, output: int | None, queued: float
    ) -> Answer:
        """Try one candidate as often as its failures and the backend's retry budget allow."""
        body = self._call.request.encode(
            candidate.target.model,
            provider=backend.speaks,
            max_output=output,
            output_field=backend.output_field,
        )
        backend.retries.request(self._clock())
        resend = 0
        while True:
            key = self._api_key(backend)
            if key is None:
                raise Failed(Failure(Kind.AUTH, f"no api key of backend {backend.name!r} is usable"))
            try:
                gate.sending()
                return await self._once(candidate, backend, permit, key, body, queued)
            except Failed as failed:
                failure = failed.failure
                now = self._clock()
                self._note(backend, permit, key, failure, now)
                wait = self._wait(backend, failure, resend, now)
                if wait is None:
                    raise
            resend += 1
            if wait:
                await asyncio.sleep(wait)

    def _api_key(self, backend: Backend) -> ApiKey | None:
        pin = self._call.pin
        pinned = backend.key_labelled(pin.api_key) if pin is not None and pin.backend == backend.name else None
        return pinned or backend.pick_key(self._clock())

    def _wait(self, backend: Backend, failure: Failure, resend: int, now: float) -> float | None:
        """Seconds until the same backend is tried again; None when it is not."""
        if failure.kind not in AGAIN or resend >= self.plan.route.retry.attempts:
            return None
        if backend.breaker.state(now) is State.OPEN or not backend.retries.retry(now):
            return None
        return backoff(resend + 1, self.plan.route.retry, self._dice.chance())

    async def _once(
        self,
        candidate: Candidate,
        backend: Backend,
        permit: Permit,
        key: ApiKey,
        body: bytes,
        queued: float,
    ) -> Answer:
        call = self._call
        request = call.request
        clock = self._clock
        started = clock()
        target = backend.prefix + request.path(backend.speaks)
        headers, parent = call.headers, None
        if call.trace is not None:
            parent = call.trace.attempt().traceparent
            headers = (*headers, (b"traceparent", parent), *call.trace.state_headers)
        events = None
        if request.stream:
            events = request.events(backend.speaks, self._continuation)
        backend.busy += 1
        outcome, detail, status, answer = CANCELLED, "", None, None
        try:
            answer = await openai.send(
                backend.wire,
                target + b"?" + backend.query if backend.query else target,
                (*headers, *key.headers),
                body,
                request=request,
                provider=backend.speaks,
                events=events,
                timeouts=self.plan.route.timeouts,
                clock=clock,
                epoch=time.time,
            )
            outcome, status = "ok", answer.status
        except Failed as failed:
            outcome, detail, status = failed.failure.kind.value, failed.failure.detail, failed.failure.status
            raise
        finally:
            ended = clock()
            self.records.append(
                AttemptRecord(
                    backend=backend.name,
                    model=candidate.target.model,
                    started=started,
                    ended=ended,
                    outcome=outcome,
                    status=status,
                    first_token=ended if answer is not None else None,
                    resend=self._tries_of(candidate),
                    reason=candidate.reason,
                    detail=detail,
                    queued=queued,
                    server_address=backend.host,
                    server_port=backend.port,
                    parent_context=parent,
                )
            )
            if answer is None:
                backend.busy -= 1
        backend.answered(ended - started, ended)
        if permit.probe:
            self._succeeded(backend, permit)
        return Answer(answer, candidate, backend, permit, key, Place(self.records, len(self.records) - 1, clock))

    def _succeeded(self, backend: Backend, permit: Permit) -> None:
        if backend.breaker.succeeded(permit, self.plan.route.breaker):
            self._report.event("breaker_closed", backend=backend.name)

    def _tries_of(self, candidate: Candidate) -> int:
        """How often this request was sent there before, a rest or another api key between."""
        target = candidate.target
        return sum((record.backend, record.model) == (target.backend, target.model) for record in self.records)

    def _note(self, backend: Backend, permit: Permit, key: ApiKey, failure: Failure, now: float) -> None:
        """Let the backend's health learn from a failure, and tell the operator what changed."""
        rested_until = key.rests_until
        backend.rest(failure, key, now)
        if key.rests_until > rested_until:
            seconds = round(key.rests_until - now, 1)
            self._report.event(
                "api_key_rests", backend=backend.name, api_key=key.label, seconds=seconds, reason=key.why
            )
        self._count(backend, permit, failure, now)

    def _count(self, backend: Backend, permit: Permit, failure: Failure, now: float) -> None:
        if failure.passes_through:  # it works: it has read the request and refused it
            self._succeeded(backend, permit)
        elif failure.kind in COUNTED and backend.breaker.failed(permit, now, self.plan.route.breaker):
            seconds = round(backend.breaker.open_until - now, 1)
            self._report.event("breaker_opened", backend=backend.name, seconds=seconds, reason=failure.detail)

    def _verdict(self) -> GatewayError | PassThrough:
        """What the client is told when no candidate answered."""
        failure = self._failure
        if failure is None:
            return self._error or nothing_available(self.plan)
        candidate = self.candidate
        if failure.passes_through and candidate is not None:
            return PassThrough(failure, candidate.target.backend)
        if self._error is not None and not isinstance(self._error, Unavailable):
            return self._error
        tried = "; ".join(f"{record.backend}: {record.outcome} ({record.detail})" for record in self.records[-5:])
        message = f"Every candidate of {self.plan.route.name!r} failed: {tried or failure.detail}."
        if failure.kind is Kind.SILENT:
            return UpstreamTimeout(message)
        if failure.kind in (Kind.AUTH, Kind.NO_QUOTA):
            return UpstreamFailed(message, code="upstream_auth")
        if failure.kind is Kind.INVALID:
            return UpstreamFailed(message, code="upstream_invalid_response")
        return UpstreamFailed(message, retry_after=failure.retry_after)


def nothing_available(plan: Plan) -> GatewayError:
    """The error when a plan has no candidate to try."""
    reasons = "; ".join(f"{candidate.target.name}: {candidate.reason}" for candidate in plan.candidates)
    if plan.never == "mode":
        return InvalidRequest(f"{plan.route.name!r} cannot answer this kind of request. {reasons}.", param="model")
    if plan.never == "too_long":
        return InvalidRequest(
            f"The prompt is too long for {plan.route.name!r}; shorten it, or ask for a model with a larger context. "
            f"{reasons}.",
            code="context_length_exceeded",
            param="messages",
        )
    rests = any(candidate.verdict is RESTS for candidate in plan.candidates)
    return Unavailable(
        f"No backend can take a request for {plan.route.name!r} now. {reasons}.",
        retry_after=plan.rests_for if rests else None,
    )


def _pinned(candidates: list[Candidate], pin: Pin | None) -> list[Candidate]:
    """Those at the backend that must be asked; all where the plan has none of it."""
    if pin is None:
        return candidates
    return [candidate for candidate in candidates if candidate.target.backend == pin.backend] or candidates


def _unsent(candidate: Candidate, backend: Backend, outcome: str, now: float, queued: float) -> AttemptRecord:
    return AttemptRecord(
        backend=backend.name,
        model=candidate.target.model,
        started=now,
        ended=now,
        outcome=outcome,
        reason=candidate.reason,
        queued=queued,
        server_address=backend.host,
        server_port=backend.port,
    )


def _left_alone(backend: Backend) -> Skip:
    return Skip(Unavailable(f"The breaker of backend {backend.name!r} is open."))


async def _first_answer(racing: list[asyncio.Task[Answer]]) -> asyncio.Task[Answer]:
    """The first task that gives an answer; when none does, one with a failure that the client may see, or the first."""
    left = set(racing)
    while left:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        for task in racing:
            if task in done and _gave_answer(task):
                return task
    return next((task for task in racing if _refused(task)), racing[0])


def _refused(task: asyncio.Task[Answer]) -> bool:
    """Whether the backend refused the request itself, which says more than that another was slow."""
    failed = None if task.cancelled() else task.exception()
    return isinstance(failed, Failed) and failed.failure.kind is Kind.CLIENT


def _gave_answer(task: asyncio.Task[Answer]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


async def _discard(task: asyncio.Task[Answer]) -> None:
    """End a try that lost: its connection is closed at once, and what it gave in the last moment is given back."""
    task.cancel()
    await asyncio.wait({task})
    if _gave_answer(task):
        answer = task.result()
        answer.outcome = LOST_HEDGE
        await answer.aclose()
