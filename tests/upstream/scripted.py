"""A wire without a network: a script answers, in pieces, and what was sent is kept."""

import asyncio
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gateway.upstream.wire import Header, Origin, ReadError, ReadTimeout, Reply, WireError
from tests.providers.server import Fake, Got


@dataclass(frozen=True)
class Sent:
    """One request as it left."""

    method: bytes
    target: bytes
    headers: Sequence[Header]
    body: bytes

    @property
    def path(self) -> str:
        """The path, as on the wire."""
        return urlsplit(self.target.decode()).path

    def header(self, name: str) -> str | None:
        """One header's value."""
        return next((value.decode() for each, value in self.headers if each == name.encode()), None)


@dataclass
class Script:
    """An answer: its pieces come one a read; then it ends, is cut, or falls silent."""

    status: int = 200
    pieces: Sequence[bytes] = ()
    headers: Sequence[Header] = ((b"content-type", b"application/json"),)
    ending: str = "whole"  # or `cut`, or `silent`


class ScriptedReply:
    """See `gateway.upstream.wire.Reply`."""

    def __init__(self, script: Script) -> None:
        self.status = script.status
        self.headers = script.headers
        self._pieces = list(script.pieces)
        self._ending = script.ending
        self.closed = False

    @property
    def complete(self) -> bool:
        return not self._pieces and self._ending == "whole"

    async def read(self, timeout: float) -> bytes:
        if self._pieces:
            return self._pieces.pop(0)
        if self._ending == "silent":
            await asyncio.sleep(timeout)
            raise ReadTimeout("silence")
        if self._ending == "cut":
            raise ReadError("cut")
        return b""

    async def aclose(self) -> None:
        self.closed = True


@dataclass
class ScriptedWire:
    """See `gateway.upstream.wire.Wire`. `origins` are those that it was opened for."""

    answer: Callable[[Sent], Script | WireError]
    sent: list[Sent] = field(default_factory=list)
    replies: list[ScriptedReply] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    closed: bool = False

    def open(self, origin: Origin) -> "ScriptedWire":
        """For whoever opens wires."""
        self.origins.append(origin)
        return self

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Sequence[Header],
        body: bytes | AsyncIterable[bytes],
        *,
        connect_timeout: float,
        timeout: float,
    ) -> Reply:
        assert isinstance(body, bytes)
        self.sent.append(Sent(method, target, headers, body))
        answer = self.answer(self.sent[-1])
        if isinstance(answer, WireError):
            raise answer
        self.replies.append(ScriptedReply(answer))
        return self.replies[-1]

    async def aclose(self) -> None:
        self.closed = True


def at(fake: Fake, authority: str = "provider.test") -> ScriptedWire:
    """A wire to a fake provider, which is as strict as over a socket."""

    def answer(sent: Sent) -> Script:
        headers = {name.decode(): value.decode() for name, value in sent.headers} | {"host": authority}
        told = fake.handle(Got(sent.method.decode(), sent.target.decode(), headers, sent.body))
        found = [(name.encode(), value.encode()) for name, value in told.headers.items()]
        return Script(told.status, told.pieces, found, "cut" if told.cut else "whole")

    return ScriptedWire(answer)


def says(script: Script) -> ScriptedWire:
    """A wire that always gives this answer."""
    return ScriptedWire(lambda _: script)
