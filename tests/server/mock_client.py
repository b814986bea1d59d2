"""A client of our connections without a socket: bytes in, bytes out, and a clock that is moved by hand."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import orjson
from starlette.routing import Route, Router

from gateway.errors import GatewayError
from gateway.outbox import Outbox
from gateway.server.connection import ClientConnection, Site
from gateway.server.downstream import Downstream, RequestIds, Routed
from gateway.server.errors import send_error

LIMIT = 1000
PLAIN = b"content-type", b"text/plain"

GET = b"GET /echo HTTP/1.1\r\nhost: a\r\n\r\n"
HELD = b"GET /held HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n"
BEGUN = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhe"


class MockTransport:
    """What the connection writes to, and how it was treated."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False
        self.reading = True

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after the end"
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True


@dataclass
class MockState:
    """What uvicorn keeps of its connections."""

    connections: set[Any] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    default_headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: [(b"date", b"today")])


class Clock:
    """An event loop whose time is `now`, and whose timers nobody but the test calls."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(3600, callback)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


Serve = Callable[[Downstream], Awaitable[None]]


class Answers:
    """An endpoint that is one function."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve

    async def serve(self, downstream: Downstream) -> None:
        await self._serve(downstream)


class MockClient:
    """A client on a connection to endpoints by path; `/echo` tells what it was asked, `/held` waits for `release`."""

    def __init__(self, **endpoints: Serve) -> None:
        self.transport = MockTransport()
        self.state = MockState()
        self.clock = Clock()
        self.asked: list[Downstream] = []
        self.cancelled = 0
        self.release = asyncio.Event()
        self.failed: list[Exception] = []
        self.refused: list[str] = []
        all_endpoints: Mapping[str, Serve] = {"echo": self._echo, "held": self._hold, **endpoints}
        served = {name: Answers(serve) for name, serve in all_endpoints.items()}
        routes = [Route(f"/routed/{name}", Routed(endpoint)) for name, endpoint in served.items()]
        site = Site(
            {f"/{name}".encode(): endpoint for name, endpoint in served.items()},
            Router(routes, default=Routed(Answers(self._nowhere)), redirect_slashes=False),
            RequestIds(),
            self._fail,
            self.refused.append,
        )
        loop = cast("asyncio.AbstractEventLoop", self.clock)
        self.connection = ClientConnection(site, self.state, loop, Outbox(asyncio.get_running_loop()))
        self.connection.connection_made(cast("asyncio.Transport", self.transport))
        (self.task,) = self.state.tasks

    async def _echo(self, downstream: Downstream) -> None:
        self.asked.append(downstream)
        try:
            body = await downstream.read_body(LIMIT)
        except GatewayError as error:
            send_error(downstream, error, [], "req_echo")
            return
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        said = b"%b %b [%b]" % (downstream.method.encode(), downstream.path.encode(), body)
        downstream.answer(200, [PLAIN], said)

    async def _hold(self, downstream: Downstream) -> None:
        self.asked.append(downstream)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        downstream.answer(200, [PLAIN], b"held")

    async def _nowhere(self, downstream: Downstream) -> None:
        self.asked.append(downstream)
        downstream.answer(404, [PLAIN], downstream.path.encode())

    def _fail(self, request_id: str, failure: Exception) -> GatewayError:
        self.failed.append(failure)
        return GatewayError(f"see {request_id}")

    async def send(self, *pieces: bytes) -> bytes:
        """Send these pieces, each read for itself, and give everything that was ever answered."""
        for piece in pieces:
            if self.transport.closed:
                break
            self.connection.data_received(piece)
            await self.settle()
        await self.settle()
        return self.answered

    async def settle(self) -> None:
        """Let every task come to where it waits."""
        for _ in range(12):
            await asyncio.sleep(0)
        if self.transport.closed and self.connection in self.state.connections:
            self.connection.connection_lost(None)
            for _ in range(6):
                await asyncio.sleep(0)

    async def leave(self) -> None:
        """Close the client's end, as the transport tells it."""
        self.connection.eof_received()
        self.transport.close()
        await self.settle()

    async def after(self, seconds: float) -> None:
        """So much later, the connection looks at the time."""
        self.clock.now += seconds
        if self.connection not in self.state.connections:
            return
        self.connection._timer.cancel()
        self.connection._look()
        await self.settle()

    @property
    def answered(self) -> bytes:
        """All that was written."""
        return b"".join(self.transport.writes)

    @property
    def over(self) -> bool:
        """Whether the connection has ended, with nothing left behind."""
        return (
            self.transport.closed
            and self.task.done()
            and not self.state.connections
            and self.connection._timer.cancelled()
        )


@dataclass(frozen=True)
class Answer:
    """One answer off the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The code of an error in OpenAI's shape."""
        error = orjson.loads(self.body)["error"]
        assert sorted(error) == ["code", "message", "param", "type"]
        return str(error["code"])


def answers_in(data: bytes, *, head: bool = False) -> list[Answer]:
    """Every answer in these bytes; each must be whole, and nothing may be between them."""
    found = []
    while data:
        top, _, data = data.partition(b"\r\n\r\n")
        line, *fields = top.decode("latin-1").split("\r\n")
        assert line.startswith("HTTP/1.1 "), line
        pairs = [name_value.split(": ", 1) for name_value in fields]
        headers = dict(pairs)
        assert len(headers) == len(pairs), f"a header twice: {top!r}"
        status = int(line.split(" ")[1])
        body = b""
        if head or status in (100, 204, 304):
            pass
        elif headers.get("transfer-encoding") == "chunked":
            while True:
                size, _, data = data.partition(b"\r\n")
                length = int(size, 16)
                assert data[length : length + 2] == b"\r\n"
                body += data[:length]
                data = data[length + 2 :]
                if not length:
                    break
        elif "content-length" in headers:
            length = int(headers["content-length"])
            assert len(data) >= length, "cut"
            body, data = data[:length], data[length:]
        else:
            body, data = data, b""
        found.append(Answer(status, headers, body))
    return found
