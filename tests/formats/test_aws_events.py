"""The binary frames of AWS's event stream."""

import struct
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats.aws_events import MAX_MESSAGE, BadFrame, Messages


def header(name: str, kind: int, value: bytes) -> bytes:
    return bytes([len(name)]) + name.encode() + bytes([kind]) + value


def text(name: str, value: str) -> bytes:
    return header(name, 7, struct.pack("!H", len(value.encode())) + value.encode())


def frame(payload: bytes, headers: bytes = b"") -> bytes:
    lengths = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    whole = lengths + struct.pack("!I", crc32(lengths)) + headers + payload
    return whole + struct.pack("!I", crc32(whole))


# The vectors that AWS's own SDKs are tested with (awslabs/aws-c-event-stream), written down as bytes.
EMPTY = bytes.fromhex("000000100000000005c248eb7d98c8ff")
PAYLOAD = bytes.fromhex("0000001d00000000fd528c5a7b27666f6f273a27626172277dc3653936")
TEXT_HEADER = bytes.fromhex(
    "0000003d0000002007fd83960c636f6e74656e742d747970650700106170706c69636174696f6e2f6a736f6e7b27666f6f273a27626172277d8d9c08b1"
)


def test_known_messages_are_read() -> None:
    """What Amazon's own tests hold to be right is right here."""
    assert [(dict(m.headers), m.payload) for m in Messages().feed(EMPTY + PAYLOAD + TEXT_HEADER)] == [
        ({}, b""),
        ({}, b"{'foo':'bar'}"),
        ({"content-type": "application/json"}, b"{'foo':'bar'}"),
    ]


def test_headers_of_every_kind_are_passed_over() -> None:
    """Only text is kept; the others have their own lengths."""
    headers = b"".join(
        (
            header("t", 0, b""),
            header("f", 1, b""),
            header("b", 2, b"\x01"),
            header("s", 3, b"\x00\x01"),
            header("i", 4, b"\x00" * 4),
            header("l", 5, b"\x00" * 8),
            header("raw", 6, b"\x00\x03abc"),
            text(":event-type", "größe"),
            header("at", 8, b"\x00" * 8),
            header("id", 9, b"\x00" * 16),
        )
    )
    (message,) = Messages().feed(frame(b"x", headers))
    assert message.headers == {":event-type": "größe"}


@pytest.mark.parametrize("place", range(len(TEXT_HEADER)))
def test_a_single_wrong_byte_is_noticed(place: int) -> None:
    """Wherever it is: two checksums hold every byte."""
    broken = bytearray(TEXT_HEADER)
    broken[place] ^= 0x41
    with pytest.raises(BadFrame):
        Messages().feed(bytes(broken) + b"\x00" * 64)


def test_lengths_beyond_the_bounds_are_refused() -> None:
    """A message of more than AWS's own decoders take, and one that is shorter than its headers."""
    for total, headers in ((MAX_MESSAGE + 1, 0), (20, 8), (10, 0)):
        lengths = struct.pack("!II", total, headers)
        with pytest.raises(BadFrame):
            Messages().feed(lengths + struct.pack("!I", crc32(lengths)))


def test_a_header_that_goes_beyond_its_end_is_refused() -> None:
    """Also one of a kind that does not exist."""
    for wrong in (header("a", 7, b"\x00\xff"), header("a", 10, b""), b"\x09a", header("a", 7, b"\x00\x01\xff")):
        with pytest.raises(BadFrame):
            Messages().feed(frame(b"", wrong))


@given(payloads=st.lists(st.binary(max_size=40), min_size=1, max_size=5), step=st.integers(1, 50))
def test_messages_are_the_same_however_they_are_split(payloads: list[bytes], step: int) -> None:
    """Bytes arrive in any pieces."""
    data = b"".join(frame(payload, text("n", "v")) for payload in payloads)
    messages = Messages()
    found = [m.payload for place in range(0, len(data), step) for m in messages.feed(data[place : place + step])]
    assert found == payloads
    assert messages.between
