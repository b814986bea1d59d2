"""`/livez`, `/readyz` and `/metrics`: for those who run the gateway; and the answer to every URL that is not there."""

import time
from collections.abc import Callable
from typing import Any

import orjson

from gateway.proxy import Proxy
from gateway.server.downstream import Downstream, RequestIds
from gateway.server.errors import JSON, allow_header, not_found, send_body, send_error, wrong_method
from gateway.telemetry.names import OTHER

METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Page:
    """A `GET` that needs no key: `render` gives status, content type and body."""

    def __init__(self, ids: RequestIds, render: Callable[[], tuple[int, bytes, bytes]]) -> None:
        self._ids = ids
        self._render = render

    async def serve(self, downstream: Downstream) -> None:
        """Serve one request."""
        request_id = self._ids.next()
        if downstream.method not in ("GET", "HEAD"):
            error = wrong_method(downstream.method, downstream.path, ("GET",))
            send_error(downstream, error, [allow_header(("GET",))], request_id)
            return
        status, kind, body = self._render()
        send_body(downstream, status, [(b"content-type", kind), (b"cache-control", b"no-store")], body, request_id)


class Nowhere:
    """Every URL that is not there. All are told as one: what a client calls its path is in no log."""

    def __init__(self, proxy: Proxy, ids: RequestIds) -> None:
        self._proxy = proxy
        self._ids = ids

    async def serve(self, downstream: Downstream) -> None:
        """Answer 404."""
        error = not_found(downstream.path)
        trip = self._proxy.begin(self._ids.next(), downstream.method, OTHER, "")
        trip.status, trip.code = error.status, error.code
        self._proxy.trace(trip, downstream.headers)
        self._proxy.rejected(error.code)
        try:
            send_error(downstream, error, [], trip.request_id)
        finally:
            trip.finish("error")


def alive() -> tuple[int, bytes, bytes]:
    """`/livez`: the process answers."""
    return 200, JSON[1], b'{"status":"ok"}'


def readiness(proxy: Proxy) -> tuple[int, bytes, bytes]:
    """`/readyz`: which backends are usable and why the others are not; 503 with none, or while shutting down."""
    runtime = proxy.runtime
    now = time.monotonic()
    backends: dict[str, dict[str, Any]] = {}
    for name in runtime.policy.backends:
        reason = runtime.policy.disabled.get(name)
        if reason is None:
            obstacle = runtime.backends[name].obstacle(now)
            reason = f"{obstacle.why}, for {obstacle.seconds:.0f} s more" if obstacle is not None else None
        backends[name] = {"usable": True} if reason is None else {"usable": False, "reason": reason}
    usable = any(state["usable"] for state in backends.values())
    status = "draining" if proxy.draining else "ready" if usable else "no backend is usable"
    body = orjson.dumps({"status": status, "backends": backends})
    return (200 if status == "ready" else 503), JSON[1], body
