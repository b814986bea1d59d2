"""Replies whose bytes are not those that came: made here, or translated as they are read."""

import asyncio
from collections.abc import Sequence

from gateway.formats.foreign import Translation, Unreadable
from gateway.formats.foreign_error import openai_error
from gateway.upstream.wire import Header, ProtocolError, Reply, WireError

_JSON = (b"content-type", b"application/json")
_SSE = (b"content-type", b"text/event-stream; charset=utf-8")
# What belongs to the provider's own bytes, and what is nobody else's business.
_NOT_KEPT = frozenset((b"content-type", b"content-length", b"content-encoding", b"transfer-encoding", b"set-cookie"))
_MAX_ERROR = 2**20
ERROR_TIME = 5.0  # seconds for the body of an error


def kept(headers: Sequence[Header]) -> list[Header]:
    """The headers that are still true of a translated body: `retry-after`, rate limits, request ids."""
    return [pair for pair in headers if pair[0] not in _NOT_KEPT]


class MadeReply:
    """A reply that needs no provider any more."""

    __slots__ = ("_body", "headers", "status")

    def __init__(self, status: int, body: bytes, headers: Sequence[Header] = ()) -> None:
        self.status = status
        self.headers: Sequence[Header] = (*headers, _JSON)
        self._body = body

    def __repr__(self) -> str:
        return f"<MadeReply {self.status}>"

    @property
    def complete(self) -> bool:
        """See `gateway.upstream.wire.Reply.complete`."""
        return not self._body

    async def read(self, timeout: float) -> bytes:
        """See `gateway.upstream.wire.Reply.read`."""
        body, self._body = self._body, b""
        return body

    async def aclose(self) -> None:
        """Nothing is held."""


class TranslatedReply:
    """A good answer of a provider, read as an OpenAI-compatible server's."""

    __slots__ = ("_ended", "_inner", "_translation", "headers", "status")

    def __init__(self, inner: Reply, translation: Translation, *, stream: bool) -> None:
        self._inner = inner
        self._translation = translation
        self._ended = False
        self.status = 200
        self.headers: Sequence[Header] = (*kept(inner.headers), _SSE if stream else _JSON)

    def __repr__(self) -> str:
        return f"<TranslatedReply of {self._inner!r}>"

    @property
    def complete(self) -> bool:
        """See `gateway.upstream.wire.Reply.complete`."""
        return self._ended

    async def read(self, timeout: float) -> bytes:
        """See `gateway.upstream.wire.Reply.read`. What came and means nothing yet counts as life, not as silence."""
        if self._ended:
            return b""
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        alive = False
        try:
            while True:
                left = deadline - clock()
                if alive and left <= 0:
                    return self._translation.idle
                data = await self._inner.read(max(0.001, left))
                if not data:
                    self._ended = True
                    return self._translation.finish()
                out = self._translation.feed(data)
                if out:
                    return out
                alive = True
        except Unreadable as error:
            raise ProtocolError(str(error)) from None

    async def aclose(self) -> None:
        """See `gateway.upstream.wire.Reply.aclose`."""
        await self._inner.aclose()


async def error_reply(inner: Reply) -> MadeReply:
    """A provider's refusal as OpenAI's. A body that does not come leaves the status to speak for itself."""
    pieces: list[bytes] = []
    size = 0
    try:
        while size < _MAX_ERROR and (data := await inner.read(ERROR_TIME)):
            pieces.append(data)
            size += len(data)
    except WireError:
        pieces.clear()
    finally:
        await inner.aclose()
    status, body = openai_error(inner.status, inner.headers, b"".join(pieces))
    return MadeReply(status, body, kept(inner.headers))
