"""The text of `/metrics`: what the workers counted, merged and written by prometheus-client."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from gateway.telemetry import names
from gateway.telemetry.cells import Key, Row
from gateway.telemetry.names import Metric


def render(rows: Iterable[Row]) -> bytes:
    """Prometheus' text format, every metric of the registry with its samples, label sets in order."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Rows(rows))
    return generate_latest(registry)


@dataclass(frozen=True, slots=True)
class _Rows(Collector):
    rows: Iterable[Row]

    def describe(self) -> Iterable[Family]:
        return ()  # else the registry would consume the rows to learn the names

    def collect(self) -> Iterator[Family]:
        grouped: dict[str, dict[Key, Sequence[float]]] = {metric.name: {} for metric in names.METRICS}
        known = {metric.name: metric for metric in names.METRICS}
        for row in self.rows:
            metric = known.get(row.key[0])
            if metric is not None and len(row.values) == metric.width:
                merged, labels = grouped[metric.name], row.key[1:]
                before = merged.get(labels)
                merged[labels] = row.values if before is None else _merge(metric, before, row.values)
        for name, metric in known.items():
            yield _family(metric, grouped[name])


def _merge(metric: Metric, one: Sequence[float], two: Sequence[float]) -> Sequence[float]:
    if metric.merge == "max":
        return (max(one[0], two[0]),)
    if metric.merge == "latest":
        return one if one[1] > two[1] else two
    return [a + b for a, b in zip(one, two, strict=True)]


def _family(metric: Metric, values: Mapping[Key, Sequence[float]]) -> Family:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.description, labels=metric.labels)
        for labels, row in sorted(values.items()):
            histogram.add_metric(labels, _cumulated(metric, row), row[-1])
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.description, labels=metric.labels)
    for labels, row in sorted(values.items()):
        family.add_metric(labels, row[0] * metric.scale)
    return family


def _cumulated(metric: Metric, row: Sequence[float]) -> list[tuple[str, float]]:
    counts: list[tuple[str, float]] = []
    total = 0.0
    for bound, count in zip((*map(str, metric.buckets), "+Inf"), row, strict=False):
        total += count
        counts.append((bound, total))
    return counts
