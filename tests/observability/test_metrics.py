"""`/metrics` of the real gateway: the contract's names, right under load while workers die, and bounded whoever asks."""

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults import FaultUpstream
from tests.money.workers import workers_of
from tests.observability.scrape import Sample, counters_of, labels_of, samples_of, scrape, total
from tests.support import Served, ask, key_policy, serve, write_policies

# CONTRACT section 6, to the letter; where it says `…` or nothing, docs/telemetry.md says the rest.
CONTRACT = {
    "gateway_requests_total": {"route", "model", "backend", "key", "status", "code"},
    "gateway_request_duration_seconds": {"route", "model", "backend"},
    "gateway_time_to_first_token_seconds": {"route", "model", "backend"},
    "gateway_overhead_seconds": {"route", "model", "backend"},
    "gateway_attempts_total": {"backend", "outcome"},
    "gateway_tokens_total": {"direction", "route", "model", "backend", "key"},
    "gateway_cost_usd_total": {"route", "model", "backend", "key"},
    "gateway_budget_remaining_usd": {"scope", "name", "window"},
    "gateway_breaker_state": {"backend"},
    "gateway_inflight": {"backend"},
    "gateway_queue_depth": {"backend"},
    "gateway_rejected_total": {"code"},
}
PRICE = {"input": 1, "output": 2}


def policies(upstream: FaultUpstream) -> dict[str, Any]:
    """A model that answers and costs, one that refuses, one that fails, and names that pass."""
    return {
        "defaults": {"retry": {"attempts": 0}, "breaker": {"failures": 1_000_000}},
        "backends": {"up": {"base_url": upstream.url, "slots": 64, "passthrough": ["free-*"]}},
        "models": {
            "good": {"backend": "up", "model": "fault:ok:7", "price": PRICE},
            "bad": {"backend": "up", "model": "fault:status_400"},
            "down": {"backend": "up", "model": "fault:status_503"},
        },
        "keys": {
            "alice": key_policy("sk-alice", limits=[{"usd": 1000, "per": "day"}]),
            "bob": key_policy("sk-bob"),
            "poor": key_policy("sk-poor", limits=[{"usd": 0.0000001, "per": "day"}]),
        },
    }


@pytest.fixture(scope="module")
def upstream() -> Iterator[FaultUpstream]:
    """What stands behind."""
    with FaultUpstream.in_thread() as running:
        yield running


KILLS = 3
"""How often a worker is killed under load."""


class Client(threading.Thread):
    """Asks on and on, and counts what it got: by model and status, and how often a connection broke."""

    def __init__(self, gateway: Served, over: threading.Event) -> None:
        super().__init__()
        self.gateway, self.over = gateway, over
        self.counted: Counter[tuple[str, int]] = Counter()
        self.broken = 0

    def run(self) -> None:
        while not self.over.is_set():
            model, key = (
                ("good", "sk-alice"),
                ("good", "sk-bob"),
                ("bad", "sk-bob"),
                ("down", "sk-bob"),
                ("good", "sk-poor"),
            )[self.counted.total() % 5]
            try:
                status = self.gateway.chat(ask(model), key=key).status
            except (OSError, http.client.HTTPException):
                self.broken += 1
                continue
            self.counted[model if key != "sk-poor" else "refused", status] += 1


def answered(clients: Sequence[Client]) -> int:
    """How many answers all of them have."""
    return sum(one.counted.total() for one in clients)


class Scraper(threading.Thread):
    """Reads `/metrics` on and on, and notes every counter that fell."""

    def __init__(self, gateway: Served, over: threading.Event) -> None:
        super().__init__()
        self.gateway, self.over = gateway, over
        self.fallen: list[tuple[Sample, float, float]] = []
        self.scrapes = 0

    def run(self) -> None:
        last: Mapping[Sample, float] = {}
        while not self.over.is_set():
            try:
                now = counters_of(scrape(self.gateway))
            except (OSError, http.client.HTTPException):
                continue  # it was the one that was killed
            self.scrapes += 1
            self.fallen += [
                (each, value, now.get(each, 0.0)) for each, value in last.items() if now.get(each, 0.0) < value
            ]
            last = now


def test_counters_never_fall_and_add_up_while_workers_die(upstream: FaultUpstream, tmp_path: Path) -> None:
    """Two workers under load, one of them killed three times: what clients counted is what is shown, and each scrape more."""
    with serve(tmp_path, policies(upstream), "--workers", "2") as gateway:
        over = threading.Event()
        clients, scraper = [Client(gateway, over) for _ in range(6)], Scraper(gateway, over)
        for thread in (*clients, scraper):
            thread.start()
        for _ in range(KILLS):
            before = answered(clients)
            _until(lambda before=before: answered(clients) > before + 150)
            victim = workers_of(gateway)[0]
            os.kill(victim, signal.SIGKILL)
            _until(lambda gone=victim: gone not in workers_of(gateway) and len(workers_of(gateway)) == 2)
        over.set()
        for thread in (*clients, scraper):
            thread.join(30)
        counted = sum((one.counted for one in clients), Counter[tuple[str, int]]())
        broken = sum(one.broken for one in clients)
        assert scraper.fallen == []
        assert scraper.scrapes > 10
        found = scrape(gateway)
        print(f"{counted}, {broken} broken, {scraper.scrapes} scrapes")
        for (model, status), count in counted.items():
            route = "good" if model == "refused" else model
            shown = total(found, "gateway_requests_total", route=route, status=str(status))
            assert count <= shown <= count + broken
            # a request is counted before its last byte is written, so that only a broken one may be counted beside
        assert {status for _, status in counted} == {200, 400, 429, 502}
        everything = counted.total()
        assert everything <= total(found, "gateway_requests_total") <= everything + broken
        # A worker counts one request in a few places, and dies between two of them at worst: one request for each kill.
        good = total(found, "gateway_requests_total", route="good", status="200")
        for shown, each, many in (
            (total(found, "gateway_tokens_total", route="good", direction="output"), 7, good),
            (total(found, "gateway_tokens_total", route="good", direction="input"), 2, good),
            (total(found, "gateway_cost_usd_total", route="good"), (2 * 1 + 7 * 2) / 1e6, good),
            (total(found, "gateway_attempts_total", outcome="ok"), 1, good),
            (
                total(found, "gateway_request_duration_seconds_count"),
                1,
                total(found, "gateway_requests_total"),
            ),
            (
                total(found, "gateway_rejected_total", code="budget_exceeded"),
                1,
                total(found, "gateway_requests_total", status="429"),
            ),
        ):
            assert shown == pytest.approx(each * many, abs=each * KILLS * 1.001)
        assert total(found, "gateway_inflight") == 0


def test_every_name_of_the_contract_is_there(upstream: FaultUpstream, tmp_path: Path) -> None:
    """With its labels, after one request of each kind; and nothing that docs/telemetry.md does not name."""
    with serve(tmp_path, policies(upstream)) as gateway:
        for model, key in (
            ("good", "sk-alice"),
            ("good", "sk-poor"),
            ("bad", "sk-bob"),
            ("none", "sk-bob"),
            ("good", "no"),
        ):
            gateway.chat(ask(model, stream=True), key=key)
        _until(lambda: total(scrape(gateway), "gateway_budget_remaining_usd") > 0)
        text = gateway.request("GET", "/metrics").body.decode()
    found = samples_of(text)
    for name, labels in CONTRACT.items():
        assert labels_of(found, name) == {frozenset(labels)}, name
        assert f"# HELP {name} " in text
    document = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
    assert [
        line.split()[2]
        for line in text.splitlines()
        if line.startswith("# TYPE") and f"`{line.split()[2]}`" not in document
    ] == []
    rejected = {
        code: total(found, "gateway_rejected_total", code=code)
        for code in ("budget_exceeded", "model_not_found", "invalid_api_key")
    }
    assert rejected == dict.fromkeys(rejected, 1)
    assert total(found, "gateway_time_to_first_token_seconds_count", route="good") == 1
    assert 999 < total(found, "gateway_budget_remaining_usd", scope="key", name="alice") < 1000


def test_a_backend_that_is_no_more_rests_no_longer(upstream: FaultUpstream, tmp_path: Path) -> None:
    """After a reload without it its gauges say nothing that an alarm would wait for to end."""
    before = policies(upstream)
    before["defaults"]["breaker"] = {"failures": 1, "open": "300s"}
    before["backends"]["gone"] = {"base_url": upstream.url}
    before["models"]["down"]["backend"] = "gone"
    with serve(tmp_path, before) as gateway:
        gateway.chat(ask("down"), key="sk-bob")
        _until(lambda: total(scrape(gateway), "gateway_breaker_state", backend="gone") == 2)
        write_policies(tmp_path, policies(upstream))
        _until(lambda: total(scrape(gateway), "gateway_breaker_state", backend="gone") == 0)


def test_a_client_creates_no_labels(upstream: FaultUpstream, tmp_path: Path) -> None:
    """10,000 requests, each for a name, a path or with a key that nobody has seen: the same samples as after the first."""
    with serve(tmp_path, policies(upstream)) as gateway:

        def ask_for(connection: http.client.HTTPConnection, number: int) -> None:
            model, path, key = "good", "/v1/chat/completions", "sk-bob"
            match number % 5:
                case 0:
                    model = f"unknown-{number}"
                case 1:
                    model = f"free-{number}"
                case 2:
                    path = f"/v1/{number}/chat"
                case 3:
                    key = f"sk-{number}"
                case 4:
                    path = f"/v1/models/m{number}"
            method = "GET" if "models" in path else "POST"
            headers = {
                "authorization": f"Bearer {key}",
                "traceparent": f"00-{number + 1:032x}-{1:016x}-01",
                "x-gateway-task": f"t{number}",
            }
            connection.request(method, path, json.dumps(ask(model)), headers)
            connection.getresponse().read()

        def ask_many(first: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
            for number in range(first, 10_000, 4):
                ask_for(connection, number)
            connection.close()

        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        for number in range(5):
            ask_for(connection, 100_000 + number)
        connection.close()
        before = scrape(gateway)
        threads = [threading.Thread(target=ask_many, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        after = scrape(gateway)
    assert set(after) == set(before)
    assert total(after, "gateway_requests_total") - total(before, "gateway_requests_total") >= 8000
    assert total(after, "gateway_requests_total", route="passthrough") == 2001
    assert len(after) < 1000


def _until(is_so: Any, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not is_so():
        assert time.monotonic() < deadline, f"it did not come true within {timeout:g} s"
        time.sleep(0.02)
