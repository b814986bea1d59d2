"""Every name that telemetry uses, as values with descriptions: metrics, span attributes, span events and log events."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

OTHER = "other"  # the label value that stands for everything beyond a bound, or not of a known set

OUTCOMES: Mapping[str, str] = {
    "ok": "answered whole, or ended as the backend meant it to",
    "rate_limited": "429 with or without Retry-After",
    "quota": "402, or 429 because the account is empty",
    "auth": "401, 403 or 407: the gateway's own api key was refused",
    "server_error": "408, 409, 5xx or 529",
    "client_error": "400, 404, 413 or 422: the request itself was refused",
    "context_length": "400: the prompt is too long for the model",
    "not_here": "400: the earlier response that the request goes on from is not known there",
    "connect_error": "refused, unreachable, unknown host, or no TLS: nothing was sent",
    "read_error": "reset or closed before the first token",
    "timeout": "no first token in time, or longer than `total`",
    "invalid_response": "what came is not an answer",
    "interrupted": "cut after the first token",
    "stalled": "silent for `idle` after the first token",
    "queue_full": "no slot, and no place to wait for one",
    "queue_timeout": "no slot in time",
    "lost_hedge": "closed because another candidate answered first",
    "cancelled": "given up before there was an answer, as when the client left",
    "client_gone": "closed within the answer because the client left",
    OTHER: "none of these",
}
"""What can become of an attempt: the values of `gateway_attempts_total{outcome}`."""

REQUEST_OUTCOMES: Mapping[str, str] = {
    "ok": "the client got a whole answer",
    "error": "the client got an error instead of an answer",
    "interrupted": "the answer had begun and ended with the error event",
    "client_gone": "the client left before the end",
}

BREAKER_STATES: Mapping[str, float] = {"closed": 0.0, "half_open": 1.0, "open": 2.0}
"""The values of `gateway_breaker_state`."""

CODES = frozenset(
    {
        "",
        "invalid_json",
        "invalid_http",
        "missing_field",
        "invalid_value",
        "unsupported_parameter",
        "unsupported_value",
        "previous_response_not_found",
        "response_not_found",
        "invalid_api_key",
        "expired_api_key",
        "model_not_allowed",
        "model_not_found",
        "not_found",
        "method_not_allowed",
        "request_timeout",
        "request_too_large",
        "rate_limit_exceeded",
        "concurrency_exceeded",
        "budget_exceeded",
        "budget_held",
        "upstream_error",
        "upstream_refused",
        "upstream_auth",
        "upstream_invalid_response",
        "upstream_timeout",
        "no_backend_available",
        "queue_full",
        "queue_timeout",
        "draining",
        "store_unavailable",
        "stream_interrupted",
        "stream_stalled",
        "context_length_exceeded",
        "content_policy_violation",
        "client_gone",
        "internal_error",
        OTHER,
    }
)
"""The values that the label `code` may have; a backend's own code that is not here becomes `other`."""

LABELS: Mapping[str, str] = {
    "route": "the alias, task or model asked for, as the policies name it",
    "model": "the model that answered, as the policies name it",
    "backend": "the backend that answered, as the policies name it",
    "key": "the name of the client's key",
    "status": "the HTTP status the client got",
    "code": "the error's code, empty when there was none",
    "outcome": "what became of the attempt",
    "direction": "`input` or `output`",
    "kind": "`cached_input`, `cache_write` or `reasoning`",
    "scope": "whose budget: `all`, `team`, `key`, `backend` or `model`",
    "name": "the name of the team, key, backend or model",
    "window": "the limit's period",
}

_TIMES = ("route", "model", "backend")
_SPENT = ("route", "model", "backend", "key")
_WAIT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
_OVERHEAD_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)


@dataclass(frozen=True, slots=True)
class Metric:
    """A Prometheus metric. `kind` is counter, gauge or histogram; `buckets` are upper bounds in the metric's unit.

    `merge` says how the workers' gauges become one: `sum`, `max`, or `latest` set. `scale` turns what is counted (whole
    nano-dollars) into the unit shown (dollars).
    """

    name: str
    kind: str
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    merge: str = "sum"
    scale: float = 1.0

    @property
    def width(self) -> int:
        """How many numbers one label set needs: a histogram its buckets', +Inf's and the sum; `latest` a time."""
        if self.kind == "histogram":
            return len(self.buckets) + 2
        return 2 if self.merge == "latest" else 1


REQUESTS = Metric(
    "gateway_requests_total",
    "counter",
    "Requests that ended.",
    ("route", "model", "backend", "key", "status", "code"),
)
DURATION = Metric(
    "gateway_request_duration_seconds",
    "histogram",
    "From a request's head to the last byte of its answer.",
    _TIMES,
    _WAIT_BUCKETS,
)
FIRST_TOKEN = Metric(
    "gateway_time_to_first_token_seconds",
    "histogram",
    "From a request's head to the first token of its answer.",
    _TIMES,
    _WAIT_BUCKETS,
)
OVERHEAD = Metric(
    "gateway_overhead_seconds",
    "histogram",
    "The part of a request's duration that was not spent waiting for a backend.",
    _TIMES,
    _OVERHEAD_BUCKETS,
)
ATTEMPTS = Metric(
    "gateway_attempts_total", "counter", "Tries at backends, by what became of them.", ("backend", "outcome")
)
TOKENS = Metric("gateway_tokens_total", "counter", "Tokens consumed.", ("direction", *_SPENT))
TOKEN_PARTS = Metric(
    "gateway_token_parts_total",
    "counter",
    "Tokens of a special kind; they are part of gateway_tokens_total, never beside it.",
    ("kind", *_SPENT),
)
COST = Metric("gateway_cost_usd_total", "counter", "What requests cost, in US dollars.", _SPENT, scale=1e-9)
BUDGET = Metric(
    "gateway_budget_remaining_usd",
    "gauge",
    "What is left of a budget, in US dollars.",
    ("scope", "name", "window"),
    merge="latest",
    scale=1e-9,
)
BREAKER = Metric(
    "gateway_breaker_state",
    "gauge",
    "A backend's breaker: 0 closed, 1 half-open, 2 open; of several workers the worst.",
    ("backend",),
    merge="max",
)
INFLIGHT = Metric("gateway_inflight", "gauge", "Requests that a backend is working on.", ("backend",))
QUEUE = Metric("gateway_queue_depth", "gauge", "Requests that wait for a slot of a backend.", ("backend",))
REJECTED = Metric("gateway_rejected_total", "counter", "Requests that the gateway itself refused.", ("code",))
MALFORMED = Metric(
    "gateway_malformed_events_total", "counter", "Events of streams that were no JSON and were dropped.", ("backend",)
)
LOG_DROPPED = Metric(
    "gateway_log_lines_dropped_total", "counter", "Log lines dropped because nobody read them in time."
)

METRICS = (
    REQUESTS,
    DURATION,
    FIRST_TOKEN,
    OVERHEAD,
    ATTEMPTS,
    TOKENS,
    TOKEN_PARTS,
    COST,
    BUDGET,
    BREAKER,
    INFLIGHT,
    QUEUE,
    REJECTED,
    MALFORMED,
    LOG_DROPPED,
)


@dataclass(frozen=True, slots=True)
class OtlpMetric:
    """A histogram of the GenAI conventions, sent over OTLP."""

    name: str
    unit: str
    description: str
    buckets: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Attribute:
    """A span attribute: its key, what it says, and the spans it is on (`server`, `genai`, `attempt`)."""

    key: str
    description: str
    spans: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened within a span, with the attributes it carries."""

    name: str
    description: str
    attributes: tuple[str, ...] = ()


_TOKEN_BUCKETS = tuple(float(4**power) for power in range(14))
_SECOND_BUCKETS = tuple(0.01 * 2**power for power in range(14))


@dataclass(frozen=True, slots=True)
class GenAi:
    """The GenAI names that differ between versions of the conventions.

    `input_tokens` and `output_tokens` are one metric told apart by `gen_ai.token.type` when `token_type` is set.
    """

    version: str
    schema_url: str
    cache_write: str
    token_type: str | None
    input_tokens: OtlpMetric
    output_tokens: OtlpMetric
    duration: OtlpMetric
    first_chunk: OtlpMetric
    embeddings_tokens: OtlpMetric
    embeddings_duration: OtlpMetric

    def metrics(self) -> Iterator[OtlpMetric]:
        """Every metric once."""
        metrics = (
            self.input_tokens,
            self.output_tokens,
            self.duration,
            self.first_chunk,
            self.embeddings_tokens,
            self.embeddings_duration,
        )
        return iter(dict.fromkeys(metrics))


def _tokens(name: str, description: str) -> OtlpMetric:
    return OtlpMetric(name, "{token}", description, _TOKEN_BUCKETS)


def _seconds(name: str, description: str) -> OtlpMetric:
    return OtlpMetric(name, "s", description, _SECOND_BUCKETS)


_USAGE_141 = _tokens("gen_ai.client.token.usage", "Number of input and output tokens used.")
_DURATION_141 = _seconds("gen_ai.client.operation.duration", "GenAI operation duration.")

GENAI_141 = GenAi(
    version="1.41.0",
    schema_url="https://opentelemetry.io/schemas/1.41.0",
    cache_write="gen_ai.usage.cache_creation.input_tokens",
    token_type="gen_ai.token.type",  # noqa: S106  # an attribute's name, not a password
    input_tokens=_USAGE_141,
    output_tokens=_USAGE_141,
    duration=_DURATION_141,
    first_chunk=_seconds("gen_ai.client.operation.time_to_first_chunk", "Time to receive the first chunk."),
    embeddings_tokens=_USAGE_141,
    embeddings_duration=_DURATION_141,
)
GENAI_LATEST = GenAi(
    version="latest",
    schema_url="",
    cache_write="gen_ai.usage.cache_write.input_tokens",
    token_type=None,
    input_tokens=_tokens("gen_ai.client.inference.operation.input_tokens", "Input tokens of an operation."),
    output_tokens=_tokens("gen_ai.client.inference.operation.output_tokens", "Output tokens of an operation."),
    duration=_seconds("gen_ai.client.inference.duration", "Duration of an inference."),
    first_chunk=_seconds("gen_ai.client.inference.time_to_first_chunk", "Time to receive the first chunk."),
    embeddings_tokens=_tokens("gen_ai.client.embeddings.operation.input_tokens", "Input tokens of an embedding."),
    embeddings_duration=_seconds("gen_ai.client.embeddings.duration", "Duration of an embedding."),
)


def genai(opt_in: str | None) -> GenAi:
    """The names that `OTEL_SEMCONV_STABILITY_OPT_IN` (comma-separated) asks for: v1.41, or the newest on opt-in."""
    chosen = {word.strip() for word in (opt_in or "").split(",")}
    return GENAI_LATEST if "gen_ai_latest_experimental" in chosen else GENAI_141


PROVIDERS: Mapping[str, str] = {
    "": "openai",
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
"""`gen_ai.provider.name` of a provider, where the conventions call it otherwise than the policies do."""

_SERVER = ("server",)
_GENAI = ("genai",)
_ATTEMPT = ("attempt",)

ATTRIBUTES = (
    Attribute("http.request.method", "the request's method", ("server", "attempt")),
    Attribute("http.route", "the path, as the gateway's own routes name it", _SERVER),
    Attribute("http.response.status_code", "the status of the answer", ("server", "attempt")),
    Attribute("url.scheme", "`http` or `https`", _SERVER),
    Attribute("url.path", "the path, as the gateway's own routes name it", _SERVER),
    Attribute(
        "error.type",
        "the error's code, or the attempt's outcome; absent when all went well",
        (
            "server",
            "genai",
            "attempt",
        ),
    ),
    Attribute("server.address", "the backend's host", ("genai", "attempt")),
    Attribute("server.port", "the backend's port", ("genai", "attempt")),
    Attribute("http.request.resend_count", "how often this backend had been tried before in this request", _ATTEMPT),
    Attribute("gen_ai.operation.name", "`chat`, `text_completion`, `embeddings` …", _GENAI),
    Attribute("gen_ai.provider.name", "who serves the model", _GENAI),
    Attribute("gen_ai.request.model", "the model asked of the backend", ("genai", "attempt")),
    Attribute("gen_ai.request.max_tokens", "the most tokens the client allowed", _GENAI),
    Attribute("gen_ai.request.temperature", "the sampling temperature", _GENAI),
    Attribute("gen_ai.request.top_p", "the sampling threshold", _GENAI),
    Attribute("gen_ai.request.stream", "whether the answer was streamed", _GENAI),
    Attribute("gen_ai.response.id", "the answer's id", _GENAI),
    Attribute("gen_ai.response.model", "the model that answered, in the backend's words", _GENAI),
    Attribute("gen_ai.response.finish_reasons", "why each choice ended", _GENAI),
    Attribute("gen_ai.response.time_to_first_chunk", "seconds from the request to the first token of a stream", _GENAI),
    Attribute("gen_ai.usage.input_tokens", "input tokens, cached ones included", _GENAI),
    Attribute("gen_ai.usage.output_tokens", "output tokens, reasoning included", _GENAI),
    Attribute("gen_ai.usage.cache_read.input_tokens", "input tokens read from the provider's cache", _GENAI),
    Attribute(GENAI_141.cache_write, "input tokens written to the provider's cache (v1.41)", _GENAI),
    Attribute(GENAI_LATEST.cache_write, "input tokens written to the provider's cache (newest)", _GENAI),
    Attribute("gen_ai.usage.reasoning.output_tokens", "output tokens spent on reasoning", _GENAI),
    Attribute("gen_ai.input.messages", "the prompt; only when content capture is on", _GENAI),
    Attribute("gen_ai.output.messages", "the answer; only when content capture is on", _GENAI),
    Attribute("gateway.request_id", "the answer's `x-request-id`", _SERVER),
    Attribute("gateway.route", "the alias, task or model asked for", ("server", "genai")),
    Attribute("gateway.task", "the task, when the request had one", ("server", "genai")),
    Attribute("gateway.key", "the name of the client's key", ("server",)),
    Attribute("gateway.team", "the key's team", ("server",)),
    Attribute("gateway.outcome", "what became of the request or of the attempt", ("server", "attempt")),
    Attribute("gateway.cost_usd", "what the request cost, in US dollars", _GENAI),
    Attribute("gateway.usage.estimated", "present when the backend did not report its usage", _GENAI),
    Attribute("gateway.backend", "the backend, as the policies name it", ("genai", "attempt")),
    Attribute("gateway.model", "the model, as the policies name it", _GENAI),
    Attribute("gateway.attempt.reason", "why the plan came to this candidate", _ATTEMPT),
    Attribute("gateway.attempt.detail", "what went wrong, without content", _ATTEMPT),
)

HELD = SpanEvent("gateway.hold", "the budget was held", ("gateway.hold_usd",))
QUEUED = SpanEvent("gateway.queue_wait", "a slot of the backend became free", ("gateway.queue_seconds",))
FIRST = SpanEvent("gateway.first_token", "the first token arrived")
SPAN_EVENTS = (HELD, QUEUED, FIRST)


@dataclass(frozen=True, slots=True)
class LogEvent:
    """A line in the log that is not a request: its name, level (`info`, `warning`, `error`) and fields."""

    name: str
    level: str
    description: str
    fields: tuple[str, ...] = ()


LOG_EVENTS = (
    LogEvent("start", "info", "A worker serves.", ("address", "pid", "policies", "backends", "disabled")),
    LogEvent("stop", "info", "A worker has drained and ends.", ("pid", "reason")),
    LogEvent("reloaded", "info", "New policies are in force.", ("policies", "files")),
    LogEvent("reload_failed", "error", "New policies are wrong; the old ones stay.", ("error",)),
    LogEvent("breaker_opened", "warning", "A backend failed too often and rests.", ("backend", "seconds", "reason")),
    LogEvent("breaker_closed", "info", "A backend works again.", ("backend",)),
    LogEvent("api_key_rests", "warning", "An api key of a backend rests.", ("backend", "api_key", "seconds", "reason")),
    LogEvent(
        "budget_alert",
        "warning",
        "A budget has passed one of its alert marks.",
        (
            "scope",
            "name",
            "window",
            "unit",
            "mark",
            "spent",
            "limit",
        ),
    ),
    LogEvent(
        "budget_overrun",
        "error",
        "A backend produced more than its hold pays for.",
        (
            "scope",
            "name",
            "window",
            "unit",
            "request_id",
            "over",
        ),
    ),
    LogEvent("usage_lost", "error", "Usage records found no more room while the store was away.", ("records",)),
    LogEvent("store_trouble", "error", "The store does not answer.", ("store", "detail")),
    LogEvent("store_recovered", "info", "The store answers again.", ("store", "seconds")),
    LogEvent(
        "malformed_event",
        "warning",
        "A backend's stream held an event that is no JSON; it was dropped.",
        (
            "request_id",
            "backend",
            "count",
        ),
    ),
    LogEvent(
        "internal_error",
        "error",
        "A bug: the request failed inside the gateway.",
        (
            "request_id",
            "error",
            "where",
        ),
    ),
    LogEvent("log_dropped", "warning", "Nobody read the log in time.", ("lines",)),
    LogEvent(
        "export_trouble", "error", "Traces or metrics are not taken by the collector.", ("signal", "detail", "dropped")
    ),
    LogEvent("export_recovered", "info", "The collector takes them again.", ("signal", "dropped")),
    LogEvent(
        "library",
        "warning",
        "A message of a library at level warning or above; of a failure its type and place.",
        ("logger", "message", "error", "where"),
    ),
)

REQUEST_LINE: Mapping[str, str] = {
    "at": "when the request came, RFC 3339 in UTC",
    "level": "`info`, `warning` (the client's error) or `error` (the gateway's or a backend's)",
    "event": "`request`",
    "id": "the answer's `x-request-id`",
    "trace_id": "the trace, when it is sampled",
    "method": "the request's method",
    "path": "the request's path as the gateway's routes name it; `other` for a URL that is not there",
    "key": LABELS["key"],
    "team": "the key's team",
    "route": LABELS["route"],
    "task": "the task, when the request had one",
    "model": LABELS["model"],
    "backend": LABELS["backend"],
    "stream": "whether the answer was streamed",
    "status": LABELS["status"],
    "code": "the error's code",
    "outcome": "what became of the request",
    "attempts": "each try: `backend`, `model`, `outcome`, `status`, `ms`, `reason`, `detail`",
    "input_tokens": "input tokens, cached ones included",
    "output_tokens": "output tokens, reasoning included",
    "cached_tokens": "input tokens read from the provider's cache",
    "estimated": "present when the backend did not report its usage",
    "cost_usd": "what the request cost, in US dollars, exact",
    "ms": "the request's duration, in milliseconds",
    "first_token_ms": "time to first token, in milliseconds",
    "overhead_ms": "time not spent waiting for a backend, in milliseconds",
}


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    columns = list(head)
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _codes(names: Iterable[str]) -> str:
    return " ".join(f"`{name}`" for name in names)


def document() -> str:
    """`docs/telemetry.md`: every name with its description, as Markdown."""
    genais = [(names, metric) for names in (GENAI_141, GENAI_LATEST) for metric in names.metrics()]
    lines = [
        "# Telemetry: every name",
        "",
        "Made by `python -m gateway.telemetry.names > docs/telemetry.md` from that module; do not edit.",
        "",
        "## Metrics at `/metrics`",
        "",
        *_table(
            ("metric", "kind", "labels", "what"),
            ((f"`{m.name}`", m.kind, _codes(m.labels), m.description) for m in METRICS),
        ),
        *_table(("label", "value"), ((f"`{name}`", text) for name, text in LABELS.items())),
        "Labels come from the policies, never from a client; what is beyond the bound is counted under `other`.",
        "",
        "### Outcomes of attempts",
        "",
        *_table(("outcome", "meaning"), ((f"`{name}`", text) for name, text in OUTCOMES.items())),
        "## Metrics over OTLP",
        "",
        "The names of version 1.41 are the default;",
        "`OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental` chooses the newest.",
        "",
        *_table(
            ("metric", "conventions", "unit", "what"),
            ((f"`{m.name}`", n.version, f"`{m.unit}`", m.description) for n, m in genais),
        ),
        "## Spans",
        "",
        "`server` is the SERVER span `{method} {route}`; under it `genai`, one CLIENT span `{operation} {model}`;",
        "under that `attempt`, one CLIENT span `{method} {backend}` for each try. Tokens stand on `genai` only.",
        "",
        *_table(("attribute", "spans", "what"), ((f"`{a.key}`", _codes(a.spans), a.description) for a in ATTRIBUTES)),
        *_table(
            ("event", "attributes", "what"),
            ((f"`{e.name}`", _codes(e.attributes), e.description) for e in SPAN_EVENTS),
        ),
        "## Log lines",
        "",
        "One for every request:",
        "",
        *_table(("field", "what"), ((f"`{name}`", text) for name, text in REQUEST_LINE.items())),
        "And for what happens besides (`at`, `level`, `event`, and):",
        "",
        *_table(
            ("event", "level", "fields", "what"),
            ((f"`{e.name}`", e.level, _codes(e.fields), e.description) for e in LOG_EVENTS),
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201  # the document is the output
