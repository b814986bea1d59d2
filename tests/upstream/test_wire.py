"""What every wire does, whichever implementation it has, on real sockets."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from gateway.upstream.direct import DirectReply, DirectWire, open_wire
from gateway.upstream.over_httpx import HttpxReply, HttpxWire
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
from tests.upstream.loopback import PATIENCE, Peer, Script, Upstream, upstream

AnyWire = DirectWire | HttpxWire
AnyReply = DirectReply | HttpxReply
Open = Callable[[Origin, Bounds], AnyWire]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
HEAD_OK = b"HTTP/1.1 200 OK\r\n"
SHORT = 0.2  # seconds: a time limit that is meant to run out


@pytest.fixture(params=[DirectWire, HttpxWire], ids=["direct", "httpx"])
def open_one(request: pytest.FixtureRequest) -> Open:
    """Every promise holds for both implementations."""
    chosen: Open = request.param
    return chosen


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority made for this module."""
    return Authority(tmp_path_factory.mktemp("authority"))


@asynccontextmanager
async def wired(
    open_one: Open, script: Script, bounds: Bounds | None = None
) -> AsyncIterator[tuple[AnyWire, Upstream]]:
    async with upstream(script) as seen:
        wire = open_one(Origin("http", "127.0.0.1", seen.port), bounds or Bounds())
        try:
            yield wire, seen
        finally:
            await wire.aclose()


async def send(
    wire: AnyWire,
    method: bytes = b"POST",
    target: bytes = b"/v1/chat",
    headers: Sequence[Header] = (),
    body: bytes | AsyncIterator[bytes] = b"{}",
    timeout: float = PATIENCE,
) -> AnyReply:
    return await wire.send(method, target, headers, body, connect_timeout=PATIENCE, timeout=timeout)


async def read_all(reply: AnyReply, timeout: float = PATIENCE) -> bytes:
    parts = []
    while part := await reply.read(timeout):
        parts.append(part)
    return b"".join(parts)


async def whole(reply: AnyReply) -> bytes:
    try:
        return await read_all(reply)
    finally:
        await reply.aclose()


async def answer_ok(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.say(OK)


async def test_a_request_arrives_as_it_was_given_and_its_answer_comes_back(open_one: Open) -> None:
    """Method, target with query, headers and body go out; status, lower-case header names and body come in."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\nX-Kind: A b\r\n\r\nhello")

    async with wired(open_one, script) as (wire, seen):
        reply = await send(wire, b"PUT", b"/a/b?c=%20d&e", [(b"x-one", b"1"), (b"x-two", b"2, 3")], b"payload")
        assert reply.status == 201
        assert list(reply.headers) == [(b"content-length", b"5"), (b"x-kind", b"A b")]
        assert await whole(reply) == b"hello"
        head, body = seen.requests[0]
        lines = head.decode().rstrip().split("\r\n")
        assert lines[0] == "PUT /a/b?c=%20d&e HTTP/1.1"
        assert {line.lower() for line in lines[1:]} == {
            f"host: 127.0.0.1:{seen.port}",
            "x-one: 1",
            "x-two: 2, 3",
            "content-length: 7",
        }
        assert body == b"payload"


@pytest.mark.parametrize(("method", "lengths"), [(b"POST", 1), (b"GET", 0)])
async def test_an_empty_body_has_a_length_only_where_a_body_is_usual(
    open_one: Open, method: bytes, lengths: int
) -> None:
    """POST says `content-length: 0`, GET says nothing."""
    async with wired(open_one, answer_ok) as (wire, seen):
        assert await whole(await send(wire, method, body=b"")) == b"ok"
        assert seen.requests[0][0].lower().count(b"content-length: 0") == lengths


async def test_an_iterable_body_is_sent_in_chunks(open_one: Open) -> None:
    """An upload of unknown length arrives whole, empty pieces included without ending it."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"a" * 10, b"", b"b" * 100_000, b"c"):
            yield piece

    async with wired(open_one, answer_ok) as (wire, seen):
        assert await whole(await send(wire, body=pieces())) == b"ok"
        assert seen.requests[0][1] == b"a" * 10 + b"b" * 100_000 + b"c"
        assert b"transfer-encoding: chunked" in seen.requests[0][0].lower()


async def test_a_large_body_arrives_whole(open_one: Open) -> None:
    """A body much larger than the socket's buffers is sent under back-pressure, and the connection is kept."""
    body = bytes(range(256)) * 16_384
    async with wired(open_one, answer_ok) as (wire, seen):
        assert await whole(await send(wire, body=body)) == b"ok"
        assert seen.requests[0][1] == body
        assert (wire.idle, wire.active) == (1, 0)


async def test_an_upload_waits_for_an_upstream_that_does_not_read(open_one: Open) -> None:
    """An iterable body is asked for no more than the buffers hold while the upstream is not reading."""
    asked = 0
    read_on = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal asked
        for _ in range(1000):
            asked += 1
            yield b"x" * 65_536

    async def script(peer: Peer) -> None:
        await peer.head()
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await read_on.wait()

    async with wired(open_one, script) as (wire, _):
        sending = asyncio.create_task(send(wire, body=pieces(), timeout=PATIENCE))
        before = -1
        while before != asked or asked == 0:
            before = asked
            await asyncio.sleep(0.2)
        assert asked < 500
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending


FRAMINGS = {
    "length": (b"POST", HEAD_OK + b"Content-Length: 5\r\n\r\nhello", b"hello", True),
    "empty": (b"POST", HEAD_OK + b"Content-Length: 0\r\n\r\n", b"", True),
    "chunked": (
        b"POST",
        HEAD_OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
        b"hello",
        True,
    ),
    "trailers": (
        b"POST",
        HEAD_OK + b"Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
        b"hello",
        True,
    ),
    "until close": (b"POST", HEAD_OK + b"\r\nhello", b"hello", False),
    "http/1.0": (b"POST", b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello", False),
    "connection close": (b"POST", HEAD_OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
    "204": (b"POST", b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "304": (b"GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", b"", True),
    "head": (b"HEAD", HEAD_OK + b"Connection: close\r\nContent-Length: 5\r\n\r\n", b"", False),
    "interim": (
        b"POST",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
        + HEAD_OK
        + b"Content-Length: 5\r\n\r\nhello",
        b"hello",
        True,
    ),
}


@pytest.mark.parametrize("name", FRAMINGS)
async def test_a_body_ends_where_its_framing_says(open_one: Open, name: str) -> None:
    """Every framing of a response gives exactly its body, and a connection that can be used again is."""
    method, response, expected, kept = FRAMINGS[name]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(response)
        if not kept:
            return
        await peer.request()
        await peer.say(OK)
        await peer.left()

    async with wired(open_one, script) as (wire, seen):
        reply = await send(wire, method, body=b"" if method != b"POST" else b"{}")
        assert reply.status in (200, 204, 304)
        assert (b"link", b"</a>") not in reply.headers
        assert await whole(reply) == expected
        assert (wire.active, wire.idle) == (0, int(kept))
        if kept:
            assert await whole(await send(wire)) == b"ok"
            assert len(seen.peers) == 1


async def test_a_content_encoding_passes_untouched(open_one: Open) -> None:
    """Compressed bytes come out compressed, with their header."""
    packed = gzip.compress(b"hello" * 100)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(HEAD_OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed) + packed)

    async with wired(open_one, script) as (wire, _):
        reply = await send(wire)
        assert (b"content-encoding", b"gzip") in reply.headers
        assert await whole(reply) == packed


async def test_a_kept_connection_serves_the_next_request(open_one: Open) -> None:
    """Requests in turn share one connection; the counts tell what is idle and what is active."""
    async with wired(open_one, answer_ok) as (wire, seen):
        for _ in range(3):
            reply = await send(wire)
            assert (wire.idle, wire.active) == (0, 1)
            assert await whole(reply) == b"ok"
            assert (wire.idle, wire.active) == (1, 0)
        assert len(seen.peers) == 1


async def test_no_more_connections_are_kept_than_the_bound_allows(open_one: Open) -> None:
    """After many requests at once, only `max_idle` connections stay open."""
    async with wired(open_one, answer_ok, Bounds(max_idle=2)) as (wire, seen):
        replies = await asyncio.gather(*(send(wire) for _ in range(6)))
        assert wire.active == 6
        assert await asyncio.gather(*(whole(reply) for reply in replies)) == [b"ok"] * 6
        assert (wire.idle, wire.active, len(seen.peers)) == (2, 0, 6)


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


async def test_an_expired_connection_is_not_used(open_one: Open) -> None:
    """A connection idle for longer than `idle_expiry` is closed instead of used."""
    async with wired(open_one, answer_ok, Bounds(idle_expiry=0.05)) as (wire, seen):
        assert await whole(await send(wire)) == b"ok"
        await asyncio.sleep(0.2)
        assert await whole(await send(wire)) == b"ok"
        assert len(seen.peers) == 2


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


async def test_a_body_that_fails_fails_the_request(open_one: Open) -> None:
    """An error of the upload's own source reaches the caller, and the upstream sees no whole request."""

    class Left(Exception):
        pass

    async def failing() -> AsyncIterator[bytes]:
        yield b"a"
        raise Left

    async with wired(open_one, answer_ok) as (wire, seen):
        with pytest.raises(Left):
            await send(wire, body=failing())
        await asyncio.wait_for(seen.peers[0].gone.wait(), PATIENCE)
        assert seen.requests == []
        assert wire.active == 0


async def test_a_slow_reader_holds_the_upstream_back(open_one: Open) -> None:
    """Unread body is bounded: the upstream cannot send much more than was read; and all of it arrives in the end."""
    total = 50_000_000
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.say(HEAD_OK + b"content-length: %d\r\n\r\n" % total)
        while sent < total:
            await peer.say(b"x" * 100_000)
            sent += 100_000
        await peer.left()

    async with wired(open_one, script) as (wire, _):
        reply = await send(wire)
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 20_000_000  # the kernel's buffers, ours, and the server's
        assert len(await read_all(reply)) == total
        await reply.aclose()


async def test_closing_a_wire_closes_what_is_idle_and_lets_the_rest_end(open_one: Open) -> None:
    """After `aclose` idle connections are gone, a running reply ends whole, and nothing is kept any more."""
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        head, _ = await peer.request()
        if b"/slow" in head:
            await peer.say(HEAD_OK + b"content-length: 10\r\n\r\nhello")
            await go_on.wait()
            await peer.say(b"world")
        else:
            await peer.say(OK)
        await peer.left()

    async with wired(open_one, script) as (wire, seen):
        slow = await send(wire, target=b"/slow")
        assert await whole(await send(wire)) == b"ok"
        await wire.aclose()
        await asyncio.wait_for(seen.peers[1].gone.wait(), PATIENCE)
        assert (wire.idle, wire.active) == (0, 1)
        go_on.set()
        assert await whole(slow) == b"helloworld"
        await asyncio.wait_for(seen.peers[0].gone.wait(), PATIENCE)
        assert await whole(await send(wire)) == b"ok"
        assert (wire.idle, wire.active) == (0, 0)


async def test_tls_is_verified_against_the_given_authority(open_one: Open, authority: Authority) -> None:
    """With the right `ca_file` and name the request goes through, on a kept connection too."""
    async with upstream(answer_ok, authority.server_context("127.0.0.1")) as seen:
        wire = open_one(Origin("https", "127.0.0.1", seen.port, ca_file=str(authority.file)), Bounds())
        assert await whole(await send(wire)) == b"ok"
        assert await whole(await send(wire, body=b"x" * 300_000)) == b"ok"
        assert len(seen.peers) == 1
        await wire.aclose()


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


async def test_what_they_show_tells_where_they_stand(open_one: Open) -> None:
    """A wire and a reply name their state in their repr."""
    async with wired(open_one, answer_ok) as (wire, seen):
        assert f"http://127.0.0.1:{seen.port}, 0 active, 0 idle>" in repr(wire)
        reply = await send(wire)
        assert "200" in repr(reply)
        await whole(reply)
        assert "0 active, 1 idle>" in repr(wire)
        await wire.aclose()
        assert "0 active, 0 idle, closed>" in repr(wire)


@pytest.mark.parametrize(
    ("origin", "kind"),
    [
        (Origin("http", "127.0.0.1", 1), DirectWire),
        (Origin("https", "127.0.0.1", 1, http2=True), HttpxWire),
        (Origin("http", "127.0.0.1", 1, proxy="http://127.0.0.1:2"), HttpxWire),
    ],
)
def test_httpx_is_chosen_only_for_what_the_direct_wire_does_not_do(origin: Origin, kind: type) -> None:
    """A proxy or HTTP/2 goes over httpx, all else is direct."""
    assert type(open_wire(origin)) is kind
