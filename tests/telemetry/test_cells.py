"""The tables of doubles: what is counted survives its worker, and files are as many as workers."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry.cells import CellTable


@pytest.fixture
def table(tmp_path: Path) -> Iterator[CellTable]:
    table = CellTable(tmp_path)
    yield table
    table.close()


def _counted(table: CellTable, key: tuple[str, ...]) -> float:
    return sum(row.values[0] for row in table.rows() if row.key == key)


@given(st.lists(st.tuples(st.lists(st.text(max_size=20), min_size=1, max_size=4), st.integers(1, 20)), max_size=20))
def test_keys_and_widths_come_back(claims: list[tuple[list[str], int]]) -> None:
    """Whatever is claimed is read back whole: key, width and values."""
    table = CellTable()
    expected: dict[tuple[str, ...], list[float]] = {}
    for number, (labels, width) in enumerate(claims):
        key = tuple(labels)
        index = table.claim(key, width)
        assert index is not None
        values = expected.setdefault(key, [0.0] * width)
        table.cells[index] += number
        values[0] += number
    assert {row.key: list(row.values) for row in table.rows()} == expected
    table.close()


def test_a_key_keeps_its_place(table: CellTable) -> None:
    """Claiming a key again gives the same numbers; a gauge of the same name is another."""
    assert table.claim(("a",), 1) == table.claim(("a",), 1)
    assert table.claim(("a",), 1) != table.claim(("a",), 1, gauge=True)


def test_a_full_table_keeps_a_reserve() -> None:
    """When a table is full, only what stands for all others finds room."""
    table = CellTable(size=68 << 10)
    claimed = 0
    while table.claim(("n", str(claimed)), 10) is not None:
        claimed += 1
    assert claimed > 10
    assert table.claim(("n", "other"), 10, reserved=True) is not None
    table.close()


def test_two_workers_see_each_other(tmp_path: Path, table: CellTable) -> None:
    """Rows of every living worker are there, each from its own file."""
    other = CellTable(tmp_path)
    for one, amount in ((table, 1.0), (other, 2.0)):
        index = one.claim(("n",), 1)
        assert index is not None
        one.cells[index] += amount
    assert _counted(table, ("n",)) == _counted(other, ("n",)) == 3.0
    other.close()


def test_the_next_worker_counts_on_and_its_gauges_begin_at_zero(tmp_path: Path) -> None:
    """A file that is free is taken over with its counters, and without its gauges."""
    first = CellTable(tmp_path)
    counter, gauge = first.claim(("n",), 1), first.claim(("g",), 1, gauge=True)
    assert counter is not None
    assert gauge is not None
    first.cells[counter] = first.cells[gauge] = 5.0
    first.close()
    second = CellTable(tmp_path)
    assert (_counted(second, ("n",)), _counted(second, ("g",))) == (5.0, 0.0)
    assert [path.name for path in tmp_path.glob("*.cells")] == ["worker-0.cells"]
    second.close()


def test_a_file_of_another_kind_is_started_anew(tmp_path: Path) -> None:
    """A file that is not ours, or of another layout, is overwritten."""
    (tmp_path / "worker-0.cells").write_bytes(b"something else")
    table = CellTable(tmp_path)
    assert list(table.rows()) == []
    table.close()


def _count_until_killed(directory: Path, pipe: Connection) -> None:
    table = CellTable(directory)
    counter, gauge = table.claim(("n",), 1), table.claim(("g",), 1, gauge=True)
    assert counter is not None
    assert gauge is not None
    table.cells[gauge] = 7.0
    for _ in range(1000):
        table.cells[counter] += 1.0
    pipe.send("counted")
    signal.pause()


def test_counts_survive_kill_9(tmp_path: Path, table: CellTable) -> None:
    """A worker killed outright leaves its counters, exactly; its gauges go with it; its file is used again."""
    context = multiprocessing.get_context("spawn")
    seen = [0.0]
    for round_ in range(1, 3):
        here, there = context.Pipe()
        worker = context.Process(target=_count_until_killed, args=(tmp_path, there))
        worker.start()
        assert here.recv() == "counted"
        assert _counted(table, ("g",)) == 7.0
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        seen.append(_counted(table, ("n",)))
        assert seen[-1] == 1000.0 * round_
        assert _counted(table, ("g",)) == 0.0
        here.close()
        there.close()
    assert seen == sorted(seen)
    assert len(list(tmp_path.glob("*.cells"))) == 2
