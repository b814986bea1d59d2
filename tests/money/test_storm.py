"""500 clients, three workers and one dollar: what the upstream produced never costs more, and nearly all of it is used."""

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.budget.store import Standing, Store
from tests.faults import FaultUpstream
from tests.money.books import NANO, SOON, account, opened, recorded, settled
from tests.money.clients import post
from tests.money.valkey_server import valkey
from tests.money.workers import workers_of
from tests.support import ask, key_policy, serve

KEY = "sk-storm"
PRICE = {"input": 2, "output": 80}  # dollars per million: an answer of 30 tokens costs about a quarter of a cent
MAX_OUTPUT = 64
ACCOUNT = account("key", "storm", "usd", "total")


@dataclass(frozen=True, slots=True)
class Size:
    """How large a storm is; `dollars` is the whole budget."""

    clients: int
    dollars: int
    seconds: float


QUICK = Size(clients=500, dollars=1, seconds=60)
LONG = Size(clients=2000, dollars=10, seconds=600)
SIZES = [
    pytest.param(QUICK, id="quick"),
    pytest.param(LONG, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
]


@pytest.fixture(autouse=True)
def one_token_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """The upstream says words that count as one token each, so that no guess of a left stream hides what it cost."""
    monkeypatch.setattr("tests.fault_answers.text", lambda count, start=0: "word " * (count - start))


@dataclass(slots=True)
class Told:
    """What the clients were told, and how the budget stood when the first of them heard that it is used up."""

    codes: Counter[str] = field(default_factory=Counter)
    when_exceeded: Standing | None = None
    answered: int = 0
    left: int = 0


def policies(upstream: FaultUpstream, dollars: int) -> dict[str, object]:
    """One key with so much left, for ever."""
    return {
        "defaults": {"retry": {"attempts": 0}, "breaker": {"failures": 100_000}},
        "backends": {"up": {"base_url": upstream.url}},
        "models": {
            "paid": {"backend": "up", "model": "paid", "context": 8192, "max_output": MAX_OUTPUT, "price": PRICE}
        },
        "keys": {"storm": key_policy(KEY, limits=[{"usd": dollars, "per": "total"}])},
    }


def produced(upstream: FaultUpstream) -> int:
    """What the upstream's ledger comes to in nano-dollars."""
    account = upstream.ledger["paid"]
    return account.prompt_tokens * PRICE["input"] * 1000 + account.completion_tokens * PRICE["output"] * 1000


async def client(number: int, ports: Sequence[int], store: Store, told: Told, kill: Callable[[], None]) -> None:
    """Ask until the budget is used up; every tenth leaves in the middle of its stream. Comes back when told to."""
    chance = random.Random(number)
    while True:
        tokens = chance.randint(6, 54)
        gap = round(chance.uniform(0.01, 0.06), 3)
        stream = chance.random() < 0.8
        fault = f"slow:tokens={tokens},gap={gap}" if stream else f"ok:tokens={tokens},delay={tokens * gap:.2f}"
        body = ask("paid", "word " * chance.randint(1, 30), stream=stream, fault=fault)
        if chance.random() < 0.7:
            body["max_tokens"] = chance.randint(8, MAX_OUTPUT)
        leaves = chance.randint(1, tokens) if stream and number % 10 == 0 else None
        answer = await post(chance.choice(ports), body, key=KEY, leave_after=leaves)
        told.codes[answer.code or str(answer.status)] += 1
        if answer.status == 200:
            told.answered += 1
            told.left += answer.left
            kill()
            continue
        if answer.code == "budget_exceeded":
            assert not answer.should_retry
            if told.codes["budget_exceeded"] == 1:
                (told.when_exceeded,) = await store.standings([ACCOUNT])
            return
        if answer.status:  # else its connection broke with the worker that was killed
            # A busy machine may keep Valkey's answer from a worker for longer than it waits.
            assert answer.code in ("budget_held", "store_unavailable"), answer
            assert answer.should_retry, answer
            assert answer.retry_after == 1.0, answer
        await asyncio.sleep(answer.retry_after or 0.1)


async def rage(
    size: Size, ports: Sequence[int], url: str, upstream: FaultUpstream, kill: Callable[[], None] = lambda: None
) -> tuple[Told, Standing, int]:
    """The storm itself, then the calm: what clients were told, how the budget stands, what the records come to."""
    told = Told()
    async with opened(url) as store:
        async with asyncio.timeout(size.seconds):
            async with asyncio.TaskGroup() as clients:
                for number in range(size.clients):
                    clients.create_task(client(number, ports, store, told, kill))
        await upstream.until(lambda: upstream.running == 0)
        standing = await settled(store, ACCOUNT)
        wait = not standing.in_doubt  # else the killed worker's books and records stop at different moments
        records = (await recorded(store, {"storm": standing.spent}, patience=SOON if wait else 0.0))["storm"]
    made = produced(upstream)
    print(
        f"{told.answered} answers ({told.left} left), {dict(told.codes)}; dollars: produced {made / NANO:.6f}, "
        f"spent {standing.spent / NANO:.6f}, in doubt {standing.in_doubt / NANO:.6f}, records {records / NANO:.6f}"
    )
    return told, standing, records


def assert_never_overspent(size: Size, told: Told, standing: Standing, upstream: FaultUpstream) -> None:
    """The upstream's ledger, the store's books, and how much was usable before the first refusal."""
    budget = size.dollars * NANO
    assert produced(upstream) <= budget
    assert standing.spent + standing.in_doubt <= budget
    first = told.when_exceeded
    assert first is not None
    assert first.spent + first.in_doubt >= 0.97 * budget, first
    assert told.left > 0


@pytest.mark.parametrize("size", SIZES)
async def test_storm_over_three_workers_on_sqlite(tmp_path: Path, size: Size) -> None:
    """Three workers share one file; afterwards nothing is held, and what is spent is what the records say."""
    url = f"sqlite:///{tmp_path}/storm.db"
    async with FaultUpstream(keep_log=False) as upstream:
        with serve(tmp_path, policies(upstream, size.dollars), "--workers", "3", "--store", url) as served:
            told, standing, records = await rage(size, [served.port], url, upstream)
            assert_never_overspent(size, told, standing, upstream)
            assert produced(upstream) >= 0.97 * size.dollars * NANO
            assert standing.in_doubt == 0
            assert standing.spent == records


@pytest.mark.parametrize("size", SIZES)
async def test_storm_over_two_gateways_on_one_valkey(tmp_path: Path, size: Size) -> None:
    """Two gateways that know of each other only through Valkey, one of them with two workers."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with valkey(tmp_path, keeps=False) as server:
        url = server.url
        async with FaultUpstream(keep_log=False) as upstream:
            terms = policies(upstream, size.dollars)
            with (
                serve(tmp_path / "one", terms, "--workers", "2", "--store", url) as one,
                serve(tmp_path / "two", terms, "--store", url) as two,
            ):
                told, standing, records = await rage(size, [one.port, one.port, two.port], url, upstream)
                assert_never_overspent(size, told, standing, upstream)
                assert produced(upstream) >= 0.97 * size.dollars * NANO
                assert standing.in_doubt == 0
                assert standing.spent == records


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        pytest.param("sqlite", QUICK, id="sqlite-quick"),
        pytest.param("valkey", QUICK, id="valkey-quick", marks=pytest.mark.soak),
        pytest.param("sqlite", LONG, id="sqlite-long", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
        pytest.param("valkey", LONG, id="valkey-long", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
async def test_storm_with_a_worker_that_is_killed(tmp_path: Path, size: Size, kind: str) -> None:
    """What a killed worker had drawn is in doubt, which counts as spent; the supervisor puts another in its place."""
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{tmp_path}/storm.db"
        if kind == "valkey":
            url = stack.enter_context(valkey(tmp_path, keeps=False)).url
        async with FaultUpstream(keep_log=False) as upstream:
            terms = policies(upstream, size.dollars)
            served = stack.enter_context(serve(tmp_path, terms, "--workers", "3", "--store", url))
            before = workers_of(served)
            killing = iter(range(size.clients // 5))

            def kill() -> None:
                """After the first answers, end a worker that is in the middle of many."""
                if next(killing, None) == size.clients // 10:
                    os.kill(before[1], signal.SIGKILL)

            told, standing, records = await rage(size, [served.port], url, upstream, kill)
            assert_never_overspent(size, told, standing, upstream)
            assert standing.in_doubt > 0, "the killed worker had nothing drawn"
            assert records <= standing.spent + standing.in_doubt
            after = workers_of(served)
            assert len(after) == 3
            assert set(after) - set(before), "the killed worker was not replaced"
