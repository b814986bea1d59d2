"""The wire over httpx, for what the direct one does not do: a proxy, and HTTP/2."""

import asyncio
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import httpcore
import httpx

from gateway.tls import tls_context
from gateway.upstream.wire import (
    Bounds,
    ConnectError,
    ConnectTimeout,
    Header,
    Origin,
    ProtocolError,
    ReadError,
    ReadTimeout,
    WireError,
)

_OWN = frozenset((b"host", b"content-length", b"transfer-encoding"))
_CLOSE_LIMIT = 1.0  # seconds that closing a socket may take; it is aborted, so nothing is waited for in truth
_RESET = "<StreamReset"  # HTTP/2: the upstream has seen the request and refuses to answer it
# How httpcore words the end of a connection; it has no exception for it apart from the one for malformed messages.
_CUT = ("peer closed connection", "Server disconnected", _RESET, "<ConnectionTerminated")


class HttpxReply:
    """A response on a transport that it owns until it is closed."""

    __slots__ = ("_body", "_kept", "_next", "_response", "_wire", "complete", "headers", "status")

    def __init__(self, wire: "HttpxWire", kept: "_Kept", response: httpx.Response) -> None:
        self._wire = wire
        self._kept: _Kept | None = kept
        self._response = response
        assert isinstance(response.stream, AsyncIterable)
        self._body: AsyncIterator[bytes] = aiter(response.stream)
        self._next: asyncio.Task[bytes] | None = None
        self.complete = False
        self.status = response.status_code
        self.headers: Sequence[Header] = [(name.lower(), value) for name, value in response.headers.raw]

    async def read(self, timeout: float) -> bytes:
        """What arrives next; `b""` at the end of a whole message. Raises as `wire.Reply.read` says."""
        if self._kept is None:
            raise ReadError("the reply was closed; read it before aclose()")
        if self.complete:
            return b""
        # A task of its own, since httpx takes a read that is given up for the end of the body, which the next would
        # then report. One that has failed stays, and fails again.
        task = self._next = self._next or asyncio.get_running_loop().create_task(self._advance())
        await asyncio.wait({task}, timeout=timeout)
        if not task.done():
            raise ReadTimeout(f"{self._wire.where}: timed out waiting for more of the body")
        data = task.result()
        self._next = None
        self.complete = not data
        return data

    async def _advance(self) -> bytes:
        try:
            while data := await anext(self._body, b""):
                return data
        except httpx.HTTPError as exc:
            raise _translated(self._wire.where, exc)  # noqa: B904 - it carries its cause
        return b""

    async def aclose(self) -> None:
        """Give the connection back if the message is whole, else close it. Idempotent."""
        kept, self._kept = self._kept, None
        if kept is None:
            return
        try:
            if self._next is not None:
                await _end(self._next)
        finally:
            await self._wire.give_back(kept, self._response if self.complete else None)

    def __repr__(self) -> str:
        state = "complete" if self.complete else "closed" if self._kept is None else "receiving"
        return f"<HttpxReply {self.status} {state} from {self._wire.where}>"


class _Kept:
    """A transport, which never has more than one connection, its socket, and until when that may be kept."""

    __slots__ = ("expires", "socket", "transport")

    def __init__(self, transport: httpx.AsyncHTTPTransport) -> None:
        self.transport = transport
        self.socket: httpcore.AsyncNetworkStream | None = None
        self.expires = 0.0

    async def aclose(self) -> None:
        with suppress(TimeoutError, httpcore.NetworkError, OSError):  # it is being thrown away: nobody is left to tell
            async with asyncio.timeout(_CLOSE_LIMIT):
                await self.transport.aclose()
                if self.socket is not None:  # httpcore forgets it when a TLS handshake is cancelled
                    await self.socket.aclose()


class HttpxWire:
    """A wire on httpx transports, one connection each, so that closing a reply closes its connection at once.

    HTTP/2 is spoken but not multiplexed: httpcore does not reset a stream that is left early, so the upstream would
    go on working for a client that has left.
    """

    __slots__ = ("_bounds", "_closed", "_idle", "_origin", "_tls", "active", "where")

    def __init__(self, origin: Origin, bounds: Bounds | None = None) -> None:
        """Make a wire to `origin`; no connection is opened before the first request."""
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        self._origin = origin
        self._bounds = bounds or Bounds()
        self._idle: list[_Kept] = []
        self._tls: ssl.SSLContext | None = None
        self._closed = False
        self.where = f"{origin.scheme}://{host}:{origin.port}"
        self.active = 0

    @property
    def idle(self) -> int:
        """How many connections are kept for the next request."""
        return len(self._idle)

    def __repr__(self) -> str:
        return f"<HttpxWire {self.where}, {self.active} active, {self.idle} idle{', closed' * self._closed}>"

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Sequence[Header],
        body: bytes | AsyncIterable[bytes],
        *,
        connect_timeout: float,
        timeout: float,
    ) -> HttpxReply:
        """Send a request and return when the response's head is there; see `wire.Wire.send`."""
        self._refuse_injection(method, target, headers)
        self.active += 1
        try:
            kept = await self._take() if isinstance(body, bytes) else None
            if kept is not None:
                try:
                    response = await self._exchange(kept, method, target, headers, body, connect_timeout, timeout)
                except ReadError as error:
                    if str(error.__cause__).startswith(_RESET):
                        raise
                    kept = None  # the upstream had closed it meanwhile: a fresh one, once, unseen
            if kept is None:
                kept = self._open()
                response = await self._exchange(kept, method, target, headers, body, connect_timeout, timeout)
        except BaseException:
            self.active -= 1
            raise
        reply = HttpxReply(self, kept, response)
        if fault := _fault(reply.headers, self._bounds.max_head):
            await reply.aclose()
            raise ProtocolError(f"{self.where}: malformed response: {fault}")
        return reply

    async def aclose(self) -> None:
        """Close what is idle now, and what is active when its reply is closed; afterwards nothing is kept."""
        self._closed = True
        while self._idle:
            await self._idle.pop().aclose()

    async def give_back(self, kept: _Kept, response: httpx.Response | None) -> None:
        """End an exchange: keep its connection if there is a whole `response`, else close it."""
        self.active -= 1
        if response is not None and _may_be_kept(response) and not self._closed:
            await response.aclose()
            if len(self._idle) < self._bounds.max_idle:
                kept.expires = asyncio.get_running_loop().time() + self._bounds.idle_expiry
                self._idle.append(kept)
                return
        await kept.aclose()

    async def _take(self) -> _Kept | None:
        if not self._idle:
            return None
        kept = self._idle.pop()
        if kept.expires > asyncio.get_running_loop().time():
            return kept
        expired = [kept, *self._idle]  # the one used last is too old, so all are
        self._idle.clear()
        for each in expired:
            await each.aclose()
        return None

    def _open(self) -> _Kept:
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=self._bounds.idle_expiry)
        try:
            if self._tls is None:
                self._tls = tls_context(self._origin.ca_file)
            transport = httpx.AsyncHTTPTransport(
                verify=self._tls, http2=self._origin.http2, proxy=self._origin.proxy, trust_env=False, limits=limits
            )
        except (OSError, ValueError) as exc:  # an unreadable ca_file, an impossible proxy
            raise ConnectError(f"{self.where}: {exc}") from exc
        return _Kept(transport)

    async def _exchange(
        self,
        kept: _Kept,
        method: bytes,
        target: bytes,
        headers: Sequence[Header],
        body: bytes | AsyncIterable[bytes],
        connect_timeout: float,
        timeout: float,
    ) -> httpx.Response:
        loop = asyncio.get_running_loop()

        async def follow(event: str, info: dict[str, Any]) -> None:
            if event == "connection.connect_tcp.complete":
                kept.socket = info["return_value"]
            elif event.endswith("send_request_headers.started"):  # connected
                limit.reschedule(loop.time() + timeout)

        origin = self._origin
        try:
            request = httpx.Request(
                method.decode("ascii"),
                httpx.URL(scheme=origin.scheme, host=origin.host, port=origin.port, raw_path=target),
                headers=list(headers),
                content=body,
                extensions={"timeout": {"connect": connect_timeout}, "trace": follow},
            )
            async with asyncio.timeout(None) as limit:
                return await kept.transport.handle_async_request(request)
        except TimeoutError as exc:
            await kept.aclose()
            raise ReadTimeout(f"{self.where}: timed out waiting for the response's head") from exc
        except httpx.HTTPError as exc:
            await kept.aclose()
            raise _translated(self.where, exc)  # noqa: B904 - it carries its cause
        except BaseException:
            await kept.aclose()
            raise

    def _refuse_injection(self, method: bytes, target: bytes, headers: Sequence[Header]) -> None:
        for part in (method, target, *(part for header in headers for part in header)):
            if b"\r" in part or b"\n" in part or b"\0" in part:
                raise ProtocolError(f"{self.where}: a header or the target holds CR, LF or NUL; refused to send it")
        if b" " in target:
            raise ProtocolError(f"{self.where}: the target holds a space; refused to send it")
        if not _OWN.isdisjoint([name.lower() for name, _ in headers]):
            raise ProtocolError(f"{self.where}: host, content-length and transfer-encoding are added by the wire")


async def _end(task: "asyncio.Task[bytes]") -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=_CLOSE_LIMIT)
    if task.done() and not task.cancelled():
        task.exception()  # nobody is left to tell


def _fault(headers: Sequence[Header], max_head: int) -> str | None:
    # What h11 lets through, though RFC 9112 (6.1) calls it faulty, and the bound that it has elsewhere.
    framing = [name for name, _ in headers if name in (b"content-length", b"transfer-encoding")]
    if len(framing) > 1:
        return "more than one header says where the body ends"
    if sum(len(name) + len(value) + 4 for name, value in headers) > max_head:
        return f"head is larger than {max_head} bytes"
    return None


def _may_be_kept(response: httpx.Response) -> bool:
    if response.extensions.get("http_version") == b"HTTP/2":
        return True
    framed = "content-length" in response.headers or "transfer-encoding" in response.headers
    closing = "close" in response.headers.get("connection", "").lower()
    return (
        response.extensions.get("http_version") == b"HTTP/1.1"
        and not closing
        and (framed or response.status_code in (204, 304))
    )


def _translated(where: str, exc: httpx.HTTPError) -> WireError:
    kind = _kind(exc)
    if kind is ProtocolError:  # h11 quotes what it read or was to send: neither the message nor the cause may show it
        malformed = ProtocolError(f"{where}: malformed message ({type(exc).__name__})")
        malformed.__suppress_context__ = True
        return malformed
    error = kind(f"{where}: {exc or type(exc).__name__}")
    error.__cause__ = exc
    return error


def _kind(exc: httpx.HTTPError) -> type[WireError]:
    if isinstance(exc, httpx.ConnectTimeout | httpx.PoolTimeout):
        return ConnectTimeout
    if isinstance(exc, httpx.ConnectError | httpx.ProxyError | httpx.UnsupportedProtocol):
        return ConnectError
    if isinstance(exc, httpx.TimeoutException):
        return ReadTimeout
    if isinstance(exc, httpx.NetworkError) or str(exc).startswith(_CUT):
        return ReadError
    return ProtocolError
