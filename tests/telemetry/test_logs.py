"""The log: nothing lost, nothing late, and a reader that does not read holds nobody up."""

import ast
import asyncio
import logging
import os
import pty
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.telemetry import names
from gateway.telemetry.logs import PIPE_BUF, LibraryHandler, Log, _chunks
from tests.telemetry.made import record

SOURCES = Path(__file__).parents[2] / "gateway"


class Pipe:
    """A pipe with a thread that reads it, when told to."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self._read = b""
        self._thread = threading.Thread(target=self._drain)

    def drain(self) -> None:
        self._thread.start()

    def _drain(self) -> None:
        while data := os.read(self.reading, 1 << 16):
            self._read += data

    def lines(self) -> list[dict[str, Any]]:
        """All that was written, once the writer is done."""
        os.close(self.writing)
        if self._thread.ident is None:
            self.drain()
        self._thread.join()
        return [orjson.loads(line) for line in self._read.splitlines()]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.reading)


def test_before_the_loop_lines_are_written_at_once(pipe: Pipe) -> None:
    """What is told while starting does not wait for a loop."""
    log = Log(pipe.writing, clock=lambda: 0.0)
    log.event("start", address="127.0.0.1:8080", pid=1)
    assert b'"event":"start"' in os.read(pipe.reading, 4096)
    log.close()
    assert pipe.lines() == []


async def test_lines_are_gathered_and_written_soon(pipe: Pipe) -> None:
    """On a loop, lines written one after the other arrive together, in order, by the timer alone."""
    log = Log(pipe.writing)
    log.start(asyncio.get_running_loop())
    for number in range(3):
        log.finished(record(request_id=f"req-{number}"))
    got = await asyncio.to_thread(os.read, pipe.reading, 1 << 16)
    assert [orjson.loads(line)["id"] for line in got.splitlines()] == ["req-0", "req-1", "req-2"]
    log.close()
    pipe.lines()


async def test_closing_writes_what_is_left(pipe: Pipe) -> None:
    """Nothing that was told before the end is lost, however much it is."""
    pipe.drain()
    log = Log(pipe.writing)
    log.start(asyncio.get_running_loop())
    for number in range(5000):
        log.finished(record(request_id=str(number)))
    log.close()
    log.close()
    assert [line["id"] for line in pipe.lines()] == [str(number) for number in range(5000)]


async def test_a_reader_that_does_not_read_costs_lines_and_nothing_else(pipe: Pipe) -> None:
    """With the pipe full, the loop goes on, memory is bounded, and what was dropped is counted and told later."""
    counted: list[int] = []
    log = Log(pipe.writing, dropped=counted.append, max_waiting=200_000)
    log.start(asyncio.get_running_loop())
    for number in range(3000):
        log.finished(record(request_id=str(number)))
    log.flush()
    dropped = sum(counted)
    assert dropped > 1000
    pipe.drain()
    while log._writer._taken != log._writer._written:
        await asyncio.sleep(0)
    log.event("reloaded", policies="p")
    log.close()
    written = pipe.lines()
    assert sum(line["event"] == "request" for line in written) == 3000 - dropped
    assert [line["lines"] for line in written if line["event"] == "log_dropped"] == [dropped]
    assert written[-1]["event"] == "reloaded"


def test_a_reader_that_is_gone_is_no_error(pipe: Pipe) -> None:
    """With the other end closed, telling goes on and closing returns."""
    reading, writing = os.pipe()
    os.close(reading)
    log = Log(writing)
    log.event("start")
    log.finished(record())
    log.close()
    os.close(writing)
    pipe.lines()


def test_a_descriptor_that_does_not_block_loses_nothing(pipe: Pipe) -> None:
    """When whoever shares stdout made it non-blocking, the thread waits instead of giving up."""
    os.set_blocking(pipe.writing, False)
    log = Log(pipe.writing)
    for number in range(1000):
        log.finished(record(request_id=str(number)))
    pipe.drain()
    log.close()
    assert len(pipe.lines()) == 1000


async def test_events_may_come_from_any_thread(pipe: Pipe) -> None:
    """A library's thread can tell without touching the loop."""
    log = Log(pipe.writing)
    log.start(asyncio.get_running_loop())
    await asyncio.to_thread(log.event, "store_trouble", store="sqlite", detail="locked")
    assert b"store_trouble" in await asyncio.to_thread(os.read, pipe.reading, 4096)
    log.close()
    pipe.lines()


def test_whole_lines_go_into_one_write() -> None:
    """Workers that share a pipe do not mix their lines: no write is longer than the pipe takes at once."""
    gathered = [b"x" * 1000 + b"\n"] * 10 + [b"y" * 9000 + b"\n", b"z\n"]
    chunks = _chunks(gathered, PIPE_BUF)
    assert b"".join(chunks) == b"".join(gathered)
    assert all(chunk.endswith(b"\n") for chunk in chunks)
    assert [len(chunk) for chunk in chunks] == [4004, 4004, 2002, 9001, 2]


def test_a_terminal_gets_text() -> None:
    """On a terminal a person reads; with NO_COLOR or without a terminal there are no escapes."""
    leader, follower = pty.openpty()
    log = Log(follower)
    log.finished(record())
    log.close()
    text = os.read(leader, 4096).decode()
    assert "\x1b[32m200" in text
    assert "{" not in text
    os.close(follower)
    os.close(leader)


def test_libraries_speak_in_one_line(pipe: Pipe) -> None:
    """A library's warning becomes the event `library`, its exception's traceback does not appear."""
    log = Log(pipe.writing)
    logger = logging.getLogger("tests.some.library")
    handler = LibraryHandler(log)
    logger.addHandler(handler)
    logger.propagate = False
    logger.error("failed to %s", "export", exc_info=ValueError("marked secret"))
    logger.info("not of interest")
    logger.removeHandler(handler)
    log.close()
    (line,) = pipe.lines()
    assert (line["event"], line["logger"], line["message"]) == ("library", "tests.some.library", "failed to export")
    assert "marked" not in str(line)


def test_a_traceback_that_a_library_tells_as_text_keeps_its_values_to_itself(pipe: Pipe) -> None:
    """Type and place are told; a message, of however many lines, is not."""
    log = Log(pipe.writing)
    handler = LibraryHandler(log)
    failures = []
    for message in ("marked secret", "marked\n  File\nmarked: secret"):
        try:
            raise ValueError(message)
        except ValueError:
            failures.append(traceback.format_exc())
    for text in (*failures, "Task exception was never retrieved\nfuture: <Task exception=ValueError('marked')>"):
        handler.emit(logging.makeLogRecord({"name": "some", "msg": text}))
    log.close()
    told = pipe.lines()
    assert "marked" not in str(told)
    assert [line.get("error") for line in told] == ["ValueError", "ValueError", None]
    assert "test_logs.py:" in told[0]["where"]
    assert told[2]["message"] == "Task exception was never retrieved"


_TELLERS = ("event", "_event", "report", "_report")


def _told() -> dict[str, set[str]]:
    """Every `….event("name", field=…)` in the sources, with its fields."""
    told: dict[str, set[str]] = {}
    for path in SOURCES.rglob("*.py"):
        if path.parent.name == "formats":
            continue  # its events are those of streams
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            name, *more = node.args
            if node.func.attr in _TELLERS and isinstance(name, ast.Constant) and isinstance(name.value, str):
                fields = told.setdefault(name.value, set())
                fields |= {word.arg for word in node.keywords if word.arg}
                for each in more:
                    if isinstance(each, ast.Dict):
                        fields |= {key.value for key in each.keys if isinstance(key, ast.Constant)}  # type: ignore[misc]
    return told


def test_every_event_that_is_told_is_registered_and_the_other_way_round() -> None:
    """Names in the sources are those of the registry; so are fields, but for those that come as `**described`."""
    registered = {event.name: set(event.fields) for event in names.LOG_EVENTS}
    told = _told()
    assert set(told) == set(registered)
    for name, fields in told.items():
        described = {"error", "where"} if name in ("internal_error", "library") else set()
        assert fields | described == registered[name], name


def test_every_code_that_is_told_is_registered() -> None:
    """An error's code that the registry lacks would be counted as `other`."""
    told = set()
    for path in SOURCES.rglob("*.py"):
        if "simulat" in path.name:
            continue  # it plays a backend: its codes are a backend's
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                told.add(node.value.value)
            if isinstance(node, ast.ClassDef):
                told |= {ast.literal_eval(each.value) for each in node.body if _names_a_code(each)}  # type: ignore[attr-defined]
    assert told - names.CODES - {None} == set()
    assert {"internal_error", "upstream_error", "queue_full"} <= told


def _names_a_code(node: ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [each.id for each in targets if isinstance(each, ast.Name)] == ["default_code"]
