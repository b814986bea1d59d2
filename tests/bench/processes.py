"""Processes pinned to a core, with their memory, their processor time, and the load that wrk puts on them."""

import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


class BenchError(Exception):
    """The benchmark cannot go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw: answers per second, and the median time of one in seconds."""

    per_second: float
    p50: float
    answers: int


@dataclass(frozen=True, slots=True)
class Pinned:
    """A running process on its core; `ready_after` is from exec to its first 200, in seconds."""

    pid: int
    port: int
    ready_after: float

    def rss_mb(self) -> float:
        """Resident memory of the process and its children, in MB."""
        return sum(_rss_kb(pid) for pid in (self.pid, *_children(self.pid))) / 1000

    def cpu_seconds(self) -> float:
        """Processor time so far, of the process and its children."""
        return sum(_ticks(pid) for pid in (self.pid, *_children(self.pid))) / os.sysconf("SC_CLK_TCK")


def cores() -> tuple[int, int]:
    """A core for what is measured and another for load and mocks. Raises BenchError on a machine with one."""
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        raise BenchError("two cores are needed: one for what is measured, one for the load")
    return found[0], found[1]


def require(*programs: str) -> None:
    """Raise BenchError with the command that installs what is missing."""
    packages = {"nginx": "nginx-light", "wrk": "wrk", "taskset": "util-linux"}
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        names = " ".join(packages[name] for name in missing)
        raise BenchError(f"{', '.join(missing)} not found; install with: apt-get install -y {names}")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def pinned(core: int, command: Sequence[str], port: int, path: str | None, log: Path) -> Iterator[Pinned]:
    """Run a command on a core until the block ends; it is ready when GET `path` is 200, or the port is open."""
    with log.open("wb") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command], stdout=subprocess.DEVNULL, stderr=errors, cwd=ROOT
        )
        try:
            _wait(process, port, path, log)
            yield Pinned(process.pid, port, time.perf_counter() - start)
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, path: str | None, log: Path) -> None:
    deadline = time.perf_counter() + 30
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            break
        if _is_up(port, path):
            return
        time.sleep(0.002)
    said = log.read_text(errors="replace")[-2000:]
    raise BenchError(f"{process.args!r} is not ready on port {port} (exit {process.poll()}): {said}")


def _is_up(port: int, path: str | None) -> bool:
    try:
        if path is None:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def post(url: str, body: bytes, secret: str) -> bytes:
    """One request, to see that the answer is right before its speed is measured."""
    headers = {"content-type": "application/json", "authorization": f"Bearer {secret}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
            found: bytes = answer.read()
            return found
    except urllib.error.HTTPError as error:
        raise BenchError(f"POST {url} answered {error.code}: {error.read()[:500]!r}") from error


def wrk(core: int, url: str, script: Path, connections: int, seconds: float) -> Load:
    """Put load on a URL. Raises BenchError when any answer is not 200."""
    command = ["taskset", "-c", str(core), "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    command += ["--latency", "-s", str(script), url]
    return parse_wrk(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def parse_wrk(output: str) -> Load:
    """Read wrk's report. Raises BenchError when it tells of errors."""
    bad = re.search(r"(Non-2xx or 3xx responses|Socket errors): .*", output)
    if bad:
        raise BenchError(f"under load: {bad[0]}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    p50 = re.search(r"50%\s+([\d.]+)(us|ms|s|m)", output)
    answers = re.search(r"(\d+) requests in", output)
    if rate is None or p50 is None or answers is None:
        raise BenchError(f"wrk said something else than expected: {output}")
    return Load(float(rate[1]), float(p50[1]) * _UNITS[p50[2]], int(answers[1]))


def write_script(path: Path, body: bytes, secret: str) -> Path:
    """A wrk script that posts this body with this key."""
    path.write_text(
        "wrk.method = 'POST'\n"
        "wrk.headers['content-type'] = 'application/json'\n"
        f"wrk.headers['authorization'] = 'Bearer {secret}'\n"
        f"wrk.body = [==[{body.decode()}]==]\n"
    )
    return path


def _children(pid: int) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [each for child in found for each in (int(child), *_children(int(child)))]


def _rss_kb(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


def _ticks(pid: int) -> int:
    # Fields 14 and 15 of proc(5)'s stat, counted after the name, which may hold spaces.
    found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(found[11]) + int(found[12])
