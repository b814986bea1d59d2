"""Watches a client: that its body comes, and that it is still there while its answer is made."""

import asyncio
import time
from typing import Any

from starlette.types import Receive

from gateway.errors import RequestTimeout, RequestTooLarge

PATIENCE = 60.0  # seconds without a byte of the body
_FIRST_LOOK = 0.03  # most requests are over by then and cost no task (FACTS.md)


class ClientGone(Exception):
    """The client left before its request was whole, or before its answer was."""


class Watch:
    """One request's watch, on the task that serves it: it cancels that task, and `verdict` tells why."""

    __slots__ = ("_gone", "_late", "_loop", "_progress", "_reading", "_receive", "_task", "_timer", "_watcher")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._reading = True
        self._gone = False
        self._late = False
        self._progress = 0.0
        self._watcher: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(_FIRST_LOOK, self._look)

    async def read_body(self, limit: int) -> bytes:
        """The whole body, of at most `limit` bytes. Raises RequestTooLarge or ClientGone."""
        message = await self._receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body") or message["type"] == "http.disconnect":
            body = await self._read_on(message, limit)
        if len(body) > limit:
            raise too_large(limit)
        self._reading = False
        return body

    async def _read_on(self, message: Any, limit: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                raise ClientGone
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > limit:
                raise too_large(limit)
            if not message.get("more_body"):
                return b"".join(pieces)
            self._progress = time.monotonic()
            message = await self._receive()

    def stop(self) -> None:
        """The answer is whole, or given up: nothing to watch any more."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        self._task = None

    def verdict(self) -> Exception | None:
        """Why this watch cancelled the task: RequestTimeout or ClientGone; None when it was somebody else."""
        if self._late:
            return RequestTimeout(f"No more of the body came within {PATIENCE:g} s; send the request again.")
        return ClientGone() if self._gone else None

    def _look(self) -> None:
        if not self._reading:
            self._watcher = self._loop.create_task(self._wait_for_departure())
            return
        now = time.monotonic()
        self._progress = self._progress or now
        if now - self._progress > PATIENCE:
            self._late = True
            self._cancel()
            return
        self._timer = self._loop.call_later(_FIRST_LOOK if now - self._progress < 1 else 1.0, self._look)

    async def _wait_for_departure(self) -> None:
        message = await self._receive()
        while message["type"] != "http.disconnect":
            message = await self._receive()
        self._gone = True
        self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


def too_large(limit: int) -> RequestTooLarge:
    """The error for a body beyond `server.max_body`."""
    return RequestTooLarge(f"The body is larger than {limit} bytes, the limit of `server.max_body`.")
