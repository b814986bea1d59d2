"""Sixty requests per minute over three workers: never more at the upstream, and hardly fewer, however hard the pressure."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import FaultUpstream
from tests.money.clients import post
from tests.support import ask, key_policy, serve

KEY = "sk-rated"
AMOUNT = 60
LEAST = 57
CLIENTS = 24


@dataclass(frozen=True, slots=True)
class Pressure:
    """For how many windows of which length. `jitter` is what the way from a worker to the upstream may vary by.

    A rolling window counts a request for a 240th of its length longer than the window, at least: of a minute that is
    more than any way varies by, of a few seconds it is not.
    """

    per: str
    seconds: float
    windows: int
    jitter: float


@pytest.mark.parametrize(
    "pressure",
    [
        pytest.param(Pressure("4s", 4.0, 2, 0.25), id="quick"),
        pytest.param(Pressure("minute", 60.0, 3, 0.0), id="long", marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
    ],
)
async def test_no_window_has_more_and_each_has_nearly_all(tmp_path: Path, pressure: Pressure) -> None:
    """Clients that come back the moment they are allowed to, and some that do not wait that long."""
    async with FaultUpstream() as upstream:
        policies = {
            "backends": {"up": {"base_url": upstream.url, "local": True}},
            "models": {"m": {"backend": "up", "model": "m"}},
            "keys": {"rated": key_policy(KEY, limits=[{"requests": AMOUNT, "per": pressure.per}])},
        }
        with serve(tmp_path, policies, "--workers", "3") as served:
            codes: Counter[str] = Counter()
            until = asyncio.get_running_loop().time() + pressure.seconds * (pressure.windows + 0.5)
            async with asyncio.TaskGroup() as clients:
                for number in range(CLIENTS):
                    clients.create_task(_press(served.port, number, until, codes))
        arrived = [seen.at for seen in upstream.log]
    most = most_in_a_window(arrived, pressure.seconds - pressure.jitter)
    each = in_each_window(arrived, pressure.seconds, pressure.windows)
    print(f"{dict(codes)}; most in {pressure.seconds:g} s less {pressure.jitter:g}: {most}; in each: {each}")
    assert set(codes) == {"200", "rate_limit_exceeded"}
    assert most <= AMOUNT
    assert min(each) >= LEAST


async def _press(port: int, number: int, until: float, codes: Counter[str]) -> None:
    chance = random.Random(number)
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        answer = await post(port, ask("m", fault="ok:1"), key=KEY)
        codes[answer.code or str(answer.status)] += 1
        if answer.status == 200:
            continue
        assert answer.retry_after is not None
        share = 1.0 if number % 3 else chance.random()  # every third is impatient
        await asyncio.sleep(min(answer.retry_after * share, max(until - loop.time(), 0.0)))


def most_in_a_window(times: Sequence[float], seconds: float) -> int:
    """The most of these times that any window of this length has, wherever it begins."""
    most = start = 0
    for end, at in enumerate(times):
        while at - times[start] >= seconds:
            start += 1
        most = max(most, end - start + 1)
    return most


def in_each_window(times: Sequence[float], seconds: float, windows: int) -> list[int]:
    """How many there are in each window, one after the other, from the first time on."""
    return [sum(0 <= at - times[0] - turn * seconds < seconds for at in times) for turn in range(windows)]


def test_how_windows_are_counted() -> None:
    """A window is half open, and may begin anywhere."""
    assert most_in_a_window([0.0, 1.0, 4.9, 5.0, 5.5], 5.0) == 4
    assert in_each_window([0.0, 1.0, 4.9, 5.0, 5.5], 5.0, 2) == [3, 2]
