"""`gateway explain` says where a request would go, what it may cost, and what is left of every limit on the way."""

import asyncio
import json
import subprocess
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gateway.budget.escrow import Escrow
from gateway.budget.meter import Meter, MeterLimit, window_of
from gateway.budget.stores import open_store
from tests.support import gateway_command, key_policy, write_policies

POLICIES = {
    "backends": {
        "up": {"base_url": "http://127.0.0.1:9/v1", "limits": [{"requests": 100, "per": "hour"}]},
        "here": {"base_url": "http://127.0.0.1:9/v1", "local": True},
    },
    "models": {
        "dear": {
            "backend": "up",
            "model": "dear",
            "context": 8192,
            "max_output": 1000,
            "price": {"input": 1, "output": 10},
        },
        "free": {"backend": "here", "model": "free", "context": 4096},
        "unknown": {"backend": "up", "model": "nobody-knows-what-it-costs"},
    },
    "aliases": {"smart": ["dear", "free", "unknown"]},
    "teams": {"research": {"limits": [{"usd": 200, "per": "month"}]}},
    "keys": {
        "alice": key_policy(
            "sk-alice",
            team="research",
            limits=[{"usd": 5, "per": "day"}, {"tokens": 1000, "per": "total", "soft": True}, {"concurrent": 4}],
        ),
        "bob": key_policy("sk-bob", allow=["free"]),
        "old": key_policy("sk-old", expires="2020-01-01"),
    },
}
Explain = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def explain(tmp_path: Path) -> Explain:
    """The real command on these policies, with a store of its own."""
    write_policies(tmp_path, POLICIES)

    def run(*arguments: str, store: str = "sqlite:///gateway.db") -> "subprocess.CompletedProcess[str]":
        command = gateway_command("explain", "--policies", "policies", "--store", store, *arguments)
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    return run


def parsed(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The JSON that it printed, amounts exact."""
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout, parse_float=Decimal)
    return found


async def spend(url: str) -> None:
    """A quarter of a dollar of alice's day is spent, and one is held by a request that runs."""
    store = open_store(url)
    await store.open()
    escrow = Escrow(store, "test")
    day = MeterLimit(Meter("key", "alice", "usd", window_of("day")), 5 * 10**9)
    escrow.settle(await escrow.hold("over", [(day, 10**9)]), {"usd": 250_000_000})
    await escrow.hold("running", [(day, 10**9)])
    await escrow.flush()
    await store.close()


def test_the_worst_case_of_each_candidate(explain: Explain) -> None:
    """Input and the permitted output at the dearest price; free is 0, and a price that nobody knows is null."""
    rows = parsed(explain("--model", "smart", "--input-tokens", "1000", "--json"))["candidates"]
    assert [(row["model"], row["max_output"], row["worst_case_usd"]) for row in rows] == [
        ("dear", 1000, "0.011"),
        ("free", 4096, "0.00"),
        ("unknown", 16384, None),
    ]
    rows = parsed(explain("--model", "smart", "--input-tokens", "1000", "--max-tokens", "50", "--json"))["candidates"]
    assert rows[0]["worst_case_usd"] == "0.0015"


def test_a_limit_in_dollars_leaves_out_what_has_no_price(explain: Explain) -> None:
    """As a request would find: for that key it is out, with the line to add; for others it is in."""
    rows = parsed(explain("--model", "smart", "--key", "alice", "--json"))["candidates"]
    assert [(row["model"], row["verdict"]) for row in rows] == [("dear", "in"), ("free", "in"), ("unknown", "out")]
    assert "under models: unknown: `price: " in rows[2]["reason"]
    assert parsed(explain("--model", "smart", "--json"))["candidates"][2]["verdict"] == "in"


def test_a_key_that_is_refused(explain: Explain) -> None:
    """A request with an expired key gets no plan but a 401, and that is what is said."""
    done = explain("--model", "smart", "--key", "old")
    assert (done.returncode, done.stdout) == (1, "")
    assert "401 expired_api_key: The key of 'old' has expired" in done.stderr


def test_limits_of_a_store_that_is_not_there_yet(explain: Explain, tmp_path: Path) -> None:
    """All of it is left, and looking does not make the file."""
    limits = parsed(explain("--model", "smart", "--key", "alice", "--json"))["limits"]
    assert [(each["scope"], each["name"], each["unit"], each["per"], each["limit"]) for each in limits] == [
        ("key", "alice", "usd", "day", 5),
        ("key", "alice", "tokens", "total", 1000),
        ("key", "alice", "concurrent", None, 4),
        ("team", "research", "usd", "month", 200),
        ("backend", "up", "requests", "hour", 100),
    ]
    assert all(each["remaining"] == each["limit"] for each in limits)
    assert not (tmp_path / "gateway.db").exists()


def test_what_is_left_as_the_store_says(explain: Explain, tmp_path: Path) -> None:
    """What is spent and what a running request holds is not left; as JSON and as text."""
    asyncio.run(spend(f"sqlite:///{tmp_path}/gateway.db"))
    usd, *_ = parsed(explain("--model", "smart", "--key", "alice", "--json"))["limits"]
    assert usd["remaining"] == Decimal("3.75")
    assert usd["resets_at"].endswith("T00:00:00Z")
    text = explain("--model", "smart", "--key", "alice").stdout
    assert "  $3.75 left of the limit of $5.00 per day on key alice; resets at " in text
    assert "  1,000 tokens left of the limit of 1,000 tokens in total on key alice (soft)\n" in text
    assert "at most $0.011" in text


def test_a_store_that_does_not_answer(explain: Explain) -> None:
    """The plan is printed all the same; nobody knows what is left, and stderr says why."""
    done = explain("--model", "smart", "--key", "alice", "--json", store="redis://127.0.0.1:9/0")
    document = parsed(done)
    assert len(document["candidates"]) == 3
    assert {each["remaining"] for each in document["limits"]} == {None}
    assert "redis://127.0.0.1:9/0" in done.stderr
    text = explain("--model", "smart", "--key", "alice", store="redis://127.0.0.1:9/0").stdout
    assert "nobody knows what is left of the limit of $5.00 per day on key alice" in text


def test_a_managed_key(explain: Explain, tmp_path: Path) -> None:
    """One that `gateway keys create` has made is planned for like any other."""
    command = gateway_command(
        "keys", "create", "carol", "--policies", "policies", "--store", "sqlite:///gateway.db", "--limit", "usd=2/week"
    )
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    document = parsed(explain("--model", "smart", "--key", "carol", "--json"))
    assert document["key"] == "carol"
    assert document["limits"][0]["remaining"] == 2


def test_names_that_are_not_known(explain: Explain) -> None:
    """A key that nobody has, a model that this key may not use: said, with what there is."""
    done = explain("--model", "smart", "--key", "dave")
    assert done.returncode == 2
    assert "there is no key 'dave'; known are: alice, bob, old" in done.stderr
    done = explain("--model", "smart", "--key", "bob")
    assert done.returncode == 1
    assert "model_not_allowed" in done.stderr
