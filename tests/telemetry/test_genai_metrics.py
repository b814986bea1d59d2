"""The conventions' metrics at a real collector: names, attributes, buckets, in both versions."""

from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from gateway.formats.usage import Usage
from gateway.telemetry import genai_metrics, names
from gateway.telemetry.genai_metrics import GenAiMetrics, open_genai_metrics
from gateway.telemetry.otlp import Envelope
from gateway.telemetry.otlp_export import SendFailed
from tests.telemetry.collector import Collector, attributes_of
from tests.telemetry.made import attempt, record


def nobody(name: str, /, **fields: object) -> None:
    raise AssertionError(f"nothing should be reported, but was: {name} {fields}")


def points(request: ExportMetricsServiceRequest) -> dict[str, list[Any]]:
    metrics = request.resource_metrics[0].scope_metrics[0].metrics
    return {metric.name: list(metric.histogram.data_points) for metric in metrics}


def test_one_request_at_the_collector(otlp: Collector) -> None:
    """Tokens by type, the duration, and the time to first chunk, under the backend's own names."""
    opened = open_genai_metrics(otlp.environ(), nobody)
    assert opened is not None
    opened.finished(record())
    opened.finished(record(attempts=()))
    opened.close()
    found = points(otlp.metrics[-1])
    assert set(found) == {metric.name for metric in names.GENAI_141.metrics()}
    tokens = {attributes_of(p.attributes)["gen_ai.token.type"]: p for p in found["gen_ai.client.token.usage"]}
    assert {kind: (p.count, p.sum) for kind, p in tokens.items()} == {"input": (1, 1000), "output": (1, 50)}
    assert tokens["input"].explicit_bounds[-1] == 67108864
    assert list(tokens["input"].bucket_counts).index(1) == 5  # 4^5 = 1024 is the first bound that holds 1000
    (duration,) = found["gen_ai.client.operation.duration"]
    assert attributes_of(duration.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "server.address": "127.0.0.1",
        "server.port": 9999,
    }
    assert duration.sum == pytest.approx(0.499)
    assert duration.start_time_unix_nano < duration.time_unix_nano
    (first,) = found["gen_ai.client.operation.time_to_first_chunk"]
    assert first.sum == pytest.approx(0.199)
    assert "service.instance.id" in otlp.resource()


class Kept:
    """A sender that keeps what it is given, or refuses it."""

    def __init__(self) -> None:
        self.sent: list[ExportMetricsServiceRequest] = []
        self.refusing = False

    def send(self, body: bytes) -> None:
        if self.refusing:
            raise SendFailed("no", again=True)
        self.sent.append(ExportMetricsServiceRequest.FromString(body))

    def close(self) -> None:
        pass


def made(kept: Kept, genai: names.GenAi, told: list[str] | None = None) -> GenAiMetrics:
    def report(name: str, /, **_: object) -> None:
        assert told is not None
        told.append(name)

    return GenAiMetrics(kept, Envelope({}, "", ""), genai, interval=3600, report=report)


def test_the_newest_conventions_have_a_metric_for_each_direction_and_operation() -> None:
    """Embeddings are told apart from inference, input from output, each in its own metric."""
    kept = Kept()
    metrics = made(kept, names.GENAI_LATEST)
    metrics.finished(record())
    metrics.finished(record(operation="embeddings", stream=False, usage=Usage(7)))
    metrics.close()
    found = points(kept.sent[-1])
    assert set(found) == {metric.name for metric in names.GENAI_LATEST.metrics()}
    assert all("gen_ai.token.type" not in attributes_of(p.attributes) for listed in found.values() for p in listed)
    assert found["gen_ai.client.embeddings.operation.input_tokens"][0].sum == 7


def test_failures_share_everything_but_their_duration() -> None:
    """No two points of a metric have the same attributes; only the duration tells errors apart."""
    kept = Kept()
    metrics = made(kept, names.GENAI_141)
    for code in ("", "upstream_error", "upstream_timeout"):
        metrics.finished(record(code=code, outcome="error" if code else "ok"))
    metrics.close()
    found = points(kept.sent[-1])
    errors = {attributes_of(p.attributes).get("error.type") for p in found["gen_ai.client.operation.duration"]}
    assert errors == {None, "upstream_error", "upstream_timeout"}
    for listed in found.values():
        told = [tuple(sorted(map(str, attributes_of(p.attributes).items()))) for p in listed]
        assert len(set(told)) == len(told)
    assert [p.count for p in found["gen_ai.client.operation.time_to_first_chunk"]] == [3]


def test_counts_are_cumulative_and_a_failed_export_is_made_good() -> None:
    """What a collector did not take is in what it takes next; trouble and recovery are told once each."""
    kept, told = Kept(), list[str]()
    metrics = made(kept, names.GENAI_141, told)
    metrics.finished(record())
    kept.refusing = True
    metrics.export()
    metrics.export()
    kept.refusing = False
    metrics.finished(record())
    metrics.export()
    assert told == ["export_trouble", "export_recovered"]
    assert points(kept.sent[-1])["gen_ai.client.operation.duration"][0].count == 2
    metrics.close()


def test_sets_of_attributes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that clients make up cannot grow the worker."""
    monkeypatch.setattr(genai_metrics, "MAX_SETS", 5)
    kept = Kept()
    metrics = made(kept, names.GENAI_141)
    for number in range(100):
        metrics.finished(record(attempts=(attempt(model=f"made-up-{number}"),)))
    metrics.close()
    found = points(kept.sent[-1])["gen_ai.client.operation.duration"]
    assert len(found) == 6
    assert sum(p.count for p in found) == 100
    assert "other" in [attributes_of(p.attributes)["gen_ai.request.model"] for p in found]


def test_nothing_configured_nothing_opened() -> None:
    """Traces alone do not switch metrics on."""
    assert open_genai_metrics({"OTEL_TRACES_EXPORTER": "otlp"}, nobody) is None
