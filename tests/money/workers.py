"""Finds the worker processes of a gateway, so that a test can kill them."""

from pathlib import Path

from tests.support import Served


def workers_of(served: Served) -> list[int]:
    """The processes that serve, as the kernel knows them."""
    pid = served.process.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
