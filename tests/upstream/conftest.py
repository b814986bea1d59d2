"""Which event loops and which wires the tests of this folder run on."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from gateway.upstream.direct import DirectWire
from gateway.upstream.over_httpx import HttpxWire
from tests.upstream.certificates import Authority
from tests.upstream.exchanges import Open


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run what is closest to sockets on both loops: uvloop's transports differ from asyncio's."""
    both: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncio": asyncio.SelectorEventLoop,
        "uvloop": uvloop.new_event_loop,
    }
    if item.path.name not in ("test_wire.py", "test_wire_faults.py", "test_direct.py"):
        del both["uvloop"]
    return both


@pytest.fixture(params=[DirectWire, HttpxWire], ids=["direct", "httpx"])
def open_one(request: pytest.FixtureRequest) -> Open:
    """Every promise holds for both implementations."""
    chosen: Open = request.param
    return chosen


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority made for a module."""
    return Authority(tmp_path_factory.mktemp("authority"))
