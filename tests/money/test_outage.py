"""Valkey frozen, stopped and started again under load: no request hangs, and nothing is lost or spent twice."""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.faults import FaultUpstream
from tests.money.books import account, opened, recorded, settled
from tests.money.clients import post
from tests.money.valkey_server import Valkey, valkey
from tests.money.workers import workers_of
from tests.support import Served, ask, key_policy, serve

PRICE = {"input": 1, "output": 10}
BOUND = 2.0  # seconds: no request may take longer, whatever Valkey does
LIMIT = 0.5  # dollars: a worker draws about a hundredth at once, which is some 60 requests
CLIENTS = 8  # of each kind of key


@dataclass(slots=True)
class Load:
    """What clients were told while the load was on, by key; `pause` is between two requests of one client."""

    served: Served
    pause: float = 0.02
    codes: dict[str, Counter[str]] = field(default_factory=dict)
    slowest: float = 0.0
    over: bool = False

    async def client(self, key: str) -> None:
        """Ask again and again until the load is over."""
        codes = self.codes.setdefault(key, Counter())
        while not self.over:
            body = ask(f"for-{key}", stream=True, fault="slow:tokens=8,gap=0.01", max_tokens=8)
            began = time.monotonic()
            answer = await post(self.served.port, body, key=f"sk-{key}")
            self.slowest = max(self.slowest, time.monotonic() - began)
            codes[answer.code or str(answer.status)] += 1
            assert answer.whole
            await asyncio.sleep(self.pause)

    async def until(self, key: str, code: str, more: int = 20) -> None:
        """Wait until clients of a key have been told this so many times from now on."""
        codes = self.codes.setdefault(key, Counter())
        aim = codes[code] + more
        async with asyncio.timeout(30):
            while codes[code] < aim:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def under_load(served: Served, *keys: str) -> AsyncIterator[Load]:
    """Clients of each key, all the time."""
    load = Load(served)
    async with asyncio.TaskGroup() as clients:
        for key in keys:
            for _ in range(CLIENTS):
                clients.create_task(load.client(key))
        for key in keys:
            await load.until(key, "200")
        yield load
        load.over = True


def policies(upstream: FaultUpstream, limit: float = LIMIT, **server: str) -> dict[str, Any]:
    """A key without limits, and one with a limit that is not reached, and so tight that grants do not last for long."""
    return {
        "server": server,
        "defaults": {"retry": {"attempts": 0}, "breaker": {"failures": 100_000}},
        "backends": {"up": {"base_url": upstream.url}},
        "models": {
            name: {"backend": "up", "model": name, "context": 4096, "max_output": 100, "price": PRICE}
            for name in ("for-hard", "for-free")
        },
        "keys": {
            "hard": key_policy(
                "sk-hard", limits=[{"usd": limit, "per": "total"}, {"tokens": 1_000_000, "per": "hour"}]
            ),
            "free": key_policy("sk-free"),
        },
    }


async def assert_books_are_right(url: str, upstream: FaultUpstream, *, with_records: bool = True) -> None:
    """What is spent is what the upstream produced for the key with a limit, and the records say the same of all."""
    async with opened(url) as store:
        standing = await settled(store, account("key", "hard", "usd", "total"))
        assert standing.in_doubt == 0
        assert standing.spent == produced(upstream, "hard")
        if with_records:
            expected = {key: produced(upstream, key) for key in ("free", "hard")}
            assert await recorded(store, expected) == expected


def produced(upstream: FaultUpstream, key: str) -> int:
    """What the upstream's ledger comes to for a key, in nano-dollars."""
    ledger = upstream.ledger[f"for-{key}"]
    return 1000 * (ledger.prompt_tokens * PRICE["input"] + ledger.completion_tokens * PRICE["output"])


@pytest.mark.parametrize(
    "rounds",
    [pytest.param(1, id="quick"), pytest.param(20, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(900)])],
)
async def test_frozen_killed_and_started_again(tmp_path: Path, rounds: int) -> None:
    """A key with a hard limit is refused for as long as its grants are used up; one without limits notices nothing."""
    with valkey(tmp_path, keeps=True) as server:
        async with FaultUpstream(keep_log=False) as upstream:
            with serve(tmp_path, policies(upstream, LIMIT * rounds), "--workers", "2", "--store", server.url) as served:
                async with under_load(served, "hard", "free") as load:
                    for _ in range(rounds):
                        server.send(signal.SIGSTOP)
                        await load.until("hard", "store_unavailable")
                        await load.until("free", "200")
                        server.send(signal.SIGCONT)
                        await load.until("hard", "200")
                        server.kill()
                        await load.until("hard", "store_unavailable")
                        await load.until("free", "200")
                        server.start()
                        await load.until("hard", "200")
                await asyncio.to_thread(served.until, '"store_recovered"')
                await assert_books_are_right(server.url, upstream)
        print(f"{load.codes}, slowest {load.slowest:.2f} s")
        assert set(load.codes["free"]) == {"200"}
        assert set(load.codes["hard"]) == {"200", "store_unavailable"}
        assert load.slowest < BOUND


async def test_a_store_that_lost_its_memory(tmp_path: Path) -> None:
    """Workers state again what they have spent: a Valkey that comes back empty forgives nobody anything."""
    with valkey(tmp_path, keeps=False) as server:
        async with FaultUpstream(keep_log=False) as upstream:
            with serve(tmp_path, policies(upstream), "--workers", "2", "--store", server.url) as served:
                async with under_load(served, "hard", "free") as load:
                    server.kill()
                    server.start()
                    await load.until("hard", "200", 60)
                await assert_books_are_right(server.url, upstream, with_records=False)
        print(f"{load.codes}, slowest {load.slowest:.2f} s")
        assert load.slowest < BOUND


async def test_allowed_while_the_store_is_down(tmp_path: Path) -> None:
    """With `store_down: allow` nobody is refused, and the books learn of everything afterwards."""
    with valkey(tmp_path, keeps=True) as server:
        async with FaultUpstream(keep_log=False) as upstream:
            terms = policies(upstream, store_down="allow")
            with serve(tmp_path, terms, "--workers", "2", "--store", server.url) as served:
                async with under_load(served, "hard", "free") as load:
                    server.send(signal.SIGSTOP)
                    await load.until("hard", "200", 100)
                    server.send(signal.SIGCONT)
                    await load.until("hard", "200")
                    server.kill()
                    await load.until("hard", "200", 100)
                    server.start()
                    await load.until("hard", "200")
                await assert_books_are_right(server.url, upstream)
        print(f"{load.codes}, slowest {load.slowest:.2f} s")
        assert set(load.codes["free"]) == set(load.codes["hard"]) == {"200"}
        assert load.slowest < BOUND


async def test_starting_before_the_store(tmp_path: Path) -> None:
    """The gateway serves keys without limits at once, and the others when the store has come; a key may still look."""
    server = Valkey(tmp_path, keeps=True)
    async with FaultUpstream(keep_log=False) as upstream:
        with serve(tmp_path, policies(upstream), "--store", server.url) as served:
            async with under_load(served, "free") as load, asyncio.TaskGroup() as clients:
                clients.create_task(load.client("hard"))
                await load.until("hard", "store_unavailable", 3)
                unknown = await asyncio.to_thread(served.request, "GET", "/v1/key", key="gw-managed-perhaps")
                assert (unknown.status, unknown.error["code"]) == (503, "store_unavailable"), "it may be a managed key"
                page = await asyncio.to_thread(served.request, "GET", "/v1/key", key="sk-hard")
                assert [limit["remaining"] for limit in page.json["limits"]] == [None, None], "nobody knows"
                server.start()
                await load.until("hard", "200", 3)
                unknown = await asyncio.to_thread(served.request, "GET", "/v1/key", key="gw-managed-perhaps")
                assert (unknown.status, unknown.error["code"]) == (401, "invalid_api_key")
                load.over = True
            await assert_books_are_right(server.url, upstream)
            print(f"{load.codes}, slowest {load.slowest:.2f} s")
            assert set(load.codes["free"]) == {"200"}
            assert load.slowest < BOUND
    server.kill()


async def test_records_outlive_the_worker_that_made_them(tmp_path: Path) -> None:
    """A worker that is killed takes no record with it that is older than 50 ms; three times that is waited here."""
    url = f"sqlite:///{tmp_path}/killed.db"
    async with FaultUpstream(keep_log=False) as upstream:
        with serve(tmp_path, policies(upstream), "--workers", "2", "--store", url) as served:
            for _ in range(30):
                assert (await post(served.port, ask("for-free", fault="ok:3"), key="sk-free")).status == 200
            await asyncio.sleep(0.15)  # what is tested: that this is long enough
            for pid in workers_of(served):
                os.kill(pid, signal.SIGKILL)
            async with opened(url) as store:
                (total,) = await store.usage("key", 0.0)
            assert (total.requests, total.cost) == (30, produced(upstream, "free"))
            while (await post(served.port, ask("for-free", fault="ok:3"), key="sk-free")).status != 200:
                await asyncio.sleep(0.05)  # until the supervisor has put others in their place
