"""A program beside the tests: started, listened to line by line, and ended."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


class Program:
    """Runs `command` in `folder`; what it prints, on either stream, can be waited for."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
            if self._process.poll() is None:
                os.killpg(self._process.pid, number)
                try:
                    self._process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue
        self._reader.join(20)

    def wait_for(self, pattern: str, seconds: float) -> str:
        """The first group of the first line that has `pattern`. Raises AssertionError with all that was printed."""
        with self._news:
            self._news.wait_for(lambda: self._ended or self._find(pattern) is not None, seconds)
            found = self._find(pattern)
            assert found is not None, f"no {pattern!r} in:\n" + "\n".join(self._lines[-200:])
        return found

    def count(self, pattern: str) -> int:
        """How many lines so far have `pattern`."""
        with self._news:
            return sum(re.search(pattern, line) is not None for line in self._lines)

    def _find(self, pattern: str) -> str | None:
        for line in self._lines:
            found = re.search(pattern, line)
            if found is not None:
                return found[1]
        return None

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with self._news:
                    self._lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()
