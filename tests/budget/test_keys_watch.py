"""The watch on managed keys: changes arrive, an absent store changes nothing and is reported once."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.budget.keys_watch import KeysWatch
from gateway.budget.store import ManagedKey, Store, StoreDown, revoked
from gateway.budget.stores import open_store
from tests.budget.valkey import valkey_url

CI = ManagedKey("ci", "sha256:" + "1" * 64, created=0.0)
BOT = ManagedKey("bot", "sha256:" + "2" * 64, created=0.0)


class Heard:
    """What a watch has said, and the watch."""

    def __init__(self, store: Any, interval: float = 3600.0) -> None:
        self.keys: list[list[str]] = []
        self.troubles: list[str] = []
        self.recoveries: list[float] = []
        self.changed = asyncio.Event()
        self.watch = KeysWatch(
            cast("Store", store),
            changed=self._change,
            trouble=self.troubles.append,
            recovered=self.recoveries.append,
            interval=interval,
        )

    def _change(self, keys: Sequence[ManagedKey]) -> None:
        self.keys.append([f"{key.name}{'-' if key.revoked_at is not None else ''}" for key in keys])
        self.changed.set()


class FakeStore:
    """Managed keys that can be away."""

    def __init__(self) -> None:
        self.found: list[ManagedKey] = [CI]
        self.version = 1
        self.reads = 0
        self.error: Exception | None = None

    async def keys_version(self) -> int:
        if self.error is not None:
            raise self.error
        return self.version

    async def keys(self) -> list[ManagedKey]:
        self.reads += 1
        return self.found


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with valkey_url() as url:
        yield url


@pytest.fixture(params=["sqlite", "redis"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path, valkey: str) -> AsyncIterator[tuple[Store, Store]]:
    """One store, opened by two processes as it were."""
    url = f"sqlite:///{tmp_path}/gateway.db" if request.param == "sqlite" else valkey
    both = open_store(url), open_store(url)
    for store in both:
        await store.open()
    yield both
    for store in both:
        await store.close()


async def test_each_change_is_passed_on(pair: tuple[Store, Store]) -> None:
    """Made, replaced, revoked by another process; and nothing when nothing changed."""
    mine, theirs = pair
    heard = Heard(mine)
    await heard.watch.look()
    await heard.watch.look()
    assert heard.keys == [[]]
    await theirs.create_key(CI)
    await heard.watch.look()
    await theirs.create_key(BOT)
    assert await theirs.replace_key(revoked(CI, 5.0), await theirs.keys_version())
    await heard.watch.look()
    await heard.watch.look()
    assert heard.keys == [[], ["ci"], ["bot", "ci-"]]
    assert heard.watch.keys == (BOT, revoked(CI, 5.0))
    assert heard.troubles == []


async def test_it_looks_by_itself_within_a_second(pair: tuple[Store, Store]) -> None:
    """The default interval lets a change arrive within one second, here with room for a busy machine."""
    mine, theirs = pair
    heard = Heard(mine)
    heard.watch = KeysWatch(mine, changed=heard._change, trouble=heard.troubles.append, recovered=lambda _: None)
    await heard.watch.start()
    heard.changed.clear()
    began = time.monotonic()
    await theirs.create_key(replace(CI, name="fresh", hash="sha256:" + "3" * 64))
    await asyncio.wait_for(heard.changed.wait(), 30)
    assert time.monotonic() - began < 3
    assert "fresh" in heard.keys[-1]
    await heard.watch.stop()
    await heard.watch.stop()


async def test_a_store_that_is_down_keeps_the_last_keys_and_is_reported_once() -> None:
    """And its return too, after which the keys are read again whatever their version."""
    store = FakeStore()
    heard = Heard(store)
    await heard.watch.look()
    store.error = StoreDown("gone fishing")
    for _ in range(3):
        await heard.watch.look()
    assert heard.troubles == ["gone fishing"]
    assert heard.watch.keys == (CI,)
    store.error, store.found = None, [BOT]  # another Redis, whose count happens to be the same
    await heard.watch.look()
    await heard.watch.look()
    assert heard.keys == [["ci"], ["bot"]]
    assert len(heard.recoveries) == 1
    store.error = StoreDown("again")
    await heard.watch.look()
    assert heard.troubles == ["gone fishing", "again"]


async def test_a_start_without_a_store_is_no_failure() -> None:
    """The keys come when the store does."""
    store = FakeStore()
    store.error = StoreDown("not yet")
    heard = Heard(store, interval=0.001)
    await heard.watch.start()
    assert (heard.keys, heard.troubles) == ([], ["not yet"])
    store.error = None
    await asyncio.wait_for(heard.changed.wait(), 30)
    await heard.watch.stop()
    assert heard.keys == [["ci"]]


async def test_an_unforeseen_error_does_not_end_the_watch() -> None:
    """A watch that ended would never hear of a revoked key again."""
    store = FakeStore()
    store.error = TypeError("a record of tomorrow")
    heard = Heard(store, interval=0.001)
    await heard.watch.start()
    assert heard.troubles == ["a record of tomorrow"]
    store.error = None
    await asyncio.wait_for(heard.changed.wait(), 30)
    await heard.watch.stop()


async def test_a_version_that_stands_still_costs_one_question() -> None:
    """The keys themselves are read only when they changed."""
    store = FakeStore()
    heard = Heard(store)
    for _ in range(5):
        await heard.watch.look()
    assert store.reads == 1
    store.version += 1
    await heard.watch.look()
    assert store.reads == 2
