"""The store that is always there: one SQLite file, shared by the workers of one machine.

A short transaction runs at once, in the event loop: it takes less than handing it to a thread would. Only when another
worker has the file, or when there is much to write, does it go to this store's one thread, which may wait for the lock.
"""

import asyncio
import json
import math
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import TypeVar

import orjson

from gateway.budget.meter import BUCKETS, bucket_end
from gateway.budget.store import (
    HOUR,
    KEEP_ACCOUNTS,
    KEEP_ROWS,
    KEEP_WORKERS,
    RECALL,
    Account,
    Entry,
    KeyExists,
    ManagedKey,
    Reply,
    Report,
    Standing,
    StoreDown,
    UnknownKey,
    UsageBy,
    UsageRecord,
    UsageTotal,
    by_hour,
    drawn_of,
    summed,
)

T = TypeVar("T")

SCHEMA_VERSION = 1
OPENING = 5.0  # seconds to wait for the lock while several workers make the file at once
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE worker (id TEXT PRIMARY KEY, lease_until REAL NOT NULL, number INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE account (
    id TEXT PRIMARY KEY, spent INTEGER NOT NULL, ends REAL, recall_until REAL NOT NULL, recall_by TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE bucket (
    account TEXT NOT NULL, number INTEGER NOT NULL, amount INTEGER NOT NULL, PRIMARY KEY (account, number)
) WITHOUT ROWID;
CREATE TABLE stake (
    account TEXT NOT NULL, worker TEXT NOT NULL, spent INTEGER NOT NULL, granted INTEGER NOT NULL,
    held INTEGER NOT NULL, PRIMARY KEY (account, worker)
) WITHOUT ROWID;
CREATE TABLE mark (id TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE batch (id TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE usage (at REAL NOT NULL, record TEXT NOT NULL);
CREATE INDEX usage_at ON usage (at);
CREATE TABLE hour (
    hour INTEGER NOT NULL, key TEXT NOT NULL, team TEXT NOT NULL, model TEXT NOT NULL, backend TEXT NOT NULL,
    task TEXT NOT NULL, requests INTEGER NOT NULL, input INTEGER NOT NULL, output INTEGER NOT NULL,
    cost INTEGER NOT NULL, PRIMARY KEY (hour, key, team, model, backend, task)
) WITHOUT ROWID;
CREATE TABLE managed_key (name TEXT PRIMARY KEY, hash TEXT NOT NULL UNIQUE, record TEXT NOT NULL) WITHOUT ROWID;
"""
# Rows in one statement: each statement gives the interpreter's lock away and waits for it, which costs a thread that is
# busy with requests more than the rows do (50 us a row on one core).
_ROWS_AT_ONCE = (128, 32, 8, 1)
_ADD_HOUR = """
INSERT INTO hour VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    requests = requests + excluded.requests, input = input + excluded.input,
    output = output + excluded.output, cost = cost + excluded.cost
"""
_SUMS = "SELECT {}, SUM(requests), SUM(input), SUM(output), SUM(cost) FROM hour WHERE hour >= ? GROUP BY 1"
_COLUMNS: dict[UsageBy, str] = {
    "key": "key", "team": "team", "model": "model", "backend": "backend", "task": "task", "day": "hour",
}  # fmt: skip
_SYNCS_PER_CHECKPOINT = 256  # so that the log is folded into the file by the thread, which may wait for the disk
_SWEEP_EVERY = 3600.0


@dataclass(slots=True)
class _Book:
    """What the file says of one account, while one transaction works on it."""

    spent: int = 0
    recall_until: float = 0.0
    recall_by: str = ""
    buckets: dict[int, int] = field(default_factory=dict)
    granted: int = 0
    held: int = 0
    in_doubt: int = 0
    idle: int = 0

    def used(self) -> int:
        return self.spent + self.granted + self.in_doubt


class SqliteStore:
    """A `Store` in the file at `path`. `clock` gives epoch seconds, `patience` is the longest wait for the lock."""

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.time, patience: float = 0.25) -> None:
        self._path = str(path)
        self._clock = clock
        self._patience = patience
        self._quick: sqlite3.Connection | None = None
        self._patient: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._epoch = ""
        self._syncs = 0
        self._swept = 0.0

    async def open(self) -> None:
        """Open or make the file; raises `StoreDown` if it cannot be used, or was made by a newer gateway."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        try:
            self._patient = await asyncio.get_running_loop().run_in_executor(self._thread, self._prepare)
            self._quick = _connect(self._path, 0.0)
            self._quick.execute("PRAGMA wal_autocheckpoint=0")
        except sqlite3.Error as error:
            await self.close()
            raise StoreDown(f"cannot open {self._path}: {error}; check the path and its permissions") from error
        except StoreDown:
            await self.close()
            raise
        query = "SELECT value FROM meta WHERE name = 'epoch'"
        self._epoch = (await self._read(lambda db: db.execute(query).fetchone()))[0]

    async def close(self) -> None:
        """Close the file."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._close_patient)
            thread.shutdown()
        if self._quick is not None:
            self._quick.close()
            self._quick = None

    async def sync(self, report: Report) -> Reply:
        """See `Store.sync`."""
        self._syncs += 1
        patient = self._syncs % _SYNCS_PER_CHECKPOINT == 0
        return await self._write(lambda db: _sync(db, report, self._epoch, self._clock()), patient=patient)

    async def standings(self, accounts: Sequence[Account]) -> tuple[Standing, ...]:
        """See `Store.standings`."""
        now = self._clock()
        return await self._read(
            lambda db: tuple(_standing(_load(db, account, "", now), account, now) for account in accounts)
        )

    async def release(self, account: Account) -> int:
        """See `Store.release`."""
        return await self._write(lambda db: _release(db, account, self._clock()))

    async def once(self, mark: str, seconds: float) -> bool:
        """See `Store.once`."""
        return await self._write(lambda db: _once(db, mark, seconds, self._clock()))

    async def write_usage(self, batch: str, records: Sequence[UsageRecord]) -> None:
        """See `Store.write_usage`; also throws away what is too old to keep, about once an hour."""
        now = self._clock()
        await self._write(lambda db: _write_usage(db, batch, records, now), patient=True)
        if now - self._swept >= _SWEEP_EVERY:
            self._swept = now
            await self._write(lambda db: _sweep(db, now), patient=True)

    async def usage(self, by: UsageBy, since: float, zone: str = "UTC") -> list[UsageTotal]:
        """See `Store.usage`."""
        query = _SUMS.format(_COLUMNS[by])
        rows = await self._patiently(lambda db: db.execute(query, (int(since // HOUR),)).fetchall())
        return summed(rows, by, zone)

    async def recent_usage(self, count: int) -> list[UsageRecord]:
        """See `Store.recent_usage`."""
        query = "SELECT record FROM usage ORDER BY at DESC, rowid DESC LIMIT ?"
        rows = await self._patiently(lambda db: db.execute(query, (count,)).fetchall())
        return [UsageRecord(**json.loads(record)) for (record,) in rows]

    async def create_key(self, key: ManagedKey) -> None:
        """See `Store.create_key`."""
        try:
            await self._write(lambda db: _create_key(db, key))
        except sqlite3.IntegrityError:
            raise KeyExists(f"a key {key.name!r} exists already; rotate it, or choose another name") from None

    async def replace_key(self, key: ManagedKey, version: int) -> bool:
        """See `Store.replace_key`."""
        replaced = await self._write(lambda db: _replace_key(db, key, version))
        if replaced is None:
            raise UnknownKey(f"there is no managed key {key.name!r}; `gateway keys list` shows those there are")
        return replaced

    async def keys(self) -> list[ManagedKey]:
        """See `Store.keys`."""
        rows = await self._read(lambda db: db.execute("SELECT record FROM managed_key ORDER BY name").fetchall())
        return [_key_of(record) for (record,) in rows]

    async def keys_version(self) -> int:
        """See `Store.keys_version`."""
        return await self._read(_keys_version)

    async def _write(self, work: Callable[[sqlite3.Connection], T], *, patient: bool = False) -> T:
        if not patient and self._quick is not None:
            try:
                with _transaction(self._quick):
                    return work(self._quick)
            except sqlite3.IntegrityError:
                raise
            except sqlite3.Error as error:
                if not _is_busy(error):
                    raise StoreDown(f"{self._path}: {error}") from error
        return await self._patiently(work, write=True)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._quick is not None:
            try:
                return work(self._quick)
            except sqlite3.Error as error:
                if not _is_busy(error):
                    raise StoreDown(f"{self._path}: {error}") from error
        return await self._patiently(work)

    async def _patiently(self, work: Callable[[sqlite3.Connection], T], *, write: bool = False) -> T:
        if self._thread is None or self._patient is None:
            raise StoreDown(f"{self._path} is not open")
        database = self._patient

        def run() -> T:
            if not write:
                return work(database)
            with _transaction(database):
                return work(database)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise StoreDown(f"{self._path}: {error}") from error

    def _prepare(self) -> sqlite3.Connection:
        database = _connect(self._path, OPENING)
        try:
            _use_wal(database)
            with _transaction(database):
                _migrate(database, self._path)
                _sweep(database, self._clock())
            database.execute(f"PRAGMA busy_timeout={int(self._patience * 1000)}")
        except BaseException:
            database.close()
            raise
        return database

    def _close_patient(self) -> None:
        if self._patient is not None:
            self._patient.close()
            self._patient = None


def _connect(path: str, timeout: float) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA synchronous=NORMAL")
    except BaseException:
        database.close()
        raise
    return database


def _use_wal(database: sqlite3.Connection) -> None:
    until = time.monotonic() + OPENING
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            # While another worker makes the same change, SQLite does not wait as its timeout says: it fails at once.
            if not _is_busy(error) or time.monotonic() > until:
                raise
            time.sleep(0.005)
        else:
            return


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _migrate(db: sqlite3.Connection, path: str) -> None:
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if found == SCHEMA_VERSION:
        return
    if found > SCHEMA_VERSION:
        raise StoreDown(f"{path} was written by a newer gateway (schema {found}, this one knows {SCHEMA_VERSION})")
    for statement in _SCHEMA.split(";\n"):
        db.execute(statement)
    db.execute("INSERT INTO meta VALUES ('epoch', ?), ('keys_version', '0')", (secrets.token_hex(8),))
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _sync(db: sqlite3.Connection, report: Report, epoch: str, now: float) -> Reply:
    known = db.execute("SELECT number FROM worker WHERE id = ?", (report.worker,)).fetchone()
    if known is not None and report.number <= known[0]:
        return Reply(epoch, applied=False, recovering=False, standings=())
    until = now if report.closing else now + report.lease
    db.execute("INSERT OR REPLACE INTO worker VALUES (?, ?, ?)", (report.worker, until, report.number))
    books = [_state(db, report.worker, entry, now) for entry in report.entries]
    asking = [(entry, book) for entry, book in zip(report.entries, books, strict=True) if entry.need > 0]
    refused = [(entry, book) for entry, book in asking if entry.limit - book.used() < entry.need]
    for entry, book in refused:
        book.recall_until, book.recall_by = now + RECALL, report.worker
        db.execute(
            "UPDATE account SET recall_until = ?, recall_by = ? WHERE id = ?",
            (book.recall_until, report.worker, entry.account.id),
        )
    standings = []
    for entry, book in zip(report.entries, books, strict=True):
        drawn = 0
        if entry.need > 0 and not refused:
            drawn = drawn_of(entry.need, entry.want, entry.limit - book.used())
            book.granted += drawn
            db.execute(
                "UPDATE stake SET granted = granted + ? WHERE account = ? AND worker = ?",
                (drawn, entry.account.id, report.worker),
            )
        short = entry.need - (entry.limit - book.used()) if refused else 0
        standings.append(_standing(book, entry.account, now, drawn=drawn, short=short, worker=report.worker))
    return Reply(epoch, applied=True, recovering=False, standings=tuple(standings))


def _state(db: sqlite3.Connection, worker: str, entry: Entry, now: float) -> _Book:
    account = entry.account
    db.execute("INSERT OR IGNORE INTO account VALUES (?, 0, ?, 0, '')", (account.id, account.ends))
    own = db.execute("SELECT spent FROM stake WHERE account = ? AND worker = ?", (account.id, worker)).fetchone()
    total = own[0] if own is not None else entry.base
    for age, reached in entry.spent:
        if reached > total:
            _spend(db, account, reached - total, now - max(age, 0.0), now)
            total = reached
    if entry.gone:
        db.execute("DELETE FROM stake WHERE account = ? AND worker = ?", (account.id, worker))
    else:
        stake = (account.id, worker, total, entry.granted, entry.held)
        db.execute("INSERT OR REPLACE INTO stake VALUES (?, ?, ?, ?, ?)", stake)
    return _load(db, account, worker, now, prune=True)


def _spend(db: sqlite3.Connection, account: Account, amount: int, at: float, now: float) -> None:
    if not account.rolling:
        db.execute("UPDATE account SET spent = spent + ? WHERE id = ?", (amount, account.id))
        return
    number = int(at // (account.rolling / BUCKETS))
    if bucket_end(account.rolling, number) > now:
        db.execute(
            "INSERT INTO bucket VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET amount = amount + excluded.amount",
            (account.id, number, amount),
        )


def _load(db: sqlite3.Connection, account: Account, worker: str, now: float, *, prune: bool = False) -> _Book:
    row = db.execute("SELECT spent, recall_until, recall_by FROM account WHERE id = ?", (account.id,)).fetchone()
    book = _Book(*row) if row is not None else _Book()
    if account.rolling:
        _load_buckets(db, account, book, now, prune=prune)
    stakes = db.execute(
        "SELECT stake.worker, granted, held, lease_until FROM stake LEFT JOIN worker ON worker.id = stake.worker"
        " WHERE account = ? AND granted > 0",
        (account.id,),
    ).fetchall()
    for other, granted, held, lease_until in stakes:
        until = lease_until or 0.0
        if until > now or other == worker:
            book.granted += granted
            book.held += held
            book.idle += 0 if other == worker else granted - held
        elif account.forget is None or now <= until + account.forget:
            book.in_doubt += granted
        elif prune:
            db.execute("DELETE FROM stake WHERE account = ? AND worker = ?", (account.id, other))
    return book


def _load_buckets(db: sqlite3.Connection, account: Account, book: _Book, now: float, *, prune: bool) -> None:
    rows = db.execute("SELECT number, amount FROM bucket WHERE account = ? ORDER BY number", (account.id,)).fetchall()
    book.buckets = {number: amount for number, amount in rows if bucket_end(account.rolling, number) > now}
    book.spent = sum(book.buckets.values())
    if prune and len(book.buckets) < len(rows):
        oldest = min(book.buckets, default=rows[-1][0] + 1)
        db.execute("DELETE FROM bucket WHERE account = ? AND number < ?", (account.id, oldest))


def _standing(
    book: _Book, account: Account, now: float, *, drawn: int = 0, short: int = 0, worker: str = ""
) -> Standing:
    ends = [(bucket_end(account.rolling, number) - now, amount) for number, amount in book.buckets.items()]
    frees_in, freed = None, 0
    for end, amount in ends if short > 0 else ():
        freed += amount
        if freed >= short:
            frees_in = math.ceil(end * 1000) / 1000
            break
    return Standing(
        spent=book.spent,
        granted=book.granted,
        held=book.held,
        in_doubt=book.in_doubt,
        idle=book.idle,
        drawn=drawn,
        recall=book.recall_until > now and book.recall_by != worker,
        frees_in=frees_in,
        clears_in=math.ceil(ends[-1][0] * 1000) / 1000 if ends else None,
    )


def _release(db: sqlite3.Connection, account: Account, now: float) -> int:
    freed = _load(db, account, "", now, prune=True).in_doubt
    db.execute(
        "UPDATE stake SET granted = 0, held = 0 WHERE account = ? AND granted > 0"
        " AND worker NOT IN (SELECT id FROM worker WHERE lease_until > ?)",
        (account.id, now),
    )
    return freed


def _once(db: sqlite3.Connection, mark: str, seconds: float, now: float) -> bool:
    db.execute("DELETE FROM mark WHERE id = ? AND until <= ?", (mark, now))
    return db.execute("INSERT OR IGNORE INTO mark VALUES (?, ?)", (mark, now + seconds)).rowcount == 1


def _write_usage(db: sqlite3.Connection, batch: str, records: Sequence[UsageRecord], now: float) -> None:
    if db.execute("INSERT OR IGNORE INTO batch VALUES (?, ?)", (batch, now)).rowcount == 0:
        return
    rows = [field for one in records for field in (one.at, orjson.dumps(one))]
    place = 0
    for count in _ROWS_AT_ONCE:
        while len(rows) - place >= 2 * count:
            db.execute(f"INSERT INTO usage VALUES {', '.join(['(?, ?)'] * count)}", rows[place : place + 2 * count])  # noqa: S608
            place += 2 * count
    db.executemany(_ADD_HOUR, [(*name, *sums) for name, sums in by_hour(records).items()])


def _sweep(db: sqlite3.Connection, now: float) -> None:
    db.execute("DELETE FROM usage WHERE at < ?", (now - KEEP_ROWS,))
    db.execute("DELETE FROM batch WHERE at < ?", (now - KEEP_ROWS,))
    db.execute("DELETE FROM mark WHERE until < ?", (now,))
    db.execute("DELETE FROM account WHERE ends < ?", (now - KEEP_ACCOUNTS,))
    db.execute("DELETE FROM stake WHERE account NOT IN (SELECT id FROM account)")
    unused = "lease_until < ? AND id NOT IN (SELECT worker FROM stake WHERE granted > 0)"
    db.execute(f"DELETE FROM worker WHERE {unused}", (now - KEEP_WORKERS,))  # noqa: S608
    db.execute("DELETE FROM stake WHERE granted = 0 AND worker NOT IN (SELECT id FROM worker)")


def _create_key(db: sqlite3.Connection, key: ManagedKey) -> None:
    db.execute("INSERT INTO managed_key VALUES (?, ?, ?)", (key.name, key.hash, json.dumps(astuple(key))))
    _bump_keys(db)


def _replace_key(db: sqlite3.Connection, key: ManagedKey, version: int) -> bool | None:
    if db.execute("SELECT 1 FROM managed_key WHERE name = ?", (key.name,)).fetchone() is None:
        return None
    if _keys_version(db) != version:
        return False
    row = (key.hash, json.dumps(astuple(key)), key.name)
    db.execute("UPDATE managed_key SET hash = ?, record = ? WHERE name = ?", row)
    _bump_keys(db)
    return True


def _keys_version(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT value FROM meta WHERE name = 'keys_version'").fetchone()[0])


def _bump_keys(db: sqlite3.Connection) -> None:
    db.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE name = 'keys_version'")


def _key_of(record: str) -> ManagedKey:
    name, key_hash, created, team, allow, *rest = json.loads(record)
    return ManagedKey(name, key_hash, created, team, tuple(allow), *rest)
