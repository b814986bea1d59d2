"""What an answer looks like on the wire: framed by its kind, written when it may be, and never whole when it is cut."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from gateway.server.downstream import Downstream, RequestIds
from gateway.upstream.wire import Header
from tests.conformance.stage import policies_of
from tests.faults import FaultUpstream
from tests.server.mock_client import PLAIN, MockClient, answers_in
from tests.support import Reply, Served, ask, serve


def request(path: str, method: str = "GET", version: str = "1.1") -> bytes:
    """A head alone."""
    return f"{method} /{path} HTTP/{version}\r\nhost: a\r\n\r\n".encode()


async def test_an_answer_leaves_in_one_write_once_its_endpoint_has_returned() -> None:
    """What a client has seen has been counted before."""
    counted = asyncio.Event()

    async def count(downstream: Downstream) -> None:
        downstream.answer(200, [PLAIN], b"body")
        await counted.wait()

    client = MockClient(count=count)
    assert await client.send(request("count")) == b""
    counted.set()
    await client.settle()
    (written,) = client.transport.writes
    assert answers_in(written)[0].body == b"body"


async def test_a_stream_is_written_as_it_comes_and_ends_whole() -> None:
    """The head with the first bytes, each turn's pieces in one write, the last with the end."""

    async def stream(downstream: Downstream) -> None:
        downstream.start(200, [PLAIN])
        for data in (b"one", b"", b"tw", b"o"):
            downstream.write(data)
        await asyncio.sleep(0)
        downstream.end(b"three")

    client = MockClient(stream=stream)
    (answer,) = answers_in(await client.send(request("stream")))
    assert answer.body == b"onetwothree"
    first, *rest = client.transport.writes
    assert first.endswith(b"\r\n\r\n3\r\none\r\n")
    assert rest == [b"2\r\ntw\r\n1\r\no\r\n", b"5\r\nthree\r\n0\r\n\r\n"]
    assert not client.transport.closed


@pytest.mark.parametrize("last", [b"", b"x"])
async def test_a_stream_may_be_nothing_but_its_end(last: bytes) -> None:
    """One write, whole."""

    async def stream(downstream: Downstream) -> None:
        downstream.start(200, [PLAIN])
        downstream.end(last)

    client = MockClient(stream=stream)
    (answer,) = answers_in(await client.send(request("stream")))
    assert answer.body == last
    assert len(client.transport.writes) == 1


@pytest.mark.parametrize("how", ["returns", "raises", "is cancelled"])
async def test_a_stream_that_is_cut_never_looks_whole(how: str) -> None:
    """No last chunk, and the end of the connection."""

    async def stream(downstream: Downstream) -> None:
        downstream.start(200, [PLAIN])
        downstream.write(b"one")
        await asyncio.sleep(0)
        if how == "raises":
            raise ValueError
        if how == "is cancelled":
            await asyncio.Event().wait()

    client = MockClient(stream=stream)
    await client.send(request("stream"))
    if how == "is cancelled":
        client.task.cancel()
        await client.settle()
    assert client.answered.endswith(b"3\r\none\r\n")
    assert client.over
    assert len(client.failed) == (how == "raises")


@pytest.mark.parametrize("streamed", [True, False])
async def test_head_is_answered_without_a_body(*, streamed: bool) -> None:
    """With the length that the body would have, and the next request is answered."""

    async def serve_it(downstream: Downstream) -> None:
        if streamed:
            downstream.start(200, [PLAIN])
            downstream.write(b"one")
            downstream.end(b"two")
        else:
            downstream.answer(200, [PLAIN], b"body")

    client = MockClient(it=serve_it)
    answers = answers_in(await client.send(request("it", "HEAD"), request("it", "HEAD")), head=True)
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].headers.get("content-length") == (None if streamed else "4")


@pytest.mark.parametrize("status", [204, 304])
async def test_some_answers_have_neither_length_nor_body(status: int) -> None:
    """Whatever their endpoint gives."""

    async def empty(downstream: Downstream) -> None:
        downstream.answer(status, [], b"body")

    client = MockClient(empty=empty)
    answers = answers_in(await client.send(request("empty"), request("echo")))
    assert [answer.status for answer in answers] == [status, 200]
    assert "content-length" not in answers[0].headers


async def test_a_status_without_a_name_is_one_nevertheless() -> None:
    """The reason may be empty, the space before it not (RFC 9112, 4)."""

    async def odd(downstream: Downstream) -> None:
        downstream.answer(529, [], b"")

    assert (await MockClient(odd=odd).send(request("odd"))).startswith(b"HTTP/1.1 529 \r\n")


@pytest.mark.parametrize("name", ["answer", "start"])
@pytest.mark.parametrize("header", [(b"a", b"b\r\nc: d"), (b"a", b"b\nc"), (b"a", b"b\r"), (b"a\r\nb", b"c")])
async def test_a_header_with_a_line_end_is_refused(name: str, header: Header) -> None:
    """It would be another header, or another answer: 500 instead."""

    async def split(downstream: Downstream) -> None:
        if name == "answer":
            downstream.answer(200, [PLAIN, header], b"")
        else:
            downstream.start(200, [PLAIN, header])

    client = MockClient(split=split)
    (answer,) = answers_in(await client.send(request("split")))
    assert answer.status == 500
    assert [type(failure) for failure in client.failed] == [ValueError]


async def test_a_second_name_of_the_id_replaces_what_came_under_it() -> None:
    """`also` is said once, whatever the backend said."""

    async def named(downstream: Downstream) -> None:
        downstream.also = (b"request-id", b"ours")
        downstream.answer(200, [(b"request-id", b"theirs")], b"")

    (answer,) = answers_in(await MockClient(named=named).send(request("named")))
    assert answer.headers["request-id"] == "ours"


def test_ids_are_unique() -> None:
    """Within a process and between two."""
    first, second = RequestIds(), RequestIds()
    assert len({first.next(), first.next(), second.next(), second.next()}) == 4


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The real gateway before a backend that answers."""
    with FaultUpstream.in_thread() as upstream:
        policies = policies_of(upstream.url, {"good": ["ok"]}) | {"server": {"auth": "none", "max_body": "1MB"}}
        with serve(tmp_path_factory.mktemp("downstream"), policies) as served:
            yield served


def post(body: bytes, *lines: str) -> bytes:
    """`POST /v1/chat/completions`, with a header line for each of these."""
    head = "\r\n".join(["POST /v1/chat/completions HTTP/1.1", "host: a", f"content-length: {len(body)}", *lines])
    return head.encode() + b"\r\n\r\n" + body


CHAT = json.dumps(ask("good")).encode()


def test_requests_sent_ahead_over_a_socket(gateway: Served) -> None:
    """Three at once, the last with its body behind: three answers, in order."""
    whole = post(CHAT) + b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n" + post(CHAT)
    with gateway.connect() as connection:
        connection.sendall(whole[:-10])
        assert Reply.read(connection).json["object"] == "chat.completion"
        connection.sendall(whole[-10:])
        assert Reply.read(connection).json == {"status": "ok"}
        assert Reply.read(connection).json["object"] == "chat.completion"


def test_java_asks_for_h2c_and_is_answered(gateway: Served) -> None:
    """`java.net.http.HttpClient` does so with its first request; its body is not lost."""
    lines = (
        "connection: Upgrade, HTTP2-Settings",
        "upgrade: h2c",
        "http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    )
    with gateway.connect() as connection:
        for _ in range(2):
            connection.sendall(post(CHAT, *lines))
            reply = Reply.read(connection)
            assert (reply.status, reply.json["object"]) == (200, "chat.completion")


def test_a_body_in_chunks_that_breaks_off_in_noise(gateway: Served) -> None:
    """400 at once, not a wait for the rest of it."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    with gateway.connect() as connection:
        connection.sendall(head + b"2\r\n{}\r\n")
        connection.sendall(b"zz\r\n")
        reply = Reply.read(connection)
        assert (reply.status, reply.error["code"]) == (400, "invalid_http")
        assert connection.recv(1) == b""


def test_too_large_a_body_is_told_to_who_sends_on(gateway: Served) -> None:
    """413, and the connection serves on once all of it has come."""
    with gateway.connect() as connection:
        connection.sendall(post(b"x" * 5_000_000))
        assert Reply.read(connection).status == 413
        connection.sendall(post(CHAT))
        assert Reply.read(connection).status == 200


def test_what_is_no_http_is_counted_and_logged(gateway: Served) -> None:
    """Under the id that its client was told, be it no request at all or only no URL."""
    counted = 'gateway_rejected_total{code="invalid_http"}'
    before = gateway.request("GET", "/metrics").body.decode()
    ids = [
        gateway.speak(data).headers["x-request-id"]
        for data in (b"\x16\x03\x01\r\n\r\n", b"GET http://h:99999/ HTTP/1.1\r\nhost: a\r\n\r\n")
    ]
    for request_id in ids:
        gateway.until(request_id)
        (line,) = (line for line in gateway.log if line.get("id") == request_id)
        assert (line["status"], line["code"], line["outcome"]) == (400, "invalid_http", "error")
    after = gateway.request("GET", "/metrics").body.decode()
    assert _value(after, counted) - _value(before, counted) == 2


def _value(metrics: str, sample: str) -> float:
    return sum(float(line.split(" ")[1]) for line in metrics.splitlines() if line.startswith(sample))
