"""Tracing end to end: sampling, propagation, and whole trees at a real collector over both protocols."""

import random
import subprocess
import sys

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateway.telemetry import names
from gateway.telemetry.otlp_settings import Sampling, TelemetryMisconfigured
from gateway.telemetry.tracing import Tracer, open_tracer
from tests.telemetry.collector import Collector
from tests.telemetry.made import attempt, record

TRACE, SPAN = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = b"00-%s-%s-01" % (TRACE, SPAN), b"00-%s-%s-00" % (TRACE, SPAN)
EVERYTHING = 2**64


def nobody(name: str, /, **fields: object) -> None:
    raise AssertionError(f"nothing should be reported, but was: {name} {fields}")


def tracer(bound: int = EVERYTHING, *, follow_parent: bool = True) -> Tracer:
    return Tracer(lambda _, __: None, Sampling(bound, follow_parent), names.GENAI_141, dice=random.Random(7))


def test_whole_trees_arrive_at_a_collector(otlp: Collector) -> None:
    """Two requests, one of them continuing the client's trace with two attempts, arrive whole, with all headers."""
    opened = open_tracer(otlp.environ(OTEL_SERVICE_NAME="mine"), nobody)
    assert opened is not None
    for traceparent in (None, SAMPLED):
        trace = opened.start("POST", "/v1/chat/completions", traceparent, b"vendor=1")
        assert trace is not None
        contexts = [trace.attempt().traceparent for _ in range(2)]
        assert all(context.startswith(b"00-" + trace.trace_id) for context in contexts)
        tries = (attempt(outcome="timeout", parent_context=contexts[0]), attempt(parent_context=contexts[1]))
        trace.finish(record(attempts=tries))
    opened.close()
    assert otlp.resource()["service.name"] == "mine"
    assert len(otlp.resource()["service.instance.id"]) == 32
    assert otlp.headers[0]["x-token"] == "s ecret"
    found = otlp.spans()
    assert len(found) == 8
    mine, continued = found[:4], found[4:]
    assert len({span.trace_id for span in mine}) == 1
    assert mine[0].trace_state == ""
    assert {span.trace_id for span in continued} == {TRACE.decode()}
    assert (continued[0].parent_id, continued[0].trace_state) == (SPAN.decode(), "vendor=1")
    for server, genai, *attempts in (mine, continued):
        assert genai.parent_id == server.span_id
        assert {span.parent_id for span in attempts} == {genai.span_id}
        assert server.start <= genai.start <= min(span.start for span in attempts)
        assert max(span.end for span in attempts) <= genai.end <= server.end
    assert [span.span_id for span in continued[2:]] == [context[36:52].decode() for context in contexts]


def test_a_collector_that_fails_for_a_moment_loses_nothing(otlp: Collector) -> None:
    """An answer that may be tried again is tried again, and the batch arrives once."""
    otlp.failing = 1
    opened = open_tracer(otlp.environ(OTEL_BSP_SCHEDULE_DELAY="1"), nobody)
    assert opened is not None
    trace = opened.start("POST", "/v1/chat/completions", None, None)
    assert trace is not None
    trace.finish(record())
    assert otlp.arrived.wait(30)
    opened.close()
    assert len(otlp.spans()) == 3


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_is_not_there_is_reported_and_holds_nobody_up(protocol: str) -> None:
    """Requests go on, the operator is told once, and no header is in what is told."""
    told: list[tuple[str, object]] = []
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://u:marked@127.0.0.1:9?token=marked",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=marked-secret",
    }
    opened = open_tracer(environ, lambda name, /, **fields: told.append((name, fields)))
    assert opened is not None
    for _ in range(3):
        trace = opened.start("POST", "/v1/chat/completions", None, None)
        assert trace is not None
        trace.finish(record())
    opened.close()
    assert [name for name, _ in told] == ["export_trouble"]
    assert "127.0.0.1:9" in str(told)
    assert "'dropped': 9" in str(told)
    assert "marked" not in str(told)


def test_compression(otlp: Collector) -> None:
    """With gzip asked for, what arrives is the same."""
    opened = open_tracer(otlp.environ(OTEL_EXPORTER_OTLP_COMPRESSION="gzip"), nobody)
    assert opened is not None
    trace = opened.start("GET", "/v1/models", None, None)
    assert trace is not None
    trace.finish(record(attempts=()))
    opened.close()
    assert [span.name for span in otlp.spans()] == ["GET /v1/models"]


def test_no_exporter_no_tracer_and_nothing_imported() -> None:
    """Without an exporter configured nothing of OpenTelemetry, gRPC or protobuf is loaded, and with HTTP neither."""
    program = """
import sys
from gateway.telemetry import metrics, logs, tracing, genai_metrics
assert tracing.open_tracer({}, print) is None
assert genai_metrics.open_genai_metrics({}, print) is None
assert tracing.open_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, print) is not None
heavy = ("opentelemetry", "grpc", "google", "requests", "prometheus_client")
loaded = [name for name in sys.modules if name.partition(".")[0] in heavy]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_wrong_variable_stops_the_start() -> None:
    """Better not to start than to trace nothing silently."""
    with pytest.raises(TelemetryMisconfigured, match="OTEL_TRACES_SAMPLER"):
        open_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_SAMPLER": "x"}, nobody)


def test_the_parent_decides() -> None:
    """A client that does not sample is obeyed, and one that does too, even when new traces are off."""
    assert tracer().start("POST", "/", NOT_SAMPLED, None) is None
    assert tracer(0).start("POST", "/", SAMPLED, None) is not None
    assert tracer(0).start("POST", "/", None, None) is None


def test_without_parentbased_the_parent_does_not_decide() -> None:
    """always_on and always_off mean what they say; the trace is continued nevertheless."""
    found = tracer(follow_parent=False).start("POST", "/", NOT_SAMPLED, None)
    assert found is not None
    assert found.trace_id == TRACE
    assert tracer(0, follow_parent=False).start("POST", "/", SAMPLED, None) is None


def test_a_ratio_samples_its_share() -> None:
    """A quarter means about a quarter, decided by the trace's id alone, so that every service decides the same."""
    quarter = tracer(2**62)
    share = sum(quarter.start("POST", "/", None, None) is not None for _ in range(4000)) / 4000
    assert 0.2 < share < 0.3
    below = b"00-%s%016x-%s-01" % (b"a" * 16, 2**62 - 1, SPAN)
    above = b"00-%s%016x-%s-01" % (b"a" * 16, 2**62, SPAN)
    ratio = tracer(2**62, follow_parent=False)
    assert ratio.start("POST", "/", below, None) is not None
    assert ratio.start("POST", "/", above, None) is None


def test_what_is_not_sampled_is_sent_on_as_not_sampled() -> None:
    """The client's trace goes on with the flag 00; without one a new one begins that nobody samples."""
    assert tracer(0).unsampled(SAMPLED) == tracer(0).unsampled(NOT_SAMPLED) == NOT_SAMPLED
    one, two = (tracer(0).unsampled(wrong) for wrong in (None, b"nonsense"))
    assert one == two
    assert len(one) == 55
    assert one.endswith(b"-00")
    assert one[3:35] != b"0" * 32


def test_a_trace_state_without_a_trace_is_dropped() -> None:
    """W3C: a tracestate means nothing when its traceparent is not valid."""
    found = tracer().start("POST", "/", b"nonsense", b"vendor=1")
    assert found is not None
    assert found.tracestate is None


def test_content_capture_is_the_tracers_to_say() -> None:
    """Whoever makes the record asks the tracer whether to fill in prompts and answers."""
    environ = {"OTEL_TRACES_EXPORTER": "otlp"}
    opened = open_tracer(environ, nobody)
    assert opened is not None
    assert not opened.captures_content
    opened = open_tracer(environ | {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}, nobody)
    assert opened is not None
    assert opened.captures_content


def test_spans_of_a_record_survive_the_trip_through_bytes() -> None:
    """What the tracer emits are the spans of one request, counted."""
    got: list[tuple[bytes, int]] = []
    made = Tracer(
        lambda data, spans: got.append((data, spans)), Sampling(EVERYTHING, follow_parent=True), names.GENAI_141
    )
    trace = made.start("POST", "/", None, None)
    assert trace is not None
    trace.finish(record())
    ((data, spans),) = got
    scoped = ExportTraceServiceRequest().resource_spans.add().scope_spans.add()
    scoped.ParseFromString(data)
    assert len(scoped.spans) == spans == 3
