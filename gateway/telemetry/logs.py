"""The log on stdout: gathered on the loop, written by a thread, so that a slow reader cannot hold a request up."""

import logging
import os
import select
import threading
import time
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Mapping
from queue import SimpleQueue

from gateway.telemetry import lines
from gateway.telemetry.records import RequestRecord

GATHER = 0.05  # seconds that a line may wait for others
GATHER_BYTES = 64 << 10
MAX_WAITING = 8 << 20  # bytes that wait for a slow reader; what comes beyond is dropped and counted
PIPE_BUF = 4096  # bytes that a pipe takes whole: several workers' lines do not mix
CLOSE_WAIT = 2.0  # seconds given to a slow reader at the end


class Log:
    """An Observer of requests, and the place where events are told. JSON, or text on a terminal.

    `shared` says that other processes write to the same stdout. `dropped` is told how many lines nobody read in time.
    `event` may be called on any thread; the rest belongs to the loop's. Lines are written at once until `start`.
    """

    def __init__(
        self,
        fd: int = 1,
        *,
        shared: bool = False,
        text: bool | None = None,
        colour: bool | None = None,
        clock: Callable[[], float] = time.time,
        dropped: Callable[[int], None] = lambda _: None,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        terminal = os.isatty(fd)
        self._text = terminal if text is None else text
        self._colour = terminal and "NO_COLOR" not in os.environ if colour is None else colour
        self._clock = clock
        self._tell_dropped = dropped
        self._loop: AbstractEventLoop | None = None
        self._thread_of_loop = 0
        self._lines: list[bytes] = []
        self._bytes = 0
        self._timer: TimerHandle | None = None
        self._dropped = 0
        self._lock = threading.Lock()  # events may come from any thread
        self._writer = _Writer(fd, PIPE_BUF if shared else GATHER_BYTES, max_waiting)

    def start(self, loop: AbstractEventLoop) -> None:
        """From now on gather lines on this loop."""
        self._loop = loop
        self._thread_of_loop = threading.get_ident()

    def finished(self, record: RequestRecord) -> None:
        """Write the line of a request; about 3 µs."""
        if self._text:
            self._append(lines.request_text(record, colour=self._colour))
        else:
            self._append(lines.request_json(record))

    def event(self, name: str, /, **fields: object) -> None:
        """Tell what happened: a name of `names.LOG_EVENTS` with its fields, which hold no content and no secret."""
        line = self._event(name, fields)
        if self._loop is None or threading.get_ident() == self._thread_of_loop:
            self._append(line)
        else:
            self._hand_over([line])

    def flush(self) -> None:
        """Hand what was gathered to the thread that writes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines:
            gathered, self._lines, self._bytes = self._lines, [], 0
            self._hand_over(gathered)

    def close(self) -> None:
        """Write what is left, waiting at most `CLOSE_WAIT` for a slow reader. Idempotent; later lines come at once."""
        self.flush()
        if self._dropped:
            self._hand_over([])
        self._loop = None
        self._writer.close(CLOSE_WAIT)

    def _event(self, name: str, fields: Mapping[str, object]) -> bytes:
        if self._text:
            return lines.event_text(name, self._clock(), fields, colour=self._colour)
        return lines.event_json(name, self._clock(), fields)

    def _append(self, line: bytes) -> None:
        self._lines.append(line)
        self._bytes += len(line)
        if self._loop is None or self._bytes >= GATHER_BYTES:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(GATHER, self.flush)

    def _hand_over(self, gathered: list[bytes]) -> None:
        with self._lock:
            told = [self._event("log_dropped", {"lines": self._dropped})] if self._dropped else []
            if self._writer.take(told + gathered):
                self._dropped = 0
                return
            self._dropped += len(gathered)
        self._tell_dropped(len(gathered))


class LibraryHandler(logging.Handler):
    """Tells the log what libraries say at level WARNING and above, in one line and without tracebacks.

    Only a message's first line is told, for those after it show the objects that a failure met (asyncio), or are a
    traceback (uvicorn).
    """

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write the event `library`."""
        failure = record.exc_info[1] if record.exc_info else None
        message, _, rest = record.getMessage().partition("\n")
        told = lines.describe(failure) if failure is not None else lines.describe_text(rest)
        self._log.event("library", logger=record.name, message=message[: lines.MAX_TEXT], **told)


class _Writer:
    """A thread that writes to a file descriptor, and blocks there instead of the loop."""

    def __init__(self, fd: int, at_once: int, max_waiting: int) -> None:
        self._fd = fd
        self._at_once = at_once
        self._max_waiting = max_waiting
        self._queue: SimpleQueue[list[bytes] | None] = SimpleQueue()
        self._taken = 0  # bytes; counted by who hands over
        self._written = 0  # bytes; counted by the thread alone
        self._thread: threading.Thread | None = None

    def take(self, gathered: list[bytes]) -> bool:
        """Whether there was room for these lines. One caller at a time."""
        size = sum(map(len, gathered))
        if self._taken + size - self._written > self._max_waiting:
            return False
        self._taken += size
        self._queue.put(gathered)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="gateway-log", daemon=True)
            self._thread.start()
        return True

    def close(self, wait: float) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(wait)

    def _run(self) -> None:
        while (gathered := self._queue.get()) is not None:
            for chunk in _chunks(gathered, self._at_once):
                self._write(chunk)
            self._written += sum(map(len, gathered))

    def _write(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:  # whoever shares the descriptor made it non-blocking
                select.select([], [self._fd], [])
            except OSError:  # the reader is gone, and with it the only place to say so
                return


def _chunks(gathered: list[bytes], at_once: int) -> list[bytes]:
    """Whole lines joined, each chunk at most `at_once` bytes unless a single line is longer."""
    chunks: list[bytes] = []
    group: list[bytes] = []
    size = 0
    for line in gathered:
        if group and size + len(line) > at_once:
            chunks.append(b"".join(group))
            group, size = [], 0
        group.append(line)
        size += len(line)
    chunks.append(b"".join(group))
    return chunks
