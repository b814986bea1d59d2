"""`gateway release`: what is in doubt since a worker died is given back, and nothing else."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from click.testing import CliRunner, Result

from gateway.budget.escrow import Escrow
from gateway.budget.meter import NANO, MeterLimit, Scope, limits_of, span_of
from gateway.budget.refusal import Refused
from gateway.budget.store import account_of
from gateway.budget.stores import open_store
from gateway.cli.release import command
from gateway.policy.loader import load
from tests.budget.valkey import valkey_url

POLICIES = {
    "limits": [{"usd": 100, "per": "total"}],
    "teams": {"research": {"limits": [{"tokens": 1000, "per": "day"}]}},
    "keys": {"alice": {"hash": "sha256:" + "0" * 64, "limits": [{"usd": 5, "per": "total"}]}},
}


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    """A real server."""
    with valkey_url() as url:
        yield url


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path, valkey: str) -> str:
    """An empty store, and policies beside it."""
    import redis

    (tmp_path / "p.yaml").write_text(yaml.safe_dump(POLICIES))
    with redis.Redis.from_url(valkey) as client:
        client.flushall()
    return f"sqlite:///{tmp_path}/gateway.db" if request.param == "sqlite" else valkey


def limit_on(folder: Path, scope: Scope, name: str) -> MeterLimit:
    """The limit as the gateway reads it."""
    policy = load(folder, {})
    names = {"key": None, "team": None, **({scope: name} if name else {})}
    found = limits_of(policy, names["key"], names["team"], None, None)
    return next(limit for limit in found if limit.meter.scope == scope)


def held(url: str, limit: MeterLimit, amount: int, *, lease: float) -> None:
    """A worker holds so much of the limit, and is not heard of again; a short lease has run out then."""

    async def hold() -> None:
        store = open_store(url)
        await store.open()
        await Escrow(store, uuid4().hex, lease=lease).hold("one", [(limit, amount)])
        account = account_of(limit.meter, span_of(limit.meter.window, time.time()))
        while lease < 1 and not (await store.standings([account]))[0].in_doubt:
            await asyncio.sleep(0.02)
        await store.close()

    asyncio.run(hold())


def fits(url: str, limit: MeterLimit, amount: int) -> bool:
    """Whether another worker may hold so much."""

    async def ask() -> bool:
        store = open_store(url)
        await store.open()
        escrow = Escrow(store, uuid4().hex)
        try:
            escrow.release(await escrow.hold("two", [(limit, amount)]))
        except Refused:
            return False
        finally:
            await escrow.aclose()
            await store.close()
        return True

    return asyncio.run(ask())


def run(folder: Path, url: str, *arguments: str) -> Result:
    """The command."""
    return CliRunner().invoke(command, [*arguments, "--policies", str(folder), "--store", url])


@pytest.mark.parametrize(
    ("scope", "name", "amount", "told"),
    [
        ("key", "alice", 2 * NANO, "the limit of $5.00 in total on key alice: $2.0"),
        ("team", "research", 400, "the limit of 1,000 tokens per day on team research: 4"),
        ("all", "", 70 * NANO, "the limit of $100.00 in total on everything together: $7"),
    ],
)
def test_what_a_dead_worker_held_is_given_back(
    tmp_path: Path, store: str, scope: Scope, name: str, amount: int, told: str
) -> None:
    """Once, with what it was; then all of the limit may be held again."""
    limit = limit_on(tmp_path, scope, name)
    held(store, limit, amount, lease=0.3)
    assert not fits(store, limit, limit.amount)
    result = run(tmp_path, store, scope, *[name][: bool(name)])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(told)
    assert fits(store, limit, limit.amount)
    assert ": $0.00 released" in (again := run(tmp_path, store, scope, *[name][: bool(name)]).output) or (
        ": 0 tokens released" in again
    )


def test_what_a_living_worker_holds_is_not(tmp_path: Path, store: str) -> None:
    """It is not in doubt."""
    limit = limit_on(tmp_path, "key", "alice")
    held(store, limit, 2 * NANO, lease=3600.0)
    assert ": $0.00 released" in run(tmp_path, store, "key", "alice").output
    assert not fits(store, limit, limit.amount)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["key", "nobody"], "there is no limit on the key 'nobody'"),
        (["team"], "every other scope needs one"),
        (["all", "alice"], "`all` has no name"),
        (["user", "alice"], "is not one of"),
    ],
)
def test_what_cannot_be_released_is_told(tmp_path: Path, store: str, arguments: list[str], says: str) -> None:
    """With status 2."""
    result = run(tmp_path, store, *arguments)
    assert result.exit_code == 2
    assert says in result.output
