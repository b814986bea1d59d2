"""What is SQLite's own: one file for several processes, locks, and files that cannot be used."""

import asyncio
import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from gateway.budget.sqlite import SCHEMA_VERSION, SqliteStore
from gateway.budget.store import Account, Entry, ManagedKey, Report, StoreDown

TOTAL = Account("all::usd:total")


def _draw_in_a_process(path: str, worker: str, rounds: int, drawn: "multiprocessing.Queue[int]") -> None:
    async def work() -> int:
        store = SqliteStore(path, patience=30.0)
        await store.open()
        got = 0
        for number in range(1, rounds + 1):
            entry = Entry(TOTAL, 1000, granted=got, need=3, want=3)
            got += (await store.sync(Report(worker, number, 60.0, (entry,)))).standings[0].drawn
        await store.close()
        return got

    drawn.put(asyncio.run(work()))


async def test_processes_share_one_limit(tmp_path: Path) -> None:
    """Several processes that make the file and draw from it at once get together what the limit allows."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[int] = context.Queue()
    path = str(tmp_path / "gateway.db")
    processes = [context.Process(target=_draw_in_a_process, args=(path, f"w{i}", 200, queue)) for i in range(3)]
    for process in processes:
        process.start()
    loop = asyncio.get_running_loop()
    got = [await loop.run_in_executor(None, queue.get, True, 100) for _ in processes]
    for process in processes:
        await loop.run_in_executor(None, process.join, 30)
    queue.close()
    assert sum(got) == 999
    store = SqliteStore(path)
    await store.open()
    assert (await store.standings([TOTAL]))[0].granted == 999
    await store.close()


async def test_a_locked_file_does_not_stop_the_loop(tmp_path: Path) -> None:
    """While another process has the file, the loop runs on; a short lock is waited for, a long one is `StoreDown`."""
    path = tmp_path / "gateway.db"
    store = SqliteStore(path, patience=5.0)
    await store.open()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(store.sync(Report("a", 1, 10.0, (Entry(TOTAL, 10, need=1, want=1),))))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    other.execute("COMMIT")
    assert (await waiting).standings[0].drawn == 1
    await store.close()

    hasty = SqliteStore(path, patience=0.02)
    await hasty.open()
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreDown, match="locked"):
        await hasty.sync(Report("a", 2, 10.0, ()))
    other.execute("ROLLBACK")
    other.close()
    assert (await hasty.sync(Report("a", 2, 10.0, ()))).applied
    await hasty.close()


async def test_the_books_survive_a_restart(tmp_path: Path) -> None:
    """What was stated before closing stands after opening again."""
    path = tmp_path / "gateway.db"
    for number in (1, 2):
        store = SqliteStore(path)
        await store.open()
        await store.sync(Report("a", number, 10.0, (Entry(TOTAL, 100, spent=((0.0, 10 * number),)),)))
        await store.close()
    await store.open()
    assert (await store.standings([TOTAL]))[0].spent == 20
    await store.close()


async def test_a_file_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    """No folder, no database, or a newer gateway's: `StoreDown` with the path."""
    (tmp_path / "text.db").write_text("this is no database, but long enough to have had a header " * 20)
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    newer.close()
    for name, reason in (("no/folder.db", "check the path"), ("text.db", "not a database"), ("newer.db", "newer")):
        store = SqliteStore(tmp_path / name)
        with pytest.raises(StoreDown, match=reason):
            await store.open()


async def test_a_store_that_is_not_open_is_down() -> None:
    """Every verb of a closed store raises `StoreDown`."""
    with pytest.raises(StoreDown, match="not open"):
        await SqliteStore("never.db").keys()


async def test_workers_see_each_others_keys(tmp_path: Path) -> None:
    """A key made through one handle is in the other's list, and the version tells."""
    one, two = SqliteStore(tmp_path / "gateway.db"), SqliteStore(tmp_path / "gateway.db")
    await one.open()
    await two.open()
    before = await two.keys_version()
    await one.create_key(ManagedKey("carol", "sha256:1", 1.0))
    assert await two.keys_version() > before
    assert [key.name for key in await two.keys()] == ["carol"]
    await one.close()
    await two.close()


async def test_what_is_old_is_swept(tmp_path: Path) -> None:
    """Accounts of windows long over, dead workers that hold nothing and old marks go; money in doubt stays."""
    now = 1e9
    store = SqliteStore(tmp_path / "gateway.db", clock=lambda: now)
    await store.open()
    old = Account("key:a:usd:day#2001-09-09", ends=now + 10)
    await store.sync(Report("dead", 1, 10.0, (Entry(old, 10, spent=((0.0, 5),)), Entry(TOTAL, 10, granted=3))))
    await store.sync(Report("gone", 1, 10.0, (Entry(TOTAL, 10, spent=((0.0, 2),)),)))
    await store.close()
    now += 30 * 86_400
    await store.open()
    standings = await store.standings([old, TOTAL])
    assert [(one.spent, one.in_doubt) for one in standings] == [(0, 0), (2, 3)]
    await store.close()
