"""The connection on a mock transport: responses as byte constants, split anywhere, cut anywhere, or made up."""

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.outbox import Outbox, Sender
from gateway.upstream.connection import Connection
from gateway.upstream.wire import Bounds, Header, ProtocolError, ReadError, ReadTimeout, WireError

REQUEST = b"GET / HTTP/1.1\r\n\r\n"
BOUNDS = Bounds(max_head=2_000, high_water=1_000, low_water=100)


class MockTransport(asyncio.Transport):
    """Notes what a connection does to its transport; an abort is reported at the next turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: Connection) -> None:
        super().__init__()
        self._loop = loop
        self._connection = connection
        self.written = b""
        self.paused = False
        self.aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Limits do not matter here."""

    def write(self, data: Any) -> None:
        """Note what is written."""
        self.written += data

    def is_closing(self) -> bool:
        """Whether it was aborted."""
        return self.aborted

    def pause_reading(self) -> None:
        """Note the pause; a second one would be a mistake."""
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        """Note the end of the pause."""
        assert self.paused
        self.paused = False

    def abort(self) -> None:
        """Close once."""
        if not self.aborted:
            self.aborted = True
            self._loop.call_soon(self._connection.connection_lost, None)


class AtOnce(Outbox):
    """Where every turn has one write: the loop below never runs."""

    def send(self, sender: Sender) -> None:
        """Let it write now."""
        sender.flush()


class Loop(asyncio.SelectorEventLoop):
    """A loop that is never run: its clock is set by the test, its timers are fired by it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.timers: list[tuple[float, asyncio.TimerHandle]] = []

    def time(self) -> float:
        """The test's time."""
        return self.now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """Keep the timer for `advance`."""
        handle = asyncio.TimerHandle(when, callback, args, self)
        self.timers.append((when, handle))
        return handle

    def advance(self, seconds: float) -> None:
        """Let time pass, firing what is due, early by a millisecond as uvloop may."""
        until = self.now + seconds
        while due := [entry for entry in self.timers if entry[0] <= until + 0.001]:
            entry = min(due, key=lambda each: each[0])
            self.timers.remove(entry)
            self.now = max(self.now, entry[0] - 0.001)
            if not entry[1].cancelled():
                entry[1]._run()
        self.now = until


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop with a clock that the test moves."""
    made = Loop()
    yield made
    made.close()


class Exchange:
    """One exchange on a connection, stepped by hand."""

    def __init__(self, loop: Loop, *, method: bytes = b"GET") -> None:
        self.loop = loop
        self.forgotten: list[Connection] = []
        self.connection = Connection("http://upstream:80", BOUNDS, loop, self.forgotten.append, AtOnce(loop))
        self.transport = MockTransport(loop, self.connection)
        self.connection.connection_made(self.transport)
        self.start(method)

    def start(self, method: bytes = b"GET") -> None:
        """Send a request."""
        self._waiting: Coroutine[Any, Any, None] = self.connection.exchange(
            REQUEST, b"", 10, bodiless=method == b"HEAD"
        )
        self._waiting.send(None)

    def feed(self, data: bytes) -> None:
        """Let bytes arrive, as a transport does that is not closed."""
        if not self.transport.aborted:
            self.connection.data_received(data)

    def head(self) -> bool:
        """Whether the head is there; raises what `exchange` raises."""
        try:
            self._waiting.send(None)
        except StopIteration:
            return True
        return False

    def eof(self) -> None:
        """Let the upstream close."""
        if not self.transport.aborted:
            self.connection.eof_received()

    def drain(self) -> bytes:
        """Read what is unread, up to the end or what cut it."""
        data = b""
        while part := self.connection.take():
            data += part
        return data


@dataclass(frozen=True)
class Outcome:
    """What a caller got out of an exchange."""

    status: int = 0
    headers: tuple[Header, ...] = ()
    body: bytes = b""
    error: type[Exception] | None = None
    kept: bool = False


def play(parts: list[bytes], *, method: bytes = b"GET", eof: bool = True) -> Outcome:
    """Feed the parts, close, and tell what came out."""
    loop = Loop()
    try:
        exchange = Exchange(loop, method=method)
        connection = exchange.connection
        for part in parts:
            exchange.feed(part)
        whole = connection.complete
        if eof and not whole:
            exchange.eof()
        try:
            exchange.head()
        except WireError as exc:
            return Outcome(error=type(exc))
        status, headers = connection.status, tuple(connection.headers)
        body = b"".join(connection.chunks)
        error: type[Exception] | None = None
        connection.chunks.clear()
        try:
            assert exchange.drain() == b""
        except WireError as exc:
            error = type(exc)
        return Outcome(status, headers, body, error, kept=whole and connection.retire())
    finally:
        loop.close()


OK = b"HTTP/1.1 200 OK\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\ncontent-length: 3\r\n\r\nHTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n"
RESPONSES: dict[str, tuple[bytes, Outcome]] = {
    "length": (
        OK + b"Content-Length: 5\r\nX-A: b\r\nX-Empty:\r\n\r\nhello",
        Outcome(200, ((b"content-length", b"5"), (b"x-a", b"b"), (b"x-empty", b"")), b"hello", None, True),
    ),
    "chunked": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nx-trailer: no\r\n\r\n",
        Outcome(200, ((b"transfer-encoding", b"chunked"),), b"hello", None, True),
    ),
    "until close": (OK + b"\r\nhello", Outcome(200, (), b"hello", None, False)),
    "connection close": (
        OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok",
        Outcome(200, ((b"connection", b"close"), (b"content-length", b"2")), b"ok", None, False),
    ),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", Outcome(204, (), b"", None, True)),
    "304": (
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
        Outcome(304, ((b"content-length", b"7"),), b"", None, True),
    ),
    "interim": (
        INTERIM + b"HTTP/1.1 429 Too Many\r\ncontent-length: 2\r\n\r\nno",
        Outcome(429, ((b"content-length", b"2"),), b"no", None, True),
    ),
    "http/1.0": (
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        Outcome(200, ((b"content-length", b"2"),), b"ok", None, False),
    ),
    "cut length": (
        OK + b"content-length: 9\r\n\r\nhello",
        Outcome(200, ((b"content-length", b"9"),), b"hello", ReadError),
    ),
    "cut chunk": (
        OK + b"transfer-encoding: chunked\r\n\r\n9\r\nhello",
        Outcome(200, ((b"transfer-encoding", b"chunked"),), b"hello", ReadError),
    ),
    "cut head": (OK + b"content-le", Outcome(error=ReadError)),
    "bad chunk": (
        OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhe\r\nzz\r\n",
        Outcome(200, ((b"transfer-encoding", b"chunked"),), b"he", ProtocolError),
    ),
    "not http": (b"SSH-2.0-x\r\n", Outcome(error=ProtocolError)),
    "not 1.x": (b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n", Outcome(error=ProtocolError)),
    "an empty line first": (b"\r\n" + OK + b"content-length: 0\r\n\r\n", Outcome(error=ProtocolError)),
    "rtsp": (b"RTSP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", Outcome(error=ProtocolError)),
    "switching": (b"HTTP/1.1 101 X\r\nupgrade: y\r\nconnection: upgrade\r\n\r\n", Outcome(error=ProtocolError)),
    "status 999": (b"HTTP/1.1 999 X\r\ncontent-length: 0\r\n\r\n", Outcome(error=ProtocolError)),
    "status 099": (b"HTTP/1.1 099 X\r\ncontent-length: 0\r\n\r\n", Outcome(error=ProtocolError)),
    "both": (OK + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", Outcome(error=ProtocolError)),
    "both turned": (OK + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n", Outcome(error=ProtocolError)),
    "two lengths": (OK + b"content-length: 3\r\ncontent-length: 4\r\n\r\n", Outcome(error=ProtocolError)),
    "gzip coding": (OK + b"transfer-encoding: gzip, chunked\r\n\r\n", Outcome(error=ProtocolError)),
    "two codings": (
        OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
        Outcome(error=ProtocolError),
    ),
    "1.0 chunked": (b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", Outcome(error=ProtocolError)),
    "folded": (OK + b"x: a\r\n b\r\ncontent-length: 0\r\n\r\n", Outcome(error=ProtocolError)),
    "bare lf": (b"HTTP/1.1 200 OK\ncontent-length: 0\n\n", Outcome(error=ProtocolError)),
    "nul": (OK + b"x: a\0b\r\ncontent-length: 0\r\n\r\n", Outcome(error=ProtocolError)),
    "large head": (OK + b"x: " + b"a" * 2000 + b"\r\ncontent-length: 2\r\n\r\nok", Outcome(error=ProtocolError)),
    "many interims": (b"HTTP/1.1 102 X\r\n\r\n" * 200, Outcome(error=ProtocolError)),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_in_one_piece_is_understood(name: str) -> None:
    """Each response gives its outcome."""
    data, expected = RESPONSES[name]
    assert play([data]) == expected


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_split_at_any_byte_is_the_same(name: str) -> None:
    """Two parts, cut at every position, and all bytes one by one, give the outcome of the whole."""
    data, expected = RESPONSES[name]
    assert play([data[at : at + 1] for at in range(len(data))]) == expected
    for at in range(1, min(len(data), 400)):
        assert play([data[:at], data[at:]]) == expected, at


def test_an_endless_trailer_is_a_protocol_error() -> None:
    """After the last chunk no more is taken than a head may have."""
    got = play([OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n0\r\nx: ", *[b"a" * 100] * 30])
    assert (got.body, got.error) == (b"he", ProtocolError)


def test_the_response_to_head_has_no_body() -> None:
    """Whatever its head announces, nothing is waited for; and the connection is not used again."""
    assert play([OK + b"content-length: 5\r\n\r\n"], method=b"HEAD", eof=False) == Outcome(
        200, ((b"content-length", b"5"),), b"", None, False
    )


def framed(body: bytes, sizes: list[int], chunked: bool) -> tuple[bytes, bytes]:
    if not chunked:
        return b"content-length: %d\r\n" % len(body), body
    encoded = b""
    for size in sizes:
        piece, body = body[:size], body[size:]
        encoded += b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""
    encoded += b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    return b"transfer-encoding: chunked\r\n", encoded + b"0\r\n\r\n"


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, Outcome]:
    """A well-formed response with a length or chunks, and what must come out of it."""
    status = draw(st.sampled_from([200, 201, 400, 429, 500, 599]))
    names = st.text("abcxyz-", min_size=1, max_size=8).map(lambda name: f"x{name}".encode())
    values = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map(str.encode)
    headers = draw(st.lists(st.tuples(names, values), max_size=5))
    framing, body = framed(
        content := draw(st.binary(max_size=600)),
        draw(st.lists(st.integers(1, 100), max_size=8)),
        draw(st.booleans()),
    )
    head = b"HTTP/1.1 %d X\r\n" % status + b"".join(b"%b: %b\r\n" % each for each in headers) + framing + b"\r\n"
    name, value = framing.rstrip().split(b": ")
    return head + body, Outcome(status, (*headers, (name, value)), content, None, True)


def split(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(each, len(data)) for each in at), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if start < end]


@given(responses(), st.lists(st.integers(0, 1200), max_size=12))
def test_any_response_split_anywhere_is_the_same(response: tuple[bytes, Outcome], at: list[int]) -> None:
    """How the network cuts the bytes makes no difference."""
    data, expected = response
    assert play(split(data, at)) == expected


@given(responses(), st.integers(0, 1200), st.lists(st.integers(0, 1200), max_size=4))
def test_a_response_cut_anywhere_never_looks_whole(response: tuple[bytes, Outcome], end: int, at: list[int]) -> None:
    """A proper beginning of a message gives a beginning of its body and then ReadError."""
    data, expected = response
    end %= len(data)
    got = play(split(data[:end], at))
    assert got.error is ReadError
    assert not got.kept
    assert expected.body.startswith(got.body)
    assert got.status in (0, expected.status)


@given(responses(), st.binary(min_size=1, max_size=40), st.lists(st.integers(0, 1200), max_size=4), st.booleans())
def test_bytes_after_a_response_spoil_its_connection(
    response: tuple[bytes, Outcome], more: bytes, at: list[int], apart: bool
) -> None:
    """The response is whole, but what follows it can never become the answer to the next request."""
    data, expected = response
    if not apart and not more.strip(b"\r\n"):
        more += b"H"  # empty lines in the same packet are skipped, as RFC 9112 (2.2) allows
    parts = [*split(data, at), more] if apart else split(data + more, at)
    got = play(parts)
    assert (got.status, got.body, got.error, got.kept) == (expected.status, expected.body, None, False)


def test_an_empty_line_after_a_response_spoils_its_connection() -> None:
    """Even what a parser would skip is not what a well-behaved upstream sends."""
    assert not play([OK + b"content-length: 2\r\n\r\nok", b"\r\n"]).kept


def test_a_reset_is_not_the_end_of_a_body_without_length(loop: Loop) -> None:
    """A body that ends with the connection must end with an orderly close; a reset cuts it."""
    exchange = Exchange(loop)
    exchange.feed(OK + b"\r\nhello")
    assert exchange.head()
    exchange.connection.connection_lost(ConnectionResetError())
    assert exchange.connection.take() == b"hello"
    with pytest.raises(ReadError) as caught:
        exchange.connection.take()
    assert isinstance(caught.value.__cause__, ConnectionResetError)


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.binary(min_size=1, max_size=60),
            st.sampled_from(
                [OK, b"\r\n", b"content-length: 3\r\n", b"transfer-encoding: chunked\r\n", b"3\r\nabc\r\n"]
            ),
        ),
        max_size=12,
    )
)
def test_no_bytes_can_do_more_than_fail(parts: list[bytes]) -> None:
    """Made-up bytes give a reply or an error of the wire's own, and no other exception."""
    got = play(parts)
    assert got.error in (None, ReadError, ProtocolError)


@given(st.lists(st.tuples(st.integers(1, 900), st.booleans()), min_size=1, max_size=40))
def test_unread_bytes_pause_the_socket_and_reading_resumes_it(steps: list[tuple[int, bool]]) -> None:
    """Above `high_water` unread bytes the socket is paused, and never while nothing is unread; no byte is lost."""
    loop = Loop()
    try:
        exchange = Exchange(loop)
        total = sum(size for size, _ in steps)
        exchange.feed(OK + b"content-length: %d\r\n\r\n" % (total + 1))
        assert exchange.head()
        sent = got = 0
        for size, take in steps:
            if not exchange.transport.paused:
                exchange.feed(b"x" * size)
                sent += size
            if take and exchange.connection.chunks:
                got += len(exchange.connection.take())
                assert not exchange.transport.paused
            assert sent - got <= BOUNDS.high_water + 900
            if sent - got > BOUNDS.high_water:
                assert exchange.transport.paused
        if exchange.connection.chunks:
            got += len(exchange.connection.take())
        assert got == sent
    finally:
        loop.close()


@given(st.lists(st.integers(1, 900), min_size=1, max_size=20), st.booleans())
def test_much_that_is_unread_is_taken_in_parts(sizes: list[int], chunked: bool) -> None:
    """At most `max_read` bytes at once, in order; the socket is read again when little is left."""
    body = bytes(n % 251 for n in range(sum(sizes)))
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(body)
    loop = Loop()
    try:
        exchange = Exchange(loop)
        exchange.connection._bounds = replace(BOUNDS, max_read=300)
        exchange.feed(OK + framing + b"\r\n\r\n")
        assert exchange.head()
        left = body
        for size in sizes:
            piece, left = left[:size], left[size:]
            exchange.feed(b"%x\r\n%b\r\n" % (size, piece) if chunked else piece)
        if chunked:
            exchange.feed(b"0\r\n\r\n")
        parts = []
        while part := exchange.connection.take():
            assert len(part) <= 300
            parts.append(part)
        assert b"".join(parts) == body
        assert not exchange.transport.paused
    finally:
        loop.close()


def test_many_small_chunks_count_for_what_they_take(loop: Loop) -> None:
    """A body in chunks of one byte pauses the socket long before its content would."""
    exchange = Exchange(loop)
    exchange.feed(OK + b"transfer-encoding: chunked\r\n\r\n")
    assert exchange.head()
    fed = 0
    while not exchange.transport.paused:
        exchange.feed(b"1\r\na\r\n")
        fed += 1
    assert fed < BOUNDS.high_water / 10


def test_a_wait_ends_at_its_deadline(loop: Loop) -> None:
    """The head is waited for as long as the limit says, and no shorter; then the socket is closed."""
    exchange = Exchange(loop)
    loop.advance(9.9)
    assert exchange.connection._waiter is not None
    assert not exchange.transport.aborted
    loop.advance(0.2)
    with pytest.raises(ReadTimeout, match="head"):
        exchange.head()
    assert exchange.transport.aborted


def test_dripping_does_not_prolong_the_wait_for_the_head(loop: Loop) -> None:
    """An upstream that sends its head byte by byte runs out of time all the same."""
    exchange = Exchange(loop)
    for at in range(10):
        exchange.feed(OK[at : at + 1])
        loop.advance(1.1)
    with pytest.raises(ReadTimeout):
        exchange.head()


def test_a_read_that_timed_out_may_be_repeated(loop: Loop) -> None:
    """ReadTimeout while reading leaves the exchange as it was."""
    exchange = Exchange(loop)
    exchange.feed(OK + b"content-length: 2\r\n\r\n")
    assert exchange.head()
    waiter = exchange.connection.arrival(3)
    loop.advance(3.1)
    assert isinstance(waiter.exception(), ReadTimeout)
    exchange.feed(b"ok")
    assert exchange.drain() == b"ok"
    assert exchange.connection.retire()


def test_many_exchanges_share_one_timer(loop: Loop) -> None:
    """A request needs no timer handle of its own while one is pending, yet a shorter limit is kept."""
    exchange = Exchange(loop)
    for _ in range(50):
        exchange.feed(OK + b"content-length: 2\r\n\r\nok")
        assert exchange.head()
        assert exchange.drain() == b"ok"
        assert exchange.connection.retire()
        loop.advance(0.01)
        exchange.start()
    assert len(loop.timers) == 1
    exchange.feed(OK + b"content-length: 2\r\n\r\n")
    assert exchange.head()
    waiter = exchange.connection.arrival(0.5)
    loop.advance(0.6)
    assert isinstance(waiter.exception(), ReadTimeout)


def test_an_idle_connection_expires_by_itself(loop: Loop) -> None:
    """After `idle_expiry` without a request the pool is told and the socket closed, not earlier."""
    exchange = Exchange(loop)
    exchange.feed(OK + b"content-length: 2\r\n\r\nok")
    assert exchange.head()
    assert exchange.drain() == b"ok"
    assert exchange.connection.retire()
    loop.advance(BOUNDS.idle_expiry - 1)
    assert exchange.forgotten == []
    loop.advance(1.1)
    assert exchange.forgotten == [exchange.connection]
    assert exchange.transport.aborted


def test_bytes_that_nobody_asked_for_end_an_idle_connection(loop: Loop) -> None:
    """A late or injected response on a kept connection is never taken for an answer."""
    exchange = Exchange(loop)
    exchange.feed(OK + b"content-length: 0\r\n\r\n")
    assert exchange.head()
    assert exchange.connection.retire()
    exchange.feed(OK)
    assert exchange.forgotten == [exchange.connection]
    assert exchange.transport.aborted


def test_a_banner_before_the_request_is_a_protocol_error(loop: Loop) -> None:
    """An upstream that speaks first is no HTTP server."""
    connection = Connection("http://upstream:80", BOUNDS, loop, lambda _: None, AtOnce(loop))
    connection.connection_made(MockTransport(loop, connection))
    connection.data_received(b"220 mail.example\r\n")
    with pytest.raises(ProtocolError, match="before it was asked"):
        connection.exchange(REQUEST, b"", 10, bodiless=False).send(None)


def test_a_small_body_goes_out_with_its_head_in_one_write(loop: Loop) -> None:
    """Head and body share a packet where they fit."""
    connection = Connection("http://upstream:80", BOUNDS, loop, lambda _: None, AtOnce(loop))
    transport = MockTransport(loop, connection)
    connection.connection_made(transport)
    waiting = connection.exchange(b"head", b"body", 10, bodiless=False)
    waiting.send(None)
    assert transport.written == b"headbody"
    waiting.close()
    assert transport.aborted


def test_a_connection_shows_what_it_is_doing(loop: Loop) -> None:
    """The repr names the upstream, the phase, what is unread, and whether it was used before."""
    exchange = Exchange(loop)
    assert repr(exchange.connection) == "<Connection http://upstream:80, waiting for the head>"
    exchange.feed(OK + b"content-length: 2000\r\n\r\n" + b"x" * 1500)
    assert repr(exchange.connection) == "<Connection http://upstream:80, 200 receiving, 1500 bytes unread, paused>"
    exchange.head()
    exchange.connection.take()
    exchange.feed(b"x" * 500)
    assert repr(exchange.connection) == "<Connection http://upstream:80, 200 complete, 500 bytes unread>"
    exchange.connection.take()
    assert exchange.connection.retire()
    assert repr(exchange.connection) == "<Connection http://upstream:80, idle, reused>"
    exchange.connection.connection_lost(None)
    assert repr(exchange.connection) == "<Connection http://upstream:80, closed, reused>"


class Never(Outbox):
    """A turn that does not end."""

    def send(self, sender: Sender) -> None:
        """Keep it."""


def test_bytes_that_come_before_the_request_is_out_are_no_answer_to_it(loop: Loop) -> None:
    """As on an idle connection: it ends as a stale one does, so that the request goes on a fresh one."""
    connection = Connection("http://upstream:80", BOUNDS, loop, lambda _: None, Never(loop))
    transport = MockTransport(loop, connection)
    connection.connection_made(transport)
    waiting = connection.exchange(REQUEST, b"", 10, bodiless=False)
    waiting.send(None)
    connection.data_received(b"HTTP/1.1 408 Too Late\r\ncontent-length: 0\r\n\r\n")
    with pytest.raises(ReadError, match="before it was asked"):
        waiting.send(None)
    assert transport.aborted
    assert transport.written == b""


def test_a_request_that_was_given_up_is_not_written(loop: Loop) -> None:
    """Its client left in the same turn."""
    connection = Connection("http://upstream:80", BOUNDS, loop, lambda _: None, Never(loop))
    transport = MockTransport(loop, connection)
    connection.connection_made(transport)
    waiting = connection.exchange(REQUEST, b"", 10, bodiless=False)
    waiting.send(None)
    with pytest.raises(asyncio.CancelledError):
        waiting.throw(asyncio.CancelledError())
    connection.flush()
    assert transport.written == b""
