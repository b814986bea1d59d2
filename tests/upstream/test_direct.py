"""What only the direct wire promises: its pool, early answers to uploads, and bounded memory, on both event loops."""

import asyncio
import gc
import socket
import threading
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from gateway.upstream.direct import DirectReply, DirectWire
from gateway.upstream.wire import Bounds, ConnectError, Origin, ProtocolError, ReadError, ReadTimeout
from tests.upstream.loopback import PATIENCE, Peer, Script, Upstream, upstream

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@asynccontextmanager
async def wired(script: Script, bounds: Bounds | None = None) -> AsyncIterator[tuple[DirectWire, Upstream]]:
    async with upstream(script) as seen:
        wire = DirectWire(Origin("http", "127.0.0.1", seen.port), bounds)
        try:
            yield wire, seen
        finally:
            await wire.aclose()


async def send(wire: DirectWire, body: bytes | AsyncIterator[bytes] = b"{}", method: bytes = b"POST") -> DirectReply:
    return await wire.send(method, b"/", (), body, connect_timeout=PATIENCE, timeout=PATIENCE)


async def whole(reply: DirectReply) -> bytes:
    try:
        data = b""
        while part := await reply.read(PATIENCE):
            data += part
        return data
    finally:
        await reply.aclose()


async def answer_ok(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.say(OK)


async def test_the_connection_used_last_is_used_next() -> None:
    """The pool is a stack, so what is not needed under light load grows old and expires."""
    async with wired(answer_ok) as (wire, seen):
        replies = [await send(wire) for _ in range(3)]
        for reply in replies:
            await whole(reply)
        for _ in range(4):
            await whole(await send(wire))
        assert [len(peer.requests) for peer in seen.peers] == [1, 1, 5]


async def test_an_upstream_that_closes_while_idle_is_noticed_at_once() -> None:
    """A closed kept connection leaves the pool without waiting for a request to find out."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)

    async with wired(script) as (wire, _):
        await whole(await send(wire))
        async with asyncio.timeout(PATIENCE):
            while wire.idle:
                await asyncio.sleep(0.001)


async def test_an_idle_connection_is_closed_when_its_time_is_over() -> None:
    """The upstream sees an idle connection closed, though no further request comes."""
    async with wired(answer_ok, Bounds(idle_expiry=0.05)) as (wire, seen):
        await whole(await send(wire))
        assert wire.idle == 1
        await asyncio.wait_for(seen.peers[0].gone.wait(), PATIENCE)
        assert wire.idle == 0


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", b"x", b"HTTP/1.1 2"])
async def test_bytes_after_a_response_never_become_the_next_answer(more: bytes) -> None:
    """An upstream that says more than it was asked has its connection closed; the next request goes on a fresh one."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK + more if peer.number == 0 else OK)
        await peer.left()

    async with wired(script) as (wire, seen):
        assert await whole(await send(wire)) == b"ok"
        assert wire.idle == 0
        assert await whole(await send(wire)) == b"ok"
        assert len(seen.peers) == 2


async def test_a_response_that_has_begun_is_not_retried() -> None:
    """A kept connection that is cut after the first byte of the response gives ReadError: the request may have run."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.request()
        await peer.say(b"HTTP/1.1 2")

    async with wired(script) as (wire, seen):
        await whole(await send(wire))
        with pytest.raises(ReadError):
            await send(wire)
        assert len(seen.peers) == 1
        assert (wire.idle, wire.active) == (0, 0)


async def test_a_kept_connection_that_is_silent_is_not_retried() -> None:
    """Silence is no sign of staleness: it is a timeout, and the upstream is not asked again."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.request()
        await peer.left()

    async with wired(script) as (wire, seen):
        await whole(await send(wire))
        with pytest.raises(ReadTimeout):
            await wire.send(b"POST", b"/", (), b"", connect_timeout=PATIENCE, timeout=0.1)
        assert len(seen.peers) == 1


async def test_a_body_that_cannot_be_sent_twice_goes_on_a_fresh_connection() -> None:
    """An iterable is not risked on a connection that may be stale."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"

    async with wired(answer_ok) as (wire, seen):
        await whole(await send(wire))
        assert await whole(await send(wire, pieces())) == b"ok"
        assert [len(peer.requests) for peer in seen.peers] == [1, 1]
        assert wire.idle == 2


@pytest.mark.parametrize("kind", ["bytes", "iterable"])
async def test_an_answer_that_comes_before_the_upload_ends_is_seen(kind: str) -> None:
    """An upstream that refuses a large upload without reading it has its answer delivered; nothing is kept."""

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65_536

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await peer.left()

    async with wired(script) as (wire, seen):
        reply = await send(wire, b"x" * 30_000_000 if kind == "bytes" else endless())
        assert reply.status == 413
        assert await whole(reply) == b"no"
        assert (wire.idle, wire.active) == (0, 0)
        await asyncio.wait_for(seen.peers[0].gone.wait(), PATIENCE)


def refuse_every_upload(listener: socket.socket) -> None:
    with suppress(OSError):  # the listener's end is the end of the test
        while True:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(100)
                accepted.sendall(b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno")


async def test_an_upstream_that_answers_and_closes_has_its_answer_seen() -> None:
    """Though the kernel resets the connection, because the upload is unread, the answer is read before the reset.

    A reset may always overtake the reading, so this asks for most of the answers; careless writing loses nearly all.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=refuse_every_upload, args=(listener,), daemon=True).start()
        wire = DirectWire(Origin("http", "127.0.0.1", listener.getsockname()[1]))
        seen = 0
        for _ in range(20):
            with suppress(ReadError):
                reply = await send(wire, b"x" * 20_000_000)
                seen += await whole(reply) == b"no"
        listener.shutdown(socket.SHUT_RDWR)
    assert seen >= 10
    assert (wire.idle, wire.active) == (0, 0)


async def test_an_upload_goes_on_while_the_answer_is_read() -> None:
    """An upstream that answers as it reads gets the whole upload."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")
        await peer.reader.readexactly(10_000_000)
        await peer.say(b"k")
        await peer.left()

    async with wired(script) as (wire, _):
        assert await whole(await send(wire, b"x" * 10_000_000)) == b"ok"
        assert wire.idle == 1


async def test_an_upload_is_read_from_its_source_only_once_and_closed() -> None:
    """A body's generator is closed when the request is given up."""
    closed = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65_536
        finally:
            closed.set()

    async def script(peer: Peer) -> None:
        await peer.head()
        peer.writer.transport.abort()

    async with wired(script) as (wire, _):
        with pytest.raises(ReadError):
            await send(wire, pieces())
        await asyncio.wait_for(closed.wait(), PATIENCE)


async def test_complete_tells_when_nothing_has_to_be_waited_for() -> None:
    """`complete` is true as soon as the message has arrived, before it is read, and stays so after closing."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK[:-1])
        await go_on.wait()
        await peer.say(OK[-1:])
        await peer.left()

    go_on = asyncio.Event()
    async with wired(script) as (wire, _):
        reply = await send(wire)
        assert await reply.read(PATIENCE) == b"o"
        assert not reply.complete
        go_on.set()
        assert await reply.read(PATIENCE) == b"k"
        assert reply.complete
        await reply.aclose()
        assert reply.complete
        assert repr(reply) == "<DirectReply 200 on closed>"


async def test_closing_under_a_reader_gives_it_an_error_and_nothing_of_others() -> None:
    """A read that waits while its reply is closed ends with ReadError."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK[:-1])
        await peer.left()

    async with wired(script) as (wire, _):
        reply = await send(wire)
        await reply.read(PATIENCE)
        reading = asyncio.create_task(reply.read(PATIENCE))
        await asyncio.sleep(0)
        await reply.aclose()
        with pytest.raises(ReadError):
            await asyncio.wait_for(reading, PATIENCE)


async def test_a_late_reader_cannot_take_the_next_answer() -> None:
    """A read that wakes after its reply was closed gets an error, although its connection has new bytes by then."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK[:-1])
        await go_on.wait()
        await peer.say(OK[-1:])
        await peer.request()
        await peer.say(OK)
        await peer.left()

    go_on = asyncio.Event()
    async with wired(script) as (wire, seen):
        first = await send(wire)
        await first.read(PATIENCE)
        late = first.read(PATIENCE)
        woken = late.send(None)
        go_on.set()
        await asyncio.wait({woken}, timeout=PATIENCE)
        await first.aclose()
        second = await send(wire)
        with pytest.raises(ReadError):
            late.send(None)
        assert await whole(second) == b"ok"
        assert len(seen.peers) == 1


@pytest.mark.asyncio(loop_factories=["asyncio"])  # uvloop resolves names by itself, out of a test's reach
async def test_every_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name whose first address refuses is reached at its second."""

    def resolve(host: str, port: int, **_kwargs: Any) -> list[tuple[Any, ...]]:
        assert host == "backend.test"
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    async def resolve_later(host: str, port: int, **kwargs: Any) -> list[tuple[Any, ...]]:
        return resolve(host, port, **kwargs)

    async with upstream(answer_ok) as seen:
        wire = DirectWire(Origin("http", "backend.test", seen.port))
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve_later)
        assert await whole(await send(wire)) == b"ok"
        assert seen.requests[0][0].split(b"\r\n")[1] == b"host: backend.test:%d" % seen.port
        await wire.aclose()


@pytest.mark.parametrize("host", ["a..b", "x" * 300])
async def test_an_impossible_name_is_a_connect_error(host: str) -> None:
    """A host that cannot be looked up is reported as any other that is not there."""
    wire = DirectWire(Origin("http", host, 80))
    with pytest.raises(ConnectError):
        await send(wire)
    assert wire.active == 0


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (Origin("http", "a.test", 80), b"a.test"),
        (Origin("https", "a.test", 443), b"a.test"),
        (Origin("https", "a.test", 80), b"a.test:80"),
        (Origin("http", "::1", 8080), b"[::1]:8080"),
        (Origin("http", "bücher.test", 80), b"xn--bcher-kva.test"),
    ],
)
def test_the_host_header_names_the_origin(origin: Origin, host: bytes) -> None:
    """The port stands there only where it is not the scheme's own; names are ASCII; IPv6 stands in brackets."""
    head = DirectWire(origin)._encode_head(b"GET", b"/", (), b"")
    assert head == b"GET / HTTP/1.1\r\nhost: " + host + b"\r\n\r\n"


async def test_a_reply_to_head_does_not_wait_for_a_body() -> None:
    """HEAD has no body, and its connection is not used again, whatever comes on it."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        await peer.left()

    async with wired(script) as (wire, _):
        assert await whole(await send(wire, b"", b"HEAD")) == b""
        assert wire.idle == 0


async def test_a_bound_on_the_head_holds_for_interim_responses_together() -> None:
    """An upstream that sends 1xx responses for ever is given up."""

    async def script(peer: Peer) -> None:
        await peer.request()
        while True:
            await peer.say(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)

    async with wired(script) as (wire, _):
        with pytest.raises(ProtocolError):
            await send(wire)


async def test_a_slow_reader_of_a_large_stream_costs_no_memory() -> None:
    """While 100 MB pass at the reader's pace, less than 1 MB more is held, the test's own server included."""
    block = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    blocks = 1_600

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(blocks):
            await peer.say(block)
        await peer.say(b"0\r\n\r\n")
        await peer.left()

    async with wired(script) as (wire, _):
        reply = await send(wire)
        gc.collect()
        tracemalloc.start()
        try:
            got = 0
            while data := await reply.read(PATIENCE):
                got += len(data)
                del data
                for _ in range(3):  # the upstream runs ahead as far as it can
                    await asyncio.sleep(0)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert got == blocks * 65_536
        assert peak < 1_000_000
        await reply.aclose()
