"""Who is usable, who asks a backend that is down whether it is back, and a departure before there is a connection."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.stage import Open, Stage, free_port
from tests.faults import FaultUpstream
from tests.support import serve

BREAKER = {"failures": 2, "open": "60s", "successes": 1}


@contextlib.contextmanager
def upstream_at(port: int) -> Iterator[FaultUpstream]:
    """The fault upstream on a port of the test's choice, in a thread of its own."""
    upstream = FaultUpstream(port=port)
    over, ready = asyncio.Event(), threading.Event()
    loop = asyncio.new_event_loop()

    async def live() -> None:
        async with upstream:
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(live(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield upstream
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()


def policies(**backends: Any) -> dict[str, Any]:
    """A model and an alias of the same name for each backend."""
    return {
        "server": {"auth": "none"},
        "defaults": {
            "timeouts": {"connect": "20s", "first_token": "1s"},
            "retry": {"attempts": 0},
            "breaker": BREAKER,
        },
        "backends": backends,
        "models": {name: {"backend": name, "model": "m"} for name in backends},
        "aliases": {"chain": list(backends)},
    }


def test_a_local_backend_that_came_back_is_found_by_asking_it(tmp_path: Path) -> None:
    """Its breaker would be open for a minute: a probe with `GET /models` ends that in seconds, without any client."""
    port = free_port()
    with FaultUpstream.in_thread() as second:
        local = {"base_url": f"http://127.0.0.1:{port}/v1", "local": True}
        with serve(tmp_path, policies(local=local, second={"base_url": second.url})) as gateway:
            stage = Stage(gateway, second)
            for _ in range(3):
                assert stage.tell("chain").reply.headers["x-gateway-backend"] == "second"
            assert "breaker is open" in stage.ready("local")["reason"]
            with upstream_at(port) as back:
                stage.until(lambda: bool(stage.ready("local")["usable"]), timeout=20)
                assert {(seen.method, seen.path) for seen in back.log} == {("GET", "/v1/models")}
                assert stage.tell("chain").reply.headers["x-gateway-backend"] == "local"
                probes = len([seen for seen in back.log if seen.method == "GET"])
                assert stage.metric('gateway_breaker_state{backend="local"}') == 0
                time.sleep(1.5)
                assert len([seen for seen in back.log if seen.method == "GET"]) == probes, "asked though it works"


def test_readyz_tells_who_is_usable_and_when_nobody_is(tmp_path: Path) -> None:
    """200 while one is; 503 with none; each with its reason: an open breaker, a rest, a refused key."""
    with FaultUpstream.in_thread() as upstream:
        names = ("breaks", "rests", "refused", "works")
        backends = {name: {"base_url": upstream.url, "api_keys": [name]} for name in names}
        with serve(tmp_path, policies(**backends)) as gateway:
            stage = Stage(gateway, upstream)
            ready = gateway.request("GET", "/readyz")
            assert (ready.status, ready.json["status"]) == (200, "ready")
            assert ready.json["backends"] == {name: {"usable": True} for name in names}
            for _ in range(2):
                stage.tell("breaks", ["status_500"])
            stage.tell("rests", ["status_429:60"])
            stage.tell("refused", ["status_401"])
            ready = gateway.request("GET", "/readyz")
            assert (ready.status, ready.json["status"]) == (200, "ready")
            told = ready.json["backends"]
            assert told.pop("works") == {"usable": True}
            assert all(not state["usable"] for state in told.values())
            assert "breaker is open" in told["breaks"]["reason"]
            assert "left alone" in told["rests"]["reason"]
            assert "refused" in told["refused"]["reason"]
            stage.tell("works", ["status_429:60"])
            ready = gateway.request("GET", "/readyz")
            assert (ready.status, ready.json["status"]) == (503, "no backend is usable")
            assert gateway.request("GET", "/livez").status == 200


@contextlib.contextmanager
def blackhole() -> Iterator[int]:
    """A port where connections are neither accepted nor refused: it listens, and its backlog is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port: int = server.getsockname()[1]
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


def connecting_to(port: int) -> int:
    """How many sockets of this machine wait for a connection to a port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2] == f"0100007F:{port:04X}" and row[3] == "02" for row in rows)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are read from /proc, which Linux has")
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_attempt_to_connect(tmp_path: Path, *, stream: bool) -> None:
    """Within 100 ms (1 s here, for reading the machine's sockets takes its time) nobody knocks there any more."""
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(blackhole())
        upstream = stack.enter_context(FaultUpstream.in_thread())
        hole = {"base_url": f"http://127.0.0.1:{port}/v1"}
        stage = Stage(stack.enter_context(serve(tmp_path, policies(hole=hole))), upstream)
        before = connecting_to(port)
        with Open(stage.gateway, "hole", stream=stream) as request:
            stage.until(lambda: connecting_to(port) == before + 1)
            left = request.leave()
        stage.until(lambda: connecting_to(port) == before)
        assert time.monotonic() - left < 1
        stage.until(lambda: stage.metric('gateway_inflight{backend="hole"}') == 0)
        line = stage.until_request_logged("hole")
        assert (line["status"], line["outcome"]) == (499, "client_gone")


def test_a_connect_that_takes_too_long_leads_to_the_next(tmp_path: Path) -> None:
    """After `connect`, without a second try: nobody is there."""
    with blackhole() as port, FaultUpstream.in_thread() as upstream:
        settings = policies(hole={"base_url": f"http://127.0.0.1:{port}/v1"}, good={"base_url": upstream.url})
        settings["defaults"]["timeouts"]["connect"] = "500ms"
        with serve(tmp_path, settings) as gateway:
            told = Stage(gateway, upstream).tell("chain")
            assert (told.reply.status, told.reply.headers["x-gateway-backend"]) == (200, "good")
            assert 0.45 < told.took < 3
