"""A client's connection on a mock transport: requests in any pieces, in turn, and every way in which they can end."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.server.connection import KEEP_ALIVE, MAX_AHEAD, PATIENCE
from gateway.server.downstream import Downstream
from tests.server.mock_client import BEGUN, CHUNKED, GET, HELD, LIMIT, PLAIN, POST, MockClient, answers_in

WHOLE = {
    "plain": (GET, b"GET /echo []"),
    "body": (POST, b"POST /echo [hello]"),
    "chunks": (CHUNKED, b"POST /echo [hello]"),
}


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data, cut at these places."""
    edges = [0, *sorted({cut % len(data) for cut in cuts} - {0}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("how", ["whole", "bytes", "head apart"])
async def test_a_request_may_come_in_any_pieces(name: str, how: str) -> None:
    """Whole, byte by byte, or its body after its head: the answer is the same, and the connection goes on."""
    data, said = WHOLE[name]
    head, end, body = data.partition(b"\r\n\r\n")
    pieces = {
        "whole": [data],
        "bytes": [data[at : at + 1] for at in range(len(data))],
        "head apart": [head + end, *([body] if body else [])],
    }
    client = MockClient()
    for _ in range(3):
        client.transport.writes.clear()
        (answer,) = answers_in(await client.send(*pieces[how]))
        assert (answer.status, answer.body) == (200, said)
        assert answer.headers == {"date": "today", "content-type": "text/plain", "content-length": str(len(said))}
    assert not client.transport.closed


@given(st.lists(st.sampled_from(sorted(WHOLE)), min_size=1, max_size=5), st.lists(st.integers(0, 2000), max_size=8))
async def test_requests_sent_ahead_are_answered_in_turn_however_they_are_cut(names: list[str], cuts: list[int]) -> None:
    """Any requests on one connection in any pieces: one answer to each, in order."""
    client = MockClient()
    data = b"".join(WHOLE[name][0] for name in names)
    answers = answers_in(await client.send(*pieces_of(data, cuts)))
    assert [answer.body for answer in answers] == [WHOLE[name][1] for name in names]
    assert client.transport.reading
    await client.leave()
    assert client.over


@given(st.binary(max_size=300), st.integers(0, 400), st.lists(st.integers(0, 2000), max_size=5))
async def test_no_bytes_break_a_connection(noise: bytes, at: int, cuts: list[int]) -> None:
    """Whatever is written over good requests: answers are whole, and once the client leaves nothing is left behind."""
    good = POST + CHUNKED + GET
    data = good[:at] + noise + good[at + len(noise) :]
    client = MockClient()
    for answer in answers_in(await client.send(*pieces_of(data, cuts))):
        assert answer.status in (200, 400, 404, 413)
    await client.after(PATIENCE + 1)
    await client.after(KEEP_ALIVE + 1)
    assert client.over
    assert client.failed == []


async def test_what_was_sent_ahead_waits_and_beyond_some_nothing_more_is_read() -> None:
    """Reading stops after so many bytes, and goes on once nothing waits."""
    client = MockClient()
    assert await client.send(HELD + GET, POST) == b""
    assert client.transport.reading
    ahead = MAX_AHEAD // len(GET) + 1
    await client.send(GET * ahead)
    assert not client.transport.reading
    client.release.set()
    await client.settle()
    bodies = [answer.body for answer in answers_in(client.answered)]
    assert bodies == [b"held", b"GET /echo []", b"POST /echo [hello]", *[b"GET /echo []"] * ahead]
    assert client.transport.reading


async def test_a_client_that_leaves_is_noticed_though_it_has_sent_ahead() -> None:
    """The request that is served is given up, and those behind it are not begun."""
    client = MockClient()
    await client.send(HELD + POST + GET)
    client.connection.eof_received()
    await client.settle()
    assert client.cancelled == 1
    assert [asked.path for asked in client.asked] == ["/held"]


@pytest.mark.parametrize("ahead", [BEGUN, GET * (MAX_AHEAD // len(GET) + 1) + BEGUN])
async def test_a_body_is_read_on_once_its_request_has_its_turn(ahead: bytes) -> None:
    """Half a request behind others: while reading was stopped its client is not late, and in its turn it is read on."""
    client = MockClient()
    await client.send(HELD, GET, ahead)
    stopped = not client.transport.reading
    assert stopped == (len(ahead) > MAX_AHEAD)
    await client.after(PATIENCE * 3 if stopped else PATIENCE - 1)
    client.release.set()
    await client.settle()
    assert client.transport.reading
    if stopped:
        await client.after(PATIENCE - 1)
    assert answers_in(await client.send(b"llo"))[-1].body == b"POST /echo [hello]"


async def test_the_answer_to_a_client_that_still_sends_is_not_lost_by_closing() -> None:
    """A reset would overtake it: the connection closes once all is sent, or after LINGER."""

    async def refuses(downstream: Downstream) -> None:
        downstream.answer(413, [PLAIN], b"no")

    client = MockClient(refuses=refuses)
    head = b"POST /refuses HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 10\r\n\r\n"
    (answer,) = answers_in(await client.send(head + b"12345"))
    assert answer.body == b"no"
    assert not client.transport.closed
    await client.send(b"67890")
    assert client.transport.closed


async def test_http_1_0_is_answered_whole_and_closed() -> None:
    """It knows no chunks, and no second request."""

    async def stream(downstream: Downstream) -> None:
        downstream.start(200, [PLAIN])
        downstream.write(b"a")
        downstream.end(b"b")

    client = MockClient(stream=stream)
    (answer,) = answers_in(await client.send(b"POST /echo HTTP/1.0\r\ncontent-length: 2\r\n\r\nhi"))
    assert (answer.body, answer.headers["connection"]) == (b"POST /echo [hi]", "close")
    assert client.over
    client = MockClient(stream=stream)
    (answer,) = answers_in(await client.send(b"GET /stream HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"))
    assert (answer.body, answer.headers) == (
        b"ab",
        {"date": "today", "content-type": "text/plain", "connection": "close"},
    )
    assert client.over


async def test_a_client_that_says_close_is_answered_and_closed() -> None:
    """What it sends after that is not answered."""
    client = MockClient()
    (answer,) = answers_in(await client.send(GET.replace(b"host: a", b"connection: close") + GET))
    assert answer.headers["connection"] == "close"
    assert client.over
    assert client.refused == []


@pytest.mark.parametrize("first", [True, False])
async def test_a_body_that_is_expected_is_asked_for(*, first: bool) -> None:
    """100 Continue before the answer, unless the body is there already; then the connection goes on."""
    head = b"POST /echo HTTP/1.1\r\nexpect: 100-Continue\r\ncontent-length: 5\r\n\r\n"
    client = MockClient()
    pieces = (head, b"hello") if first else (head + b"hello",)
    statuses = [answer.status for answer in answers_in(await client.send(*pieces))]
    assert statuses == ([100, 200] if first else [200])
    assert len(answers_in(await client.send(GET))) == len(statuses) + 1


async def test_a_body_that_was_not_asked_for_ends_the_connection() -> None:
    """After an answer instead of 100 nobody could tell the body from the next request (RFC 9110, 10.1.1)."""
    client = MockClient()
    client.release.set()
    (answer,) = answers_in(await client.send(HELD.replace(b"host: a", b"expect: 100-continue\r\ncontent-length: 33")))
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert client.over


async def test_http_1_0_is_not_told_to_continue() -> None:
    """It would take it for the answer."""
    client = MockClient()
    assert await client.send(b"POST /echo HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n") == b""
    assert answers_in(await client.send(b"hi"))[0].status == 200


@pytest.mark.parametrize("chunked", [True, False])
async def test_too_large_a_body_is_refused_and_the_rest_dropped(*, chunked: bool) -> None:
    """413 as soon as it is known; the rest of the body is not taken for a request, and the next one is served."""
    body = b"GET /echo HTTP/1.1\r\n\r\n" * 100
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(body)
    head = b"POST /echo HTTP/1.1\r\n%b\r\n\r\n" % framing
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    client = MockClient()
    (answer,) = answers_in(await client.send(head, sent[: LIMIT + 10]))
    assert (answer.status, answer.code) == (413, "request_too_large")
    answers = answers_in(await client.send(sent[LIMIT + 10 : -1], sent[-1:], GET))
    assert [each.status for each in answers] == [413, 200]


async def test_a_body_that_stops_coming_is_given_up() -> None:
    """408 after PATIENCE without a byte, not before; then the connection ends."""
    client = MockClient()
    await client.send(BEGUN)
    await client.after(PATIENCE - 1)
    await client.send(b"l")
    await client.after(PATIENCE - 1)
    assert client.answered == b""
    await client.after(2)
    (answer,) = answers_in(client.answered)
    assert (answer.status, answer.code, answer.headers["connection"]) == (408, "request_timeout", "close")
    assert client.over


async def test_an_idle_connection_is_closed_in_time() -> None:
    """After KEEP_ALIVE without a request, be it the first or the next; never while one is answered."""
    for sent in ((), (GET,), (CHUNKED[:-5], CHUNKED[-5:])):
        client = MockClient()
        await client.send(*sent)
        await client.after(KEEP_ALIVE - 1)
        assert not client.transport.closed
        await client.after(2)
        assert client.over
    client = MockClient()
    await client.send(HELD)
    await client.after(KEEP_ALIVE * 10)
    client.release.set()
    await client.settle()
    await client.after(KEEP_ALIVE - 1)
    assert not client.transport.closed
    assert len(answers_in(client.answered)) == 1


async def test_a_connection_lives_on_after_a_long_answer_to_a_body_in_chunks() -> None:
    """Its last chunk came alone, and long ago: the time to the next request counts from the answer."""
    client = MockClient()
    await client.send(HELD[:-2] + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n", b"0\r\n\r\n")
    await client.after(KEEP_ALIVE * 2)
    client.release.set()
    await client.settle()
    await client.after(KEEP_ALIVE - 1)
    assert not client.transport.closed


async def test_an_endpoint_that_fails_is_told_and_answered() -> None:
    """500 of the usual shape, the reason to the site, and the connection goes on."""

    async def fail(_: Downstream) -> None:
        raise KeyError("gone")

    client = MockClient(fail=fail)
    answers = answers_in(await client.send(GET.replace(b"echo", b"fail"), GET))
    assert [answer.status for answer in answers] == [500, 200]
    assert answers[0].code == "internal_error"
    assert answers[0].headers["x-request-id"] in str(answers[0].body)
    assert [type(failure) for failure in client.failed] == [KeyError]


async def test_an_endpoint_that_gives_no_answer_has_failed() -> None:
    """Nobody waits for what will not come."""

    async def forget(_: Downstream) -> None:
        return

    client = MockClient(forget=forget)
    answers = answers_in(await client.send(GET.replace(b"echo", b"forget"), GET))
    assert [answer.status for answer in answers] == [500, 200]
    assert len(client.failed) == 1


async def test_an_error_that_an_endpoint_lets_out_is_the_answer() -> None:
    """It is no fault of the gateway."""

    async def refuse(_: Downstream) -> None:
        raise GatewayError("no", code="draining", retry_after=2)

    client = MockClient(refuse=refuse)
    (answer,) = answers_in(await client.send(GET.replace(b"echo", b"refuse")))
    assert (answer.code, answer.headers["retry-after"]) == ("draining", "2")
    assert (client.failed, client.refused) == ([], [])


async def test_an_early_answer_leaves_the_rest_of_the_body_unread() -> None:
    """The next request is found behind it."""
    client = MockClient()
    client.release.set()
    head = HELD[:-2] + b"content-length: 40\r\n\r\n"
    assert len(answers_in(await client.send(head, b"x" * 20))) == 1
    assert [answer.body for answer in answers_in(await client.send(b"x" * 20 + GET))] == [b"held", b"GET /echo []"]


async def test_who_leaves_while_he_is_served_stops_that_once() -> None:
    """While the body is read, and while the endpoint waits; the end of the connection adds nothing."""
    for sent in (BEGUN, HELD, HELD + GET):
        client = MockClient()
        await client.send(sent)
        await client.leave()
        client.connection.connection_lost(None) if client.connection in client.state.connections else None
        assert client.cancelled == 1
        assert len(client.asked) == 1
        assert client.asked[0].gone
        assert client.over
        assert (client.answered, client.failed) == (b"", [])


async def test_who_cleans_up_is_not_disturbed_again() -> None:
    """The first word cancels; neither the second nor the lost connection does."""
    cleaned = asyncio.Event()

    async def clean(downstream: Downstream) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            for _ in range(5):
                await asyncio.sleep(0)
            cleaned.set()

    client = MockClient(clean=clean)
    await client.send(GET.replace(b"echo", b"clean"))
    client.connection.eof_received()
    await asyncio.sleep(0)
    client.connection.connection_lost(None)
    client.transport.close()
    await client.settle()
    assert cleaned.is_set()
    assert client.over
    assert client.failed == []


async def test_who_leaves_while_writing_waits_stops_it() -> None:
    """A client that reads no more, and then is gone."""
    seen = []

    async def stream(downstream: Downstream) -> None:
        downstream.start(200, [PLAIN])
        try:
            while True:
                downstream.write(b"x")
                seen.append("written")
                await downstream.drained()
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    client = MockClient(stream=stream)
    client.connection.pause_writing()
    await client.send(GET.replace(b"echo", b"stream"))
    assert seen == ["written"]
    client.connection.resume_writing()
    await client.settle()
    assert len(seen) > 1
    client.connection.pause_writing()
    await client.settle()
    client.transport.close()
    client.connection.connection_lost(ConnectionResetError())
    await client.settle()
    assert seen.count("cancelled") == 1
    assert client.over


async def test_who_leaves_between_requests_or_after_an_answer_cancels_nothing() -> None:
    """The task ends by itself; what an endpoint does after its answer goes on to its end."""
    done = []

    async def slow(downstream: Downstream) -> None:
        downstream.answer(200, [PLAIN], b"x")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done.append("counted")

    client = MockClient(slow=slow)
    await client.send(GET)
    await client.leave()
    assert client.over
    assert not client.task.cancelled()
    client = MockClient(slow=slow)
    client.connection.data_received(GET.replace(b"echo", b"slow"))
    await asyncio.sleep(0)
    await client.leave()
    assert done == ["counted"]
    assert client.over
    assert not client.task.cancelled()


async def test_shutdown_closes_what_is_idle_and_lets_the_rest_end() -> None:
    """No new request, and every answer that was due."""
    for sent in ((), (GET,), (b"GET /ec",)):
        client = MockClient()
        await client.send(*sent)
        client.connection.shutdown()
        await client.settle()
        assert client.over
    client = MockClient()
    await client.send(HELD)
    client.connection.shutdown()
    await client.send(GET)
    assert not client.transport.closed
    client.release.set()
    await client.settle()
    (answer,) = answers_in(client.answered)
    assert (answer.body, answer.headers["connection"]) == (b"held", "close")
    assert client.over


async def test_shutdown_waits_for_a_body_that_has_begun() -> None:
    """The request was taken, so it is answered."""
    client = MockClient()
    await client.send(BEGUN)
    client.connection.shutdown()
    (answer,) = answers_in(await client.send(b"llo"))
    assert (answer.body, answer.headers["connection"]) == (b"POST /echo [hello]", "close")
    assert client.over


async def test_a_server_that_ends_at_once_cancels_and_closes() -> None:
    """As uvicorn does when the time to drain is over."""
    client = MockClient()
    await client.send(HELD)
    client.connection.shutdown()
    client.task.cancel()
    await client.settle()
    assert (client.cancelled, client.answered) == (1, b"")
    assert client.over
