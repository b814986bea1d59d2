"""One HTTP/1.1 connection to an upstream: exchange after exchange on one socket, driven by callbacks, with no task."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from typing import cast

import httptools

from gateway.outbox import Outbox
from gateway.upstream.wire import Bounds, Header, ProtocolError, ReadError, ReadTimeout

_JOINED = 65_536  # a body up to this many bytes is written together with its head, in one call
_PIECE = 65_536  # a larger one goes out in such pieces, under back-pressure
_CHUNK_COST = 48  # bytes of memory that a buffered chunk takes beside its content
_H = b"H"[0]
_TICK = 0.002  # seconds by which a loop's timer may fire early (uvloop rounds to milliseconds)


class Connection(asyncio.Protocol):
    """A socket with a parser, a buffer of unread body, and one timer that serves every time limit.

    The timer is lazy: a wait only notes its deadline, and the timer, when it fires, looks whether that has passed.
    So a request creates no timer handle as long as an earlier one is still pending.
    """

    __slots__ = (
        "_bodiless",
        "_bounds",
        "_deadline",
        "_drained",
        "_fed",
        "_forget",
        "_framed",
        "_idle",
        "_keep_alive",
        "_loop",
        "_outbox",
        "_parser",
        "_paused",
        "_reused",
        "_timer",
        "_timer_at",
        "_transport",
        "_unread",
        "_unsent",
        "_upload",
        "_waiter",
        "_where",
        "_write_paused",
        "chunks",
        "complete",
        "failure",
        "headers",
        "status",
    )

    _parser: httptools.HttpResponseParser

    def __init__(
        self,
        where: str,
        bounds: Bounds,
        loop: asyncio.AbstractEventLoop,
        forget: Callable[["Connection"], None],
        outbox: Outbox,
    ) -> None:
        """Make a connection to `where` (for messages); `forget` is called when it ends while idle."""
        self._outbox = outbox
        self._unsent = b""
        self._where = where
        self._bounds = bounds
        self._loop = loop
        self._forget = forget
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._deadline = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._upload: asyncio.Task[None] | None = None
        self._write_paused = False
        self._paused = False
        self._idle = True
        self._reused = False
        self.failure: Exception | None = None
        self._clear()

    def _clear(self) -> None:
        self.status = 0
        self.headers: list[Header] = []
        self.chunks: list[bytes] = []
        self.complete = False
        self._unread = 0
        self._fed = 0  # bytes since the last byte of body: the head, trailers, chunk sizes
        self._framed = False
        self._keep_alive = False
        self._bodiless = False

    # What the wire calls.

    async def exchange(
        self, head: bytes, body: bytes | AsyncIterable[bytes], timeout: float, *, bodiless: bool
    ) -> None:
        """Send a request and return when the head of its response is there; on any other exit the socket is aborted.

        `bodiless` says that the response has no body whatever its head announces (HEAD).
        """
        self._idle = False
        self._bodiless = bodiless
        try:
            if self._transport is not None and self.failure is None:
                if isinstance(body, bytes) and len(body) <= _JOINED:
                    self._unsent = head + body
                    self._outbox.send(self)
                else:
                    self._upload = self._loop.create_task(self._send_body(self._transport, head, body))
                await self.arrival(timeout)
        except BaseException:
            self.abort()
            raise
        if not self.status:
            self.abort()
            raise self.failure or self._cut()

    def flush(self) -> None:
        """Write the request, unless there is nobody any more to write it to."""
        unsent, self._unsent = self._unsent, b""
        if unsent and self._transport is not None and not self._transport.is_closing():
            self._transport.write(unsent)

    def arrival(self, timeout: float) -> asyncio.Future[None]:
        """Make the future that is done when there is news to look at, and ReadTimeout after `timeout` seconds."""
        self._arm(timeout)
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def take(self) -> bytes:
        """Take the unread body, joined; `b""` at the end of a whole message; else raise what cut it.

        Of much that is unread, `max_read` bytes: whoever works on them makes several copies.
        """
        chunks = self.chunks
        if chunks:
            if self._unread > self._bounds.max_read:
                return self._take_some(chunks)
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
            self._unread = 0
            if self._paused:
                self._resume_reading()
            return data
        if self.complete:
            return b""
        raise self.failure or self._cut()

    def _take_some(self, chunks: list[bytes]) -> bytes:
        most = self._bounds.max_read
        size = count = 0
        while count < len(chunks) and size < most:
            size += len(chunks[count])
            count += 1
        data = chunks[0] if count == 1 else b"".join(chunks[:count])
        self._unread -= size + count * _CHUNK_COST
        if size > most:
            count -= 1
            chunks[count] = data[most:]
            data = data[:most]
            self._unread += size - most + _CHUNK_COST
        del chunks[:count]
        if self._paused and self._unread <= self._bounds.low_water:
            self._resume_reading()
        return data

    def retire(self) -> bool:
        """Make ready for the next exchange and wait for it at most `idle_expiry`; False if this one has spoilt it."""
        if not (self.complete and self._keep_alive) or self._transport is None or self._upload is not None:
            return False
        self._clear()
        if self._paused:
            self._resume_reading()
        self._reused = self._idle = True
        self._arm(self._bounds.idle_expiry)
        return True

    @property
    def is_stale(self) -> bool:
        """Whether a kept connection ended before any byte of this response: the upstream had closed it meanwhile."""
        return self._reused and not self.status and not self._fed

    def abort(self) -> None:
        """Close the socket at once, whatever is in flight. Idempotent."""
        self._keep_alive = False
        self._unsent = b""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._stop_upload()
        if self._transport is not None:
            self._transport.abort()

    def __repr__(self) -> str:
        if self._transport is None:
            state = "closed"
        elif self._idle:
            state = "idle"
        elif self.complete:
            state = f"{self.status} complete"
        else:
            state = f"{self.status} receiving" if self.status else "waiting for the head"
        unread = f", {sum(map(len, self.chunks))} bytes unread" if self.chunks else ""
        flags = (", reused" if self._reused else "") + (", paused" if self._paused else "")
        return f"<Connection {self._where}, {state}{unread}{flags}>"

    # Time.

    def _arm(self, seconds: float) -> None:
        self._deadline = deadline = self._loop.time() + seconds
        if self._timer is None:
            self._set_timer(deadline)
        elif self._timer_at > deadline:
            self._timer.cancel()
            self._set_timer(deadline)

    def _set_timer(self, at: float) -> None:
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        waiter = self._waiter
        if not self._idle and (waiter is None or waiter.done()):
            return
        if self._deadline - self._loop.time() > _TICK:
            self._set_timer(self._deadline)
        elif self._idle:
            self._leave_pool()
        elif waiter is not None:
            awaited = "more of the body" if self.status else "the response's head"
            waiter.set_exception(ReadTimeout(f"{self._where}: timed out waiting for {awaited}"))

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; its write buffer has the same bounds as ours for reading."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        self._transport.set_write_buffer_limits(high=self._bounds.high_water, low=self._bounds.low_water)

    def data_received(self, data: bytes) -> None:
        """Parse what came; pause the socket when too much is unread."""
        if self._idle:  # nothing was asked: whatever this is, it must not become the next request's answer
            self.failure = ProtocolError(f"{self._where}: the upstream sent bytes before it was asked")
            self._leave_pool()
            return
        if self._unsent:  # the same, a moment later: the request goes on a fresh connection
            self._unsent = b""
            self._fail(ReadError(f"{self._where}: the upstream sent bytes before it was asked"))
            return
        if self.complete or self.failure is not None:
            self._spoil()
            return
        if not self._fed and not self.status and data[0] != _H:  # llhttp takes RTSP and leading empty lines too
            self._fail(ProtocolError(f"{self._where}: malformed response: it does not begin with HTTP/"))
            return
        self._fed += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._refuse(exc)
        if self.chunks or self.complete:
            self._wake()
            if self._unread > self._bounds.high_water and not self._paused and not self.complete:
                self._pause_reading()
        if self._fed > self._bounds.max_head and not self.complete:
            self._fail(ProtocolError(f"{self._where}: head or trailer is larger than {self._bounds.max_head} bytes"))

    def eof_received(self) -> None:
        """Take the end of input as the end of a message that has no other; the transport then closes itself."""
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything that refers to this connection, and tell who waits."""
        self._transport = None
        self._end(exc)
        self.abort()
        del self._parser  # it holds this object's methods: a ring

    def pause_writing(self) -> None:
        """Hold the upload back."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """Let the upload go on."""
        self._write_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Refuse a second response in answer to one request."""
        if self.complete:
            raise ProtocolError("bytes after the end of the response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers are dropped."""
        if self.status:
            return
        name = name.lower()
        self.headers.append((name, value))
        if name == b"content-length":
            self._framed = True
        elif name == b"transfer-encoding":
            if self._framed or value.lower() != b"chunked" or self._parser.get_http_version() != "1.1":
                raise ProtocolError("transfer-encoding is not a single `chunked` of HTTP/1.1")
            self._framed = True

    def on_headers_complete(self) -> None:
        """Accept the head, or skip it when it is an interim one (RFC 9110, 15.2)."""
        parser = self._parser
        if parser.get_http_version() not in ("1.1", "1.0"):
            raise ProtocolError("not HTTP/1.1")
        status = parser.get_status_code()
        if not 200 <= status < 600:
            if status == 101 or not 100 <= status < 200:
                raise ProtocolError(f"status {status} is not one that was asked for")
            self.headers = []
            self._framed = False
            return
        if self._fed > self._bounds.max_head:
            size = sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._bounds.max_head:
                raise ProtocolError(f"head is larger than {self._bounds.max_head} bytes")
        self.status = status
        self.complete = self._bodiless  # and not kept: llhttp cannot be told about HEAD, it still waits for a body
        self._wake()

    def on_body(self, body: bytes) -> None:
        """Buffer a piece of the body."""
        if self.complete:
            raise ProtocolError("a body where there is none")
        self._fed = 0
        self._unread += len(body) + _CHUNK_COST
        self.chunks.append(body)

    def on_message_complete(self) -> None:
        """Note the end of the message, unless it was an interim response's."""
        if self.status and not self.complete:
            self._keep_alive = self._parser.should_keep_alive()
            self.complete = True

    # Ends.

    def _refuse(self, exc: Exception) -> None:
        reason = exc.__context__ if isinstance(exc.__context__, ProtocolError) else exc
        failure = ProtocolError(f"{self._where}: malformed response: {reason or type(exc).__name__}")
        failure.__cause__ = exc
        self._fail(failure)

    def _fail(self, failure: Exception) -> None:
        if not self.complete and self.failure is None:
            self.failure = failure
        self._wake()
        self._spoil()

    def _spoil(self) -> None:
        self._keep_alive = False
        if self._transport is not None:
            self._transport.abort()

    def _end(self, exc: Exception | None) -> None:
        self._keep_alive = False
        self._stop_upload()
        if self._idle:
            self._leave_pool()
        elif self.status and not self._framed and exc is None:
            self.complete = True
        elif not self.complete and self.failure is None:
            self.failure = self._cut()
            self.failure.__cause__ = exc
        self._wake()

    def _cut(self) -> ReadError:
        place = "in the middle of the body" if self.status else "before the head was whole"
        return ReadError(f"{self._where}: the connection was closed {place}")

    def _leave_pool(self) -> None:
        self._forget(self)
        self.abort()

    def _pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        self._paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # The upload of a body that is large, or not there yet: the only thing that runs in a task of its own, so that an
    # answer that comes before the upload's end is seen.

    async def _send_body(self, transport: asyncio.Transport, head: bytes, body: bytes | AsyncIterable[bytes]) -> None:
        try:
            transport.write(head)
            async with aclosing(_pieces(body) if isinstance(body, bytes) else _chunked(body)) as pieces:
                async for piece in pieces:
                    # Two turns of the loop before each write: one in which it notices what has arrived, one in which
                    # that is read. A write that finds the connection reset makes the transport throw away an answer
                    # it has not read: without this 94 of 100 early refusals are lost, with it 1 of 300.
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    if self._write_paused:
                        self._drained = self._loop.create_future()
                        await self._drained
                    transport.write(piece)
        except Exception as exc:  # noqa: BLE001 - the body's own error: whoever waits for the response gets it
            self._fail(exc)
        else:
            self._upload = None

    def _stop_upload(self) -> None:
        if self._upload is not None:
            self._upload.cancel()


async def _pieces(body: bytes) -> AsyncGenerator[bytes | memoryview, None]:
    view = memoryview(body)
    for start in range(0, len(view), _PIECE):
        yield view[start : start + _PIECE]


async def _chunked(body: AsyncIterable[bytes]) -> AsyncGenerator[bytes | memoryview, None]:
    try:
        async for piece in body:
            if piece:  # an empty chunk would end the message
                yield b"%x\r\n%b\r\n" % (len(piece), piece)
        yield b"0\r\n\r\n"
    finally:
        if isinstance(body, AsyncGenerator):
            await body.aclose()
