"""A client's connection: requests as they come, one task that answers them in turn, and word at once when it leaves."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import httptools
from starlette.types import ASGIApp

from gateway.errors import GatewayError, RequestTimeout
from gateway.outbox import Outbox
from gateway.server.downstream import Downstream, Endpoint, NotHttp, RequestIds, no_receive, no_send, scope_of
from gateway.server.errors import send_error
from gateway.upstream.wire import Header

KEEP_ALIVE = 75.0  # seconds: longer than the 60 of usual load balancers, so that they close first
PATIENCE = 60.0  # seconds without a byte of a head or a body that has begun
LINGER = 30.0  # seconds that a client may go on sending what is not read any more, before it is cut off
MAX_HEAD = 65_536  # bytes, and so many for what stands between or after the pieces of a body
MAX_AHEAD = 65_536  # bytes of requests sent ahead: a client that leaves is noticed only while reading goes on
_LOOK = 5.0  # seconds between two looks at these times
_LISTS: Final = (b"tracestate", b"anthropic-beta", b"openai-beta")  # read here, and may come in parts (RFC 9110, 5.3)


@dataclass(frozen=True, slots=True)
class Site:
    """What the clients of one process reach: `direct` endpoints by request target, and `router` for all the others.

    `failed` is told of a fault of the gateway itself, and gives the error for the client. `refused` is told the id of
    what was no HTTP.
    """

    direct: Mapping[bytes, Endpoint]
    router: ASGIApp
    ids: RequestIds
    failed: Callable[[str, Exception], GatewayError]
    refused: Callable[[str], None]


class State(Protocol):
    """What uvicorn knows of the connections of its server, to end them; `default_headers` has the date."""

    connections: set[Any]
    tasks: set[asyncio.Task[None]]
    default_headers: list[tuple[bytes, bytes]]


class ClientConnection(asyncio.Protocol):
    """One connection, of HTTP/1.1 or 1.0. Requests sent ahead wait for their turn; beyond `MAX_AHEAD` no more is read.

    It has one task for all its requests, since a new one costs as much as all the limits of a request. `keeps_alive`:
    it will take another request.
    """

    __slots__ = (
        "_ahead",
        "_arriving",
        "_current",
        "_deadline",
        "_drained",
        "_head_size",
        "_headers",
        "_held",
        "_loop",
        "_lost",
        "_outbox",
        "_parser",
        "_paused",
        "_queue",
        "_site",
        "_state",
        "_target",
        "_task",
        "_timer",
        "_transport",
        "_waiter",
        "keeps_alive",
        "write_paused",
    )

    _transport: asyncio.Transport
    _task: asyncio.Task[None]
    _timer: asyncio.TimerHandle

    def __init__(self, site: Site, state: State, loop: asyncio.AbstractEventLoop, outbox: Outbox) -> None:
        self._site = site
        self._state = state
        self._loop = loop
        self._outbox = outbox
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Downstream] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._current: Downstream | None = None
        self._arriving: Downstream | None = None
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_size = 0
        self._ahead = 0
        self._held: list[bytes] = []
        self._lost = False
        self._paused = False
        self._deadline = 0.0
        self.keeps_alive = True
        self.write_paused = False

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        self._deadline = self._loop.time() + KEEP_ALIVE
        self._timer = self._loop.call_later(_LOOK, self._look)
        self._task = self._loop.create_task(self._serve())
        self._state.connections.add(self)
        self._state.tasks.add(self._task)
        self._task.add_done_callback(self._state.tasks.discard)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if not self.keeps_alive and self._arriving is None:
            return  # it sends what will not be answered any more
        if self._queue and not self._paused:
            self._ahead += len(data)
            if self._ahead > MAX_AHEAD:
                self._paused = True
                self._transport.pause_reading()
        head_began_before = self._head_size
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            why = error.__context__ if isinstance(error.__context__, NotHttp) else error
            self._refuse(f"This is not a valid HTTP/1.1 request: {why}")
            return
        if self._arriving is not None:
            self._deadline = self._loop.time() + PATIENCE
            if not self._head_size:  # there was some of the body in it
                self._head_size = 1
                return
        elif not (head_began_before and self._head_size):
            return
        self._head_size += len(data)
        if self._head_size > MAX_HEAD:
            self._refuse(f"The head or the trailers of this request are larger than {MAX_HEAD} bytes.")

    def eof_received(self) -> None:
        """Take the end of what the client sends as its departure; the transport then closes itself."""
        self._leave()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Let go of everything that refers to this connection."""
        self._leave()
        self._timer.cancel()
        self._state.connections.discard(self)
        self._wake()
        self.resume_writing()
        del self._parser  # it holds this object's methods: a ring

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """It has read on."""
        self.write_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Take a new head, which is to be whole before long."""
        self._target = b""
        if self._headers:  # trailers, which nobody reads
            self._headers = {}
        self._head_size = 1
        self._deadline = self._loop.time() + PATIENCE

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        name = name.lower()
        headers = self._headers
        if name in headers and name in _LISTS:
            value = b"%b,%b" % (headers[name], value)
        headers[name] = value

    def on_headers_complete(self) -> None:
        """Put the request in line."""
        parser = self._parser
        version = parser.get_http_version()
        if version == "1.1":
            keep_alive = parser.should_keep_alive()
        elif version == "1.0":
            keep_alive = False
        else:
            raise NotHttp(f"this is HTTP/{version}.")
        self._head_size = 0
        self._arriving = request = Downstream(
            self,
            parser.get_method().decode("ascii"),
            self._target,
            self._headers,
            version,
            keep_alive=keep_alive,
        )
        self._headers = {}
        if self._current is None and not self._queue:
            self._wake()
        self._queue.append(request)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._head_size = 0
        if self._arriving is not None:
            self._arriving.feed(body)

    def on_message_complete(self) -> None:
        """Note that the request is whole, and close where only that was waited for."""
        self._head_size = 0
        arriving, self._arriving = self._arriving, None
        if arriving is not None:
            arriving.feed_end()
            if arriving.complete and self._current is None and not self.keeps_alive:
                self._close()

    # What a request calls.

    def hold(self, data: bytes, *, soon: bool = False) -> None:
        """Write this once the endpoint has returned, or `soon`: at the end of this turn if that is earlier."""
        self._held.append(data)
        if soon:
            self._loop.call_soon(self.flush)

    def write(self, data: bytes) -> None:
        """Write this in this turn."""
        self._held.append(data)
        self._outbox.send(self)

    def flush(self) -> None:
        """Write what is held, now."""
        held = self._held
        if held:
            if not self._lost:
                self._transport.write(held[0] if len(held) == 1 else b"".join(held))
            held.clear()

    async def drained(self) -> None:
        """Wait until no more than the transport's low water is unsent."""
        while self.write_paused and not self._lost:
            self._drained = self._loop.create_future()
            await self._drained

    @property
    def usual_headers(self) -> Sequence[Header]:
        """What every answer has: `date`."""
        return self._state.default_headers

    # What uvicorn calls.

    def shutdown(self) -> None:
        """Take no more requests."""
        self.keeps_alive = False
        if self._current is None and not self._queue:
            self._close()

    # Serving.

    async def _serve(self) -> None:
        try:
            while not self._lost:
                if not self._queue:
                    self._waiter = self._loop.create_future()
                    await self._waiter
                    continue
                self._current = request = self._queue.popleft()
                if not self._queue:
                    self._read_on()
                try:
                    await self._answer(request)
                finally:
                    self._finish(request)
        finally:
            if not self._lost:
                self._close()

    async def _answer(self, request: Downstream) -> None:
        site = self._site
        direct = site.direct.get(request.target)
        try:
            if direct is not None:
                request.path = request.target.decode("ascii")
                await direct.serve(request)
            else:
                await site.router(scope_of(request), no_receive, no_send)
            if not (request.started or request.gone):
                raise RuntimeError("the endpoint gave no answer")
        except Exception as failure:  # noqa: BLE001 - whatever it is, the client gets an answer and the log the reason
            request_id = site.ids.next()
            error = failure if isinstance(failure, GatewayError) else site.failed(request_id, failure)
            if isinstance(error, NotHttp):
                site.refused(request_id)
            if not request.started:
                send_error(request, error, [], request_id)

    def _finish(self, request: Downstream) -> None:
        self._current = None
        if self._lost:
            return
        if not (request.complete and request.keep_alive and self.keeps_alive):
            self.keeps_alive = False
            self._queue.clear()
            if request.complete and request.is_being_sent:  # closing now would reset, and lose the answer
                self.flush()
                self._loop.call_later(LINGER, self._transport.close)
                return
            self._close()
            self._leave()
            return
        if self._held:
            self._outbox.send(self)
        if not self._queue and self._arriving is None and not self._head_size:
            self._deadline = self._loop.time() + KEEP_ALIVE

    def _read_on(self) -> None:
        """Nothing waits any more: what comes next is the rest of the request that is served now, or one after it."""
        self._ahead = 0
        if self._paused:
            self._paused = False
            self._deadline = self._loop.time() + PATIENCE
            self._transport.resume_reading()

    def _close(self) -> None:
        self.flush()
        self._transport.close()

    def _leave(self) -> None:
        """Nobody is there any more to be answered."""
        self._lost = True
        request = self._current
        if request is not None and not request.complete and not request.gone:  # once: what it cleans up goes on
            request.gone = True
            self._task.cancel()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read on as if none had been asked for (RFC 9110, 7.8): the parser took the body for the other protocol."""
        request = self._queue[-1]
        if request.method == "CONNECT":  # answered like any other; what follows it is not HTTP
            self.keeps_alive = False
            return
        self._queue.pop()
        fields = [pair for pair in request.headers.items() if pair[0] not in (b"connection", b"upgrade")]
        if not request.keep_alive:
            fields.append((b"connection", b"close"))
        head = b"".join(b"%b: %b\r\n" % pair for pair in fields)
        line = b"%b %b HTTP/%b\r\n" % (request.method.encode(), request.target, request.version.encode())
        self._parser = httptools.HttpRequestParser(self)
        self.data_received(b"%b%b\r\n%b" % (line, head, rest))

    def _refuse(self, message: str) -> None:
        """Answer what cannot be read, and close; an answer that is under way ends first."""
        self.keeps_alive = False
        error = NotHttp(message)
        arriving, self._arriving = self._arriving, None
        if arriving is not None and arriving is self._current:
            arriving.give_up(error)
            return
        if arriving is not None and self._queue:  # it is the last, and nobody has begun with it
            self._queue.pop()
        elif arriving is not None:  # it has been answered
            self._close()
            return
        if self._current is not None or self._queue:
            return
        request_id = self._site.ids.next()
        self._site.refused(request_id)
        send_error(Downstream(self, "", b"", {}, "1.1", keep_alive=False), error, [], request_id)
        self._close()

    def _look(self) -> None:
        self._timer = self._loop.call_later(_LOOK, self._look)
        if self._paused or self._loop.time() < self._deadline:
            return
        arriving = self._arriving
        if arriving is not None and not arriving.complete:
            arriving.give_up(RequestTimeout(f"No more of the body came within {PATIENCE:g} s; send the request again."))
        elif self._current is None and not self._queue:
            self._close()
