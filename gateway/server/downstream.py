"""A client's request: its head and body as they come, and its answer, whole or piece by piece."""

import asyncio
import itertools
import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol
from urllib.parse import unquote

import httptools
from starlette.types import Message, Scope

from gateway.errors import GatewayError, InvalidRequest, RequestTooLarge
from gateway.upstream.wire import Header

_STATUS_LINES: Final = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus}
_EMPTY: Final = (204, 304)


class NotHttp(InvalidRequest):
    """What came is no request of HTTP/1.1; what follows it cannot be read either."""

    default_code = "invalid_http"


class RequestIds:
    """Ids that are unique without a system call for each: a random prefix for the process, and a count."""

    def __init__(self) -> None:
        self._prefix = "req_" + secrets.token_hex(8)
        self._count = itertools.count(1)

    def next(self) -> str:
        """A new id."""
        return f"{self._prefix}{next(self._count):08x}"


class Connection(Protocol):
    """What a request needs of the connection it came on."""

    keeps_alive: bool
    write_paused: bool

    @property
    def usual_headers(self) -> Sequence[Header]:
        """What every answer has."""
        ...

    def hold(self, data: bytes, *, soon: bool = False) -> None:
        """Write this once the endpoint has returned, or `soon`: at the end of this turn if that is earlier."""
        ...

    def write(self, data: bytes) -> None:
        """Write this in this turn."""
        ...

    async def drained(self) -> None:
        """Wait until no more than the transport's low water is unsent."""
        ...


class Downstream:
    """One request, and its answer: `answer`, or `start`, `write` as often as need be, and `end`.

    `headers` are by lower-case name; of one sent twice the last counts, but for lists, which are joined. `params` are
    what the router found in the path. `started`: the answer has begun, and it is too late for another status;
    `complete`: it is whole. `gone`: the client left before that, and the task that serves it was cancelled.
    """

    __slots__ = (
        "_chunked",
        "_connection",
        "_expects",
        "_head",
        "_pieces",
        "_size",
        "_trouble",
        "_waiter",
        "also",
        "complete",
        "gone",
        "headers",
        "keep_alive",
        "method",
        "params",
        "path",
        "started",
        "target",
        "version",
        "whole",
    )

    def __init__(
        self,
        connection: Connection,
        method: str,
        target: bytes,
        headers: dict[bytes, bytes],
        version: str,
        *,
        keep_alive: bool,
    ) -> None:
        self._connection = connection
        self.method = method
        self.target = target
        self.path = ""
        self.headers = headers
        self.version = version
        self.keep_alive = keep_alive
        self.params: Mapping[str, Any] = {}
        self.also: Header | None = None
        self.whole = False
        self.started = False
        self.complete = False
        self.gone = False
        self._expects = b"expect" in headers and headers[b"expect"].lower() == b"100-continue" and version != "1.0"
        self._pieces: list[bytes] = []
        self._size = 0
        self._trouble: GatewayError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._head = b""
        self._chunked = False

    @property
    def is_being_sent(self) -> bool:
        """More of its body is on the way."""
        return not (self.whole or self._expects or self._trouble is not None)

    async def read_body(self, limit: int) -> bytes:
        """The whole body. Raises RequestTooLarge beyond `limit` bytes, RequestTimeout or NotHttp where it breaks."""
        if not self.whole:
            await self._rest(limit)
        if self._size > limit:
            raise too_large(limit)
        pieces = self._pieces
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _rest(self, limit: int) -> None:
        if self._expects:
            self._expects = False
            if not self._pieces:
                self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self.whole:
            if self._trouble is not None:
                raise self._trouble
            if self._size > limit:
                raise too_large(limit)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def answer(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        """Give a whole answer. It leaves when the endpoint returns: what a client has seen has been counted before."""
        if status in _EMPTY:
            length = body = b""
        else:
            length = b"content-length: %d\r\n" % len(body)
        head = self._encode_head(status, headers, length)
        self.started = self.complete = True
        self._connection.hold(head + body if self.method != "HEAD" else head)

    def start(self, status: int, headers: Sequence[Header]) -> None:
        """Begin an answer of unknown length; its head leaves with the first bytes."""
        # HTTP/1.0 knows no chunks: there the end of the connection is the end.
        self._chunked = self.version != "1.0" and self.method != "HEAD"
        framing = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        self._head = self._encode_head(status, headers, framing)
        self.started = True

    def write(self, data: bytes) -> None:
        """Send more of an answer that has begun; see `drained`."""
        self._connection.write(self._framed(data))

    async def drained(self) -> None:
        """Wait until the client has read enough of what was written."""
        if self._connection.write_paused:
            await self._connection.drained()

    def end(self, data: bytes) -> None:
        """Send the last of an answer that has begun: at the end of this turn, in which it is counted as a rule."""
        last = self._framed(data)
        self.complete = True
        self._connection.hold(last + b"0\r\n\r\n" if self._chunked else last, soon=True)

    def _framed(self, data: bytes) -> bytes:
        """A piece of the answer as it goes out, the first behind the head."""
        head, self._head = self._head, b""
        if self.method == "HEAD" or not data:
            return head
        return b"%b%x\r\n%b\r\n" % (head, len(data), data) if self._chunked else head + data

    def _encode_head(self, status: int, headers: Sequence[Header], framing: bytes) -> bytes:
        if self._expects and not self.whole:
            self.keep_alive = False  # the client may send its body or not, and nobody could tell what came
        if self.also is not None:
            headers = [*(pair for pair in headers if pair[0] != self.also[0]), self.also]
        lines = [b"%b: %b\r\n" % pair for pair in (*self._connection.usual_headers, *headers)]
        fields = b"".join(lines)
        if fields.count(b"\n") != len(lines) or fields.count(b"\r") != len(lines):
            raise ValueError("a header of the answer holds a line end")
        last = framing if self.keep_alive and self._connection.keeps_alive else framing + b"connection: close\r\n"
        line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        return b"%b%b%b\r\n" % (line, fields, last)

    # What the connection tells.

    def feed(self, piece: bytes) -> None:
        """More of the body; what nobody will read is dropped."""
        if not self.complete:
            self._size += len(piece)
            self._pieces.append(piece)
            self._wake()

    def feed_end(self) -> None:
        """The body is whole."""
        self.whole = True
        self._wake()

    def give_up(self, trouble: GatewayError) -> None:
        """The rest of the body will not come, and so nothing after it."""
        self._trouble = trouble
        self.keep_alive = False
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Endpoint(Protocol):
    """Who answers the requests for one path; called by the router, or as `serve` without it."""

    async def serve(self, downstream: Downstream) -> None:
        """Answer one request."""
        ...


class Routed:
    """An endpoint as Starlette's router calls it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, _receive: object, _send: object) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            downstream: Downstream = scope["extensions"]["gateway.downstream"]
            downstream.params = scope.get("path_params", {})
            await self._endpoint.serve(downstream)


def too_large(limit: int) -> RequestTooLarge:
    """The error for a body beyond `server.max_body`."""
    return RequestTooLarge(f"The body is larger than {limit} bytes, the limit of `server.max_body`.")


def scope_of(request: Downstream) -> Scope:
    """What the router needs to know. Raises NotHttp for a target that is none."""
    try:
        url = httptools.parse_url(request.target)
        raw = url.path or b"/"
        request.path = unquote(raw.decode("ascii"))
    except (httptools.HttpParserError, UnicodeDecodeError) as error:
        raise NotHttp("The target of this request is not a URL.") from error
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.version,
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": raw,
        "query_string": url.query or b"",
        "root_path": "",
        "headers": list(request.headers.items()),
        "extensions": {"gateway.downstream": request},
    }


async def no_receive() -> Message:
    """What the router's endpoints receive from."""
    raise NotImplementedError("endpoints read from their Downstream")


async def no_send(_message: Message) -> None:
    """What they send to."""
    raise NotImplementedError("endpoints answer by their Downstream")
