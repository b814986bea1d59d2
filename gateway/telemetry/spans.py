"""The span tree of a request, from its record and what was known when it came: server, genai, attempts. Pure."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from gateway.telemetry import names
from gateway.telemetry.content import input_json, output_json
from gateway.telemetry.names import GenAi
from gateway.telemetry.otlp import (
    CLIENT,
    FAILED,
    KEPT,
    SERVER,
    attribute,
    count,
    event,
    kept_attribute,
    measure,
    moment,
    span,
)
from gateway.telemetry.records import AttemptRecord, RequestRecord
from gateway.telemetry.traceparent import Parent, parse_traceparent

_MAX_TRACESTATE = 512  # characters (W3C Trace Context, 3.3.1.5)
_NOT_FAILED = frozenset(("ok", "lost_hedge", "cancelled", "client_gone"))


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of a traced request when it comes: its method and route, its trace, and the client's span.

    `trace_id` is in hex. `tracestate` is the client's, and None without a valid `traceparent`.
    """

    method: str
    route: str
    trace_id: bytes
    parent: Parent | None
    tracestate: bytes | None


def tree(origin: Origin, record: RequestRecord, genai: GenAi, new_id: Callable[[], bytes]) -> list[bytes]:
    """The encoded spans of a request that is over: server, and if it was sent anywhere genai and attempts under it.

    `new_id` gives the id of a span in hex.
    """
    trace_id = bytes.fromhex(origin.trace_id.decode())
    server_id = bytes.fromhex(new_id().decode())
    epoch = int(record.at * 1e9)
    started = record.started

    def at(moment: float) -> int:
        return epoch + int((moment - started) * 1e9)

    spans = [_server_span(origin, record, trace_id, server_id, epoch, at(record.ended))]
    if record.attempts:
        genai_id = bytes.fromhex(new_id().decode())
        spans.append(_genai_span(record, genai, trace_id, genai_id, server_id, at))
        for attempt in record.attempts:
            context = attempt.parent_context
            own = parse_traceparent(context) if context else None
            own_id = bytes.fromhex((own.span_id if own else new_id()).decode())
            spans.append(_attempt_span(attempt, record.method, trace_id, own_id, genai_id, at))
    return spans


def _server_span(origin: Origin, record: RequestRecord, trace_id: bytes, span_id: bytes, start: int, end: int) -> bytes:
    parts = [
        _request_attributes(origin.method, origin.route, record.status, record.outcome, record.key, record.team),
        _asked_attributes(record.route_label, record.task),
        attribute("gateway.request_id", record.request_id),
    ]
    if error := record.code or (record.outcome if record.outcome != "ok" else ""):
        parts.append(kept_attribute("error.type", error))
    if record.status >= 500 or record.outcome == "interrupted":
        parts.append(FAILED)
    parent = origin.parent
    return span(
        trace_id,
        span_id,
        bytes.fromhex(parent.span_id.decode()) if parent else b"",
        f"{origin.method} {origin.route}",
        SERVER,
        start,
        end,
        parts,
        remote_parent=parent is not None,
        trace_state=_printable_state(origin.tracestate),
    )


def _genai_span(
    record: RequestRecord,
    genai: GenAi,
    trace_id: bytes,
    span_id: bytes,
    parent_id: bytes,
    at: Callable[[float], int],
) -> bytes:
    last = record.telling
    begin = min(attempt.started - attempt.queued for attempt in record.attempts)
    parts = [
        _genai_attributes(record.operation, record.provider, last.model, record.stream),
        _routed_attributes(record.route_label, record.task, record.model_label, record.backend),
        _server_attributes(last.server_address, last.server_port),
    ]
    _add_request(parts, record)
    _add_response(parts, record, begin)
    _add_usage(parts, record, genai)
    if record.outcome in ("error", "interrupted"):
        parts += (kept_attribute("error.type", record.code or last.outcome), FAILED)
    elif record.outcome != "ok":
        parts.append(kept_attribute("error.type", record.outcome))
    if record.held_at is not None:
        begin = min(begin, record.held_at)
        parts.append(event(names.HELD.name, at(record.held_at), "gateway.hold_usd", record.hold / 1e9))
    if record.first_token is not None:
        parts.append(moment(names.FIRST.name, at(record.first_token)))
    name = f"{record.operation} {last.model}"
    return span(trace_id, span_id, parent_id, name, CLIENT, at(begin), at(record.ended), parts)


@lru_cache(KEPT)
def _request_attributes(method: str, route: str, status: int, outcome: str, key: str, team: str) -> bytes:
    parts = [
        attribute("http.request.method", method),
        attribute("http.route", route),
        attribute("url.path", route),
        attribute("url.scheme", "http"),
        attribute("http.response.status_code", status),
        attribute("gateway.outcome", outcome),
    ]
    return b"".join((*parts, *_named({"gateway.key": key, "gateway.team": team})))


@lru_cache(KEPT)
def _asked_attributes(route: str, task: str) -> bytes:
    return b"".join(_named({"gateway.route": route, "gateway.task": task}))


@lru_cache(KEPT, typed=True)
def _genai_attributes(operation: str, provider: str, model: str, stream: bool) -> bytes:
    parts = [
        attribute("gen_ai.operation.name", operation),
        attribute("gen_ai.provider.name", names.PROVIDERS.get(provider, provider)),
        attribute("gen_ai.request.model", model),
        attribute("gen_ai.request.stream", stream),
    ]
    return b"".join(parts)


@lru_cache(KEPT)
def _routed_attributes(route: str, task: str, model: str, backend: str) -> bytes:
    own = {"gateway.route": route, "gateway.task": task, "gateway.model": model, "gateway.backend": backend}
    return b"".join(_named(own))


@lru_cache(KEPT)
def _server_attributes(address: str, port: int) -> bytes:
    return attribute("server.address", address) + attribute("server.port", port) if address else b""


@lru_cache(KEPT)
def _attempt_attributes(method: str, model: str, backend: str, outcome: str, status: int | None, reason: str) -> bytes:
    parts = [
        attribute("http.request.method", method),
        attribute("gen_ai.request.model", model),
        attribute("gateway.backend", backend),
        attribute("gateway.outcome", outcome),
    ]
    if status is not None:
        parts.append(attribute("http.response.status_code", status))
    return b"".join((*parts, *_named({"gateway.attempt.reason": reason})))


def _named(values: Mapping[str, str]) -> Iterator[bytes]:
    return (attribute(key, value) for key, value in values.items() if value)


def _add_request(parts: list[bytes], record: RequestRecord) -> None:
    if record.max_tokens:  # 0 stands for an operation that writes nothing, as embeddings
        parts.append(kept_attribute("gen_ai.request.max_tokens", record.max_tokens))
    if record.temperature is not None:
        parts.append(kept_attribute("gen_ai.request.temperature", float(record.temperature)))
    if record.top_p is not None:
        parts.append(kept_attribute("gen_ai.request.top_p", float(record.top_p)))
    if record.input_messages:
        parts.append(attribute("gen_ai.input.messages", input_json(record.input_messages)))
    if record.output_text:
        parts.append(attribute("gen_ai.output.messages", output_json(record.output_text, record.finish_reasons)))


def _add_response(parts: list[bytes], record: RequestRecord, begin: float) -> None:
    if record.response_id:
        parts.append(attribute("gen_ai.response.id", record.response_id))
    if record.response_model:
        parts.append(kept_attribute("gen_ai.response.model", record.response_model))
    if record.finish_reasons:
        parts.append(kept_attribute("gen_ai.response.finish_reasons", record.finish_reasons))
    if record.stream and record.first_token is not None:
        parts.append(measure("gen_ai.response.time_to_first_chunk", record.first_token - begin))


def _add_usage(parts: list[bytes], record: RequestRecord, genai: GenAi) -> None:
    usage = record.usage
    if usage is not None:
        parts.append(count("gen_ai.usage.input_tokens", usage.input_tokens))
        parts.append(count("gen_ai.usage.output_tokens", usage.output_tokens))
        if usage.cached_input:
            parts.append(count("gen_ai.usage.cache_read.input_tokens", usage.cached_input))
        if usage.cache_write:
            parts.append(count(genai.cache_write, usage.cache_write))
        if usage.reasoning:
            parts.append(count("gen_ai.usage.reasoning.output_tokens", usage.reasoning))
        if usage.estimated:
            parts.append(kept_attribute("gateway.usage.estimated", value=True))
    if record.cost is not None:
        parts.append(measure("gateway.cost_usd", record.cost / 1e9))


def _attempt_span(
    attempt: AttemptRecord,
    method: str,
    trace_id: bytes,
    span_id: bytes,
    parent_id: bytes,
    at: Callable[[float], int],
) -> bytes:
    parts = [
        _attempt_attributes(method, attempt.model, attempt.backend, attempt.outcome, attempt.status, attempt.reason),
        _server_attributes(attempt.server_address, attempt.server_port),
    ]
    if attempt.resend:
        parts.append(kept_attribute("http.request.resend_count", attempt.resend))
    if attempt.detail:
        parts.append(attribute("gateway.attempt.detail", attempt.detail))
    if attempt.outcome != "ok":
        failed_by_status = attempt.status is not None and attempt.status >= 400
        parts.append(kept_attribute("error.type", str(attempt.status) if failed_by_status else attempt.outcome))
        if attempt.outcome not in _NOT_FAILED:
            parts.append(FAILED)
    if attempt.queued:
        parts.append(event(names.QUEUED.name, at(attempt.started), "gateway.queue_seconds", attempt.queued))
    if attempt.first_token is not None:
        parts.append(moment(names.FIRST.name, at(attempt.first_token)))
    start = at(attempt.started - attempt.queued)
    return span(trace_id, span_id, parent_id, f"{method} {attempt.backend}", CLIENT, start, at(attempt.ended), parts)


def _printable_state(tracestate: bytes | None) -> str:
    if not tracestate or len(tracestate) > _MAX_TRACESTATE or not tracestate.isascii():
        return ""
    return tracestate.decode("ascii")
