"""Workers that make the SQLite file at the same time: each waits for the other, but not for ever."""

import sqlite3
import time
from pathlib import Path

import pytest

from gateway.budget import sqlite
from gateway.budget.sqlite import SqliteStore
from gateway.budget.store import StoreDown


class Rival:
    """Another worker that has the new file to itself, until somebody waits."""

    def __init__(self, path: Path, waits: int) -> None:
        self.database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.database.execute("BEGIN IMMEDIATE")
        self.database.execute("CREATE TABLE theirs (one INTEGER)")
        self.waits = waits

    def step(self, seconds: float) -> None:
        """Stands in for `time.sleep`: after so many waits the rival is done."""
        self.waits -= 1
        if self.waits == 0:
            self.database.execute("ROLLBACK")


async def test_a_worker_waits_for_the_one_that_makes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite itself fails at once when two connections turn on its write-ahead log."""
    rival = Rival(tmp_path / "gateway.db", waits=3)
    monkeypatch.setattr(time, "sleep", rival.step)
    store = SqliteStore(tmp_path / "gateway.db")
    await store.open()
    assert rival.waits == 0
    assert await store.keys() == []
    await store.close()
    rival.database.close()


async def test_a_file_that_stays_locked_is_a_store_that_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait has an end, and the error says whose file it was."""
    monkeypatch.setattr(sqlite, "OPENING", 0.05)
    rival = Rival(tmp_path / "gateway.db", waits=-1)
    with pytest.raises(StoreDown, match=r"gateway\.db: database is locked"):
        await SqliteStore(tmp_path / "gateway.db").open()
    rival.database.close()
