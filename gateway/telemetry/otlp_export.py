"""The way of encoded spans to a collector: gathered on the loop, sent by a thread, over gRPC or HTTP."""

import gzip
import http.client
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol
from urllib.parse import urlsplit

from gateway.telemetry.otlp import Envelope
from gateway.telemetry.otlp_settings import GRPC, Exporting, TelemetryMisconfigured, without_secrets
from gateway.tls import tls_context

_METHODS = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}
_AGAIN = frozenset((429, 502, 503, 504))
_TRIES = 3
TELL_AGAIN = 60.0  # seconds between two reports of dropped spans
_BACKOFF = 0.5  # seconds before the second try; doubles


class SendFailed(Exception):
    """A batch was not taken; `again` says whether the same may be taken later. The message holds no header."""

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again


class Sender(Protocol):
    """Gives one encoded request to a collector, or raises SendFailed. Belongs to one thread."""

    def send(self, body: bytes) -> None:
        """Send, and wait until it was taken."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Batcher:
    """Takes spans without ever waiting, and lets a thread send them in batches.

    At most `max_queue` spans wait; what comes beyond is dropped and counted. A batch goes when there are `batch` spans
    or after `delay` seconds. `report(signal=, detail=, dropped=)` is told, on the thread, when delivery begins to fail,
    and at most every TELL_AGAIN seconds that spans were dropped because the collector takes them too slowly.
    """

    def __init__(
        self,
        sender: Sender,
        envelope: Envelope,
        *,
        max_queue: int,
        batch: int,
        delay: float,
        report: Callable[..., None],
    ) -> None:
        self._sender = sender
        self._envelope = envelope
        self._max_queue = max_queue
        self._batch = batch
        self._delay = delay
        self._report = report
        self._queue: deque[tuple[bytes, int]] = deque()
        self._put = 0  # spans; counted by the loop
        self._taken = 0  # spans; counted by the thread
        self._dropped = 0
        self._told_dropped = 0
        self._told_at = -TELL_AGAIN
        self._failing = False
        self._awake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def emit(self, data: bytes, spans: int) -> None:
        """Take the encoded spans of one request."""
        waiting = self._put - self._taken
        if waiting + spans > self._max_queue:
            self._dropped += spans
            return
        self._put += spans
        self._queue.append((data, spans))
        if waiting + spans >= self._batch and not self._awake.is_set():
            self._awake.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="gateway-otlp", daemon=True)
            self._thread.start()

    def close(self, wait: float) -> None:
        """Send what is left, for at most so many seconds. Idempotent."""
        thread, self._thread = self._thread, None
        self._closing.set()
        self._awake.set()
        if thread is not None:
            thread.join(wait)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._awake.wait(self._delay)
            self._awake.clear()
            self._send_all()
            self._tell_dropped()
        self._send_all()
        self._tell_dropped()
        self._sender.close()

    def _tell_dropped(self) -> None:
        """Say so when spans found no room although the collector takes what it is sent."""
        now = time.monotonic()
        dropped = self._dropped
        if dropped == self._told_dropped or self._failing or now < self._told_at + TELL_AGAIN:
            return
        self._told_dropped, self._told_at = dropped, now
        detail = "the collector is too slow: sample fewer traces, or raise OTEL_BSP_MAX_QUEUE_SIZE"
        self._report("export_trouble", signal="traces", detail=detail, dropped=dropped)

    def _send_all(self) -> None:
        while self._queue:
            batch, spans = [], 0
            while self._queue and spans < self._batch:
                data, count = self._queue.popleft()
                batch.append(data)
                spans += count
            self._deliver(self._envelope.request(batch), spans)
            self._taken += spans

    def _deliver(self, body: bytes, spans: int) -> None:
        for tried in range(_TRIES):
            try:
                self._sender.send(body)
            except SendFailed as failed:
                if failed.again and tried + 1 < _TRIES and not self._closing.wait(_BACKOFF * 2**tried):
                    continue
                self._dropped += spans
                self._told_dropped = self._dropped
                if not self._failing:
                    self._failing = True
                    self._report("export_trouble", signal="traces", detail=str(failed), dropped=self._dropped)
                return
            if self._failing:
                self._failing = False
                self._report("export_recovered", signal="traces", dropped=self._dropped)
            return


def open_sender(to: Exporting, signal: str) -> Sender:
    """The sender of `traces` or `metrics` for these settings; gRPC is imported only when it is used."""
    return GrpcSender(to, signal) if to.protocol == GRPC else HttpSender(to)


class HttpSender:
    """OTLP over HTTP with protobuf bodies, on one kept connection."""

    def __init__(self, to: Exporting) -> None:
        url = urlsplit(to.endpoint)
        self._to = to
        self._shown = without_secrets(to.endpoint)
        self._host, self._port = url.hostname or "localhost", url.port
        self._target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
        self._tls = _tls(to) if url.scheme == "https" else None
        self._headers = {"content-type": "application/x-protobuf", **dict(to.headers)}
        if to.gzip:
            self._headers["content-encoding"] = "gzip"
        self._connection: http.client.HTTPConnection | None = None

    def send(self, body: bytes) -> None:
        """POST it; 429, 502, 503, 504 and broken connections may be tried again."""
        data = gzip.compress(body, 5) if self._to.gzip else body
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._connection.request("POST", self._target, data, self._headers)
            answer = self._connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise SendFailed(f"{self._shown}: {type(error).__name__}", again=True) from error
        if not 200 <= answer.status < 300:
            raise SendFailed(f"{self._shown}: status {answer.status}", again=answer.status in _AGAIN)

    def close(self) -> None:
        """Close the connection; the next `send` opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._to.timeout)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._to.timeout, context=self._tls)


class GrpcSender:
    """OTLP over gRPC; the bytes are given to grpcio as they are."""

    def __init__(self, to: Exporting, signal: str) -> None:
        import grpc  # type: ignore[import-untyped]  # noqa: PLC0415  # heavy, and only with this protocol

        self._to = to
        self._shown = without_secrets(to.endpoint)
        self._again = {
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.ABORTED,
            grpc.StatusCode.OUT_OF_RANGE,
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DATA_LOSS,
        }
        self._error = grpc.RpcError
        url = urlsplit(to.endpoint if "://" in to.endpoint else f"//{to.endpoint}")
        gzipped = grpc.Compression.Gzip if to.gzip else grpc.Compression.NoCompression
        if to.insecure:
            self._channel = grpc.insecure_channel(url.netloc, compression=gzipped)
        else:
            keys = (_read(to.certificate), _read(to.client_key), _read(to.client_certificate))
            self._channel = grpc.secure_channel(url.netloc, grpc.ssl_channel_credentials(*keys), compression=gzipped)
        self._call = self._channel.unary_unary(_METHODS[signal])
        self._metadata = tuple((name.lower(), value) for name, value in to.headers)

    def send(self, body: bytes) -> None:
        """Call Export; the codes that the OTLP specification calls retryable may be tried again."""
        try:
            self._call(body, timeout=self._to.timeout, metadata=self._metadata)
        except self._error as error:
            code = error.code()
            raise SendFailed(f"{self._shown}: {code.name}", again=code in self._again) from error

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def _tls(to: Exporting) -> ssl.SSLContext:
    for path in (to.certificate, to.client_key, to.client_certificate):
        _read(path)
    try:
        context = tls_context(to.certificate)
        if to.client_certificate:
            context.load_cert_chain(to.client_certificate, to.client_key)
    except ssl.SSLError as error:
        raise TelemetryMisconfigured(
            f"a file of OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_CERTIFICATE or _CLIENT_KEY is wrong ({error.reason}); "
            "write certificates in PEM, and the key that the client's certificate is of"
        ) from error
    return context


def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # bytes of a file, once
            return file.read()
    except OSError as error:
        raise TelemetryMisconfigured(
            f"{path} cannot be read ({error.strerror}); write a file in PEM to OTEL_EXPORTER_OTLP_CERTIFICATE, "
            "_CLIENT_CERTIFICATE and _CLIENT_KEY"
        ) from error
