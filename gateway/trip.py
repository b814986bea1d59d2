"""What is learnt of one request on its way, and the record of it once it is over."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from gateway.admission import Admission
from gateway.budget.money import cost
from gateway.budget.recorder import Recorder
from gateway.budget.store import UsageRecord
from gateway.formats.request import Request
from gateway.formats.usage import Usage
from gateway.identity.principal import Principal
from gateway.policy.catalog import Target
from gateway.telemetry import names
from gateway.telemetry.content import asked
from gateway.telemetry.records import AttemptRecord, Observer, RequestRecord
from gateway.telemetry.tracing import RequestTrace
from gateway.upstream.answer import CLIENT_GONE
from gateway.upstream.dispatch import Walk

REFUSED = "upstream_refused"
# max_tokens, temperature, top_p, held_at, hold, input_messages and output_text of a RequestRecord
_Details = tuple[
    int | None, float | None, float | None, float | None, int, tuple[Mapping[str, Any], ...] | None, str | None
]
_NO_DETAILS: _Details = (None, None, None, None, 0, None, None)


class Trip:
    """One request. `waited` are seconds spent waiting for a stream; `cost` is in nano-dollars, None if unknown."""

    __slots__ = (
        "_observers",
        "_recorder",
        "admission",
        "at",
        "captures_content",
        "code",
        "cost",
        "finish_reasons",
        "first_token",
        "malformed",
        "method",
        "operation",
        "output_text",
        "parts",
        "path",
        "principal",
        "provider",
        "request",
        "request_id",
        "response_id",
        "response_model",
        "started",
        "status",
        "trace",
        "usage",
        "waited",
        "walk",
    )

    def __init__(
        self,
        request_id: str,
        method: str,
        path: str,
        operation: str,
        observers: Sequence[Observer],
        recorder: Recorder | None = None,
    ) -> None:
        self.request_id = request_id
        self.method = method
        self.path = path
        self.operation = operation
        self.at = time.time()
        self.started = time.monotonic()
        self._observers = observers
        self._recorder = recorder
        self.admission: Admission | None = None
        self.trace: RequestTrace | None = None
        self.captures_content = False
        self.output_text: str | None = None
        self.principal: Principal | None = None
        self.request: Request | None = None
        self.walk: Walk[Admission] | None = None
        self.status = 0
        self.code = ""
        self.provider = ""
        self.usage: Usage | None = None
        self.cost: int | None = None
        self.parts: list[tuple[Target, Usage, int | None]] = []
        self.first_token: float | None = None
        self.waited = 0.0
        self.malformed = 0
        self.finish_reasons: tuple[str, ...] = ()
        self.response_id = ""
        self.response_model = ""

    def used(self, target: Target, usage: Usage) -> int | None:
        """An attempt consumed this; its cost in nano-dollars. A request that went on elsewhere has several parts."""
        rates = target.facts.rates
        spent = cost(usage, rates) if rates is not None else None
        self.parts.append((target, usage, spent))
        if self.usage is None:
            self.usage, self.cost = usage, spent
        else:
            self.usage += usage
            self.cost = None if spent is None or self.cost is None else self.cost + spent
        return spent

    def finish(self, outcome: str) -> None:
        """Tell every observer; `outcome` is `ok`, `error`, `interrupted` or `client_gone`."""
        record = self._record(outcome)
        if self._recorder is not None and self.parts:
            for number, part in enumerate(self.parts, 1):
                how = outcome if number == len(self.parts) else "interrupted"
                self._recorder.add(_usage_record(record, *part, how))
        for observer in self._observers:
            observer.finished(record)
        if self.trace is not None:
            self.trace.finish(record)

    def _details(self) -> _Details:
        """What only a trace tells."""
        admission, request = self.admission, self.request
        doc = request.doc if request is not None else {}
        return (
            request.max_output if request is not None else None,
            _number(doc.get("temperature")),
            _number(doc.get("top_p")),
            admission.held_at if admission is not None else None,
            admission.held if admission is not None else 0,
            asked(doc) if self.captures_content else None,
            self.output_text if self.captures_content else None,
        )

    def _record(self, outcome: str) -> RequestRecord:
        ended = time.monotonic()
        walk, request, principal = self.walk, self.request, self.principal
        candidate = walk.candidate if walk is not None else None
        target = candidate.target if candidate is not None else None
        route = walk.plan.route if walk is not None else None
        attempts = _attempts(walk, outcome) if walk is not None else ()
        waited = self.waited
        for attempt in attempts:
            answered = attempt.ended if attempt.first_token is None else attempt.first_token
            waited += answered - attempt.started + attempt.queued
        details = self._details() if self.trace is not None else _NO_DETAILS
        max_tokens, temperature, top_p, held_at, hold, input_messages, output_text = details
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
            key=principal.name if principal is not None else "",
            team=(principal.team or "") if principal is not None else "",
            task=route.task if route is not None else "",
            route=route.name if route is not None else "",
            route_label=route.label if route is not None else "",
            model=target.name if target is not None else "",
            model_label=target.label if target is not None else "",
            backend=target.backend if target is not None else "",
            provider=self.provider,
            stream=request.stream if request is not None else False,
            usage=self.usage,
            cost=self.cost,
            first_token=self.first_token,
            overhead=max(0.0, ended - self.started - waited),
            finish_reasons=self.finish_reasons,
            response_id=self.response_id,
            response_model=self.response_model,
            malformed_events=self.malformed,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            held_at=held_at,
            hold=hold,
            input_messages=input_messages,
            output_text=output_text,
            trace_id=self.trace.trace_id.decode() if self.trace is not None else "",
            attempts=attempts,
        )


def refusal_code(body: bytes) -> str:
    """What to call a backend's own refusal: the code in its body if that is a known one, else `upstream_refused`."""
    try:
        doc = orjson.loads(body)
    except orjson.JSONDecodeError:
        return REFUSED
    error = doc.get("error") if isinstance(doc, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) and code in names.CODES and code else REFUSED


def _attempts(walk: Walk[Admission], outcome: str) -> tuple[AttemptRecord, ...]:
    """Every try as it began. A stream that was left although its client is still there was interrupted."""
    found = [*walk.records, *walk.unsent]
    if len(found) > 1:
        found.sort(key=lambda attempt: attempt.started)
    if outcome == CLIENT_GONE:
        return tuple(found)
    return tuple(replace(each, outcome="interrupted") if each.outcome == CLIENT_GONE else each for each in found)


def _usage_record(record: RequestRecord, target: Target, usage: Usage, spent: int | None, outcome: str) -> UsageRecord:
    tries = [each for each in record.attempts if (each.backend, each.model) == (target.backend, target.model)]
    return UsageRecord(
        at=record.at,
        request_id=record.request_id,
        key=record.key,
        team=record.team,
        task=record.task,
        route=record.route,
        model=target.name,
        backend=target.backend,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost=spent or 0,
        cached_tokens=usage.cached_input,
        cache_write_tokens=usage.cache_write,
        reasoning_tokens=usage.reasoning,
        price=target.facts.price,
        duration=record.ended - record.started,
        time_to_first_token=record.first_token - record.started if record.first_token is not None else None,
        retries=tries[-1].resend if tries else 0,
        outcome=outcome,
        estimated=usage.estimated,
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
