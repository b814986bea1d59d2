"""The GenAI metrics of the OpenTelemetry conventions: counted in place, sent over OTLP once a minute by a thread."""

import threading
import time
import uuid
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.telemetry import names, otlp, otlp_settings
from gateway.telemetry.names import GenAi, OtlpMetric
from gateway.telemetry.otlp import Envelope
from gateway.telemetry.otlp_export import Sender, SendFailed, open_sender
from gateway.telemetry.records import RequestRecord

MAX_SETS = 1000  # sets of attributes that are kept apart; what comes beyond is counted with the model `other`
CLOSE_WAIT = 5.0  # seconds given to the collector at the end

_Told = tuple[str, str, str, str, int, str]  # operation, provider, model, address, port, error


@dataclass(slots=True)
class _Histogram:
    """One histogram of one set of attributes; counted by the loop, read by the thread."""

    metric: OtlpMetric
    attributes: Mapping[str, otlp.Value]
    counts: list[int]
    total: float = 0.0

    def record(self, value: float) -> None:
        self.counts[bisect_left(self.metric.buckets, value)] += 1
        self.total += value


@dataclass(frozen=True, slots=True)
class _Set:
    duration: _Histogram
    first_chunk: _Histogram
    input_tokens: _Histogram
    output_tokens: _Histogram


class GenAiMetrics:
    """An Observer that keeps the conventions' histograms; `export` sends them, and the thread does so every `interval`.

    `clock` gives seconds since the epoch. `report` is told when the collector takes nothing, and when it does again.
    """

    def __init__(
        self,
        sender: Sender,
        envelope: Envelope,
        genai: GenAi,
        *,
        interval: float,
        report: Callable[..., None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sender = sender
        self._envelope = envelope
        self._genai = genai
        self._interval = interval
        self._report = report
        self._clock = clock
        self._began = int(clock() * 1e9)
        self._sets: dict[_Told, _Set] = {}
        self._histograms: dict[tuple[OtlpMetric, tuple[tuple[str, otlp.Value], ...]], _Histogram] = {}
        self._failing = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway-otlp-metrics", daemon=True)
        self._thread.start()

    def finished(self, record: RequestRecord) -> None:
        """Count a request that reached a backend; about 2 µs."""
        attempts = record.attempts
        if not attempts:
            return
        last = record.telling
        error = "" if record.outcome == "ok" else record.code or record.outcome
        told = (record.operation, record.provider, last.model, last.server_address, last.server_port, error)
        found = self._sets.get(told)
        if found is None:
            found = self._adopt(told)
        began = min(attempt.started - attempt.queued for attempt in attempts)
        found.duration.record(record.ended - began)
        if record.stream and record.first_token is not None:
            found.first_chunk.record(record.first_token - began)
        if record.usage is not None:
            found.input_tokens.record(record.usage.input_tokens)
            if record.operation != "embeddings":
                found.output_tokens.record(record.usage.output_tokens)

    def export(self) -> None:
        """Send everything counted so far; a failure is reported once and made good by the next time."""
        now = int(self._clock() * 1e9)
        points: dict[OtlpMetric, list[bytes]] = {}
        for histogram in list(self._histograms.values()):
            counts, metric = tuple(histogram.counts), histogram.metric
            if any(counts):
                made = otlp.point(histogram.attributes, counts, histogram.total, metric.buckets, self._began, now)
                points.setdefault(metric, []).append(made)
        if points:
            self._send([otlp.histogram(m.name, m.unit, m.description, made) for m, made in points.items()])

    def close(self) -> None:
        """Send a last time, waiting at most `CLOSE_WAIT` seconds for the collector."""
        self._closing.set()
        self._thread.join(CLOSE_WAIT)

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            self.export()
        self.export()
        self._sender.close()

    def _send(self, metrics: list[bytes]) -> None:
        try:
            self._sender.send(self._envelope.request(metrics))
        except SendFailed as failed:
            if not self._failing:
                self._failing = True
                self._report("export_trouble", signal="metrics", detail=str(failed), dropped=0)
            return
        if self._failing:
            self._failing = False
            self._report("export_recovered", signal="metrics", dropped=0)

    def _adopt(self, told: _Told) -> _Set:
        if len(self._sets) >= MAX_SETS:
            told = (told[0], names.OTHER, names.OTHER, "", 0, names.OTHER if told[5] else "")
            if told in self._sets:
                return self._sets[told]
        found = self._sets[told] = self._set(told)
        return found

    def _set(self, told: _Told) -> _Set:
        genai = self._genai
        operation, provider, model, address, port, error = told
        base: dict[str, otlp.Value] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": names.PROVIDERS.get(provider, provider),
            "gen_ai.request.model": model,
        }
        if address:
            base |= {"server.address": address, "server.port": port}
        failed: dict[str, otlp.Value] = {"error.type": error} if error else {}
        embeds = operation == "embeddings"
        return _Set(
            duration=self._histogram(genai.embeddings_duration if embeds else genai.duration, base | failed),
            first_chunk=self._histogram(genai.first_chunk, base),
            input_tokens=self._tokens(genai.embeddings_tokens if embeds else genai.input_tokens, base, "input"),
            output_tokens=self._tokens(genai.output_tokens, base, "output"),
        )

    def _tokens(self, metric: OtlpMetric, base: Mapping[str, otlp.Value], kind: str) -> _Histogram:
        name = self._genai.token_type
        return self._histogram(metric, {**base, name: kind} if name else base)

    def _histogram(self, metric: OtlpMetric, attributes: Mapping[str, otlp.Value]) -> _Histogram:
        key = (metric, tuple(attributes.items()))
        found = self._histograms.get(key)
        if found is None:
            counts = [0] * (len(metric.buckets) + 1)
            found = self._histograms[key] = _Histogram(metric, attributes, counts)
        return found


def open_genai_metrics(environ: Mapping[str, str], report: Callable[..., None]) -> GenAiMetrics | None:
    """The metrics that the standard `OTEL_*` variables ask for, or None. `report` is `Log.event`.

    Raises TelemetryMisconfigured for a value that cannot be obeyed.
    """
    to = otlp_settings.exporting(environ, "metrics")
    if to is None:
        return None
    instance = uuid.uuid4().hex
    genai = names.genai(environ.get("OTEL_SEMCONV_STABILITY_OPT_IN"))
    return GenAiMetrics(
        open_sender(to, "metrics"),
        Envelope(otlp_settings.resource(environ, instance), "gateway", genai.version, genai.schema_url),
        genai,
        interval=otlp_settings.number(environ, "OTEL_METRIC_EXPORT_INTERVAL", 60_000) / 1000,
        report=report,
    )
