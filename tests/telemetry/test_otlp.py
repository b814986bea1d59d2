"""The encoder: whatever is encoded is read back the same by the official messages."""

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateway.telemetry import otlp
from tests.telemetry.collector import attributes_of, spans_of

TEXT = st.text(st.characters(codec="utf-8"), max_size=300)
WHOLE = st.integers(-(2**63), 2**63 - 1)
FLOAT = st.floats(allow_nan=False)
VALUES = st.one_of(TEXT, st.booleans(), WHOLE, FLOAT, st.lists(TEXT, max_size=4))
TIMES = st.integers(0, 2**64 - 1)
SHORT = st.text("abc.", min_size=1, max_size=60)  # as all of our own names
ENVELOPE = otlp.Envelope({"service.name": "gateway", "process.pid": 7}, "gateway", "1", "https://schema")


@given(
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=8, max_size=8),
    st.sampled_from([b"", b"\x01" * 8]),
    TEXT,
    st.tuples(TIMES, TIMES),
    st.dictionaries(TEXT, VALUES, max_size=6),
    st.lists(st.tuples(SHORT, TIMES, SHORT, FLOAT), max_size=3),
    st.booleans(),
)
def test_a_span_comes_back(
    trace_id: bytes,
    span_id: bytes,
    parent_id: bytes,
    name: str,
    times: tuple[int, int],
    attributes: dict[str, otlp.Value],
    events: list[tuple[str, int, str, float]],
    flag: bool,
) -> None:
    """Ids, name, times, every kind of value, events, status and flags are those that were given."""
    parts = [otlp.attribute(key, value) for key, value in attributes.items()]
    parts += [part for event in events for part in (otlp.event(*event), otlp.moment(*event[:2]))]
    parts += [otlp.FAILED] if flag else []
    span = otlp.span(
        trace_id, span_id, parent_id, name, otlp.CLIENT, *times, parts, remote_parent=flag, trace_state="a=b"
    )
    request = ExportTraceServiceRequest.FromString(ENVELOPE.request([span, span]))
    assert attributes_of(request.resource_spans[0].resource.attributes) == {"service.name": "gateway", "process.pid": 7}
    assert request.resource_spans[0].scope_spans[0].scope.name == "gateway"
    assert request.resource_spans[0].scope_spans[0].schema_url == "https://schema"
    one, two = spans_of(request)
    assert one == two
    assert (one.trace_id, one.span_id, one.parent_id) == (trace_id.hex(), span_id.hex(), parent_id.hex())
    assert (one.name, one.kind, one.start, one.end) == (name, "CLIENT", *times)
    assert one.attributes == attributes
    told = [[(name, at, {key: number}), (name, at, {})] for name, at, key, number in events]
    assert one.events == [event for both in told for event in both]
    assert (one.failed, one.remote_parent, one.trace_state) == (flag, flag, "a=b")


@given(SHORT, st.integers(0, 2**63 - 1), FLOAT)
def test_the_short_ways_give_the_same_bytes(key: str, number: int, measured: float) -> None:
    """Counts and measures are what attributes would be."""
    assert otlp.count(key, number) == otlp.attribute(key, number)
    assert otlp.measure(key, measured) == otlp.attribute(key, measured)


def test_kept_values_of_different_types_are_not_mixed_up() -> None:
    """True, 1 and 1.0 are equal in Python and different in OTLP."""
    assert len({otlp.kept_attribute("k", value) for value in (True, 1, 1.0)}) == 3


def test_text_that_is_no_text_is_replaced() -> None:
    """A lone surrogate, which JSON can bring in, does not break a batch."""
    assert otlp.attribute("k", "\ud800") == otlp.attribute("k", "?")


@given(st.lists(st.integers(0, 2**40), min_size=4, max_size=4), FLOAT, TIMES, TIMES)
def test_a_histogram_comes_back(counts: list[int], total: float, start: int, now: int) -> None:
    """Name, unit, bounds, counts, sum and times are those that were given, and it is cumulative."""
    point = otlp.point({"a": "b"}, counts, total, (1.0, 2.0, 4.0), start, now)
    raw = ENVELOPE.request([otlp.histogram("n", "s", "what", [point, point])])
    metric = ExportMetricsServiceRequest.FromString(raw).resource_metrics[0].scope_metrics[0].metrics[0]
    assert (metric.name, metric.unit, metric.description) == ("n", "s", "what")
    assert metric.histogram.aggregation_temporality == 2
    assert len(metric.histogram.data_points) == 2
    found = metric.histogram.data_points[0]
    assert list(found.bucket_counts) == counts
    assert list(found.explicit_bounds) == [1.0, 2.0, 4.0]
    assert (found.count, found.sum) == (sum(counts), total)
    assert (found.start_time_unix_nano, found.time_unix_nano) == (start, now)
    assert attributes_of(found.attributes) == {"a": "b"}
