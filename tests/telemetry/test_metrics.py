"""What Prometheus sees: every number of a record, under bounded labels, of all workers together."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.formats.usage import Usage
from gateway.telemetry import names
from gateway.telemetry.metrics import Metrics
from tests.telemetry.made import attempt, record


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics()
    yield metrics
    metrics.close()


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Each sample of `/metrics` by its name and labels, as Prometheus' own parser reads them."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def value(metrics: Metrics, name: str, /, **labels: str) -> float | None:
    return samples(metrics).get((name, frozenset(labels.items())))


SPENT = {"route": "analysis", "model": "gpt-mini", "backend": "openai", "key": "alice"}
TIMES = {"route": "analysis", "model": "gpt-mini", "backend": "openai"}


def test_a_request_is_counted_once_everywhere(metrics: Metrics) -> None:
    """One record moves the request, its times, tokens, cost and attempts, each by what it says."""
    metrics.finished(record())
    assert value(metrics, "gateway_requests_total", **SPENT, status="200", code="") == 1
    assert value(metrics, "gateway_tokens_total", **SPENT, direction="input") == 1000
    assert value(metrics, "gateway_tokens_total", **SPENT, direction="output") == 50
    assert value(metrics, "gateway_token_parts_total", **SPENT, kind="cached_input") == 600
    assert value(metrics, "gateway_token_parts_total", **SPENT, kind="reasoning") == 20
    assert value(metrics, "gateway_cost_usd_total", **SPENT) == pytest.approx(0.001234567)
    assert value(metrics, "gateway_attempts_total", backend="openai", outcome="ok") == 1
    for name, seconds in (
        ("gateway_request_duration_seconds", 0.5),
        ("gateway_time_to_first_token_seconds", 0.2),
        ("gateway_overhead_seconds", 0.0004),
    ):
        assert value(metrics, f"{name}_count", **TIMES) == 1
        assert value(metrics, f"{name}_sum", **TIMES) == pytest.approx(seconds)


def test_buckets_are_cumulative_and_hold_their_bound(metrics: Metrics) -> None:
    """A duration on a bound is inside it; each bucket includes the smaller ones; beyond the last is +Inf only."""
    for seconds in (0.5, 0.5001, 1000.0):
        metrics.finished(record(started=0.0, ended=seconds, first_token=None))
    bucket = "gateway_request_duration_seconds_bucket"
    found = {le: value(metrics, bucket, **TIMES, le=le) for le in ("0.25", "0.5", "1.0", "320.0", "+Inf")}
    assert found == {"0.25": 0, "0.5": 1, "1.0": 2, "320.0": 2, "+Inf": 3}


def test_every_attempt_is_counted_by_its_outcome(metrics: Metrics) -> None:
    """A request with a failed try and a good one counts both; a word that is not registered becomes other."""
    tries = (attempt(outcome="timeout"), attempt(backend="zai"), attempt(outcome="surprise"))
    metrics.finished(record(attempts=tries, malformed_events=3))
    assert value(metrics, "gateway_attempts_total", backend="openai", outcome="timeout") == 1
    assert value(metrics, "gateway_attempts_total", backend="zai", outcome="ok") == 1
    assert value(metrics, "gateway_attempts_total", backend="openai", outcome="other") == 1
    assert value(metrics, "gateway_malformed_events_total", backend="openai") == 3


def test_a_client_cannot_create_labels(metrics: Metrics) -> None:
    """Neither unknown codes nor any number of label sets makes more than the bound of series."""
    for number in range(50):
        metrics.finished(record(code=f"made-up-{number}"))
        metrics.rejected(f"made-up-{number}")
    assert value(metrics, "gateway_requests_total", **SPENT, status="200", code="other") == 50
    assert value(metrics, "gateway_rejected_total", code="other") == 50


def test_label_sets_beyond_the_bound_are_counted_together() -> None:
    """The bound holds, nothing is lost, and what was there before is still told apart."""
    metrics = Metrics(max_children=10)
    for number in range(100):
        for _ in range(2):
            metrics.finished(record(key=f"key-{number}"))
    found = {labels: v for (name, labels), v in samples(metrics).items() if name == "gateway_requests_total"}
    assert len(found) == 11
    assert sum(found.values()) == 200
    others = {
        "route": "other",
        "model": "other",
        "backend": "other",
        "key": "other",
        "status": "other",
        "code": "other",
    }
    assert found[frozenset(others.items())] == 180
    metrics.close()


def test_label_values_are_escaped(metrics: Metrics) -> None:
    """A key's name with quotes and newlines comes back as it is."""
    metrics.finished(record(key='a"b\\c\nd'))
    assert value(metrics, "gateway_cost_usd_total", **(SPENT | {"key": 'a"b\\c\nd'})) is not None


def test_state_is_set_through_kept_gauges(metrics: Metrics) -> None:
    """Backends and budgets show what their owners set."""
    gauges = metrics.backend("openai")
    gauges.inflight.inc()
    gauges.inflight.inc()
    gauges.inflight.dec()
    gauges.queue_depth.set(4)
    gauges.breaker_state.set(names.BREAKER_STATES["open"])
    metrics.budget("key", "alice", "day").set(2_500_000_000)
    assert value(metrics, "gateway_inflight", backend="openai") == 1
    assert value(metrics, "gateway_queue_depth", backend="openai") == 4
    assert value(metrics, "gateway_breaker_state", backend="openai") == 2
    assert value(metrics, "gateway_budget_remaining_usd", scope="key", name="alice", window="day") == 2.5


def test_gauges_of_workers_become_one(tmp_path: Path) -> None:
    """Requests in flight add up, of breakers the worst is shown, of a budget what was set last."""
    one, two = Metrics(tmp_path), Metrics(tmp_path)
    one.backend("b").inflight.set(2)
    two.backend("b").inflight.set(3)
    two.backend("b").breaker_state.set(1)
    two.budget("all", "", "month").set(9e9)
    one.budget("all", "", "month").set(8e9)
    for metrics in (one, two):
        assert value(metrics, "gateway_inflight", backend="b") == 5
        assert value(metrics, "gateway_breaker_state", backend="b") == 1
        assert value(metrics, "gateway_budget_remaining_usd", scope="all", name="", window="month") == 8
    one.close()
    two.close()


def test_what_is_emitted_is_registered_and_the_other_way_round(metrics: Metrics) -> None:
    """Every metric of the registry is emitted with exactly its labels, and nothing else is."""
    metrics.finished(record(usage=Usage(9, 9, 1, 1, 1), malformed_events=1))
    metrics.backend("openai").inflight.inc()
    metrics.budget("key", "alice", "day").set(1)
    metrics.rejected("invalid_json")
    metrics.log_dropped(2)
    emitted: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        assert family.documentation
        for sample in family.samples:
            emitted.setdefault(name, set()).update(set(sample.labels) - {"le"})
    assert emitted == {metric.name: set(metric.labels) for metric in names.METRICS}


def _serve(directory: Path, pipe: Connection) -> None:
    metrics = Metrics(directory)
    metrics.backend("openai").inflight.inc()
    while pipe.recv() == "more":
        metrics.finished(record())
        pipe.send("done")


def test_counters_never_fall_while_workers_are_killed(tmp_path: Path) -> None:
    """Two workers count, one is killed and replaced: the sum is what clients counted, at every look."""
    context = multiprocessing.get_context("spawn")
    watching = Metrics(tmp_path)
    workers = []
    expected = 0
    for _ in range(3):
        here, there = context.Pipe()
        worker = context.Process(target=_serve, args=(tmp_path, there))
        worker.start()
        workers.append((worker, here))
        for _, pipe in workers:
            for _ in range(25):
                pipe.send("more")
                assert pipe.recv() == "done"
                expected += 1
            assert value(watching, "gateway_requests_total", **SPENT, status="200", code="") == expected
        assert value(watching, "gateway_inflight", backend="openai") == len(workers)
        if len(workers) == 2:
            killed, pipe = workers.pop(0)
            assert killed.pid is not None
            os.kill(killed.pid, signal.SIGKILL)
            killed.join()
            pipe.close()
            assert value(watching, "gateway_requests_total", **SPENT, status="200", code="") == expected
    for worker, pipe in workers:
        pipe.send("enough")
        worker.join()
        pipe.close()
    assert value(watching, "gateway_requests_total", **SPENT, status="200", code="") == expected
    assert value(watching, "gateway_inflight", backend="openai") in (None, 0)
    assert len(list(tmp_path.glob("*.cells"))) == 3
    watching.close()
