"""What every wire does, whichever implementation it has, on real sockets."""

import asyncio
import gzip
from collections.abc import AsyncIterator

import pytest

from gateway.upstream.direct import DirectWire, open_wire
from gateway.upstream.over_httpx import HttpxWire
from gateway.upstream.wire import Bounds, Origin
from tests.upstream.certificates import Authority
from tests.upstream.exchanges import HEAD_OK, OK, Open, answer_ok, read_all, send, whole, wired
from tests.upstream.loopback import PATIENCE, Peer, upstream


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


async def test_an_expired_connection_is_not_used(open_one: Open) -> None:
    """A connection idle for longer than `idle_expiry` is closed instead of used."""
    async with wired(open_one, answer_ok, Bounds(idle_expiry=0.05)) as (wire, seen):
        assert await whole(await send(wire)) == b"ok"
        await asyncio.sleep(0.2)
        assert await whole(await send(wire)) == b"ok"
        assert len(seen.peers) == 2


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
    """With the right `ca_file` and name the request goes through, on a kept connection too.

    The authority has no key usage, and its certificates no key identifier: Python 3.13 refuses such by default.
    """
    async with upstream(answer_ok, authority.server_context("127.0.0.1")) as seen:
        wire = open_one(Origin("https", "127.0.0.1", seen.port, ca_file=str(authority.file)), Bounds())
        assert await whole(await send(wire)) == b"ok"
        assert await whole(await send(wire, body=b"x" * 300_000)) == b"ok"
        assert len(seen.peers) == 1
        await wire.aclose()


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
