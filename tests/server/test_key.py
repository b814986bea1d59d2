"""`GET /v1/key` tells a key what it may do and what is left, to the nano-dollar, whichever worker it asks."""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.faults import FaultUpstream
from tests.support import Served, ask, key_policy, serve


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two workers in front of an upstream that reports its usage."""
    folder: Path = tmp_path_factory.mktemp("key")
    limits = [
        {"usd": 5, "per": "day", "alert_at": [0.8]},
        {"requests": 60, "per": "minute"},
        {"concurrent": 4},
        {"tokens": 1000, "per": "total", "soft": True},
    ]
    with FaultUpstream.in_thread() as upstream:
        policies = {
            "server": {"timezone": "Europe/Berlin"},
            "backends": {"up": {"base_url": upstream.url}},
            "models": {"m": {"backend": "up", "model": "m", "context": 8192, "price": {"input": 1, "output": 10}}},
            "teams": {"research": {"limits": [{"usd": 200, "per": "month"}]}},
            "limits": [{"output_tokens": 1_000_000, "per": "week"}],
            "keys": {
                "alice": key_policy(
                    "sk-alice", team="research", allow=["m", "task:*"], limits=limits, expires="2100-01-01"
                ),
                "bob": key_policy("sk-bob"),
                "old": key_policy("sk-old", expires="2020-01-01"),
            },
        }
        with serve(folder, policies, "--workers", "2") as served:
            yield served


def look(gateway: Served, key: str) -> dict[str, Any]:
    """The page of a key."""
    reply = gateway.request("GET", "/v1/key", key=key)
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    doc: dict[str, Any] = reply.json
    return doc


def test_a_key_that_was_never_used(gateway: Served) -> None:
    """All of every limit is left; what resets by the calendar says when, in UTC."""
    doc = look(gateway, "sk-bob")
    (everything,) = doc.pop("limits")
    assert doc == {"object": "key", "name": "bob", "team": None, "allow": ["*"], "expires": None}
    assert (everything["scope"], everything["name"], everything["unit"]) == ("all", None, "output_tokens")
    assert everything["limit"] == 1_000_000
    end = datetime.fromisoformat(everything["resets_at"])
    assert end > datetime.now(UTC)
    assert (end.weekday(), end.hour) in ((6, 22), (6, 23)), "Monday begins in Berlin when it is Sunday here"


def test_what_is_left_after_requests(gateway: Served) -> None:
    """Its own limits, its team's and everybody's, as every worker tells them within a second."""
    for _ in range(3):
        assert gateway.chat(ask("m", "one two", max_tokens=20, fault="ok:20"), key="sk-alice").status == 200
    deadline = time.monotonic() + 10
    while True:
        looks = [look(gateway, "sk-alice") for _ in range(6)]
        if all(each["limits"][0]["remaining"] == 5 - 0.000609 for each in looks):
            break
        assert time.monotonic() < deadline, looks
        time.sleep(0.05)
    doc = looks[-1]
    assert (doc["name"], doc["team"], doc["allow"]) == ("alice", "research", ["m", "task:*"])
    assert doc["expires"] == "2099-12-31T23:00:00Z"
    usd, requests, concurrent, tokens, team, everything = doc["limits"]
    assert (usd["unit"], usd["per"], usd["limit"], usd["soft"]) == ("usd", "day", 5, False)
    assert (requests["unit"], requests["per"], requests["limit"], requests["remaining"]) == (
        "requests",
        "minute",
        60,
        57,
    )
    assert 0 < datetime.fromisoformat(requests["resets_at"]).timestamp() - time.time() <= 61
    assert (concurrent["unit"], concurrent["per"], concurrent["limit"], concurrent["remaining"]) == (
        "concurrent",
        None,
        4,
        4,
    )
    assert concurrent["resets_at"] is None
    assert (tokens["remaining"], tokens["soft"], tokens["resets_at"]) == (1000 - 69, True, None)
    assert (team["scope"], team["name"], team["limit"], team["remaining"]) == ("team", "research", 200, 199.999391)
    assert everything["remaining"] == 1_000_000 - 60


def test_money_is_written_with_its_exact_digits(gateway: Served) -> None:
    """Dollars are JSON numbers that a reader of decimals reads without loss."""
    body = gateway.request("GET", "/v1/key", key="sk-alice").body
    assert b'"limit":5.00' in body
    assert re.search(rb'"remaining":4\.\d{2,9},', body)


@pytest.mark.parametrize(
    ("key", "code"), [(None, "invalid_api_key"), ("no", "invalid_api_key"), ("sk-old", "expired_api_key")]
)
def test_it_needs_the_key(gateway: Served, key: str | None, code: str) -> None:
    """Nobody else sees it."""
    reply = gateway.request("GET", "/v1/key", key=key)
    assert (reply.status, reply.error["code"]) == (401, code)


def test_only_get_is_allowed(gateway: Served) -> None:
    """405 with what is; HEAD has no body."""
    reply = gateway.request("POST", "/v1/key", {}, key="sk-bob")
    assert (reply.status, reply.error["code"], reply.headers["allow"]) == (405, "method_not_allowed", "GET")
    assert gateway.request("HEAD", "/v1/key", key="sk-bob").body == b""


def test_metrics_show_what_is_left(gateway: Served) -> None:
    """A gauge for each limit in dollars that is in use, one value for all workers."""
    assert gateway.chat(ask("m", "one two", max_tokens=20, fault="ok:20"), key="sk-alice").status == 200
    deadline = time.monotonic() + 10
    while True:
        text = gateway.request("GET", "/metrics").body.decode()
        found = dict(re.findall(r"^gateway_budget_remaining_usd\{(.*)\} (\S+)$", text, re.MULTILINE))
        left = [
            float(found.get(f'name="{name}",scope="{scope}",window="{window}"', "nan"))
            for name, scope, window in (("alice", "key", "day"), ("research", "team", "month"))
        ]
        spent = 5 - look(gateway, "sk-alice")["limits"][0]["remaining"]
        # A worker keeps a little at hand, which the other's gauge does not count as left.
        if 4.9 <= left[0] <= 5 - spent and 197 <= left[1] <= 200 - spent + 1e-9:
            return
        assert time.monotonic() < deadline, (left, spent, text[-2000:])
        time.sleep(0.05)
