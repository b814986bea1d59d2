"""Numbers that outlive their worker: one table of doubles per worker, in memory or in a file that others can read."""

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

SIZE = 8 << 20  # bytes of a table; the file is sparse, so what is not used costs nothing
RESERVE = 64 << 10  # of these, kept for the entries that stand for all others
MAGIC = b"gwcells1"
_HEADER = struct.Struct("<8sQ")  # magic, bytes used
_ENTRY = struct.Struct("<II")  # bytes of the key, number of doubles
_GAUGE = b"[1,"  # how the key of a gauge begins; a counter's begins with [0,

Key = tuple[str, ...]  # the metric's name, then its label values


@dataclass(frozen=True, slots=True)
class Row:
    """What one worker has counted under one key. `living` is False when the worker is gone."""

    key: Key
    values: Sequence[float]
    living: bool


class CellTable:
    """A worker's own doubles, added to in place: `table.cells[index] += 1.0`; about 0.1 µs, no lock, no I/O.

    With a directory they live in a shared file, which survives the worker, kill -9 included. A new worker takes over
    the file of one that is gone and counts on from there, so there are never more files than workers at one time.
    Its gauges begin at zero. Not for several threads, except `rows`, which any thread may call. Open it after a fork.
    """

    def __init__(self, directory: Path | None = None, size: int = SIZE) -> None:
        self._directory = directory
        self._path: Path | None = None
        self._file: int | None = None
        if directory is None:
            self._map = mmap.mmap(-1, size)
        else:
            self._path, self._file = _claim_file(directory, size)
            self._map = mmap.mmap(self._file, size)
        self._size = size
        self._indexes: dict[tuple[bool, Key], int] = {}
        self.cells = memoryview(self._map).cast("d")
        self._used = _HEADER.size
        self._take_over()

    def claim(self, key: Key, width: int, *, gauge: bool = False, reserved: bool = False) -> int | None:
        """The index of the first of `width` doubles for this key; None when there is no room.

        A key that is there already keeps its doubles. `reserved` may use the last RESERVE bytes.
        """
        known = self._indexes.get((gauge, key))
        if known is not None:
            return known
        name = orjson.dumps([int(gauge), *key])
        start = self._used
        values = start + _ENTRY.size + len(name) + -len(name) % 8
        end = values + 8 * width
        if end > self._size - (0 if reserved else RESERVE):
            return None
        self._map[start:end] = bytes(end - start)
        self._map[start : start + _ENTRY.size + len(name)] = _ENTRY.pack(len(name), width) + name
        self._set_used(end)  # last: a reader sees the entry whole or not at all
        self._indexes[gauge, key] = values // 8
        return values // 8

    def rows(self) -> Iterator[Row]:
        """What every worker has counted: this one, those beside it, and those that are gone (without gauges)."""
        yield from _parse(self._map[: self._used], living=True)
        if self._directory is None:
            return
        for path, living in _neighbours(self._directory, self._path):
            with path.open("rb") as file:
                head = file.read(_HEADER.size)
                if len(head) < _HEADER.size or head[:8] != MAGIC:
                    continue
                yield from _parse(head + file.read(_HEADER.unpack(head)[1] - _HEADER.size), living=living)

    def close(self) -> None:
        """Leave the numbers to whoever comes next. Idempotent."""
        self.cells.release()
        self._map.close()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _take_over(self) -> None:
        magic, used = _HEADER.unpack_from(self._map)
        if magic != MAGIC or used > self._size:
            self._map[: _HEADER.size] = _HEADER.pack(MAGIC, _HEADER.size)
            return
        self._used = used
        for gauge, key, start, width in _entries(self._map, used):
            if gauge:
                self._map[start : start + 8 * width] = bytes(8 * width)
            self._indexes[gauge, key] = start // 8

    def _set_used(self, used: int) -> None:
        self.cells.cast("B").cast("Q")[1] = used
        self._used = used


def _entries(data: mmap.mmap | bytes, used: int) -> Iterator[tuple[bool, Key, int, int]]:
    position = _HEADER.size
    while position + _ENTRY.size <= used:
        length, width = _ENTRY.unpack_from(data, position)
        name_start = position + _ENTRY.size
        values = name_start + length + -length % 8
        name = data[name_start : name_start + length]
        yield name.startswith(_GAUGE), tuple(orjson.loads(name)[1:]), values, width
        position = values + 8 * width


def _parse(data: bytes, *, living: bool) -> Iterator[Row]:
    for gauge, key, start, width in _entries(data, len(data)):
        if living or not gauge:
            yield Row(key, struct.unpack_from(f"{width}d", data, start), living)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Nobody else claims or probes a file meanwhile, so that a probe never makes a free file look taken."""
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _is_free(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _claim_file(directory: Path, size: int) -> tuple[Path, int]:
    with _alone(directory):
        number = 0
        while True:
            path = directory / f"worker-{number}.cells"
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            if _is_free(file):
                os.ftruncate(file, size)
                return path, file
            os.close(file)
            number += 1


def _neighbours(directory: Path, own: Path | None) -> list[tuple[Path, bool]]:
    found = []
    with _alone(directory):
        for path in sorted(directory.glob("worker-*.cells")):
            if path != own:
                file = os.open(path, os.O_RDONLY)
                try:
                    found.append((path, not _is_free(file)))
                finally:
                    os.close(file)
    return found
