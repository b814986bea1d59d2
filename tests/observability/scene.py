"""The real gateway between a fault upstream and a real OTLP collector: a request, and the whole span tree it made."""

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.faults import FaultUpstream, Seen
from tests.support import Reply, Served, ask
from tests.telemetry.collector import Collector, Span

CLIENT_SPAN = "00f067aa0ba902b7"
STATE = "vendor=of-the-client"
_SLACK = 5_000_000  # ns: each process rounds its own clock
_numbers = itertools.count(1)

QUICKLY = {
    "OTEL_BSP_SCHEDULE_DELAY": "20",
    "OTEL_METRIC_EXPORT_INTERVAL": "200",
    "OTEL_SERVICE_NAME": "under-test",
}


@dataclass(frozen=True)
class Tree:
    """What one request left behind: its answer if it stayed for it, its spans, and what the upstream saw of it."""

    reply: Reply | None
    spans: Sequence[Span]
    seen: Sequence[Seen]

    @property
    def server(self) -> Span:
        """The SERVER span."""
        (found,) = (span for span in self.spans if span.kind == "SERVER")
        return found

    @property
    def genai(self) -> Span:
        """The GenAI span."""
        (found,) = (span for span in self.spans if "gen_ai.operation.name" in span.attributes)
        return found

    @property
    def attempts(self) -> list[Span]:
        """The spans of the attempts, as they began."""
        rest = [span for span in self.spans if span not in (self.server, self.genai)]
        return sorted(rest, key=lambda span: span.start)

    @property
    def outcomes(self) -> list[str]:
        """What became of the attempts."""
        return [str(span.attributes["gateway.outcome"]) for span in self.attempts]

    @property
    def sent_spans(self) -> list[str]:
        """The span ids that the upstream was told, as its requests came."""
        return [each.headers["traceparent"].split("-")[2] for each in self.seen]


class Scene:
    """The gateway, what stands behind it, and who watches."""

    def __init__(self, gateway: Served, upstream: FaultUpstream, collector: Collector) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.collector = collector

    def tell(self, model: str, script: Sequence[str] = (), *, key: str = "sk-alice", **fields: Any) -> Tree:
        """One request with a trace of its own, once its spans have arrived."""
        before = self._script(script)
        trace_id, headers = trace_headers()
        reply = self.gateway.chat(ask(model, **fields), key=key, **headers)
        return self._tree(trace_id, reply, before)

    def leave(self, model: str, when: Callable[[], bool], script: Sequence[str] = (), *, read: bool = False) -> Tree:
        """A streamed request whose client leaves as soon as `when` is true, having read something first if it is to."""
        before = self._script(script)
        trace_id, headers = trace_headers()
        with self.gateway.connect() as connection:
            connection.sendall(chat_bytes(ask(model, stream=True), "sk-alice", **headers))
            if read:
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            self.until(when)
        return self._tree(trace_id, None, before)

    def until(self, is_so: Callable[[], bool], timeout: float = 15.0) -> None:
        """Wait until something has arrived."""
        deadline = time.monotonic() + timeout
        while not is_so():
            assert time.monotonic() < deadline, f"not within {timeout:g} s: {self.gateway.output}{self.gateway.errors}"
            self.collector.arrived.wait(0.02)
            self.collector.arrived.clear()

    def _script(self, script: Sequence[str]) -> int:
        self.upstream.script(script)
        return len(self.upstream.log)

    def _tree(self, trace_id: str, reply: Reply | None, before: int) -> Tree:
        found: list[Span] = []

        def has_arrived() -> bool:
            found[:] = [span for span in self.collector.spans() if span.trace_id == trace_id]
            return any(span.kind == "SERVER" for span in found)

        self.until(has_arrived)
        return Tree(reply, found, [each for each in self.upstream.log[before:] if each.method == "POST"])


def chat_bytes(body: Mapping[str, Any], key: str, **headers: str) -> bytes:
    """A chat request as it stands on the wire."""
    data = json.dumps(body).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: gateway", f"content-length: {len(data)}"]
    lines += [f"authorization: Bearer {key}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def trace_headers(*, sampled: bool = True) -> tuple[str, Mapping[str, str]]:
    """A new trace of a client: its id, and the headers that say so."""
    trace_id = f"{next(_numbers):032x}"
    return trace_id, {"traceparent": f"00-{trace_id}-{CLIENT_SPAN}-{'01' if sampled else '00'}", "tracestate": STATE}


def assert_is_a_tree(tree: Tree) -> None:
    """Server under the client's span, genai under it, attempts under that; each within the time of its parent."""
    server = tree.server
    assert (server.parent_id, server.remote_parent, server.trace_state) == (CLIENT_SPAN, True, STATE)
    assert server.name == "POST /v1/chat/completions"
    assert abs(server.end - time.time_ns()) < 120e9
    ids = [span.span_id for span in tree.spans]
    assert len(set(ids)) == len(ids)
    if len(tree.spans) == 1:
        return
    assert (tree.genai.kind, tree.genai.parent_id) == ("CLIENT", server.span_id)
    assert_within(tree.genai, server)
    assert tree.attempts
    for attempt in tree.attempts:
        assert (attempt.kind, attempt.parent_id) == ("CLIENT", tree.genai.span_id)
        assert_within(attempt, tree.genai)
    for span in tree.spans:
        assert [at for _, at, _ in span.events if not span.start - _SLACK <= at <= span.end + _SLACK] == []
    tokens = [span for span in tree.spans if any(name.startswith("gen_ai.usage.") for name in span.attributes)]
    assert tokens in ([], [tree.genai]), "tokens stand on one span, or dashboards count them twice"


def assert_within(inner: Span, outer: Span) -> None:
    """One span's time lies in the other's."""
    assert outer.start - _SLACK <= inner.start <= inner.end <= outer.end + _SLACK, (inner.name, outer.name)


def seconds(span: Span) -> float:
    """How long it took."""
    return (span.end - span.start) / 1e9


def events_of_span(span: Span) -> dict[str, Mapping[str, Any]]:
    """Its events by name."""
    return {name: attributes for name, _, attributes in span.events}
