"""Traces: which requests are traced, what their attempts send on, and where their spans go."""

import random
from collections.abc import Callable, Mapping

from gateway.telemetry import names, otlp_settings, spans
from gateway.telemetry.names import GenAi
from gateway.telemetry.otlp import Envelope
from gateway.telemetry.otlp_export import Batcher, open_sender
from gateway.telemetry.otlp_settings import Sampling
from gateway.telemetry.records import RequestRecord
from gateway.telemetry.spans import Origin
from gateway.telemetry.traceparent import parse_traceparent

CLOSE_WAIT = 5.0  # seconds given to the collector at the end
MAX_QUEUE = 16_384  # spans, about 6 MB; the conventions' 2,048 are 45 ms of a busy gateway


class Tracer:
    """Decides which requests are traced, and takes the spans of those that are."""

    def __init__(
        self,
        emit: Callable[[bytes, int], None],
        sampling: Sampling,
        genai: GenAi,
        *,
        captures_content: bool = False,
        close: Callable[[float], None] = lambda _: None,
        dice: random.Random | None = None,
    ) -> None:
        self._emit = emit
        self._sampling = sampling
        self._genai = genai
        self._close = close
        self._bits = (dice or random.Random()).getrandbits  # noqa: S311  # ids, not secrets
        self.captures_content = captures_content

    def start(
        self, method: str, path_template: str, traceparent: bytes | None, tracestate: bytes | None
    ) -> "RequestTrace | None":
        """Begin the trace of a request; None when it is not sampled, and then `unsampled` is what to send on."""
        parent = parse_traceparent(traceparent)
        if parent is not None and self._sampling.follow_parent:
            if not parent.sampled:
                return None
            trace_id = parent.trace_id
        else:
            trace_id = parent.trace_id if parent else b"%032x" % self._number(128)
            if int(trace_id[16:], 16) >= self._sampling.bound:
                return None
        state = tracestate if parent else None
        return RequestTrace(self, Origin(method, path_template, trace_id, parent, state))

    def unsampled(self, traceparent: bytes | None) -> bytes:
        """The `traceparent` to send on for a request that is not traced: the client's, or a new one; flag 00."""
        parent = parse_traceparent(traceparent)
        if parent is None:
            return b"00-%032x-%016x-00" % (self._number(128), self._number(64))
        return b"00-%s-%s-00" % (parent.trace_id, parent.span_id)

    def close(self) -> None:
        """Send what is left, waiting at most `CLOSE_WAIT` seconds for the collector."""
        self._close(CLOSE_WAIT)

    def span_id(self) -> bytes:
        """A new span's id, in hex."""
        return b"%016x" % self._number(64)

    def finish(self, origin: Origin, record: RequestRecord) -> None:
        """Make the span tree of a request that is over, and hand it to the exporter."""
        made = spans.tree(origin, record, self._genai, self.span_id)
        self._emit(b"".join(made), len(made))

    def _number(self, bits: int) -> int:
        return self._bits(bits) or 1  # an id of zeros is not valid


class AttemptSpan:
    """The span of one attempt: `traceparent` is to be sent to the backend and kept in the attempt's record."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: bytes) -> None:
        self.traceparent = traceparent


class RequestTrace:
    """A request that is traced. `trace_id` is in hex; `tracestate` is to be sent to the backend unchanged."""

    __slots__ = ("_tracer", "origin", "trace_id", "tracestate")

    def __init__(self, tracer: Tracer, origin: Origin) -> None:
        self._tracer = tracer
        self.origin = origin
        self.trace_id = origin.trace_id
        self.tracestate = origin.tracestate

    @property
    def state_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The client's `tracestate` as a header to send on; none when it sent none."""
        return ((b"tracestate", self.tracestate),) if self.tracestate is not None else ()

    def attempt(self) -> AttemptSpan:
        """A new attempt begins."""
        return AttemptSpan(b"00-%s-%s-01" % (self.trace_id, self._tracer.span_id()))

    def finish(self, record: RequestRecord) -> None:
        """The request is over: make its spans and hand them to the exporter; about 15 µs."""
        self._tracer.finish(self.origin, record)


def open_tracer(environ: Mapping[str, str], report: Callable[..., None]) -> Tracer | None:
    """The tracer that the standard `OTEL_*` variables ask for; None, and nothing imported, when they ask for none.

    `report` is `Log.event`: told, on the exporter's thread, of collectors that take nothing. Raises
    TelemetryMisconfigured for a value that cannot be obeyed.
    """
    to = otlp_settings.exporting(environ, "traces")
    if to is None:
        return None
    dice = random.Random(random.SystemRandom().getrandbits(128))  # noqa: S311  # ids, not secrets
    instance = f"{dice.getrandbits(128):032x}"
    genai = names.genai(environ.get("OTEL_SEMCONV_STABILITY_OPT_IN"))
    batcher = Batcher(
        open_sender(to, "traces"),
        Envelope(otlp_settings.resource(environ, instance), "gateway", genai.version, genai.schema_url),
        max_queue=int(otlp_settings.number(environ, "OTEL_BSP_MAX_QUEUE_SIZE", MAX_QUEUE)),
        batch=int(otlp_settings.number(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)),
        delay=otlp_settings.number(environ, "OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000,
        report=report,
    )
    return Tracer(
        batcher.emit,
        otlp_settings.sampling(environ),
        genai,
        captures_content=otlp_settings.captures_content(environ),
        close=batcher.close,
        dice=dice,
    )
