"""Server-sent events: bytes in, whole records out, for any split of the bytes (WHATWG HTML, "Event stream")."""

import re

_END_OF_RECORD = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?:\r\n|\r(?!\n)|\n)")
_BOM = b"\xef\xbb\xbf"
MAX_RECORD = 8 * 2**20


class RecordTooLarge(ValueError):
    """A record without an end within MAX_RECORD bytes."""


class Splitter:
    """Cuts a byte stream into records, each without its closing blank line."""

    __slots__ = ("_begun", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False

    def feed(self, data: bytes) -> list[bytes]:
        """The records that are whole now. Raises RecordTooLarge."""
        data = self._rest + data if self._rest else data
        if not self._begun:
            if _BOM.startswith(data[:3]) and len(data) < len(_BOM):
                self._rest = data
                return []
            self._begun = True
            data = data.removeprefix(_BOM)
        if b"\r" in data:
            return self._split_slowly(data)
        records = data.split(b"\n\n")
        self._keep(records.pop())
        return records

    def _split_slowly(self, data: bytes) -> list[bytes]:
        records = []
        position = 0
        for found in _END_OF_RECORD.finditer(data):
            if found.end() == len(data) and data.endswith(b"\r"):
                break  # it may be the first half of a CRLF
            records.append(data[position : found.start()])
            position = found.end()
        self._keep(data[position:])
        return records

    def _keep(self, rest: bytes) -> None:
        if len(rest) > MAX_RECORD:
            raise RecordTooLarge(f"an event of more than {MAX_RECORD} bytes")
        self._rest = rest

    def rest(self) -> bytes:
        """Take what stands after the last whole record: a last event whose blank line never came."""
        rest, self._rest = self._rest.strip(b"\r\n"), b""
        return rest


def data_of(record: bytes) -> bytes | None:
    """The data of a record, its lines joined with a newline; None when it has none (a comment, a lone `retry:`)."""
    if record.startswith(b"data: ") and b"\n" not in record and b"\r" not in record:
        return record[6:]
    lines = [
        line[6:] if line.startswith(b"data: ") else line[5:]
        for line in record.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if line.startswith(b"data:")
    ]
    return b"\n".join(lines) if lines else None


def event(name: bytes, data: bytes) -> bytes:
    """One record with its name; `data` may have lines."""
    return b"event: %b\ndata: %b\n\n" % (name, data.replace(b"\n", b"\ndata: ") if b"\n" in data else data)


def comments_of(record: bytes) -> bytes:
    """The comment lines of a record, as a record of their own; empty when it has none that are UTF-8."""
    lines = [line for line in re.split(rb"\r\n|\r|\n", record) if line.startswith(b":") and _is_text(line)]
    return b"\n".join(lines) + b"\n\n" if lines else b""


def _is_text(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:  # OpenAI's decoders raise for it
        return False
    return True
