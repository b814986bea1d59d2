"""When the client leaves, its backend is told within 100 ms, whatever the request was doing."""

import json
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.faults import FaultUpstream, Seen
from tests.support import Served, ask, serve

PROMISED = 0.1  # seconds, CONTRACT section 4
BOUND = 0.5  # what a busy machine is given
_RESET = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def upstream() -> Iterator[FaultUpstream]:
    """A backend that says when its peer left."""
    with FaultUpstream.in_thread() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(upstream: FaultUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway in front of it, where `slotted` has one slot."""
    policies = {
        "server": {"auth": "none"},
        "defaults": {"retry": {"attempts": 0}, "breaker": {"failures": 1000}},
        "backends": {
            "up": {"base_url": upstream.url, "passthrough": ["fault:*"]},
            "one": {"base_url": upstream.url, "slots": 1},
        },
        "models": {"slotted": {"backend": "one", "model": "fault:silence"}},
        "aliases": {"twice": ["slotted"]},
    }
    with serve(tmp_path_factory.mktemp("departure"), policies) as served:
        yield served


def begin(gateway: Served, upstream: FaultUpstream, model: str, *, stream: bool) -> tuple[socket.socket, Seen]:
    """Send a request, and wait until it has reached the backend."""
    before = len(upstream.log)
    connection = gateway.connect()
    body = json.dumps(ask(model, stream=stream))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body.encode())
    upstream.wait(lambda: len(upstream.log) > before)
    return connection, upstream.log[before]


def leave(connection: socket.socket, how: str) -> float:
    """Close it, with FIN or RST, and say when."""
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    left = time.monotonic()
    connection.close()
    return left


def assert_told_soon(upstream: FaultUpstream, seen: Seen, left: float) -> None:
    """The backend saw its connection end, before its answer was whole, soon after the client left."""
    upstream.wait(lambda: seen.closed_at is not None)
    assert seen.closed_at is not None
    took = seen.closed_at - left
    print(f"{seen.fault.name}: {took * 1000:.1f} ms (promised: {PROMISED * 1000:.0f})")
    assert took < BOUND
    assert seen.finished_at is None


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    ("fault", "read"),
    [
        ("slow:gap=0.05,tokens=1000", 1),
        ("slow:gap=0.05,tokens=1000", 1000),
        ("slow:gap=0.001,tokens=100000", 20_000),
        ("stall:3", 200),
        ("big:20000000", 0),
        ("big:20000000", 5_000_000),
    ],
)
def test_leaving_a_stream(gateway: Served, upstream: FaultUpstream, fault: str, read: int, how: str) -> None:
    """After the first bytes, between two tokens, and when so much is unread that nobody writes any more."""
    connection, seen = begin(gateway, upstream, f"fault:{fault}", stream=True)
    got = 0
    while got < read or not got:
        data = connection.recv(min(65536, max(1, read - got)))
        assert data
        got += len(data)
    assert_told_soon(upstream, seen, leave(connection, how))


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["silence", "headers_silence", "ok:delay=30", "stall:0"])
def test_leaving_before_the_first_byte(
    gateway: Served, upstream: FaultUpstream, fault: str, how: str, *, stream: bool
) -> None:
    """While the gateway waits for the head, for the first token, or for the rest of a plain answer."""
    connection, seen = begin(gateway, upstream, f"fault:{fault}", stream=stream)
    assert_told_soon(upstream, seen, leave(connection, how))


def test_leaving_a_large_plain_answer_half_read(gateway: Served, upstream: FaultUpstream) -> None:
    """The gateway itself is not held up by a client that took a part and went."""
    connection, seen = begin(gateway, upstream, "fault:big:20000000", stream=False)
    assert connection.recv(100_000)
    leave(connection, "reset")
    upstream.wait(lambda: bool(seen.reason))
    assert gateway.request("GET", "/livez").status == 200


def test_leaving_the_queue(gateway: Served, upstream: FaultUpstream) -> None:
    """One that waits for a slot leaves its place; the next one gets the slot when it is free."""
    before = len(upstream.log)
    holder, seen = begin(gateway, upstream, "slotted", stream=False)
    waiting = gateway.connect()
    body = b'{"model": "twice", "messages": [{"role": "user", "content": "b"}]}'
    waiting.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
    _until(gateway, 'gateway_queue_depth{backend="one"} 1')
    leave(waiting, "close")
    _until(gateway, 'gateway_queue_depth{backend="one"} 0')
    assert_told_soon(upstream, seen, leave(holder, "close"))
    again, other = begin(gateway, upstream, "slotted", stream=False)
    assert_told_soon(upstream, other, leave(again, "close"))
    assert len(upstream.log) == before + 2, "the one that left the queue was sent all the same"


def test_nothing_is_left_behind(gateway: Served, upstream: FaultUpstream) -> None:
    """After all of these departures no request counts as running, and the log says who left."""
    _until(gateway, 'gateway_inflight{backend="up"} 0')
    _until(gateway, 'gateway_inflight{backend="one"} 0')
    upstream.wait(lambda: upstream.running == 0)
    connection, seen = begin(gateway, upstream, "fault:silence", stream=False)
    assert_told_soon(upstream, seen, leave(connection, "close"))
    gateway.until("client_gone")


def test_a_client_that_half_closes_has_left(gateway: Served, upstream: FaultUpstream) -> None:
    """A FIN after the request is all that a gateway ever sees of a client that has gone, as nginx takes it too."""
    connection, seen = begin(gateway, upstream, "fault:silence", stream=False)
    left = time.monotonic()
    connection.shutdown(socket.SHUT_WR)
    with connection:
        assert_told_soon(upstream, seen, left)


def _until(gateway: Served, line: str) -> None:
    deadline = time.monotonic() + 10
    while True:
        text = gateway.request("GET", "/metrics").body.decode()
        found = [each.replace(".0", "") for each in text.splitlines()]
        if line in found:
            return
        assert time.monotonic() < deadline, f"{line} did not come true: {text}"
