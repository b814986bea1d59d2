"""One try at an OpenAI-compatible backend: bytes out, and an answer, the beginning of a stream, or a failure back."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import orjson

from gateway.formats.request import ANYTHING, EVENTS, Answer, Events, NotAnAnswer, Request
from gateway.policy.schema import Timeouts
from gateway.upstream.retry import Failure, Kind, classify
from gateway.upstream.wire import (
    ConnectError,
    ConnectTimeout,
    Header,
    ProtocolError,
    ReadTimeout,
    Reply,
    Wire,
    WireError,
)

MAX_BODY = 256 * 2**20
MAX_ERROR_BODY = 2**20
_RUSH = 0.05  # seconds: half of what closing the upstream may take after the client has left
ERROR_PATIENCE = 2.0  # seconds for the body of an error


class Failed(Exception):
    """A try that gave no answer."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


class Plain:
    """A whole answer."""

    __slots__ = ("answer", "headers", "status")

    def __init__(self, status: int, headers: Sequence[Header], answer: Answer) -> None:
        self.status = status
        self.headers = headers
        self.answer = answer


class Stream:
    """A stream whose first token has arrived. `head` are the bytes that the client may see already.

    `waited` adds up the seconds spent waiting for the backend. Times are of the loop's clock.
    """

    __slots__ = ("_clock", "_deadline", "_idle", "_reply", "events", "head", "headers", "status", "waited")

    def __init__(
        self, reply: Reply, events: Events, head: bytes, timeouts: Timeouts, clock: Callable[[], float]
    ) -> None:
        self._reply = reply
        self._clock = clock
        self._idle = timeouts.idle
        self._deadline = 0.0
        self.events = events
        self.head = head
        self.status = reply.status
        self.headers = reply.headers
        self.waited = 0.0

    def until(self, deadline: float) -> None:
        """Bound the whole stream."""
        self._deadline = deadline

    async def read(self) -> bytes:
        """The next bytes for the client; `b""` when the stream has ended, whole or not: `events.whole` tells.

        Raises Failed for a stream that was cut or fell silent.
        """
        events = self.events
        while not events.done and not events.broken and events.error is None:
            began = self._clock()
            try:
                data = await self._reply.read(max(0.001, min(self._idle, self._deadline - began)))
            except WireError as error:
                raise Failed(_failure(error, Kind.STALLED)) from error
            finally:
                self.waited += self._clock() - began
            if not data:
                return events.finish()
            out = events.feed(data)
            if out:
                return out
        return b""

    async def overtake(self) -> None:
        """Note what has arrived and was not read, before a stream is left: it was made, and may end with its usage."""
        events = self.events
        until = self._clock() + _RUSH
        while not events.done and not events.broken and events.error is None and self._clock() < until:
            try:
                data = await self._reply.read(0.001)
            except WireError:  # nothing more has arrived
                return
            if not data:
                events.finish()
                return
            events.feed(data)

    async def aclose(self) -> None:
        """Give the connection back or abort it. A stream that said `[DONE]` has but its closing chunk to send."""
        if self.events.done:
            with suppress(WireError):  # the answer is whole; only the connection would be lost
                await self._reply.read(0.05)
        await self._reply.aclose()


async def send(
    wire: Wire,
    target: bytes,
    headers: Sequence[Header],
    body: bytes,
    *,
    request: Request,
    provider: str,
    events: Events | None,
    timeouts: Timeouts,
    clock: Callable[[], float],
    epoch: Callable[[], float],
) -> Plain | Stream:
    """Send a request and wait for its answer or, with `events`, for the first token of its stream. Raises Failed."""
    began = clock()
    first = min(timeouts.first_token, timeouts.total)
    accept = ANYTHING if events is None else request.accept
    try:
        reply = await wire.send(
            b"POST",
            target,
            (*headers, (b"content-type", request.content_type), (b"accept", accept), (b"accept-encoding", b"identity")),
            body,
            connect_timeout=timeouts.connect,
            timeout=first,
        )
    except WireError as error:
        raise Failed(_failure(error, Kind.SILENT)) from error
    keep = False
    try:
        if reply.status >= 300:
            raise Failed(await _refusal(reply, epoch(), clock))
        if events is not None and (accept == EVENTS or not _came_whole(reply)):
            opened = await _open(reply, events, timeouts, began + first, clock)
            opened.until(began + timeouts.total)
            keep = True
            return opened
        return await _whole(reply, request, provider, timeouts, began, clock)
    except WireError as error:
        raise Failed(_failure(error, Kind.SILENT)) from error
    finally:
        if not keep:
            await reply.aclose()


async def _whole(
    reply: Reply, request: Request, provider: str, timeouts: Timeouts, began: float, clock: Callable[[], float]
) -> Plain:
    first = min(timeouts.first_token, timeouts.total)
    body = await reply.read(max(0.001, began + first - clock()))
    more = body
    pieces = [body]
    size = len(body)
    while more and not reply.complete:
        more = await reply.read(max(0.001, min(timeouts.idle, began + timeouts.total - clock())))
        pieces.append(more)
        size += len(more)
        if size > MAX_BODY:
            raise Failed(Failure(Kind.INVALID, f"an answer of more than {MAX_BODY} bytes"))
    body = b"".join(pieces)
    try:
        return Plain(reply.status, reply.headers, request.read(body, _content_type(reply), provider))
    except NotAnAnswer as error:
        if error.error is not None:
            raise Failed(failure_of_error(error.error)) from error
        raise Failed(Failure(Kind.INVALID, str(error), status=reply.status)) from error


async def _open(
    reply: Reply, events: Events, timeouts: Timeouts, deadline: float, clock: Callable[[], float]
) -> Stream:
    kind = _content_type(reply)
    if b"json" in kind or b"html" in kind:
        raise Failed(Failure(Kind.INVALID, "a stream was asked for, and JSON or HTML came", status=reply.status))
    head: list[bytes] = []
    while not events.started and events.error is None:
        data = await reply.read(max(0.001, deadline - clock()))
        if not data:
            head.append(events.finish())
            break
        head.append(events.feed(data))
        if events.done or events.broken:
            break
    if events.error is not None:
        raise Failed(failure_of_error(events.error))
    if not events.started and not events.whole:
        raise Failed(Failure(Kind.CUT, "a stream that ended before its first token", status=reply.status))
    return Stream(reply, events, b"".join(head), timeouts, clock)


def _came_whole(reply: Reply) -> bool:
    """Whether a backend that may answer either way has answered with a document."""
    kind = _content_type(reply)
    return b"json" in kind or (kind.startswith(b"text/") and not kind.startswith(EVENTS))


def _content_type(reply: Reply) -> bytes:
    return next((value for name, value in reply.headers if name == b"content-type"), b"")


async def _refusal(reply: Reply, now: float, clock: Callable[[], float]) -> Failure:
    """What an error status means. Its body may say more, and is not waited for long: the status has said enough."""
    deadline = clock() + ERROR_PATIENCE
    pieces = []
    size = 0
    with suppress(WireError):
        while size < MAX_ERROR_BODY and (left := deadline - clock()) > 0:
            data = await reply.read(left)
            if not data:
                break
            pieces.append(data)
            size += len(data)
    return classify(reply.status, reply.headers, b"".join(pieces), now)


def failure_of_error(doc: Any) -> Failure:
    """What an error that came with status 200, or inside a stream, means: its own status if it names one, else 500."""
    error = doc.get("error")
    fields = error if isinstance(error, dict) else doc
    code = next((value for name in ("status", "code") if type(value := fields.get(name)) is int), 500)
    failure = classify(code if 400 <= code < 600 else 500, (), orjson.dumps(doc), 0.0)
    if failure.passes_through and not isinstance(error, dict):
        message = str(fields.get("message") or error or "the backend refused the request")
        body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
        return Failure(failure.kind, failure.detail, status=failure.status, body=orjson.dumps(body))
    return failure


def _failure(error: WireError, silent: Kind) -> Failure:
    if isinstance(error, ConnectTimeout):
        kind = Kind.SILENT
    elif isinstance(error, ConnectError):
        kind = Kind.REFUSED
    elif isinstance(error, ReadTimeout):
        kind = silent
    elif isinstance(error, ProtocolError):
        kind = Kind.INVALID
    else:
        kind = Kind.CUT
    return Failure(kind, f"{type(error).__name__}: {error}")
