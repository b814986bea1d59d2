"""SIGTERM: nothing new begins, everything that runs is finished, and the end comes in any case."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.stage import PATIENT, Open
from tests.faults import FaultUpstream, text
from tests.money.workers import workers_of
from tests.support import Reply, Served, ask, events_of, serve, spawn, write_policies

STREAMS = 200


@pytest.fixture
def upstream() -> Iterator[FaultUpstream]:
    """A backend whose streams take about two seconds."""
    with FaultUpstream.in_thread("slow:gap=0.1,tokens=20") as running:
        yield running


def policies(upstream: FaultUpstream, drain: str) -> dict[str, Any]:
    """One model, and this long to drain."""
    return {
        "server": {"auth": "none", "drain": drain},
        "defaults": {"timeouts": PATIENT},
        "backends": {"up": {"base_url": upstream.url}},
        "models": {"m": {"backend": "up", "model": "m"}},
    }


@contextlib.contextmanager
def started(folder: Path, upstream: FaultUpstream, drain: str, *more: str) -> Iterator[Served]:
    """A gateway that the test ends by itself."""
    served = spawn(
        *("serve", "--policies", str(write_policies(folder, policies(upstream, drain))), "--port", "0", *more),
        folder=folder,
    )
    try:
        served.until_ready()
        yield served
    finally:
        served.process.kill()
        served.wait()


def read_all(requests: Sequence[Open]) -> list[Reply]:
    """Every answer, read as it comes."""
    replies: list[Reply | None] = [None] * len(requests)

    def read(place: int) -> None:
        replies[place] = requests[place].reply()

    threads = [threading.Thread(target=read, args=(place,)) for place in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert None not in replies
    return [reply for reply in replies if reply is not None]


def refusal(gateway: Served) -> str:
    """What a new request gets: the code of a 503, or that nobody listens any more."""
    try:
        reply = gateway.chat(ask("m"))
    except OSError:
        return "refused"
    assert reply.status == 503
    assert int(reply.headers["retry-after"]) >= 1
    return str(reply.error["code"])


def tell_to_end(gateway: Served) -> None:
    """SIGTERM, and wait until it is heard: a request that overtakes a signal is still served."""
    gateway.end(signal.SIGTERM)
    deadline = time.monotonic() + 5
    with contextlib.suppress(OSError):
        while gateway.request("GET", "/readyz").json["status"] != "draining":
            assert time.monotonic() < deadline


def test_200_running_streams_finish_whole(upstream: FaultUpstream, tmp_path: Path) -> None:
    """Each with all of its tokens and `[DONE]`; what is new is refused meanwhile; then the process ends with 0."""
    with started(tmp_path, upstream, "30s") as gateway:
        requests = [Open(gateway, "m", stream=True) for _ in range(STREAMS)]
        upstream.wait(lambda: upstream.running == STREAMS, timeout=20)
        tell_to_end(gateway)
        codes = {refusal(gateway) for _ in range(5)}
        replies = read_all(requests)
        assert gateway.wait() == 0
    assert codes <= {"draining", "refused"}
    assert [reply.status for reply in replies] == [200] * STREAMS
    for reply in replies:
        events = events_of(reply.body)
        assert events[-1] == "[DONE]"
        said = "".join(choice["delta"].get("content") or "" for event in events[:-1] for choice in event["choices"])
        assert said == text(20)
    assert len(upstream.log) == STREAMS
    assert all(seen.finished_at is not None for seen in upstream.log)
    assert "Traceback" not in gateway.output + gateway.errors
    lines = [line for line in gateway.log if line.get("route") == "m"]
    assert len([line for line in lines if line["status"] == 200]) == STREAMS, "a line of the log is missing"


def test_while_it_drains_it_says_so(upstream: FaultUpstream, tmp_path: Path) -> None:
    """New requests: 503 `draining`, or nobody listens; `/readyz` is not ready; a kept connection is refused too."""
    with started(tmp_path, upstream, "30s") as gateway:
        running = Open(gateway, "m", stream=True)
        with gateway.connect() as kept:
            kept.sendall(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
            assert Reply.read(kept).status == 200
            upstream.wait(lambda: upstream.running == 1)
            tell_to_end(gateway)
            assert refusal(gateway) in ("draining", "refused")
            with contextlib.suppress(OSError):
                ready = gateway.request("GET", "/readyz")
                assert (ready.status, ready.json["status"]) == (503, "draining")
            body = b'{"model": "m", "messages": [{"role": "user", "content": "b"}]}'
            with contextlib.suppress(OSError, ConnectionError):
                kept.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body))
                kept.sendall(body)
                late = Reply.read(kept, "POST")
                assert (late.status, late.error["code"]) == (503, "draining")
        assert events_of(running.reply().body)[-1] == "[DONE]"
        assert gateway.wait() == 0


def test_draining_ends_after_its_time(upstream: FaultUpstream, tmp_path: Path) -> None:
    """A stream that would go on for minutes ends with the error event; a plain request with 503; the status is 0."""
    upstream.default = type(upstream.default).parse("slow:gap=0.1,tokens=2000")
    with started(tmp_path, upstream, "1s") as gateway:
        streamed = Open(gateway, "m", stream=True)
        upstream.wait(lambda: len(upstream.log) == 1)
        upstream.script(["silence"])
        plain = Open(gateway, "m")
        upstream.wait(lambda: len(upstream.log) == 2)
        began = time.monotonic()
        gateway.end(signal.SIGTERM)
        replies = read_all([streamed, plain])
        assert gateway.wait() == 0
        took = time.monotonic() - began
    assert 0.9 < took < 6
    events = events_of(replies[0].body)
    assert "[DONE]" not in events
    assert events[-1]["error"]["code"] == "stream_interrupted"
    assert (replies[1].status, replies[1].error["code"]) == (503, "draining")
    assert all(seen.closed_at is not None for seen in upstream.log)
    assert "Traceback" not in gateway.output + gateway.errors


def test_a_second_signal_ends_it_at_once(upstream: FaultUpstream, tmp_path: Path) -> None:
    """Somebody is in a hurry."""
    with started(tmp_path, upstream, "30s") as gateway:
        upstream.script(["silence"])
        with Open(gateway, "m"):
            upstream.wait(lambda: upstream.running == 1)
            gateway.end(signal.SIGTERM)
            time.sleep(1.2)
            assert gateway.process.poll() is None
            began = time.monotonic()
            gateway.end(signal.SIGTERM)
            gateway.wait()
            assert time.monotonic() - began < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_every_process_is_one_signal(
    upstream: FaultUpstream, tmp_path: Path, number: signal.Signals
) -> None:
    """systemd and a terminal tell the workers too, who hear it again from their supervisor: nothing is cut."""
    with started(tmp_path, upstream, "30s", "--workers", "2") as gateway:
        requests = [Open(gateway, "m", stream=True) for _ in range(8)]
        upstream.wait(lambda: upstream.running == 8, timeout=20)
        for pid in workers_of(gateway):
            os.kill(pid, number)
        gateway.end(number)
        replies = read_all(requests)
        assert gateway.wait() == 0
    assert [events_of(reply.body)[-1] for reply in replies] == ["[DONE]"] * 8
    lines = [line for line in gateway.log if line.get("route") == "m"]
    assert [line["outcome"] for line in lines] == ["ok"] * 8


def test_an_idle_gateway_ends_at_once(upstream: FaultUpstream, tmp_path: Path) -> None:
    """Kept connections without a request do not hold it up."""
    with serve(tmp_path, policies(upstream, "30s")) as gateway, gateway.connect() as kept:
        kept.sendall(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
        assert Reply.read(kept).status == 200
        began = time.monotonic()
        gateway.end(signal.SIGINT)
        assert gateway.wait() == 0
        assert time.monotonic() - began < 5
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", gateway.port), timeout=5)
