"""Several workers behind one address: replaced when one dies, ended with their supervisor, however that ends."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.money.workers import workers_of
from tests.support import Served, ask, key_policy, serve, spawn, write_policies

PATIENCE = 30.0
POLICIES = {
    "backends": {"sim": {"provider": "simulator", "local": True, "simulator": {"latency": "1ms"}}},
    "models": {"m": {"backend": "sim", "model": "m"}},
    "keys": {"alice": key_policy("sk")},
}


def until(is_true: Callable[[], bool]) -> None:
    """Wait until it is."""
    deadline = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def has_ended(pid: int) -> bool:
    """Whether there is no such process, or only what is left of one for its parent to see."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    """The others go on serving, and soon there are as many as before."""
    with serve(tmp_path, POLICIES, "--workers", "3") as served:
        before = workers_of(served)
        assert len(before) == 3
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(set(workers_of(served)) - {before[0]}) == 3)
        assert served.chat(ask("m"), key="sk").status == 200
        assert set(before[1:]) < set(workers_of(served))


def test_a_worker_told_to_end_is_replaced_too(tmp_path: Path) -> None:
    """Whatever ended it, the supervisor alone decides how many there are."""
    with serve(tmp_path, POLICIES, "--workers", "2") as served:
        before = workers_of(served)
        os.kill(before[0], signal.SIGTERM)
        until(lambda: len(set(workers_of(served)) - {before[0]}) == 2)
        assert served.chat(ask("m"), key="sk").status == 200


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_supervisor(tmp_path: Path, number: signal.Signals) -> None:
    """Not even one whose supervisor was killed: it would hold the port and go on spending, unknown to anybody."""
    served = started(tmp_path)
    workers = workers_of(served)
    served.end(number)
    assert served.wait() == (-signal.SIGKILL if number is signal.SIGKILL else 0)
    until(lambda: all(has_ended(pid) for pid in workers))


def test_told_to_end_while_a_worker_starts(tmp_path: Path) -> None:
    """A worker that does not listen yet has nothing to drain: it ends at once, and that is no failure."""
    served = started(tmp_path)
    before = workers_of(served)
    os.kill(before[0], signal.SIGKILL)
    until(lambda: bool(set(workers_of(served)) - set(before)))
    served.end()
    assert served.wait() == 0, served.errors
    assert served.errors == ""


def test_a_variable_that_cannot_be_obeyed_is_told_once(tmp_path: Path) -> None:
    """Before there are workers, as with one: a line that says what to write, and exit status 2."""
    policies = str(write_policies(tmp_path, POLICIES))
    wrong = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_SAMPLER": "x"}
    served = spawn("serve", "--policies", policies, "--port", "0", "--workers", "2", folder=tmp_path, env=wrong)
    assert served.wait() == 2
    assert served.errors.startswith("gateway: OTEL_TRACES_SAMPLER is 'x'; write ")
    assert served.errors.count("\n") == 1


def started(folder: Path) -> Served:
    """A gateway with two workers, to be ended by the test."""
    served = spawn(
        "serve", "--policies", str(write_policies(folder, POLICIES)), "--port", "0", "--workers", "2", folder=folder
    )
    served.until_ready()
    return served
