"""The story of one request: plan, hold, dispatch, relay, settle."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gateway.admission import Admission
from gateway.budget.escrow import Escrow
from gateway.budget.money import format_usd
from gateway.budget.recorder import Recorder
from gateway.budget.store import Store
from gateway.budget.tokenizer import Tokenizers
from gateway.errors import Unavailable
from gateway.exchange import Exchange
from gateway.formats.request import Request
from gateway.formats.tokens import estimate
from gateway.identity.principal import Principal
from gateway.policy.catalog import Route, Target
from gateway.policy.router import Wish, plan
from gateway.runtime import Runtime
from gateway.telemetry.records import Observer
from gateway.telemetry.traceparent import parse_traceparent
from gateway.telemetry.tracing import Tracer
from gateway.trip import Trip
from gateway.upstream.answer import Answer
from gateway.upstream.dispatch import Call, PassThrough, Pin, Reporter, Walk
from gateway.upstream.retry import HEDGE_FLOOR, HEDGE_SHARE, RetryBudget
from gateway.upstream.wire import Header

_NOT_PASSED = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"te", b"trailer", b"upgrade"),
        *(b"transfer-encoding", b"content-length", b"date", b"server", b"set-cookie", b"alt-svc", b"via"),
        *(b"x-request-id", b"retry-after", b"retry-after-ms", b"x-should-retry", b"strict-transport-security"),
    )
)
_NOT_PASSED_PREFIXES = (b"x-gateway-", b"x-ratelimit-", b"access-control-")


@dataclass(frozen=True, slots=True)
class Bank:
    """Where money is kept: this worker's escrow, its usage records on their way, and the store behind both."""

    store: Store
    escrow: Escrow
    recorder: Recorder
    tokenizers: Tokenizers


class Dice:
    """Chance from a seeded generator, and a turn for each balanced step."""

    def __init__(self, seed: int | None = None) -> None:
        self.chance: Callable[[], float] = random.Random(seed).random  # noqa: S311 - balance and jitter, no secret
        self._turns: Counter[str] = Counter()

    def turn(self, group: str) -> int:
        """How often this balanced step has had its turn."""
        taken = self._turns[group]
        self._turns[group] = taken + 1
        return taken


class Proxy:
    """Carries requests. `runtime` is the policies now in force; a request keeps those it began with."""

    def __init__(
        self,
        runtime: Runtime,
        bank: Bank,
        *,
        report: Reporter,
        observers: Sequence[Observer],
        dice: Dice,
        tracer: Tracer | None = None,
        rejected: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.runtime = runtime
        self.rejected = rejected
        self._bank = bank
        self._tracer = tracer
        self.observers = observers
        self.draining = False
        self.running = 0
        self.dice = dice
        self.report = report
        self._hedges: dict[str, RetryBudget] = {}
        self._labels: dict[tuple[str, str], list[Header]] = {}

    async def handle(
        self,
        trip: Trip,
        runtime: Runtime,
        principal: Principal,
        request: Request,
        *,
        headers: Sequence[Header],
        task: str | None,
        pin: Pin | None = None,
    ) -> Exchange:
        """Find a backend that answers this request. Raises GatewayError or PassThrough."""
        prompts = request.extent.prompts
        small = len(request.raw) <= runtime.catalog.smallest_context * prompts
        asked = 0 if small else estimate(request.text()) // prompts
        wish = Wish(request.model, task, asked, request.max_output, request.mode)
        now = time.monotonic()
        way = plan(runtime.catalog, principal, wish, runtime.backends, now, self.dice)
        admission = trip.admission = Admission(
            self._bank.escrow,
            runtime.terms,
            self._bank.tokenizers,
            principal,
            request,
            trip.request_id,
            degrade=(principal.on_budget or way.route.on_budget) == "degrade",
        )
        walk = trip.walk = Walk(
            way,
            Call(request, headers, principal.name, principal.priority, trip.trace, pin),
            backends=runtime.backends,
            slots=runtime.slots,
            gate=admission,
            clock=time.monotonic,
            dice=self.dice,
            report=self.report,
            hedges=self._hedge_budget(way.route),
        )
        try:
            answer = await walk.run()
        except asyncio.CancelledError:
            if walk.was_in_flight:
                self._leave_in_doubt(trip, walk, admission, request)
            raise
        finally:
            admission.give_up_unless(answered=walk.answered)
        admission = trip.admission = walk.gate
        trip.provider = answer.backend.settings.provider
        return Exchange(trip, walk, admission, answer, lambda answer: self._headers(trip, walk, answer), self.report)

    def _hedge_budget(self, route: Route) -> RetryBudget | None:
        if route.hedge is None:
            return None
        return self._hedges.setdefault(route.name, RetryBudget(HEDGE_SHARE, HEDGE_FLOOR))

    def _leave_in_doubt(self, trip: Trip, walk: Walk[Admission], admission: Admission, request: Request) -> None:
        """The client left while a backend worked: what it made nobody knows, so it costs what it was permitted to.

        Of a stream no token had come; it costs its prompt, and one token that may have been on its way.
        """
        if walk.candidate is None:
            return
        target = walk.candidate.target
        extent = request.extent
        given = estimate(request.text()) if extent.input_bound is None else extent.input_bound
        asked = extent.most(given, 1 if extent.writes else (request.max_output or 0) * request.n)
        usage = asked if request.stream and extent.writes else admission.most() or asked
        admission.settle(usage, trip.used(target, usage))

    def _headers(self, trip: Trip, walk: Walk[Admission], answer: Answer) -> list[Header]:
        """The headers of an answer, but for its length and its id."""
        headers = [
            pair
            for pair in answer.content.headers
            if pair[0] not in _NOT_PASSED and not pair[0].startswith(_NOT_PASSED_PREFIXES)
        ]
        headers += self.labels(walk.plan.route, answer.candidate.target)
        headers.append((b"x-gateway-attempts", b"%d" % walk.tried))
        if walk.queue_position:
            headers.append((b"x-gateway-queue-position", b"%d" % walk.queue_position))
        if trip.cost is not None:
            headers.append((b"x-gateway-cost-usd", format_usd(trip.cost).encode()))
        return headers + trip.admission.headers() if trip.admission is not None else headers

    def labels(self, route: Route, target: Target) -> list[Header]:
        """`x-gateway-route`, `-model` and `-backend`."""
        known = self._labels.get((route.name, target.name))
        if known is None:
            if len(self._labels) > 4096:
                self._labels.clear()
            known = self._labels[route.name, target.name] = [
                (b"x-gateway-route", _ascii(route.name)),
                (b"x-gateway-model", _ascii(target.name)),
                (b"x-gateway-backend", _ascii(target.backend)),
            ]
        return known

    def failed_labels(self, trip: Trip) -> list[Header]:
        """What an error that comes after routing says of where it went."""
        walk = trip.walk
        if walk is None:
            return []
        headers: list[Header] = [(b"x-gateway-route", _ascii(walk.plan.route.name))]
        if walk.candidate is not None:
            headers = [*self.labels(walk.plan.route, walk.candidate.target)]
        headers.append((b"x-gateway-attempts", b"%d" % walk.tried))
        return headers + trip.admission.headers() if trip.admission is not None else headers

    def begin(self, request_id: str, method: str, path: str, operation: str) -> Trip:
        """The trip of a request that has come in."""
        return Trip(request_id, method, path, operation, self.observers, self._bank.recorder)

    def trace(self, trip: Trip, headers: Mapping[bytes, bytes]) -> list[Header]:
        """Begin the trace of a request with these headers; what is to be sent on where it is not traced here."""
        traceparent, tracestate = headers.get(b"traceparent"), headers.get(b"tracestate")
        tracer = self._tracer
        if tracer is not None:
            trip.trace = tracer.start(trip.method, trip.path, traceparent, tracestate)
            trip.captures_content = tracer.captures_content
            if trip.trace is not None:
                return []
            tracestate = tracestate if parse_traceparent(traceparent) is not None else None
            traceparent = tracer.unsampled(traceparent)
        state = [(b"tracestate", tracestate)] if tracestate is not None else []
        return [(b"traceparent", traceparent), *state] if traceparent is not None else []

    def admit_work(self) -> None:
        """Raise Unavailable while the gateway is shutting down."""
        if self.draining:
            raise Unavailable("This gateway is shutting down; send the request again.", code="draining")


def pass_through_headers(error: PassThrough) -> list[Header]:
    """The headers of a backend's refusal that the client may see."""
    kept = [pair for pair in error.failure.headers if pair[0] == b"content-type"]
    return kept or [(b"content-type", b"application/json")]


def _ascii(text: str) -> bytes:
    return text.encode("ascii", "backslashreplace")
