"""How every wire reports what goes wrong: each fault as one kind of WireError, and the connection closed."""

import asyncio

import pytest

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
from tests.upstream.certificates import Authority
from tests.upstream.exchanges import HEAD_OK, OK, SHORT, Open, answer_ok, send, whole, wired
from tests.upstream.loopback import PATIENCE, Peer, upstream


@pytest.mark.parametrize("ending", ["close", "reset"])
async def test_a_stale_kept_connection_is_replaced_unseen(open_one: Open, ending: str) -> None:
    """An upstream that closes a kept connection as the next request arrives costs the caller nothing, even on POST."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.request()
        if peer.number == 0:
            if ending == "reset":
                peer.writer.transport.abort()
            return
        await peer.say(OK)

    async with wired(open_one, script) as (wire, seen):
        assert await whole(await send(wire, body=b"1")) == b"ok"
        assert await whole(await send(wire, body=b"2")) == b"ok"
        assert [body for _, body in seen.requests] == [b"1", b"2", b"2"]
        assert wire.active == 0


async def test_a_fresh_connection_is_not_retried(open_one: Open) -> None:
    """An upstream that closes every connection without a word is asked at most twice, and the error is ReadError."""

    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 0:
            await peer.say(OK)
            await peer.request()

    async with wired(open_one, script) as (wire, seen):
        assert await whole(await send(wire)) == b"ok"
        with pytest.raises(ReadError):
            await send(wire)
        assert [len(peer.requests) for peer in seen.peers] == [2, 1]
        with pytest.raises(ReadError):
            await send(wire)
        assert len(seen.peers) == 3
        assert (wire.idle, wire.active) == (0, 0)


async def test_a_connection_closed_while_idle_is_not_used(open_one: Open) -> None:
    """A kept connection that the upstream closed long ago does not disturb the next request."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)

    async with wired(open_one, script) as (wire, seen):
        assert await whole(await send(wire)) == b"ok"
        await asyncio.wait_for(seen.peers[0].gone.wait(), PATIENCE)
        assert await whole(await send(wire)) == b"ok"
        assert len(seen.requests) == 2


async def test_a_refused_connection_is_a_connect_error(open_one: Open) -> None:
    """A port where nobody listens gives ConnectError, which is no timeout."""
    async with upstream(answer_ok) as seen:
        port = seen.port
    wire = open_one(Origin("http", "127.0.0.1", port), Bounds())
    with pytest.raises(ConnectError) as caught:
        await send(wire)
    assert not isinstance(caught.value, ConnectTimeout)
    assert str(port) in str(caught.value)
    assert wire.active == 0


async def test_a_handshake_that_does_not_end_is_a_connect_timeout(open_one: Open, authority: Authority) -> None:
    """The time limit for connecting holds for the TLS handshake too, and the socket is closed when it runs out."""
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.left()
        left.set()

    async with upstream(script) as seen:
        wire = open_one(Origin("https", "127.0.0.1", seen.port, ca_file=str(authority.file)), Bounds())
        with pytest.raises(ConnectTimeout):
            await wire.send(b"GET", b"/", (), b"", connect_timeout=SHORT, timeout=PATIENCE)
        await asyncio.wait_for(left.wait(), PATIENCE)
        assert wire.active == 0


async def test_silence_before_the_head_is_a_read_timeout(open_one: Open) -> None:
    """No head within `timeout` gives ReadTimeout, and the upstream sees the connection closed."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nx-one: ")
        await peer.left()

    async with wired(open_one, script) as (wire, seen):
        with pytest.raises(ReadTimeout):
            await send(wire, timeout=SHORT)
        await asyncio.wait_for(seen.peers[0].gone.wait(), PATIENCE)
        assert (wire.idle, wire.active) == (0, 0)


async def test_silence_in_the_body_is_a_read_timeout(open_one: Open) -> None:
    """What had arrived is delivered first; then ReadTimeout."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(HEAD_OK + b"content-length: 10\r\n\r\nhello")
        await peer.left()

    async with wired(open_one, script) as (wire, seen):
        reply = await send(wire)
        assert await reply.read(PATIENCE) == b"hello"
        with pytest.raises(ReadTimeout):
            await reply.read(SHORT)
        await reply.aclose()
        await asyncio.wait_for(seen.peers[0].gone.wait(), PATIENCE)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\ncontent-le"], ids=["nothing", "half a head"])
async def test_a_cut_before_the_head_is_a_read_error(open_one: Open, sent: bytes) -> None:
    """A connection closed before the head is whole gives ReadError."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(sent)

    async with wired(open_one, script) as (wire, _):
        with pytest.raises(ReadError):
            await send(wire)


@pytest.mark.parametrize("ending", ["close", "reset"])
@pytest.mark.parametrize(
    "framing", [b"content-length: 10\r\n\r\nhello", b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"]
)
async def test_a_cut_in_the_body_is_a_read_error(open_one: Open, framing: bytes, ending: str) -> None:
    """What had arrived is delivered first; then ReadError, and never the end of a message."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(HEAD_OK + framing)
        await cut.wait()
        if ending == "reset":
            peer.writer.transport.abort()

    cut = asyncio.Event()
    async with wired(open_one, script) as (wire, _):
        reply = await send(wire)
        assert await reply.read(PATIENCE) == b"hello"
        cut.set()
        with pytest.raises(ReadError):
            await reply.read(PATIENCE)
        assert not reply.complete
        await reply.aclose()
        assert (wire.idle, wire.active) == (0, 0)


MALFORMED = {
    "not http": b"SSH-2.0-OpenSSH\r\n\r\n",
    "no status": b"HTTP/1.1 abc\r\n\r\n",
    "length and chunked": HEAD_OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
    "two lengths": HEAD_OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nabc",
    "negative length": HEAD_OK + b"content-length: -2\r\n\r\nab",
    "space before the colon": HEAD_OK + b"x-one : a\r\ncontent-length: 0\r\n\r\n",
    "a coding we cannot undo": HEAD_OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a large head": HEAD_OK + b"x-large: " + b"a" * 200_000 + b"\r\ncontent-length: 0\r\n\r\n",
    "many headers": HEAD_OK + b"x-one: abcdefgh\r\n" * 9_000 + b"content-length: 0\r\n\r\n",
    "an endless head": HEAD_OK + b"x-large: " + b"a" * 2_000_000,
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_head_is_a_protocol_error(open_one: Open, name: str) -> None:
    """What is not HTTP/1.1, is framed ambiguously or breaks the bound is an error, never a guess."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(MALFORMED[name])
        await peer.left()

    async with wired(open_one, script) as (wire, seen):
        with pytest.raises(ProtocolError):
            await send(wire)
        await asyncio.wait_for(seen.peers[0].gone.wait(), PATIENCE)
        assert (wire.idle, wire.active) == (0, 0)


async def test_a_malformed_chunk_is_a_protocol_error(open_one: Open) -> None:
    """A chunk whose size is no number ends the body with ProtocolError, after what came before it."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(HEAD_OK + b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n")
        await more.wait()
        await peer.say(b"zz\r\n")
        await peer.left()

    more = asyncio.Event()
    async with wired(open_one, script) as (wire, _):
        reply = await send(wire)
        assert await reply.read(PATIENCE) == b"ab"
        more.set()
        with pytest.raises(ProtocolError):
            await reply.read(PATIENCE)
        await reply.aclose()


@pytest.mark.parametrize(
    ("target", "header"),
    [
        (b"/", (b"x-one", b"a\r\nx-two: b")),
        (b"/", (b"x-one", b"a\nb")),
        (b"/", (b"x-one", b"a\rb")),
        (b"/", (b"x-one", b"a\0b")),
        (b"/", (b"x\r\n-one", b"a")),
        (b"/ HTTP/1.1\r\nx: y\r\n", (b"x-one", b"a")),
        (b"/a b", (b"x-one", b"a")),
        (b"/", (b"Content-Length", b"3")),
        (b"/", (b"transfer-encoding", b"chunked")),
        (b"/", (b"host", b"elsewhere")),
    ],
)
async def test_a_request_that_could_be_taken_for_another_is_refused(
    open_one: Open, target: bytes, header: Header
) -> None:
    """Line ends in a header or target, and headers that are the wire's own, are refused before anything is sent."""
    async with wired(open_one, answer_ok) as (wire, seen):
        with pytest.raises(ProtocolError):
            await send(wire, target=target, headers=[header])
        assert seen.peers == []
        assert wire.active == 0


async def test_cancelling_a_send_closes_the_connection(open_one: Open) -> None:
    """A caller that leaves while waiting for the head is seen by the upstream."""
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.left()

    async with wired(open_one, script) as (wire, seen):
        sending = asyncio.create_task(send(wire))
        await asyncio.wait_for(asked.wait(), PATIENCE)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await asyncio.wait_for(seen.peers[0].gone.wait(), PATIENCE)
        assert (wire.idle, wire.active) == (0, 0)


async def test_cancelling_a_send_in_the_handshake_closes_the_connection(open_one: Open, authority: Authority) -> None:
    """A caller that leaves while connecting is seen by the upstream."""
    greeted = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.reader.read(10)
        greeted.set()
        await peer.left()

    async with upstream(script) as seen:
        wire = open_one(Origin("https", "127.0.0.1", seen.port, ca_file=str(authority.file)), Bounds())
        sending = asyncio.create_task(send(wire))
        await asyncio.wait_for(greeted.wait(), PATIENCE)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await asyncio.wait_for(seen.peers[0].gone.wait(), PATIENCE)
        assert wire.active == 0


async def test_closing_a_reply_early_closes_the_connection(open_one: Open) -> None:
    """A body that is not read to its end is not drained: its connection is closed; and closing twice is harmless."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(HEAD_OK + b"content-length: 100\r\n\r\nhello")
        await peer.left()

    async with wired(open_one, script) as (wire, seen):
        reply = await send(wire)
        await reply.read(PATIENCE)
        await reply.aclose()
        await reply.aclose()
        assert (wire.idle, wire.active) == (0, 0)
        await asyncio.wait_for(seen.peers[0].gone.wait(), PATIENCE)
        with pytest.raises(ReadError):
            await reply.read(PATIENCE)


async def test_errors_hold_no_content_and_no_header(open_one: Open) -> None:
    """A failed exchange's message names the origin, and nothing of what was sent or received."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nx secret-answer\r\n\r\nsecret-answer")
        await peer.left()

    async with wired(open_one, script) as (wire, seen):
        with pytest.raises(WireError) as caught:
            await send(wire, headers=[(b"authorization", b"Bearer secret-key")], body=b"secret-prompt")
        assert "secret" not in str(caught.value)
        assert str(seen.port) in str(caught.value)


@pytest.mark.parametrize("case", ["unknown authority", "wrong name", "no such file"])
async def test_tls_that_cannot_be_verified_is_a_connect_error(
    open_one: Open, authority: Authority, case: str, recwarn: pytest.WarningsRecorder
) -> None:
    """An unknown authority, a certificate for another name, or an unreadable `ca_file`: nothing is sent."""
    ca_file = {"unknown authority": None, "wrong name": str(authority.file), "no such file": "/no/such/file"}[case]
    name = "elsewhere.test" if case == "wrong name" else "127.0.0.1"
    async with upstream(answer_ok, authority.server_context(name)) as seen:
        wire = open_one(Origin("https", "127.0.0.1", seen.port, ca_file=ca_file), Bounds())
        with pytest.raises(ConnectError):
            await send(wire)
        assert seen.requests == []
        assert wire.active == 0
