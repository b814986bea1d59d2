"""Several serving processes on one listening socket: started, watched, replaced when they die, and ended together."""

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

RESTART_AFTER = 1.0  # seconds: a worker that dies sooner than that after its start is not replaced at once
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ENDED_WELL = (0, -signal.SIGTERM, -signal.SIGINT)  # by the signal itself: it did not listen yet
Work = Callable[[Path, Callable[[], None]], None]


class _Supervisor:
    """The parent of the workers. It serves nothing itself, so that a fault in a request cannot take it down."""

    def __init__(self, count: int, work: Work, ready: Callable[[], None]) -> None:
        self._count = count
        self._work = work
        self._ready = ready
        self._pids: dict[int, float] = {}
        self._ending = False
        self._failed = False
        self._alive, self._mine = os.pipe()  # nothing is written: the end of it tells the workers of its own
        self._metrics = Path(tempfile.mkdtemp(prefix="gateway-metrics-"))

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        signal.signal(signal.SIGHUP, self._pass_on)
        heard, told = os.pipe()
        try:
            for _ in range(self._count):
                self._start(told)
            os.close(told)
            if self._all_ready(heard):
                self._ready()
                sys.stdout.flush()
            elif not self._ending:
                self._failed = True
                self._end(signal.SIGTERM, None)
            self._watch()
        finally:
            shutil.rmtree(self._metrics, ignore_errors=True)
        return 1 if self._failed else 0

    def _all_ready(self, heard: int) -> bool:
        count = 0
        while count < self._count:
            said = os.read(heard, self._count)
            if not said:
                return False  # one of them ended before it was ready
            count += len(said)
        return True

    def _start(self, told: int | None) -> None:
        # A signal between the fork and what follows it would be lost on the one, and be taken for its own by the other.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid:
            self._pids[pid] = time.monotonic()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            if self._ending:
                self._pass_on(signal.SIGTERM, None)
            return
        status = 1
        try:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.close(self._mine)
            threading.Thread(target=self._end_with_supervisor, name="supervisor's end", daemon=True).start()

            def ready() -> None:
                if told is not None:
                    os.write(told, b".")
                    os.close(told)

            self._work(self._metrics, ready)
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        except BaseException:  # noqa: BLE001 - the child must not go on as a second supervisor
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _end_with_supervisor(self) -> None:
        """A worker that nobody watches would hold the port and go on spending, unknown to whoever starts the next."""
        while os.read(self._alive, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    def _watch(self) -> None:
        while self._pids:
            try:
                pid, status = os.wait()
            except ChildProcessError:
                return
            started = self._pids.pop(pid, None)
            if started is None:
                continue
            if self._ending:
                self._failed |= os.waitstatus_to_exitcode(status) not in _ENDED_WELL
                continue
            if time.monotonic() - started < RESTART_AFTER:
                time.sleep(RESTART_AFTER)
            if not self._ending:
                self._start(None)

    def _end(self, number: int, _frame: FrameType | None) -> None:
        self._ending = True
        self._pass_on(number, None)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        for pid in list(self._pids):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def supervise(count: int, work: Work, *, ready: Callable[[], None]) -> int:
    """Run `work` in `count` processes until SIGTERM; the exit status: 0 when all of them ended well.

    `work` is given a directory for the metrics that they share, and what to call when it serves. SIGHUP goes to all.
    """
    return _Supervisor(count, work, ready).run()
