"""Replies that are translated as they are read: time, ends and faults stay what they were."""

import pytest

from gateway.formats.foreign import Unreadable
from gateway.upstream.translated import MadeReply, TranslatedReply, error_reply
from gateway.upstream.wire import ProtocolError, ReadError, ReadTimeout
from tests.upstream.scripted import Script, ScriptedReply


class Lines:
    """A translation that tells whole lines, louder."""

    idle = b"..."

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        if data == b"broken":
            raise Unreadable("no frame")
        *lines, self._rest = (self._rest + data).split(b"\n")
        return b"".join(line.upper() + b"\n" for line in lines)

    def finish(self) -> bytes:
        return self._rest.upper() + b"END"


def translated(*pieces: bytes, ending: str = "whole", stream: bool = True) -> tuple[TranslatedReply, ScriptedReply]:
    headers = [(b"content-type", b"x/y"), (b"content-length", b"9"), (b"retry-after", b"7"), (b"set-cookie", b"c")]
    inner = ScriptedReply(Script(200, pieces, headers, ending))
    return TranslatedReply(inner, Lines(), stream=stream), inner


async def test_bytes_come_translated_and_the_end_comes_once() -> None:
    """What means nothing alone waits for its rest."""
    reply, inner = translated(b"a", b"b\nc", b"d")
    assert await reply.read(1.0) == b"AB\n"
    assert not reply.complete
    assert await reply.read(1.0) == b"CDEND"
    assert reply.complete
    assert await reply.read(1.0) == b""
    await reply.aclose()
    assert inner.closed


@pytest.mark.parametrize("stream", [True, False])
async def test_headers_are_those_that_are_still_true(stream: bool) -> None:
    """The type is ours; lengths and cookies are gone, waits stay."""
    reply, _ = translated(stream=stream)
    found = dict(reply.headers)
    assert found.keys() == {b"retry-after", b"content-type"}
    assert found[b"content-type"].startswith(b"text/event-stream" if stream else b"application/json")


async def test_a_silent_provider_is_silent() -> None:
    """Nothing at all came in the time given."""
    reply, _ = translated(ending="silent")
    with pytest.raises(ReadTimeout):
        await reply.read(0.02)


async def test_what_arrived_but_means_nothing_yet_is_life() -> None:
    """A provider that dribbles is not one that is silent; the next silence counts."""
    reply, inner = translated(ending="silent")
    real = inner.read

    async def dribbles(timeout: float) -> bytes:
        if inner.status == 200:
            inner.status = 0
            return b"a"
        return await real(timeout)

    inner.read = dribbles  # type: ignore[method-assign]
    with pytest.raises(ReadTimeout):
        await reply.read(0.02)


async def test_a_provider_that_goes_on_dribbling_is_shown_to_live() -> None:
    """Once the time is over, whoever reads gets bytes that mean nothing, and can look at the clock."""
    reply, inner = translated()

    async def dribbles(timeout: float) -> bytes:
        return b"a"

    inner.read = dribbles  # type: ignore[method-assign]
    assert await reply.read(0.02) == b"..."


async def test_a_cut_stays_a_cut_and_nonsense_is_a_fault_of_the_protocol() -> None:
    """Both are what whoever reads a wire expects."""
    reply, _ = translated(b"a", ending="cut")
    with pytest.raises(ReadError):
        await reply.read(1.0)
    reply, _ = translated(b"broken")
    with pytest.raises(ProtocolError, match="no frame"):
        await reply.read(1.0)


async def test_a_made_reply_is_read_once() -> None:
    """It holds nothing that would have to be closed."""
    reply = MadeReply(400, b"{}", ((b"retry-after", b"1"),))
    assert not reply.complete
    assert (await reply.read(1.0), await reply.read(1.0), reply.complete) == (b"{}", b"", True)
    assert dict(reply.headers) == {b"retry-after": b"1", b"content-type": b"application/json"}
    await reply.aclose()
    assert "400" in repr(reply)


async def test_an_error_is_read_whole_and_its_connection_given_back() -> None:
    """Its headers say when to come back."""
    inner = ScriptedReply(Script(429, [b'{"message":', b'"slow"}'], [(b"retry-after", b"7")]))
    reply = await error_reply(inner)
    assert (reply.status, inner.closed) == (429, True)
    assert b'"slow"' in await reply.read(1.0)
    assert (b"retry-after", b"7") in reply.headers
