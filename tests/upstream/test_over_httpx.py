"""What only the wire over httpx does: a proxy, and HTTP/2 that ends when its reply is closed."""

import asyncio
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
import respx

from gateway.upstream.over_httpx import HttpxReply, HttpxWire
from gateway.upstream.wire import ConnectError, Origin, ReadError, ReadTimeout
from tests.upstream.certificates import Authority
from tests.upstream.loopback import PATIENCE, Peer, upstream

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def send(wire: HttpxWire, body: bytes = b"{}") -> HttpxReply:
    return await wire.send(b"POST", b"/v1/x?y=z", [(b"x-one", b"1")], body, connect_timeout=PATIENCE, timeout=PATIENCE)


async def whole(reply: HttpxReply) -> bytes:
    try:
        data = b""
        while part := await reply.read(PATIENCE):
            data += part
        return data
    finally:
        await reply.aclose()


async def test_a_proxy_is_asked_for_the_whole_address() -> None:
    """A request to an `http` origin goes to the proxy in absolute form, on a connection that is kept."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(OK)

    async with upstream(script) as seen:
        wire = HttpxWire(Origin("http", "backend.test", 8000, proxy=f"http://127.0.0.1:{seen.port}"))
        assert await whole(await send(wire)) == b"ok"
        assert await whole(await send(wire)) == b"ok"
        assert len(seen.peers) == 1
        head = seen.requests[0][0]
        assert head.startswith(b"POST http://backend.test:8000/v1/x?y=z HTTP/1.1\r\n")
        assert b"host: backend.test:8000\r\n" in head.lower()
        await wire.aclose()


async def test_a_proxy_that_refuses_a_tunnel_is_a_connect_error() -> None:
    """CONNECT to an `https` origin answered with 403: nothing was sent to the backend."""

    async def script(peer: Peer) -> None:
        head = await peer.head()
        assert head.startswith(b"CONNECT backend.test:443 ")
        await peer.say(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
        await peer.left()

    async with upstream(script) as seen:
        wire = HttpxWire(Origin("https", "backend.test", 443, proxy=f"http://127.0.0.1:{seen.port}"))
        with pytest.raises(ConnectError, match="403"):
            await send(wire)
        assert wire.active == 0


async def test_the_environment_does_not_choose_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """`HTTP_PROXY` changes nothing: only the policy does."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)

    async with upstream(script) as seen:
        wire = HttpxWire(Origin("http", "127.0.0.1", seen.port))
        assert await whole(await send(wire)) == b"ok"
        await wire.aclose()


async def serve_http2(peer: Peer, *, end: bool) -> list[h2.events.RequestReceived]:
    """Answer requests with two bytes over HTTP/2 until the client leaves; without `end` only the first of them."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.initiate_connection()
    await peer.say(connection.data_to_send())
    requests = []
    while data := await peer.reader.read(65_536):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                requests.append(event)
            elif isinstance(event, h2.events.StreamEnded) and event.stream_id is not None:
                connection.send_headers(event.stream_id, [(":status", "200"), ("x-kind", "h2")])
                connection.send_data(event.stream_id, b"ok" if end else b"o", end_stream=end)
        await peer.say(connection.data_to_send())
    return requests


@pytest.mark.parametrize("end", [True, False], ids=["whole", "left early"])
async def test_http2_is_spoken_and_ends_with_its_reply(tmp_path: Path, end: bool) -> None:
    """A whole reply keeps the connection; one that is closed early closes it, so that the upstream stops working."""
    authority = Authority(tmp_path)
    seen_requests: list[h2.events.RequestReceived] = []

    async def script(peer: Peer) -> None:
        seen_requests.extend(await serve_http2(peer, end=end))

    async with upstream(script, authority.server_context("127.0.0.1", ("h2",))) as seen:
        wire = HttpxWire(Origin("https", "127.0.0.1", seen.port, ca_file=str(authority.file), http2=True))
        reply = await send(wire)
        assert (reply.status, list(reply.headers)) == (200, [(b"x-kind", b"h2")])
        if end:
            assert await whole(reply) == b"ok"
            assert await whole(await send(wire)) == b"ok"
            assert (wire.idle, wire.active) == (1, 0)
            await wire.aclose()
        else:
            assert await reply.read(PATIENCE) == b"o"
            with pytest.raises(ReadTimeout):
                await reply.read(0.05)
            await reply.aclose()
        await asyncio.wait_for(seen.peers[0].gone.wait(), PATIENCE)
        assert len(seen.peers) == 1
        assert len(seen_requests) == (2 if end else 1)
        assert (b":path", b"/v1/x?y=z") in (seen_requests[0].headers or [])


@pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "timed out"])
async def test_a_reply_whose_read_was_given_up_is_never_whole(tmp_path: Path, cancelled: bool) -> None:
    """Asked once more, as when a client has left, it tells of no end; and its connection is closed, not kept."""
    authority = Authority(tmp_path)

    async def script(peer: Peer) -> None:
        await serve_http2(peer, end=False)

    async with upstream(script, authority.server_context("127.0.0.1", ("h2",))) as seen:
        wire = HttpxWire(Origin("https", "127.0.0.1", seen.port, ca_file=str(authority.file), http2=True))
        reply = await send(wire)
        assert await reply.read(PATIENCE) == b"o"
        if cancelled:
            reading = asyncio.create_task(reply.read(PATIENCE))
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait({reading})
        else:
            with pytest.raises(ReadTimeout):
                await reply.read(0.01)
        with pytest.raises(ReadTimeout):
            await reply.read(0.01)
        assert not reply.complete
        await reply.aclose()
        assert (wire.idle, wire.active) == (0, 0)
        await asyncio.wait_for(seen.peers[0].gone.wait(), PATIENCE)


async def test_http2_that_is_reset_on_a_kept_connection_is_not_sent_again_unseen(tmp_path: Path) -> None:
    """Who resets a stream has seen its request: whether it is sent once more, the retry budget decides."""
    authority = Authority(tmp_path)
    asked = 0

    async def script(peer: Peer) -> None:
        nonlocal asked
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        await peer.say(connection.data_to_send())
        while data := await peer.reader.read(65_536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.StreamEnded) and event.stream_id is not None:
                    asked += 1
                    if asked == 1:
                        connection.send_headers(event.stream_id, [(":status", "200")], end_stream=True)
                    else:
                        connection.reset_stream(event.stream_id)
            await peer.say(connection.data_to_send())

    async with upstream(script, authority.server_context("127.0.0.1", ("h2",))) as seen:
        wire = HttpxWire(Origin("https", "127.0.0.1", seen.port, ca_file=str(authority.file), http2=True))
        assert await whole(await send(wire)) == b""
        with pytest.raises(ReadError):
            await send(wire)
        assert asked == 2
        await wire.aclose()


async def test_http2_that_is_cut_is_a_read_error(tmp_path: Path) -> None:
    """A connection lost in the middle of a stream never looks like its end."""
    authority = Authority(tmp_path)

    async def script(peer: Peer) -> None:
        serving = asyncio.create_task(serve_http2(peer, end=False))
        await cut.wait()
        serving.cancel()

    cut = asyncio.Event()
    async with upstream(script, authority.server_context("127.0.0.1", ("h2",))) as seen:
        wire = HttpxWire(Origin("https", "127.0.0.1", seen.port, ca_file=str(authority.file), http2=True))
        reply = await send(wire)
        assert await reply.read(PATIENCE) == b"o"
        cut.set()
        with pytest.raises(ReadError):
            await reply.read(PATIENCE)
        await reply.aclose()
        assert (wire.idle, wire.active) == (0, 0)


async def test_respx_can_stand_in_for_the_network() -> None:
    """Tests may mock backends at httpx's level."""
    with respx.mock() as mock:
        mock.post("https://backend.test/v1/x?y=z").respond(201, json={"a": 1})
        wire = HttpxWire(Origin("https", "backend.test", 443))
        reply = await send(wire)
        assert reply.status == 201
        assert await whole(reply) == b'{"a":1}'
        await wire.aclose()
