"""AWS's event stream (`application/vnd.amazon.eventstream`): bytes in, whole messages out, checked by their two CRCs.

A message: total length (4), headers length (4), CRC of those (4), headers, payload, CRC of all before (4); big endian.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

MAX_MESSAGE = 16 * 2**20  # what AWS's own decoders take: a payload of at most 16 MB
_MAX_HEADERS = 128 * 2**10
_PRELUDE = struct.Struct("!III")
_CRC = struct.Struct("!I")
_OVERHEAD = _PRELUDE.size + _CRC.size
_FIXED = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}  # bytes of each kind of value; 6 and 7 have a length
_TEXT = 7


class BadFrame(ValueError):
    """A message whose lengths or checksums are wrong; nothing after it can be trusted."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its headers that are text (`:event-type`, `:message-type`, …), and its payload."""

    headers: Mapping[str, str]
    payload: bytes


class Messages:
    """Cuts a byte stream into messages."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now. Raises BadFrame."""
        data = self._rest + data if self._rest else data
        found = []
        position = 0
        while len(data) - position >= _PRELUDE.size:
            total = _checked_length(data, position)
            if len(data) - position < total:
                break
            found.append(_message(data[position : position + total]))
            position += total
        self._rest = data[position:]
        return found

    @property
    def between(self) -> bool:
        """Whether the stream may end here: nothing of a next message has come."""
        return not self._rest


def _checked_length(data: bytes, position: int) -> int:
    total, headers, checksum = _PRELUDE.unpack_from(data, position)
    if crc32(data[position : position + 8]) != checksum:
        raise BadFrame("the checksum of a message's lengths is wrong")
    if total > MAX_MESSAGE or headers > _MAX_HEADERS or total < headers + _OVERHEAD:
        raise BadFrame(f"a message of {total} bytes with {headers} bytes of headers")
    return int(total)


def _message(frame: bytes) -> Message:
    (checksum,) = _CRC.unpack_from(frame, len(frame) - _CRC.size)
    if crc32(frame[: -_CRC.size]) != checksum:
        raise BadFrame("the checksum of a message is wrong")
    end = _PRELUDE.size + int.from_bytes(frame[4:8], "big")
    try:
        headers = _headers(frame[_PRELUDE.size : end])
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise BadFrame("a header of a message cannot be read") from error
    return Message(headers, frame[end : -_CRC.size])


def _headers(data: bytes) -> dict[str, str]:
    found = {}
    position = 0
    while position < len(data):
        name_end = position + 1 + data[position]
        name = data[position + 1 : name_end].decode()
        kind = data[name_end]
        position = name_end + 1
        if kind in _FIXED:
            position += _FIXED[kind]
        else:
            if kind not in (6, _TEXT):
                raise KeyError(kind)
            length = int.from_bytes(data[position : position + 2], "big")
            position += 2 + length
            if kind == _TEXT:
                found[name] = data[position - length : position].decode()
        if position > len(data):
            raise IndexError(position)
    return found
