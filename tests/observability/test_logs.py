"""The real gateway's log: a JSON line for every request, every event as it happens, and text for a person's terminal."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.telemetry import names
from tests.conformance.stage import Part, Stage, policies_of
from tests.faults import FaultUpstream
from tests.money.valkey_server import valkey
from tests.observability.scene import chat_bytes
from tests.support import Served, ask, gateway_command, key_policy, serve, write_policies

CHAINS: Mapping[str, Sequence[Part | str]] = {
    "good": [Part("ok", model={"price": {"input": 1, "output": 2}})],
    "streamed": ["ok:gap=0.02"],
    "falls": ["insufficient_quota", "ok"],
    "fails": ["status_500"],
    "breaks": ["ok"],
    "refused": ["status_401", "ok"],
    "limited": [Part("status_429:60", keys=2)],
    "malformed": ["malformed:3"],
    "broken": ["cut_fin:3"],
    "silent": ["silence"],
}


def policies(upstream: FaultUpstream) -> dict[str, Any]:
    """Chains that do each thing that is told."""
    return policies_of(
        upstream.url,
        CHAINS,
        routes={"breaks": {"breaker": {"failures": 2, "open": "300ms", "successes": 1}}},
        defaults={"retry": {"attempts": 0}, "breaker": {"failures": 100_000}},
        tasks={"sums": {"chain": ["good-0"]}},
        teams={"research": {}},
        keys={
            "alice": key_policy("sk-alice", team="research"),
            "spender": key_policy("sk-spender", limits=[{"usd": 0.001, "per": "day", "alert_at": [0.02]}]),
            "poor": key_policy("sk-poor", limits=[{"usd": 0.0000001, "per": "day"}]),
        },
    ) | {"server": {"auth": "keys"}}


@pytest.fixture(scope="module")
def upstream() -> Iterator[FaultUpstream]:
    """What stands behind."""
    with FaultUpstream.in_thread() as running:
        yield running


@pytest.fixture(scope="module")
def stage(upstream: FaultUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One gateway for all that needs no other."""
    with serve(tmp_path_factory.mktemp("logs"), policies(upstream)) as gateway:
        yield Stage(gateway, upstream)


def line_of(stage: Stage, request_id: str) -> Mapping[str, Any]:
    """The line of a request, once it is written: the only one, with the fields of the registry and no others."""

    def found() -> list[Mapping[str, Any]]:
        return [line for line in stage.gateway.log if line.get("id") == request_id]

    stage.until(lambda: bool(found()))
    (line,) = found()
    assert set(line) - {"estimated"} == set(names.REQUEST_LINE) - {"estimated"}
    assert line["event"] == "request"
    datetime.fromisoformat(line["at"])
    return line


def tell(stage: Stage, model: str, key: str = "sk-alice", **fields: Any) -> Mapping[str, Any]:
    """The line of one request."""
    return line_of(stage, stage.gateway.chat(ask(model, **fields), key=key).headers["x-request-id"])


def test_the_line_of_an_answer(stage: Stage) -> None:
    """Id, key, route, model, backend, attempts, status, tokens, cost, times and outcome."""
    line = dict(tell(stage, "task:sums"))
    assert 0 < line.pop("overhead_ms") <= line["ms"] + 0.001
    assert 0 < line.pop("first_token_ms") <= line.pop("ms")
    (attempt,) = line.pop("attempts")
    assert attempt.pop("ms") > 0
    assert attempt == {
        "backend": "good-0",
        "model": "fault:ok",
        "outcome": "ok",
        "status": 200,
        "reason": "first in the chain",
        "detail": "",
    }
    assert line.pop("at").endswith("Z")
    assert line.pop("id").startswith("req_")
    assert line == {
        "level": "info",
        "event": "request",
        "trace_id": None,
        "method": "POST",
        "path": "/v1/chat/completions",
        "key": "alice",
        "team": "research",
        "route": "task:sums",
        "task": "sums",
        "model": "good-0",
        "backend": "good-0",
        "stream": False,
        "status": 200,
        "code": None,
        "outcome": "ok",
        "input_tokens": 2,
        "output_tokens": 10,
        "cached_tokens": 0,
        "cost_usd": 0.000022,
    }


def test_the_lines_of_other_outcomes(stage: Stage) -> None:
    """What failed and what it was called, for whoever finds the request by its id."""
    told = {
        (model, key): tell(stage, model, key, stream=model in ("streamed", "broken"))
        for model, key in (
            ("streamed", "sk-alice"),
            ("falls", "sk-alice"),
            ("fails", "sk-alice"),
            ("broken", "sk-alice"),
            ("good", "sk-poor"),
            ("good", "unknown"),
            ("nothing", "sk-alice"),
        )
    }
    shown = {
        model if key != "unknown" else key: (
            line["level"],
            line["status"],
            line["code"],
            line["outcome"],
            [each["outcome"] for each in line["attempts"]],
        )
        for (model, key), line in told.items()
    }
    assert shown == {
        "streamed": ("info", 200, None, "ok", ["ok"]),
        "falls": ("info", 200, None, "ok", ["quota", "ok"]),
        "fails": ("error", 502, "upstream_error", "error", ["server_error"]),
        "broken": ("error", 200, "stream_interrupted", "interrupted", ["interrupted"]),
        "good": ("warning", 429, "budget_exceeded", "error", []),
        "unknown": ("warning", 401, "invalid_api_key", "error", []),
        "nothing": ("warning", 404, "model_not_found", "error", []),
    }
    streamed = told["streamed", "sk-alice"]
    assert streamed["ms"] > 150 > streamed["first_token_ms"]
    assert streamed["overhead_ms"] < 150
    assert told["broken", "sk-alice"]["estimated"] is True


def test_the_lines_of_other_urls(stage: Stage) -> None:
    """Lists and pages have a line too, and what is nowhere has one without the client's path; all that is refused counts."""
    before = stage.metric('gateway_rejected_total{code="not_found"}')
    for path, key, shown in (
        ("/v1/models", "sk-alice", ("/v1/models", "alice", 200, None)),
        ("/v1/models/nobody", "sk-alice", ("/v1/models", "alice", 404, "model_not_found")),
        ("/v1/key", "unknown", ("/v1/key", None, 401, "invalid_api_key")),
        ("/chat/completions", "sk-alice", ("other", None, 404, "not_found")),
    ):
        line = line_of(stage, stage.gateway.request("GET", path, key=key).headers["x-request-id"])
        assert (line["path"], line["key"], line["status"], line["code"]) == shown
    assert stage.metric('gateway_rejected_total{code="not_found"}') == before + 1


def test_a_client_that_left_has_a_line(stage: Stage) -> None:
    """With how far its request had come."""
    before = len(stage.upstream.log)
    with stage.gateway.connect() as connection:
        connection.sendall(chat_bytes(ask("silent", stream=True), "sk-alice"))
        stage.upstream.wait(lambda: len(stage.upstream.log) > before)
    line = stage.until_request_logged("silent")
    assert (line["outcome"], line["status"], line["attempts"][0]["outcome"]) == ("client_gone", 499, "cancelled")


def test_every_request_has_one_line_whichever_worker_served_it(upstream: FaultUpstream, tmp_path: Path) -> None:
    """Two workers on one stdout: 400 requests, 400 whole lines, each id once."""
    with serve(tmp_path, policies(upstream), "--workers", "2") as gateway:
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: gateway.chat(ask("good"), key="sk-alice"), range(400)))
        gateway.stop()
        assert sorted(line["id"] for line in gateway.log if line["event"] == "request") == sorted(
            reply.headers["x-request-id"] for reply in replies
        )
        starts = [line["pid"] for line in gateway.log if line["event"] == "start"]
        assert sorted(starts) == sorted(line["pid"] for line in gateway.log if line["event"] == "stop")
        assert len(starts) == 2


def event_of(stage: Stage, name: str, **fields: Any) -> Mapping[str, Any]:
    """An event once it is told: its level and its fields are those of the registry, none more and none less."""
    line = stage.until_logged(name, **fields)
    (registered,) = (event for event in names.LOG_EVENTS if event.name == name)
    assert line["level"] == registered.level
    assert set(line) - {"at", "level", "event"} == set(registered.fields)
    return line


def test_the_start_tells_the_address(stage: Stage) -> None:
    """The port that was found, not the 0 that was asked for; how many backends, and which are off."""
    line = event_of(stage, "start")
    assert line["address"] == f"127.0.0.1:{stage.gateway.port}"
    assert (line["backends"], line["disabled"]) == (sum(len(chain) for chain in CHAINS.values()), {})


def test_a_breaker_that_opens_and_closes(stage: Stage) -> None:
    """Told once each, with the reason and for how long."""
    for _ in range(2):
        stage.upstream.script(["status_503"])
        tell(stage, "breaks")
    opened = event_of(stage, "breaker_opened")
    assert (opened["backend"], opened["reason"]) == ("breaks-0", "status 503")
    assert 0 < opened["seconds"] <= 0.3
    time.sleep(0.35)  # what is tested: that this is long enough
    tell(stage, "breaks")
    assert event_of(stage, "breaker_closed")["backend"] == "breaks-0"


def test_an_api_key_that_rests(stage: Stage) -> None:
    """By its number, never by itself: refused, out of quota, or rate limited."""
    tell(stage, "refused")
    line = event_of(stage, "api_key_rests", backend="refused-0")
    assert (line["api_key"], line["seconds"], line["reason"]) == ("refused-0#1", 60.0, "refused")
    tell(stage, "limited")
    line = event_of(stage, "api_key_rests", backend="limited-0")
    assert (line["seconds"], line["reason"]) == (60.0, "rate limited")


def test_a_budget_that_passes_its_mark(stage: Stage) -> None:
    """Whose, how much of it, and that it is told once."""
    for _ in range(3):
        tell(stage, "good", "sk-spender", max_tokens=10)
    line = dict(event_of(stage, "budget_alert"))
    assert 0.00002 <= line.pop("spent") < 0.001
    del line["at"], line["level"], line["event"]
    assert line == {"scope": "key", "name": "spender", "window": "day", "unit": "usd", "mark": 0.02, "limit": 0.001}
    assert sum(line["event"] == "budget_alert" for line in stage.gateway.log) == 1


def test_a_malformed_event(stage: Stage) -> None:
    """By the request's id, without what it was."""
    line = tell(stage, "malformed", stream=True)
    told = event_of(stage, "malformed_event")
    assert (told["request_id"], told["backend"], told["count"]) == (line["id"], "malformed-0", 1)


def test_reloads(upstream: FaultUpstream, tmp_path: Path) -> None:
    """New policies, then wrong ones: what is in force, and at which line they are wrong."""
    with serve(tmp_path, policies(upstream)) as gateway:
        stage = Stage(gateway, upstream)
        gateway.process.send_signal(signal.SIGHUP)
        line = event_of(stage, "reloaded")
        assert (line["policies"], line["files"]) == (str(tmp_path / "policies"), 1)
        write_policies(tmp_path, policies(upstream) | {"aliases": {"x": ["nobody"]}})
        error = event_of(stage, "reload_failed")["error"]
        assert re.search(r"all\.yaml:\d+:\d+: ", error)
        assert "nobody" in error


def test_a_store_that_does_not_answer(upstream: FaultUpstream, tmp_path: Path) -> None:
    """When it is gone, and when it is back."""
    with (
        valkey(tmp_path, keeps=True) as server,
        serve(tmp_path, policies(upstream), "--store", server.url) as gateway,
    ):
        stage = Stage(gateway, upstream)
        server.kill()
        line = event_of(stage, "store_trouble")
        assert line["store"] == server.url
        assert line["detail"]
        server.start()
        assert event_of(stage, "store_recovered")["seconds"] > 0


class Terminal:
    """A gateway whose stdout is a terminal."""

    def __init__(self, folder: Path, upstream: FaultUpstream, **env: str) -> None:
        leader, follower = pty.openpty()
        self._leader = leader
        self._shown = b""
        directory = write_policies(folder, policies(upstream))
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        self.process = subprocess.Popen(
            gateway_command("serve", "--policies", str(directory), "--port", "0"),
            cwd=folder,
            env={**kept, **env},
            stdin=subprocess.DEVNULL,
            stdout=follower,
            stderr=subprocess.DEVNULL,
        )
        os.close(follower)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the other side is gone
            while data := os.read(self._leader, 4096):
                self._shown += data

    @property
    def shown(self) -> str:
        """What stands on the terminal."""
        return self._shown.decode()

    def until(self, is_so: Callable[[str], Any]) -> Any:
        """Wait until something stands there."""
        deadline = time.monotonic() + 30
        while not (found := is_so(self.shown)):
            assert time.monotonic() < deadline, self.shown
            time.sleep(0.01)
        return found

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)
        self._reader.join(10)
        os.close(self._leader)


@pytest.mark.parametrize("plain", [False, True])
def test_on_a_terminal_a_person_reads(upstream: FaultUpstream, tmp_path: Path, *, plain: bool) -> None:
    """Aligned text with colours, without them for NO_COLOR: time, status, way, duration, tokens, cost, key, id."""
    terminal = Terminal(tmp_path, upstream, **({"NO_COLOR": "1"} if plain else {}))
    with contextlib.closing(terminal):
        port = int(terminal.until(lambda shown: re.search(r"http://127\.0\.0\.1:(\d+)/v1", shown))[1])
        served = Served.__new__(Served)
        served.port = port
        reply = served.chat(ask("good"), key="sk-alice")
        line = terminal.until(lambda shown: re.search(r"[^\n]*good → good-0/good-0[^\n]*\n", shown))[0]
        served.chat(ask("fails"), key="sk-alice")
        failed = terminal.until(lambda shown: re.search(r"[^\n]*fails → [^\n]*\n", shown))[0]
    for part in ("200", "2+10 tok", "$0.000022", "alice", reply.headers["x-request-id"]):
        assert part in line
    assert "after fails-0/fault:status_500 server_error" in failed
    assert "upstream_error" in failed
    assert ("\x1b[" in line) is not plain
    assert '{"' not in terminal.shown
    assert "start" in terminal.shown
    assert "stop" in terminal.shown
