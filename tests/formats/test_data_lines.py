"""A stream of `data:` lines."""

from gateway.formats.data_lines import DataLines


def test_every_line_is_an_event() -> None:
    """With blank lines or without; comments, names and the end's mark are none."""
    raw = b': hi\nevent: x\ndata: {"a":1}\ndata:{"b":2}\r\n\ndata: [DONE]\ndata: {"c":3}'
    for size in (1, 5, 100):
        lines = DataLines()
        found = [each for at in range(0, len(raw), size) for each in lines.feed(raw[at : at + size])]
        assert found + lines.rest() == [("", b'{"a":1}'), ("", b'{"b":2}'), ("", b'{"c":3}')]
