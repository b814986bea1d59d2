"""Prometheus metrics: counted in place in a table of doubles, merged over all workers when somebody asks."""

import time
from bisect import bisect_left
from pathlib import Path
from typing import NamedTuple

from gateway.telemetry import names
from gateway.telemetry.cells import CellTable
from gateway.telemetry.names import Metric
from gateway.telemetry.records import RequestRecord

MAX_CHILDREN = 4096  # label sets of requests that are kept apart; more are counted together under `other`

_DURATION_BOUNDS = names.DURATION.buckets
_FIRST_BOUNDS = names.FIRST_TOKEN.buckets
_OVERHEAD_BOUNDS = names.OVERHEAD.buckets
_DURATION_SUM = len(_DURATION_BOUNDS) + 1  # a histogram is its buckets' counts, that of +Inf, and the sum
_FIRST_SUM = len(_FIRST_BOUNDS) + 1
_OVERHEAD_SUM = len(_OVERHEAD_BOUNDS) + 1

_Labels = tuple[str, str, str, str, int, str]


class _Child(NamedTuple):
    """Where in the table one label set of requests is counted."""

    requests: int
    duration: int
    overhead: int
    first_token: int
    input: int
    output: int
    cost: int


class Gauge:
    """One number that goes up and down: its own worker's share of it."""

    __slots__ = ("_cells", "_index")

    def __init__(self, cells: "memoryview[float]", index: int) -> None:
        self._cells = cells
        self._index = index

    def inc(self) -> None:
        """One more."""
        self._cells[self._index] += 1.0

    def dec(self) -> None:
        """One less."""
        self._cells[self._index] -= 1.0

    def set(self, value: float) -> None:
        """This is how much there is now."""
        self._cells[self._index] = value


class StampedGauge:
    """A number that all workers see the same: the one that was set last is shown."""

    __slots__ = ("_cells", "_index")

    def __init__(self, cells: "memoryview[float]", index: int) -> None:
        self._cells = cells
        self._index = index

    def set(self, value: float) -> None:
        """This is how much there is now; for a budget in nano-dollars."""
        self._cells[self._index] = value
        self._cells[self._index + 1] = time.time()


class BackendGauges(NamedTuple):
    """The state of a backend; `breaker_state` takes a value of `names.BREAKER_STATES`."""

    inflight: Gauge
    queue_depth: Gauge
    breaker_state: Gauge


class Metrics:
    """Everything at `/metrics`. An Observer of requests; state is set through the gauges that it hands out.

    `directory` is shared by the workers of one server, empty when their master starts; without it there is one worker.
    Label sets beyond `max_children` are counted under `other`. Names and labels: `gateway.telemetry.names`.
    """

    def __init__(self, directory: Path | None = None, *, max_children: int = MAX_CHILDREN) -> None:
        self._table = CellTable(directory)
        self._cells = self._table.cells
        self._children: dict[_Labels, _Child] = {}
        self._attempts: dict[tuple[str, str], int] = {}
        self._max_children = max_children
        self._others: _Child | None = None

    def finished(self, record: RequestRecord) -> None:
        """Count a request that is over, with its attempts, times, tokens and cost; about 3 µs."""
        labels = (
            record.route_label,
            record.model_label,
            record.backend,
            record.key,
            record.status,
            record.code,
        )
        child = self._children.get(labels)
        if child is None:
            child = self._adopt(labels)
        cells = self._cells
        cells[child.requests] += 1.0
        started = record.started
        seconds = record.ended - started
        at = child.duration
        cells[at + bisect_left(_DURATION_BOUNDS, seconds)] += 1.0
        cells[at + _DURATION_SUM] += seconds
        seconds = record.overhead
        at = child.overhead
        cells[at + bisect_left(_OVERHEAD_BOUNDS, seconds)] += 1.0
        cells[at + _OVERHEAD_SUM] += seconds
        if record.first_token is not None:
            seconds = record.first_token - started
            at = child.first_token
            cells[at + bisect_left(_FIRST_BOUNDS, seconds)] += 1.0
            cells[at + _FIRST_SUM] += seconds
        usage = record.usage
        if usage is not None:
            cells[child.input] += usage.input_tokens
            cells[child.output] += usage.output_tokens
            if usage.cached_input or usage.cache_write or usage.reasoning:
                self._count_parts(record)
        if record.cost:
            cells[child.cost] += record.cost
        attempts = self._attempts
        for attempt in record.attempts:
            index = attempts.get((attempt.backend, attempt.outcome))
            if index is None:
                index = self._adopt_attempt(attempt.backend, attempt.outcome)
            cells[index] += 1.0
        if record.malformed_events:
            self._add(names.MALFORMED, (record.backend,), record.malformed_events)

    def backend(self, name: str) -> BackendGauges:
        """The gauges of a backend, to be kept by whoever owns its state."""
        label = (name,)
        return BackendGauges(
            Gauge(self._cells, self._index(names.INFLIGHT, label)),
            Gauge(self._cells, self._index(names.QUEUE, label)),
            Gauge(self._cells, self._index(names.BREAKER, label)),
        )

    def budget(self, scope: str, name: str, window: str) -> StampedGauge:
        """What is left of a budget in nano-dollars, to be kept by whoever knows it."""
        return StampedGauge(self._cells, self._index(names.BUDGET, (scope, name, window)))

    def rejected(self, code: str) -> None:
        """The gateway itself refused a request; `finished` does not count this."""
        self._add(names.REJECTED, (_known_code(code),), 1)

    def log_dropped(self, lines: int) -> None:
        """So many log lines were dropped."""
        self._add(names.LOG_DROPPED, (), lines)

    def render(self) -> bytes:
        """The text for `/metrics`, of all workers together. May be called on another thread than the rest."""
        from gateway.telemetry import exposition  # noqa: PLC0415  # prometheus-client: 20 to 50 ms, few ask at once

        return exposition.render(self._table.rows())

    def close(self) -> None:
        """Leave the numbers to the worker that comes next; nothing may be counted afterwards."""
        self._table.close()

    def _adopt(self, labels: _Labels) -> _Child:
        if len(self._children) >= self._max_children:
            if self._others is None:
                self._others = self._child(_OTHERS)
            return self._others
        if labels[5] not in names.CODES:
            return self._child((*labels[:5], names.OTHER))
        child = self._children[labels] = self._child(labels)
        return child

    def _child(self, labels: _Labels) -> _Child:
        route, model, backend, key, status, code = labels
        times, spent = (route, model, backend), (route, model, backend, key)
        return _Child(
            self._index(names.REQUESTS, (*spent, str(status) if status else names.OTHER, code)),
            self._index(names.DURATION, times),
            self._index(names.OVERHEAD, times),
            self._index(names.FIRST_TOKEN, times),
            self._index(names.TOKENS, ("input", *spent)),
            self._index(names.TOKENS, ("output", *spent)),
            self._index(names.COST, spent),
        )

    def _adopt_attempt(self, backend: str, outcome: str) -> int:
        known = outcome if outcome in names.OUTCOMES else names.OTHER
        index = self._index(names.ATTEMPTS, (backend, known))
        if len(self._attempts) < self._max_children:
            self._attempts[backend, outcome] = index
        return index

    def _count_parts(self, record: RequestRecord) -> None:
        usage = record.usage
        assert usage is not None
        spent = (record.route_label, record.model_label, record.backend, record.key)
        for kind, count in (
            ("cached_input", usage.cached_input),
            ("cache_write", usage.cache_write),
            ("reasoning", usage.reasoning),
        ):
            if count:
                self._add(names.TOKEN_PARTS, (kind, *spent), count)

    def _add(self, metric: Metric, labels: tuple[str, ...], amount: float) -> None:
        self._cells[self._index(metric, labels)] += amount

    def _index(self, metric: Metric, labels: tuple[str, ...]) -> int:
        width, gauge = metric.width, metric.kind == "gauge"
        index = self._table.claim((metric.name, *labels), width, gauge=gauge)
        if index is None:
            others = (metric.name, *(names.OTHER for _ in labels))
            index = self._table.claim(others, width, gauge=gauge, reserved=True)
        assert index is not None, "the reserve holds one entry for each metric"
        return index


_OTHERS: _Labels = (names.OTHER, names.OTHER, names.OTHER, names.OTHER, 0, names.OTHER)


def _known_code(code: str) -> str:
    return code if code in names.CODES else names.OTHER
