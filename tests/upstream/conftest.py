"""Which event loops the tests of this folder run on."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run what is closest to sockets on both loops: uvloop's transports differ from asyncio's."""
    both: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncio": asyncio.SelectorEventLoop,
        "uvloop": uvloop.new_event_loop,
    }
    if item.path.name not in ("test_wire.py", "test_direct.py"):
        del both["uvloop"]
    return both
