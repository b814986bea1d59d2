"""Managed keys while the gateway runs: made, rotated and revoked by another process, on every worker within a second."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.budget.valkey import valkey_url
from tests.support import Served, ask, gateway_command, key_policy, serve

POLICIES = {
    "backends": {
        "sim": {"provider": "simulator", "local": True, "simulator": {"latency": "1ms", "tokens_per_second": 100000}}
    },
    "models": {"m": {"backend": "sim", "model": "m"}, "other": {"backend": "sim", "model": "other"}},
    "keys": {"boss": key_policy("boss-secret")},
}
PATIENCE = 3.0  # seconds: three times what is promised, for a machine that is busy with other tests
WORKERS = 2


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/gateway.db"
    else:
        with valkey_url() as url:
            yield url


def gateway_keys(folder: Path, store: str, *arguments: str) -> str:
    """What the real program prints on stdout."""
    done = subprocess.run(
        gateway_command("keys", *arguments, "--store", store),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def until_all_answer(served: Served, key: str, status: int) -> float:
    """Seconds until a row of requests, which the workers share, has nothing but this status."""
    began = last_other = time.monotonic()
    row = 0
    while row < 12 * WORKERS:
        if served.chat(ask("m"), key=key).status == status:
            row += 1
        else:
            row, last_other = 0, time.monotonic()
            assert last_other - began < 30, f"no {status} for a whole half minute"
    return last_other - began


def test_every_worker_learns_of_a_key_s_life(tmp_path: Path, store: str) -> None:
    """Valid soon after it is made, replaced or refused soon after it is rotated or revoked, and its allow-list holds."""
    with serve(tmp_path, POLICIES, "--store", store, "--workers", str(WORKERS)) as served:
        first = gateway_keys(tmp_path, store, "create", "ci", "--allow", "m")
        assert until_all_answer(served, first, 200) < PATIENCE
        assert served.chat(ask("other"), key=first).error["code"] == "model_not_allowed"
        second = gateway_keys(tmp_path, store, "rotate", "ci", "--grace", "1h")
        assert until_all_answer(served, second, 200) < PATIENCE
        assert until_all_answer(served, first, 200) == 0, "the old secret works in the grace period"
        third = gateway_keys(tmp_path, store, "rotate", "ci", "--grace", "0s")
        assert until_all_answer(served, second, 401) < PATIENCE
        assert until_all_answer(served, third, 200) < PATIENCE
        gateway_keys(tmp_path, store, "revoke", "ci")
        assert until_all_answer(served, third, 401) < PATIENCE
        assert served.chat(ask("m"), key=third).error["code"] == "invalid_api_key"
        assert served.chat(ask("m"), key="boss-secret").status == 200
        assert third not in served.output + served.errors


def test_a_managed_key_s_limit_holds_and_its_usage_is_known(tmp_path: Path, store: str) -> None:
    """Three requests in all: the fourth is refused, and `gateway usage` tells of three."""
    with serve(tmp_path, POLICIES, "--store", store) as served:
        key = gateway_keys(tmp_path, store, "create", "ci", "--limit", "requests=3/total")
        deadline = time.monotonic() + 30
        while served.request("GET", "/v1/models", key=key).status != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert [served.chat(ask("m"), key=key).status for _ in range(4)] == [200, 200, 200, 429]
    printed = subprocess.run(
        gateway_command("usage", "--format", "json", "--store", store),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    (row,) = json.loads(printed)
    assert (row["key"], row["requests"]) == ("ci", 3)
