"""A real OTLP collector in the test's process: over gRPC and over HTTP, with the official messages."""

import gzip
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc  # type: ignore[import-untyped]
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

KINDS = {2: "SERVER", 3: "CLIENT"}


@dataclass
class Span:
    """A span as a person thinks of it."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any]
    events: list[tuple[str, int, dict[str, Any]]]
    remote_parent: bool
    trace_state: str


@dataclass
class Collector:
    """What arrived. `failing` answers so many of the next requests with an error that may be tried again."""

    endpoint: str = ""
    protocol: str = ""
    traces: list[ExportTraceServiceRequest] = field(default_factory=list)
    metrics: list[ExportMetricsServiceRequest] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    failing: int = 0
    arrived: threading.Event = field(default_factory=threading.Event)

    def environ(self, **more: str) -> dict[str, str]:
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol,
            "OTEL_EXPORTER_OTLP_HEADERS": "X-Token=s%20ecret",
        } | more

    def take(self, message: Any, headers: dict[str, str]) -> None:
        (self.traces if isinstance(message, ExportTraceServiceRequest) else self.metrics).append(message)
        self.headers.append(headers)
        self.arrived.set()

    def refuses(self) -> bool:
        self.failing -= 1
        return self.failing >= 0

    def spans(self) -> list[Span]:
        return [span for request in self.traces for span in spans_of(request)]

    def resource(self) -> dict[str, Any]:
        sent: Any = self.traces[0].resource_spans if self.traces else self.metrics[0].resource_metrics
        return attributes_of(sent[0].resource.attributes)


def attributes_of(pairs: Any) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


def spans_of(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    name=span.name,
                    kind=KINDS[span.kind],
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    failed=span.status.code == 2,
                    attributes=attributes_of(span.attributes),
                    events=[(e.name, e.time_unix_nano, attributes_of(e.attributes)) for e in span.events],
                    remote_parent=bool(span.flags & 0x200),
                    trace_state=span.trace_state,
                )


@contextmanager
def over_grpc() -> Iterator[Collector]:
    """A collector on gRPC."""
    collector = Collector(protocol="grpc")

    def export(answer: Callable[[], Any]) -> Callable[[Any, Any, Any], Any]:
        def handle(_: Any, request: Any, context: Any) -> Any:
            if collector.refuses():
                context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
            collector.take(request, dict(context.invocation_metadata()))
            return answer()

        return handle

    traces = type("T", (trace_service_pb2_grpc.TraceServiceServicer,), {"Export": export(ExportTraceServiceResponse)})
    metrics = type(
        "M", (metrics_service_pb2_grpc.MetricsServiceServicer,), {"Export": export(ExportMetricsServiceResponse)}
    )
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(traces(), server)  # type: ignore[no-untyped-call]
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(metrics(), server)  # type: ignore[no-untyped-call]
        collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield collector
        finally:
            server.stop(None).wait()


@contextmanager
def over_http() -> Iterator[Collector]:
    """A collector on HTTP with protobuf bodies."""
    collector = Collector(protocol="http/protobuf")
    kinds: dict[str, Any] = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = 503 if collector.refuses() else 200
            if status == 200:
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.headers["content-type"] == "application/x-protobuf"
                headers = {name.lower(): value for name, value in self.headers.items()}
                collector.take(kinds[self.path].FromString(body), headers)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
