"""The direct wire: a pool of keep-alive connections to one origin, and the choice between it and httpx."""

import asyncio
import ssl
from collections.abc import AsyncIterable, Sequence

from gateway.outbox import Outbox
from gateway.tls import tls_context
from gateway.upstream.connection import Connection
from gateway.upstream.wire import (
    Bounds,
    ConnectError,
    ConnectTimeout,
    Header,
    Origin,
    ProtocolError,
    ReadError,
    Wire,
)

_DEFAULT_PORTS = {"http": 80, "https": 443}
_OWN = frozenset((b"host", b"content-length", b"transfer-encoding"))
_WITHOUT_BODY = frozenset((b"GET", b"HEAD"))


def open_wire(origin: Origin, bounds: Bounds | None = None) -> Wire:
    """Open the wire that can reach `origin`: over httpx for a proxy or HTTP/2, else direct. No I/O yet."""
    if origin.proxy is None and not origin.http2:
        return DirectWire(origin, bounds or Bounds())
    from gateway.upstream.over_httpx import HttpxWire  # noqa: PLC0415 - 0.3 s that few installations need

    return HttpxWire(origin, bounds or Bounds())


class DirectReply:
    """A response on a connection that it owns until it is closed."""

    __slots__ = ("_complete", "_connection", "_wire", "headers", "status")

    def __init__(self, wire: "DirectWire", connection: Connection) -> None:
        self._wire = wire
        self._connection: Connection | None = connection
        self._complete = False
        self.status = connection.status
        self.headers: Sequence[Header] = connection.headers

    @property
    def complete(self) -> bool:
        """Whether the whole message has been read."""
        connection = self._connection
        return self._complete if connection is None else connection.complete and not connection.chunks

    async def read(self, timeout: float) -> bytes:
        """All that has arrived, joined, or what arrives next; `b""` at the end. Raises as `wire.Reply.read` says."""
        connection = self._connection
        if connection is not None and not (connection.chunks or connection.complete or connection.failure):
            await connection.arrival(timeout)
            connection = self._connection  # closed meanwhile: it may carry someone else's response by now
        if connection is None:
            raise ReadError("the reply was closed; read it before aclose()")
        return connection.take()

    async def aclose(self) -> None:
        """Give the connection back if the message is whole, else abort it. Idempotent; waits for nothing."""
        connection = self._connection
        if connection is not None:
            self._complete = connection.complete
            self._connection = None
            self._wire.give_back(connection)

    def __repr__(self) -> str:
        return f"<DirectReply {self.status} on {self._connection or 'closed'}>"


class DirectWire:
    """A wire on asyncio protocols and httptools, with one pool that hands out the connection used last."""

    __slots__ = ("_bounds", "_closed", "_idle", "_lines", "_origin", "_outbox", "_tls", "_where", "active")

    def __init__(self, origin: Origin, bounds: Bounds | None = None) -> None:
        """Make a wire to `origin`; no connection is opened before the first request."""
        host = origin.host if origin.host.isascii() else origin.host.encode("idna").decode()
        host = f"[{host}]" if ":" in host else host
        authority = host if _DEFAULT_PORTS.get(origin.scheme) == origin.port else f"{host}:{origin.port}"
        self._origin = origin
        self._bounds = bounds or Bounds()
        self._where = f"{origin.scheme}://{host}:{origin.port}"
        self._lines = f" HTTP/1.1\r\nhost: {authority}\r\n".encode("ascii")
        self._idle: list[Connection] = []
        self._outbox: Outbox | None = None
        self._tls: ssl.SSLContext | None = None
        self._closed = False
        self.active = 0

    @property
    def idle(self) -> int:
        """How many connections are kept for the next request."""
        return len(self._idle)

    def __repr__(self) -> str:
        return f"<DirectWire {self._where}, {self.active} active, {self.idle} idle{', closed' * self._closed}>"

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Sequence[Header],
        body: bytes | AsyncIterable[bytes],
        *,
        connect_timeout: float,
        timeout: float,
    ) -> DirectReply:
        """Send a request and return when the response's head is there; see `wire.Wire.send`.

        A kept connection that turns out to be closed before any byte of the response is replaced by a fresh one
        once, unseen. A body that is an iterable cannot be sent twice, so it always goes on a fresh connection.
        """
        head = self._encode_head(method, target, headers, body)
        self.active += 1
        try:
            if self._idle and isinstance(body, bytes):
                connection = self._idle.pop()
                try:
                    await connection.exchange(head, body, timeout, bodiless=method == b"HEAD")
                except ReadError:
                    if not connection.is_stale:
                        raise
                else:
                    return DirectReply(self, connection)
            connection = await self._connect(connect_timeout)
            await connection.exchange(head, body, timeout, bodiless=method == b"HEAD")
        except BaseException:
            self.active -= 1
            raise
        return DirectReply(self, connection)

    async def aclose(self) -> None:
        """Close what is idle now, and what is active when its reply is closed; afterwards nothing is kept."""
        self._closed = True
        while self._idle:
            self._idle.pop().abort()

    def give_back(self, connection: Connection) -> None:
        """End a connection's exchange: keep it for the next one, or close it."""
        self.active -= 1
        if len(self._idle) < self._bounds.max_idle and not self._closed and connection.retire():
            self._idle.append(connection)
        else:
            connection.abort()

    def _encode_head(
        self, method: bytes, target: bytes, headers: Sequence[Header], body: bytes | AsyncIterable[bytes]
    ) -> bytes:
        lines = 4 + len(headers)
        if not isinstance(body, bytes):
            framing = b"transfer-encoding: chunked\r\n\r\n"
        elif body or method not in _WITHOUT_BODY:
            framing = b"content-length: %d\r\n\r\n" % len(body)
        else:
            framing = b"\r\n"
            lines -= 1
        fields = b"".join([b"%b: %b\r\n" % header for header in headers])
        head = b"%b %b%b%b%b" % (method, target, self._lines, fields, framing)
        # Counting the line ends finds any that came in with a value, a name or the target, at a third of the cost of
        # looking at each.
        if head.count(b"\r") != lines or head.count(b"\n") != lines or b"\0" in head or b" " in target:
            raise ProtocolError(
                f"{self._where}: a header or the target holds CR, LF, NUL or a space; refused to send it"
            )
        if not _OWN.isdisjoint([name.lower() for name, _ in headers]):
            raise ProtocolError(f"{self._where}: host, content-length and transfer-encoding are added by the wire")
        return head

    async def _connect(self, limit: float) -> Connection:
        origin = self._origin
        loop = asyncio.get_running_loop()
        outbox = self._outbox = self._outbox or Outbox(loop)
        try:
            async with asyncio.timeout(limit):
                tls = self._tls_context() if origin.scheme == "https" else None
                _, connection = await loop.create_connection(
                    lambda: Connection(self._where, self._bounds, loop, self._forget, outbox),
                    origin.host,
                    origin.port,
                    ssl=tls,
                    server_hostname=origin.host if tls else None,
                )
        except TimeoutError as exc:
            raise ConnectTimeout(f"{self._where}: no connection within {limit:g} s") from exc
        except (
            OSError,
            ValueError,
        ) as exc:  # refused, unreachable, DNS, TLS, an unreadable ca_file, an impossible name
            raise ConnectError(f"{self._where}: {exc}") from exc
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = tls_context(self._origin.ca_file)
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    def _forget(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
