"""Policies change under a running gateway: as a whole, for new requests only, and never to something bad."""

import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conformance.stage import PATIENT, Open, Stage, asked_of
from tests.faults import FaultUpstream
from tests.support import Served, ask, events_of, serve


@pytest.fixture
def upstream() -> Iterator[FaultUpstream]:
    """Every backend."""
    with FaultUpstream.in_thread() as running:
        yield running


@pytest.fixture
def stage(tmp_path: Path, upstream: FaultUpstream) -> Iterator[Stage]:
    """A gateway that serves the first version."""
    with serve(tmp_path, version(upstream, 1)) as gateway:
        yield Stage(gateway, upstream)


def version(upstream: FaultUpstream, number: int, **more: Any) -> dict[str, Any]:
    """Policies whose backends and models carry their version in every name; `always` is the alias of both."""
    names = [f"v{number}-{place}" for place in "ab"]
    return {
        "server": {"auth": "none"},
        "defaults": {"timeouts": {**PATIENT, "first_token": "1s"}, "retry": {"attempts": 0}},
        "backends": {name: {"base_url": upstream.url, "api_keys": [name]} for name in names},
        "models": {name: {"backend": name, "model": name, "prefill": True} for name in names},
        "aliases": {"always": names, f"only-{number}": names},
        **more,
    }


def put(tmp_path: Path, policies: Mapping[str, Any]) -> None:
    """Replace the file in one step, as an editor does."""
    path = tmp_path / "policies" / "all.yaml"
    kept = path.with_name("next")
    kept.write_text(yaml.safe_dump(policies, sort_keys=False))
    kept.replace(path)


def reloads(gateway: Served, event: str = "reloaded") -> int:
    """How often it has said so."""
    return sum(line.get("event") == event for line in gateway.log)


@pytest.mark.parametrize("how", ["signal", "file"])
def test_new_policies_are_in_force_for_new_requests(stage: Stage, tmp_path: Path, how: str) -> None:
    """By SIGHUP, or because a file has changed, which is seen by itself."""
    assert stage.tell("always").asked == ["v1-a"]
    put(tmp_path, version(stage.upstream, 2))
    if how == "signal":
        stage.gateway.process.send_signal(signal.SIGHUP)
    stage.until(lambda: reloads(stage.gateway) >= 1)
    assert stage.tell("always").asked == ["v2-a"]
    assert stage.tell("only-2").reply.status == 200
    gone = stage.tell("only-1")
    assert (gone.reply.status, gone.reply.error["code"], gone.seen) == (404, "model_not_found", [])
    assert sorted(stage.gateway.request("GET", "/readyz").json["backends"]) == ["v2-a", "v2-b"]


def test_a_new_file_counts_too(stage: Stage, tmp_path: Path) -> None:
    """A file that is added, and one that is taken away."""
    added = tmp_path / "policies" / "more.yaml"
    added.write_text("aliases: {added: [v1-b]}\n")
    stage.until(lambda: reloads(stage.gateway) >= 1)
    assert stage.tell("added").asked == ["v1-b"]
    added.unlink()
    stage.until(lambda: reloads(stage.gateway) >= 2)
    assert stage.tell("added").reply.status == 404


def test_running_requests_keep_what_they_began_with(stage: Stage, tmp_path: Path) -> None:
    """One waits at the old first backend, and one streams from it: both go on to the old second one."""
    upstream = stage.upstream
    upstream.script(["silence"])
    waiting = Open(stage.gateway, "always")
    upstream.wait(lambda: len(upstream.log) == 1)
    upstream.script(["cut_fin:after=8,gap=0.2,tokens=10"])
    streaming = Open(stage.gateway, "always", stream=True)
    upstream.wait(lambda: len(upstream.log) == 2)
    put(tmp_path, version(upstream, 2))
    stage.gateway.process.send_signal(signal.SIGHUP)
    stage.until(lambda: reloads(stage.gateway) >= 1)
    assert stage.tell("always").asked == ["v2-a"]
    reply = waiting.reply()
    assert (reply.status, reply.headers["x-gateway-backend"]) == (200, "v1-b")
    events = events_of(streaming.reply().body)
    assert events[-1] == "[DONE]"
    assert sorted(map(asked_of, upstream.log)) == ["v1-a", "v1-a", "v1-b", "v1-b", "v2-a"]


def test_a_backend_that_did_not_change_keeps_its_state(stage: Stage, tmp_path: Path) -> None:
    """Its breaker and its rest: a reload is no reason to hammer it."""
    assert stage.tell("always", ["status_429:60"]).asked == ["v1-a", "v1-b"]
    changed = version(stage.upstream, 1)
    changed["aliases"]["another"] = ["v1-a", "v1-b"]
    put(tmp_path, changed)
    stage.until(lambda: reloads(stage.gateway) >= 1)
    assert stage.tell("another").asked == ["v1-b"]
    assert not stage.ready("v1-a")["usable"]


BAD = {
    "backends: [": "all.yaml",
    "aliases: {always: [nobody]}\n": "nobody",
    "backends: {v3: {base_url: 'ftp://x'}}\n": "base_url",
    "": "key",
}


def test_a_bad_file_changes_nothing_and_is_reported(stage: Stage, tmp_path: Path) -> None:
    """The old policies stay in force, the log says what is wrong and where; once it is mended it is taken."""
    path = tmp_path / "policies" / "all.yaml"
    for count, (bad, says) in enumerate(BAD.items(), 1):
        path.write_text(bad)
        stage.gateway.process.send_signal(signal.SIGHUP)
        stage.until(lambda count=count: reloads(stage.gateway, "reload_failed") >= count)  # type: ignore[misc]
        assert any(says in line["error"] for line in stage.gateway.log if line.get("event") == "reload_failed"), bad
        assert stage.tell("always").asked == ["v1-a"]
        assert sorted(stage.gateway.request("GET", "/readyz").json["backends"]) == ["v1-a", "v1-b"]
    assert reloads(stage.gateway) == 0
    put(tmp_path, version(stage.upstream, 2))
    stage.until(lambda: reloads(stage.gateway) == 1)
    assert stage.tell("always").asked == ["v2-a"]


def test_traffic_does_not_notice_reloads(stage: Stage, tmp_path: Path) -> None:
    """Requests without a pause over six changes: every answer is whole, and of one version."""
    over = threading.Event()
    wrong: list[str] = []
    done: list[int] = []

    def traffic() -> None:
        while not over.is_set():
            reply = stage.gateway.chat(ask("always", stream=len(done) % 2 == 0))
            done.append(reply.status)
            if reply.status != 200 or reply.headers["x-gateway-backend"] != reply.headers["x-gateway-model"]:
                wrong.append(f"{reply.status} {reply.body.decode()}")

    threads = [threading.Thread(target=traffic) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2, 8):
        put(tmp_path, version(stage.upstream, number))
        stage.gateway.process.send_signal(signal.SIGHUP)
        stage.until(lambda number=number: reloads(stage.gateway) >= number - 1)  # type: ignore[misc]
    over.set()
    for thread in threads:
        thread.join(20)
    assert wrong == []
    assert len(done) > 20
    assert stage.tell("only-7").asked == ["v7-a"]
