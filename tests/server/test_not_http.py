"""What is no plain request of HTTP/1.1, and what two servers could read differently: declined, refused, or read strictly."""

import pytest

from gateway.server.connection import MAX_HEAD, PATIENCE
from tests.server.mock_client import CHUNKED, GET, HELD, LIMIT, MockClient, answers_in


async def test_a_head_that_never_ends_is_closed_in_time() -> None:
    """However steadily its bytes drip."""
    client = MockClient()
    await client.send(b"GET /echo HTTP/1.1\r\n")
    for _ in range(5):
        await client.after(PATIENCE / 5 - 1)
        await client.send(b"a: b\r\n")
    assert not client.transport.closed
    await client.after(6)
    assert client.over
    assert client.answered == b""


@pytest.mark.parametrize(
    "begun", [b"GET /echo HTTP/1.1\r\na: ", b"GET /", b"GET /echo HTTP/1.1\r\n", CHUNKED[:-2] + b"a: "]
)
async def test_a_head_has_a_greatest_size(begun: bytes) -> None:
    """A target, a value or a trailer that goes on and on is refused, not kept."""
    client = MockClient()
    await client.send(begun)
    (answer,) = answers_in(await client.send(*[b"x" * 1000] * (MAX_HEAD // 1000 + 1)))
    assert (answer.status, answer.code) == (400, "invalid_http")
    assert client.over


async def test_many_chunks_are_no_head() -> None:
    """What stands between the pieces of a body counts only as long as no body comes."""
    chunk = b"1;" + b"x" * 500 + b"\r\na\r\n"
    pieces = [chunk[:250], chunk[250:]] * (LIMIT - 1)
    head = CHUNKED.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    (answer,) = answers_in(await MockClient().send(head, *pieces, b"0\r\n\r\n"))
    assert answer.body == b"POST /echo [%b]" % (b"a" * (LIMIT - 1))


async def test_trailers_change_no_header() -> None:
    """What comes after the body is dropped: it was not there when the caller was identified."""
    client = MockClient()
    await client.send(CHUNKED[:-2] + b"authorization: other\r\nx:\r\n\r\n" + GET)
    assert [sorted(request.headers) for request in client.asked] == [[b"host", b"transfer-encoding"], [b"host"]]
    assert len(answers_in(client.answered)) == 2


async def test_noise_is_answered_in_openais_shape() -> None:
    """400 `invalid_http` with an id that the site is told, and the end of the connection."""
    client = MockClient()
    (answer,) = answers_in(await client.send(b"\x16\x03\x01 hello\r\n\r\n", GET))
    assert (answer.status, answer.code) == (400, "invalid_http")
    assert [answer.headers["x-request-id"]] == client.refused
    assert (answer.headers["connection"], answer.headers["date"]) == ("close", "today")
    assert client.over


@pytest.mark.parametrize("together", [True, False])
async def test_noise_behind_a_request_lets_its_answer_end_first(*, together: bool) -> None:
    """The running answer is whole; then the connection closes."""
    client = MockClient()
    await client.send(*([HELD + b"\x00\r\n\r\n"] if together else [HELD, b"\x00\r\n\r\n"]))
    assert client.answered == b""
    client.release.set()
    await client.settle()
    (answer,) = answers_in(client.answered)
    assert (answer.body, answer.headers["connection"]) == (b"held", "close")
    assert client.over


async def test_noise_within_a_body_is_told_to_who_reads_it() -> None:
    """The endpoint that waits for the rest gets `invalid_http`, and answers that."""
    client = MockClient()
    (answer,) = answers_in(await client.send(CHUNKED[:-5], b"zz\r\n"))
    assert (answer.status, answer.code, answer.headers["connection"]) == (400, "invalid_http", "close")
    assert client.over
    assert client.refused == []


async def test_noise_after_an_early_answer_is_no_second_request() -> None:
    """Who was answered before his body came gets no second answer for it."""
    client = MockClient()
    client.release.set()
    head = HELD[:-2] + b"transfer-encoding: chunked\r\n\r\n"
    assert len(answers_in(await client.send(head, b"zz\r\n"))) == 1
    assert client.over


@pytest.mark.parametrize(
    "framing", [b"content-length: 5\r\n\r\nhello", b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("bytewise", [True, False])
async def test_an_upgrade_is_declined_and_the_request_answered(framing: bytes, *, bytewise: bool) -> None:
    """Java's client asks for h2c with its first request, body and all: it is served as if it had not."""
    head = (
        b"POST /echo HTTP/1.1\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\na: b\r\n"
    )
    data = head + framing + GET
    client = MockClient()
    pieces = [data[at : at + 1] for at in range(len(data))] if bytewise else [data]
    answers = answers_in(await client.send(*pieces))
    assert [answer.body for answer in answers] == [b"POST /echo [hello]", b"GET /echo []"]
    assert client.asked[0].headers[b"a"] == b"b"


async def test_an_upgrade_with_close_is_closed() -> None:
    """And so is CONNECT, which is not served here."""
    for head in (
        b"GET /echo HTTP/1.1\r\nconnection: close, upgrade\r\nupgrade: websocket\r\n\r\n",
        b"CONNECT /echo HTTP/1.1\r\n\r\n",
    ):
        client = MockClient()
        (answer,) = answers_in(await client.send(head, b"\x00\x01"))
        assert answer.headers["connection"] == "close"
        assert client.over


@pytest.mark.parametrize(
    ("target", "status", "path"),
    [
        (b"/routed/echo?a=b", 200, "/routed/echo"),
        (b"/echo?a=b", 404, "/echo"),
        (b"http://gateway:80/routed/echo", 200, "/routed/echo"),
        (b"http://gateway", 404, "/"),
        (b"/routed/%65cho", 200, "/routed/echo"),
        (b"/routed/echo#x", 200, "/routed/echo"),
        (b"//routed/echo", 404, "//routed/echo"),
        (b"/%ff%00%zz", 404, "/\ufffd\0%zz"),
        (b"*", 404, "*"),
        (b"http://[::1]:x/", 400, ""),
        (b"http://h:99999/", 400, ""),
        (b"http:///x", 400, ""),
        (b"/\xc3\xa9", 400, ""),
    ],
)
async def test_targets_of_every_form(target: bytes, status: int, path: str) -> None:
    """Found, not found, or no URL: then `invalid_http`, of which the site is told."""
    client = MockClient()
    (answer,) = answers_in(await client.send(b"GET " + target + b" HTTP/1.1\r\n\r\n"))
    assert answer.status == status
    if status == 400:
        assert answer.code == "invalid_http"
        assert client.refused == [answer.headers["x-request-id"]]
    else:
        assert client.asked[0].path == path
        assert client.refused == []
    assert client.failed == []


async def test_headers_sent_twice() -> None:
    """Of most the last counts; lists are joined in order, whatever their names' case; empty values stay."""
    client = MockClient()
    lines = b"a: 1\r\nTraceState: x=1\r\nA: 2\r\ntracestate: y=2\r\nanthropic-beta: p\r\nAnthropic-Beta: q\r\nempty:\r\nlast:  \r\n"
    await client.send(b"GET /echo HTTP/1.1\r\n" + lines + b"\r\n")
    assert client.asked[0].headers == {
        b"a": b"2",
        b"tracestate": b"x=1,y=2",
        b"anthropic-beta": b"p,q",
        b"empty": b"",
        b"last": b"",
    }


SMUGGLED = {
    "length and chunks": b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    "the same length twice": b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    "a list of lengths": b"content-length: 5, 5\r\n\r\nhello",
    "a signed length": b"content-length: +5\r\n\r\nhello",
    "no length": b"content-length:\r\n\r\nhello",
    "a huge length": b"content-length: 18446744073709551621\r\n\r\nhello",
    "chunks not last": b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunks and more": b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
    "chunks twice": b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "no chunks": b"transfer-encoding: identity\r\n\r\n0\r\n\r\n",
    "unknown chunks": b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "quoted chunks": b'transfer-encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "a tab in chunks": b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "bare LF after a header": b"a: b\ncontent-length: 5\r\n\r\nhello",
    "bare LF at the end": b"content-length: 5\r\n\nhello",
    "bare CR": b"a: b\rcontent-length: 5\r\n\r\nhello",
    "a folded header": b"content-length: 5\r\n 0\r\n\r\nhello",
    "a folded coding": b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "space before the colon": b"content-length : 5\r\n\r\nhello",
    "space before the name": b" content-length: 5\r\n\r\nhello",
    "no colon": b"content-length\r\n\r\nhello",
    "NUL": b"a: \x00\r\n\r\n",
    "a chunk ended by LF": b"transfer-encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    "a chunk without its end": b"transfer-encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n",
    "a negative chunk": b"transfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    "a chunk in 0x": b"transfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a space after the size": b"transfer-encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
    "a huge chunk": b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "LF in an extension": b"transfer-encoding: chunked\r\n\r\n5;a\nhello\r\n0\r\n\r\n",
    "a length after the chunks": b"transfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 5\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
@pytest.mark.parametrize("bytewise", [True, False])
async def test_what_two_servers_could_read_differently_is_refused(name: str, *, bytewise: bool) -> None:
    """One 400 and the end: no second request is found in it, in whatever pieces it comes."""
    data = b"POST /echo HTTP/1.1\r\nhost: a\r\n" + SMUGGLED[name] + GET
    client = MockClient()
    pieces = [data[at : at + 1] for at in range(len(data))] if bytewise else [data]
    (answer,) = answers_in(await client.send(*pieces))
    assert (answer.status, answer.code) == (400, "invalid_http")
    assert client.over


@pytest.mark.parametrize(
    "line",
    [
        b"GET /echo",
        b"GET /echo HTTP/0.9",
        b"GET /echo HTTP/2.0",
        b"GET /echo HTTP/1.2",
        b"PRI * HTTP/2.0\r\n\r\nSM",
        b"get /echo HTTP/1.1",
    ],
)
async def test_other_versions_are_refused(line: bytes) -> None:
    """Neither what is older than 1.0, nor what says 2."""
    client = MockClient()
    (answer,) = answers_in(await client.send(line + b"\r\n\r\n"))
    assert (answer.status, answer.code) == (400, "invalid_http")
    assert len(client.refused) == 1
    assert client.over
