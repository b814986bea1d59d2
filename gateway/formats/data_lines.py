"""A stream of `data:` lines, of which each is an event, whether or not a blank line follows: Oracle's are such."""

from gateway.formats.foreign import JsonLines


class DataLines:
    """Cuts it into events; what is not data means nothing."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines = JsonLines()

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """The lines that are whole now. Raises Unreadable."""
        return _data(self._lines.feed(data))

    def rest(self) -> list[tuple[str, bytes]]:
        """A last line without its end."""
        return _data(self._lines.rest())


def _data(lines: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    found = [line[5:].strip() for _, line in lines if line.startswith(b"data:")]
    return [("", data) for data in found if data and data != b"[DONE]"]
