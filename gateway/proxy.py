"""The story of one request: plan, hold, dispatch, relay, settle."""

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import orjson

from gateway.budget.money import cost, format_usd
from gateway.errors import GatewayError, StreamBroken, Unavailable
from gateway.formats.chat import ChatRequest, text_of
from gateway.formats.chat_stream import DONE
from gateway.formats.tokens import estimate
from gateway.formats.usage import Usage
from gateway.identity.keyring import Keyring
from gateway.identity.principal import Principal
from gateway.policy.catalog import Catalog, Route, Target
from gateway.policy.router import Candidate, Wish, plan
from gateway.policy.schema import Policy
from gateway.telemetry.records import Observer, RequestRecord
from gateway.upstream.backend import Backend
from gateway.upstream.dispatch import Answer, Call, PassThrough, Reporter, Walk
from gateway.upstream.openai import Failed, Plain, Stream
from gateway.upstream.retry import COUNTED, Failure, Kind
from gateway.upstream.slots import Slots
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
class Runtime:
    """Everything that one set of policies makes; replaced as a whole when they are reloaded."""

    policy: Policy
    catalog: Catalog
    keyring: Keyring
    backends: Mapping[str, Backend]
    slots: Mapping[str, Slots]


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


class Trip:
    """What is learnt of one request on its way; `finish` makes the record of it, once."""

    __slots__ = (
        "_observers",
        "answer",
        "at",
        "code",
        "first_token",
        "malformed",
        "method",
        "operation",
        "path",
        "principal",
        "request",
        "request_id",
        "runtime",
        "started",
        "status",
        "usage",
        "waited",
        "walk",
    )

    def __init__(self, request_id: str, method: str, path: str, operation: str, observers: Sequence[Observer]) -> None:
        self.request_id = request_id
        self.method = method
        self.path = path
        self.operation = operation
        self.at = time.time()
        self.started = time.monotonic()
        self._observers = observers
        self.runtime: Runtime | None = None
        self.principal: Principal | None = None
        self.request: ChatRequest | None = None
        self.walk: Walk | None = None
        self.answer: Answer | None = None
        self.status = 0
        self.code = ""
        self.usage: Usage | None = None
        self.first_token: float | None = None
        self.waited = 0.0
        self.malformed = 0

    def finish(self, outcome: str) -> None:
        """Tell every observer; `outcome` is `ok`, `error`, `interrupted` or `client_gone`."""
        record = self._record(outcome)
        for observer in self._observers:
            observer.finished(record)

    def _record(self, outcome: str) -> RequestRecord:
        ended = time.monotonic()
        walk, request = self.walk, self.request
        candidate = walk.candidate if walk is not None else None
        target = candidate.target if candidate is not None else None
        route = walk.plan.route if walk is not None else None
        attempts = tuple(walk.records) if walk is not None else ()
        waited = self.waited + sum(attempt.ended - attempt.started + attempt.queued for attempt in attempts)
        content = self.answer.content if self.answer is not None else None
        events = content.events if isinstance(content, Stream) else None
        return RequestRecord(
            request_id=self.request_id,
            method=self.method,
            path=self.path,
            operation=self.operation,
            at=self.at,
            started=self.started,
            ended=ended,
            status=self.status,
            outcome=outcome,
            code=self.code,
            key=self.principal.name if self.principal is not None else "",
            team=(self.principal.team or "") if self.principal is not None else "",
            task=route.task if route is not None else "",
            route=route.name if route is not None else "",
            route_label=route.label if route is not None else "",
            model=target.name if target is not None else "",
            model_label=target.label if target is not None else "",
            backend=target.backend if target is not None else "",
            provider=self._provider(target),
            stream=request.stream if request is not None else False,
            usage=self.usage,
            cost=self.cost,
            first_token=self.first_token,
            overhead=max(0.0, ended - self.started - waited),
            finish_reasons=events.finish_reasons if events is not None else (),
            response_id=events.response_id if events is not None else "",
            response_model=events.response_model if events is not None else "",
            malformed_events=self.malformed,
            attempts=attempts,
        )

    def _provider(self, target: Target | None) -> str:
        if target is None or self.runtime is None:
            return ""
        return self.runtime.policy.backends[target.backend].provider

    @property
    def cost(self) -> int | None:
        """Nano-dollars; None while nothing was used or where nobody knows the price."""
        if self.usage is None or self.answer is None:
            return None
        rates = self.answer.candidate.target.facts.rates
        return cost(self.usage, rates) if rates is not None else None


class Proxy:
    """Carries requests. `runtime` is the policies now in force; a request keeps those it began with."""

    def __init__(self, runtime: Runtime, *, report: Reporter, observers: Sequence[Observer], dice: Dice) -> None:
        self.runtime = runtime
        self.observers = observers
        self.draining = False
        self.running = 0
        self.dice = dice
        self._report = report
        self._labels: dict[tuple[str, str], list[Header]] = {}

    async def handle(self, trip: Trip, path: bytes, headers: Sequence[Header], task: str | None) -> "Exchange":
        """Find a backend that answers this request. Raises GatewayError or PassThrough."""
        runtime, principal, request = trip.runtime, trip.principal, trip.request
        if runtime is None or principal is None or request is None:
            raise RuntimeError("a trip is handled before it is begun")
        asked = 0 if len(request.raw) <= runtime.catalog.smallest_context else estimate(text_of(request.doc))
        wish = Wish(request.model, task, asked, request.max_output)
        now = time.monotonic()
        way = plan(runtime.catalog, principal, wish, runtime.backends, now, self.dice)
        walk = trip.walk = Walk(
            way,
            Call(path, request, headers, principal.name, principal.priority),
            backends=runtime.backends,
            slots=runtime.slots,
            admit=_admit,
            clock=time.monotonic,
            dice=self.dice,
            report=self._report,
        )
        answer = trip.answer = await walk.run()
        return Exchange(trip, walk, answer, self._headers(trip, walk, answer), self._report)

    def _headers(self, trip: Trip, walk: Walk, answer: Answer) -> list[Header]:
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
        content = answer.content
        if isinstance(content, Plain):
            trip.usage = content.usage or _estimated(trip, content.text)
            if trip.cost is not None:
                headers.append((b"x-gateway-cost-usd", format_usd(trip.cost).encode()))
        return headers

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
        return headers

    def admit_work(self) -> None:
        """Raise Unavailable while the gateway is shutting down."""
        if self.draining:
            raise Unavailable("This gateway is shutting down; send the request again.", code="draining")


class Exchange:
    """An answer on its way to the client: `headers` and `body`, or a stream to be read. It must be closed.

    `ended` says that the answer is complete: nothing more will come from `read`.
    """

    __slots__ = ("_answer", "_head", "_report", "_trip", "_walk", "body", "ended", "headers", "status")

    def __init__(self, trip: Trip, walk: Walk, answer: Answer, headers: list[Header], report: Reporter) -> None:
        self._trip = trip
        self._walk = walk
        self._answer = answer
        self._report = report
        content = answer.content
        self.status = content.status
        self.headers = headers
        self.body = content.body if isinstance(content, Plain) else None
        self.ended = self.body is not None
        self._head = content.head if isinstance(content, Stream) else b""
        trip.first_token = time.monotonic()

    async def read(self) -> bytes:
        """The next bytes of a stream; `b""` when it is over. Raises StreamBroken when it cannot be finished."""
        content = self._answer.content
        if self.ended or isinstance(content, Plain):
            return b""
        data, self._head = self._head, b""
        if not data and not content.events.done:
            try:
                data = await content.read()
            except Failed as failed:
                raise self._broken(failed.failure) from failed
        events = content.events
        if data and not (events.done or events.broken or events.error is not None):
            return data
        if not events.whole:
            if data:
                return data
            raise self._broken(_why(content))
        self.ended = True
        return data + DONE

    async def aclose(self) -> None:
        """Give everything back, and settle. Idempotent."""
        trip, content = self._trip, self._answer.content
        if isinstance(content, Stream):
            events = content.events
            trip.waited = content.waited
            trip.malformed = events.malformed
            trip.usage = events.usage or _estimated(trip, delivered(content))
        await self._answer.aclose()

    def _broken(self, failure: Failure) -> StreamBroken:
        """What the client is told of a stream that was cut; the backend's health learns of it."""
        answer = self._answer
        if failure.kind in COUNTED and answer.backend.breaker.failed(answer.permit, time.monotonic()):
            self._report.event("breaker_opened", backend=answer.backend.name, reason=failure.detail)
        if failure.kind is Kind.STALLED:
            return StreamBroken(
                f"Backend {answer.backend.name!r} fell silent in the middle of the answer.", code="stream_stalled"
            )
        said = _said(answer.content)
        why = f" It said: {said}" if said else ""
        return StreamBroken(f"Backend {answer.backend.name!r} broke off in the middle of the answer.{why}")


def pass_through_headers(error: PassThrough) -> list[Header]:
    """The headers of a backend's refusal that the client may see."""
    kept = [pair for pair in error.failure.headers if pair[0] == b"content-type"]
    return kept or [(b"content-type", b"application/json")]


def delivered(stream: Stream) -> str:
    """All the text that a stream has given so far."""
    events = stream.events
    return "".join(piece for pieces in events.text.values() for piece in pieces) + "".join(events.other_text)


async def _admit(candidate: Candidate) -> int | None:
    del candidate
    return None


def _estimated(trip: Trip, text: str) -> Usage:
    """Usage that the backend did not report, from the text that passed."""
    request = trip.request
    asked = estimate(text_of(request.doc)) if request is not None else 0
    return Usage(input_tokens=asked, output_tokens=estimate(text), estimated=True)


def _why(stream: Stream) -> Failure:
    events = stream.events
    if events.error is not None:
        return Failure(Kind.TRANSIENT, "an error event in the stream")
    if events.broken:
        return Failure(Kind.INVALID, "an event without an end")
    return Failure(Kind.CUT, "a stream that ended without a finish_reason")


def _said(content: Plain | Stream) -> str:
    error = content.events.error if isinstance(content, Stream) else None
    if error is None:
        return ""
    inner = error.get("error")
    return str((inner if isinstance(inner, dict) else error).get("message") or inner or "")[:500]


def _ascii(text: str) -> bytes:
    return text.encode("ascii", "backslashreplace")


def error_event(error: GatewayError) -> bytes:
    """The one event that ends a stream which cannot be finished."""
    return b"data: " + orjson.dumps(error.to_openai()) + b"\n\n"
