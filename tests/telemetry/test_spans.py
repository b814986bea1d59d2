"""Span trees made from records: parents, kinds, statuses, attributes and times, for every way a request can go."""

from collections.abc import Sequence
from itertools import count
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateway.formats.usage import Usage
from gateway.telemetry import names, spans
from gateway.telemetry.otlp import Envelope
from gateway.telemetry.records import RequestRecord
from gateway.telemetry.spans import Origin
from gateway.telemetry.traceparent import Parent
from tests.telemetry.collector import Span, spans_of
from tests.telemetry.made import attempt, record

TRACE, CLIENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
AT = 1_750_000_000_250_000_000
NEAR = 1000  # nanoseconds that a float may be off


def tree(made: RequestRecord, genai: names.GenAi = names.GENAI_141, **origin: Any) -> list[Span]:
    """The spans of a record, decoded, server first."""
    ids = count(1)
    known = {
        "method": "POST",
        "route": "/v1/chat/completions",
        "trace_id": TRACE.encode(),
        "parent": None,
        "tracestate": None,
    }
    encoded = spans.tree(Origin(**(known | origin)), made, genai, lambda: b"%016x" % next(ids))
    return list(spans_of(ExportTraceServiceRequest.FromString(Envelope({}, "gateway", "1").request(encoded))))


def near(nanoseconds: int, seconds_since_start: float) -> bool:
    return abs(nanoseconds - AT - seconds_since_start * 1e9) < NEAR


def outline(found: Sequence[Span]) -> list[tuple[str, str, bool]]:
    return [(span.name, span.kind, span.failed) for span in found]


def test_a_streamed_success() -> None:
    """Server, genai and attempt under each other, with the record's own times, tokens on genai only."""
    server, genai, one = found = tree(record())
    assert outline(found) == [
        ("POST /v1/chat/completions", "SERVER", False),
        ("chat gpt-4o-mini", "CLIENT", False),
        ("POST openai", "CLIENT", False),
    ]
    assert {span.trace_id for span in found} == {TRACE}
    assert (server.parent_id, genai.parent_id, one.parent_id) == ("", server.span_id, genai.span_id)
    assert server.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "gateway.request_id": "req-1",
        "gateway.key": "alice",
        "gateway.team": "research",
        "gateway.route": "analysis",
        "gateway.task": "analysis",
        "gateway.outcome": "ok",
    }
    first_chunk = genai.attributes.pop("gen_ai.response.time_to_first_chunk")
    assert abs(first_chunk - 0.199) < 1e-6
    assert genai.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "gpt-4o-mini-2024",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 1000,
        "gen_ai.usage.output_tokens": 50,
        "gen_ai.usage.cache_read.input_tokens": 600,
        "gen_ai.usage.reasoning.output_tokens": 20,
        "server.address": "127.0.0.1",
        "server.port": 9999,
        "gateway.route": "analysis",
        "gateway.task": "analysis",
        "gateway.model": "gpt-mini",
        "gateway.backend": "openai",
        "gateway.cost_usd": 0.001234567,
    }
    assert one.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "gen_ai.request.model": "gpt-4o-mini",
        "server.address": "127.0.0.1",
        "server.port": 9999,
        "gateway.backend": "openai",
        "gateway.outcome": "ok",
        "gateway.attempt.reason": "first of the chain",
    }
    assert near(server.start, 0)
    assert near(server.end, 0.5)
    assert near(genai.start, 0.0005)
    assert near(genai.end, 0.5)
    assert near(one.start, 0.001)
    assert near(one.end, 0.5)
    (held, at_held, told), (first, at_first, _) = genai.events
    assert (held, told, first) == ("gateway.hold", {"gateway.hold_usd": 0.002}, "gateway.first_token")
    assert near(at_held, 0.0005)
    assert near(at_first, 0.2)
    assert [name for name, _, _ in one.events] == ["gateway.first_token"]


def test_a_retry_and_a_fallback() -> None:
    """Each try is a span of its own, with the count of earlier ones, its error, and its wait in the queue."""
    tries = (
        attempt(started=100.0, ended=100.1, outcome="server_error", status=503, first_token=None, detail="status 503"),
        attempt(started=100.15, ended=100.2, outcome="read_error", status=None, first_token=None, resend=1),
        attempt(backend="zai", model="glm-4.5", started=100.3, ended=100.5, queued=0.05, reason="fallback"),
    )
    server, genai, first, second, third = found = tree(record(attempts=tries, backend="zai", model="glm-4.5"))
    assert [span.failed for span in found] == [False, False, True, True, False]
    assert genai.name == "chat glm-4.5"
    assert {span.parent_id for span in (first, second, third)} == {genai.span_id}
    assert first.attributes["error.type"] == "503"
    assert first.attributes["gateway.attempt.detail"] == "status 503"
    assert "http.request.resend_count" not in first.attributes
    assert (second.attributes["error.type"], second.attributes["http.request.resend_count"]) == ("read_error", 1)
    assert (third.name, third.attributes["gateway.attempt.reason"]) == ("POST zai", "fallback")
    assert near(third.start, 0.25)
    queued, at, told = third.events[0]
    assert (queued, round(told["gateway.queue_seconds"], 6)) == ("gateway.queue_wait", 0.05)
    assert near(at, 0.3)
    assert "error.type" not in server.attributes
    assert "error.type" not in genai.attributes


def test_a_hedge() -> None:
    """The loser is told apart without being a failure, and both overlap."""
    tries = (
        attempt(started=100.0, ended=100.4, outcome="lost_hedge", status=None, first_token=None),
        attempt(backend="zai", model="glm-4.5", started=100.2, ended=100.5),
    )
    _, genai, loser, winner = tree(record(attempts=tries, backend="zai"))
    assert (loser.failed, loser.attributes["error.type"]) == (False, "lost_hedge")
    assert loser.start < winner.start < loser.end < winner.end == genai.end


def test_a_cut_stream_that_was_continued() -> None:
    """The first attempt failed after its first token, the request did not; tokens of both stand once."""
    tries = (
        attempt(started=100.0, ended=100.3, outcome="interrupted"),
        attempt(backend="zai", started=100.3, ended=100.5, reason="continues", first_token=100.4),
    )
    found = tree(record(attempts=tries, backend="zai", usage=Usage(10, 20, estimated=True)))
    assert [span.failed for span in found] == [False, False, True, False]
    assert found[2].attributes["error.type"] == "interrupted"
    carrying = [span.name for span in found if "gen_ai.usage.output_tokens" in span.attributes]
    assert carrying == [found[1].name]
    assert found[1].attributes["gateway.usage.estimated"] is True


def test_a_stream_that_broke() -> None:
    """Although its status was 200, the request failed, on every level."""
    tries = (attempt(outcome="stalled"),)
    found = tree(record(outcome="interrupted", code="stream_stalled", attempts=tries))
    assert [span.failed for span in found] == [True, True, True]
    assert [span.attributes["error.type"] for span in found] == ["stream_stalled", "stream_stalled", "stalled"]


def test_a_budget_that_refused() -> None:
    """Nothing was sent, so there is no client span; a 4xx leaves the server span unset."""
    made = record(status=429, outcome="error", code="budget_exceeded", attempts=(), usage=None, cost=None, held_at=None)
    (server,) = tree(made)
    assert (server.failed, server.attributes["error.type"]) == (False, "budget_exceeded")
    assert (server.attributes["gateway.route"], server.attributes["gateway.task"]) == ("analysis", "analysis")


def test_every_candidate_failed() -> None:
    """A 502 is a failure of the server span and of the genai span."""
    tries = (attempt(outcome="connect_error", status=None, first_token=None),)
    made = record(status=502, outcome="error", code="upstream_error", attempts=tries, backend="", first_token=None)
    server, genai, one = found = tree(made)
    assert [span.failed for span in found] == [True, True, True]
    assert server.attributes["error.type"] == genai.attributes["error.type"] == "upstream_error"
    assert one.attributes["error.type"] == "connect_error"


def test_a_client_that_left() -> None:
    """Nobody failed, and everyone says why it ended."""
    found = tree(record(outcome="client_gone", attempts=(attempt(outcome="client_gone"),)))
    assert [span.failed for span in found] == [False, False, False]
    assert {span.attributes["error.type"] for span in found} == {"client_gone"}


def test_the_clients_trace_is_continued() -> None:
    """The server span is the child of the client's, and carries its tracestate."""
    parent = Parent(TRACE.encode(), CLIENT_SPAN.encode(), sampled=True)
    server, genai, _ = tree(record(), parent=parent, tracestate=b"vendor=1")
    assert (server.parent_id, server.remote_parent, server.trace_state) == (CLIENT_SPAN, True, "vendor=1")
    assert not genai.remote_parent
    for wrong in (b"x" * 513, b"\xff=1"):
        assert tree(record(), parent=parent, tracestate=wrong)[0].trace_state == ""


def test_the_attempts_span_is_the_one_that_was_sent_on() -> None:
    """The backend's spans will hang under the attempt: its id is that of the traceparent it was given."""
    context = b"00-%s-00f067aa0ba902b7-01" % TRACE.encode()
    assert tree(record(attempts=(attempt(parent_context=context),)))[2].span_id == "00f067aa0ba902b7"


def test_content_is_there_only_when_the_record_has_it() -> None:
    """The hook for content capture: two fields of the record, two attributes of the genai span; empty ones are not."""
    made = record(input_messages=({"role": "user", "content": "marked prompt"},), output_text="marked answer")
    found = tree(made)
    assert "marked prompt" in found[1].attributes["gen_ai.input.messages"]
    assert "marked answer" in found[1].attributes["gen_ai.output.messages"]
    assert "marked" not in str((found[0], found[2]))
    assert not [key for key in tree(record(input_messages=(), output_text=""))[1].attributes if "messages" in key]


def test_embeddings_have_no_limit_of_what_is_written() -> None:
    """The client allowed nothing and forbade nothing."""
    made = record(operation="embeddings", stream=False, max_tokens=0)
    assert "gen_ai.request.max_tokens" not in tree(made)[1].attributes


def test_what_is_emitted_is_registered_and_the_other_way_round() -> None:
    """Every attribute and event of the registry is emitted on the spans it names, and nothing else is."""
    tries = (
        attempt(outcome="timeout", detail="no token", resend=1, queued=0.1),
        attempt(),
    )
    made = record(
        outcome="interrupted",
        code="stream_interrupted",
        usage=Usage(9, 9, 1, 1, 1, estimated=True),
        input_messages=({"role": "user", "content": "x"},),
        output_text="y",
        attempts=tries,
    )
    emitted: dict[str, set[str]] = {}
    events: dict[str, set[str]] = {}
    for genai in (names.GENAI_141, names.GENAI_LATEST):
        for kind, span in zip(("server", "genai", "attempt", "attempt"), tree(made, genai), strict=True):
            for key in span.attributes:
                emitted.setdefault(key, set()).add(kind)
            for name, _, attributes in span.events:
                events.setdefault(name, set()).update(attributes)
    assert emitted == {attribute.key: set(attribute.spans) for attribute in names.ATTRIBUTES}
    assert events == {event.name: set(event.attributes) for event in names.SPAN_EVENTS}


def test_the_conventions_versions_differ_in_the_registered_names_only() -> None:
    """The newest conventions call cache writes otherwise."""
    made = record(usage=Usage(9, 9, cache_write=4))
    assert tree(made)[1].attributes["gen_ai.usage.cache_creation.input_tokens"] == 4
    assert tree(made, names.GENAI_LATEST)[1].attributes["gen_ai.usage.cache_write.input_tokens"] == 4
