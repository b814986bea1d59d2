"""Server-sent events: the same records for any split of the bytes, and for every line ending that the standard allows."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats.sse import MAX_RECORD, RecordTooLarge, Splitter, comments_of, data_of

ENDINGS = st.sampled_from((b"\n", b"\r", b"\r\n"))
LINES = st.sampled_from(
    (
        b"data: {}",
        b"data:{}",
        b"data:  two spaces",
        b"data:",
        b"data",
        b": ping",
        b":",
        b"id: 7",
        b"retry: 100",
        b"event: error",
        b"unknown: field",
        "data: ünïcödé".encode(),
        b"data: \xff\xfe",
        b"data: a\x00b",
    )
)


@st.composite
def event_streams(draw: st.DrawFn) -> tuple[bytes, list[list[bytes]]]:
    """The bytes of an event stream, and the lines of each of its records."""
    records = draw(st.lists(st.lists(LINES, min_size=1, max_size=4), max_size=6))
    begin = draw(st.sampled_from((b"", b"\xef\xbb\xbf")))
    written = begin + b"".join(
        b"".join(line + draw(ENDINGS) for line in record[:-1]) + record[-1] + draw(BLANKS) for record in records
    )
    return written, records


BLANKS = st.sampled_from((b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n", b"\r\r\n", b"\n\r", b"\r\n\r"))


def cuts_of(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """The bytes in pieces, some of them empty."""
    return st.lists(st.integers(0, len(data)), max_size=12).map(lambda at: cut(data, at))


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted(at), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


def records_of(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = Splitter()
    found = [record for piece in pieces for record in splitter.feed(piece) if record.strip(b"\r\n")]
    return found, splitter.rest()


def normal(record: bytes) -> list[bytes]:
    """The lines of a record, whatever ends them."""
    return [line for line in record.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n") if line]


@given(data=st.data(), stream=event_streams())
def test_any_split_gives_the_same_records(data: st.DataObject, stream: tuple[bytes, list[list[bytes]]]) -> None:
    """Where the network cuts the bytes does not matter."""
    written, records = stream
    pieces = data.draw(cuts_of(written))
    found, rest = records_of(pieces)
    assert [normal(record) for record in [*found, rest] if record] == records


@given(data=st.data(), noise=st.lists(st.sampled_from((b"\n", b"\r", b"a", b"data: b", b":")), max_size=24))
def test_any_split_of_any_bytes_gives_the_same_records(data: st.DataObject, noise: list[bytes]) -> None:
    """Blank lines in any number and mixture end records alike, wherever the bytes are cut."""
    written = b"".join(noise)
    at_once, rest = records_of([written])
    pieces = data.draw(cuts_of(written))
    found, last = records_of(pieces)
    whole = [normal(record) for record in [*at_once, rest] if normal(record)]
    assert [normal(record) for record in [*found, last] if normal(record)] == whole


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_every_line_ending_ends_a_record(ending: bytes) -> None:
    """LF, CRLF and CR, all three stand in the standard."""
    written = b"data: 1" + ending * 2 + b"data: 2" + ending * 2 + b"data: 3"
    splitter = Splitter()
    assert splitter.feed(written) == [b"data: 1", b"data: 2"]
    assert splitter.rest() == b"data: 3"


def test_a_record_is_out_with_its_blank_line() -> None:
    """An event is not held back until the next one comes."""
    for blank in (b"\n\n", b"\r\n\r\n"):
        assert Splitter().feed(b"data: 1" + blank) == [b"data: 1"]


def test_a_byte_order_mark_belongs_to_no_event() -> None:
    """The decoder of OpenAI's SDK would lose the first event with it, even when it comes in pieces."""
    for pieces in ([b"\xef\xbb\xbfdata: 1\n\n"], [b"\xef", b"\xbb", b"\xbfdata: 1\n\n"]):
        found, _ = records_of(pieces)
        assert found == [b"data: 1"]
    assert records_of([b"\xefdata: 1\n\n"])[0] == [b"\xefdata: 1"]


def test_an_endless_record_is_refused() -> None:
    """The buffer is bounded."""
    splitter = Splitter()
    splitter.feed(b"data: " + b"x" * (MAX_RECORD - 6))
    with pytest.raises(RecordTooLarge):
        splitter.feed(b"x")


@pytest.mark.parametrize(
    ("record", "data"),
    [
        (b"data: {}", b"{}"),
        (b"data:{}", b"{}"),
        (b"data:  x", b" x"),
        (b"data: a\ndata: b", b"a\nb"),
        (b"data: a\rdata: b", b"a\nb"),
        (b"data: a\r\ndata:b", b"a\nb"),
        (b"event: error\ndata: {}\nid: 1\nretry: 5", b"{}"),
        (b": comment\ndata: {}", b"{}"),
        (b"data:", b""),
        (b": comment", None),
        (b"retry: 100", None),
        (b"id: 7", None),
        (b"event: ping", None),
        (b"database: x", None),
        (b"", None),
        (b"\ndata: x", b"x"),
    ],
)
def test_the_data_of_a_record(record: bytes, data: bytes | None) -> None:
    """Its `data` lines, one space after the colon taken off, joined with newlines."""
    assert data_of(record) == data


@pytest.mark.parametrize(
    ("record", "comments"),
    [
        (b": ping", b": ping\n\n"),
        (b":a\r\n:b", b":a\n:b\n\n"),
        (b"id: 7\n: ping\nretry: 1", b": ping\n\n"),
        (b"id: 7", b""),
        (b": \xff\xfe", b""),
    ],
)
def test_comments_pass_alone(record: bytes, comments: bytes) -> None:
    """Without the `id:` and `retry:` that crash an SDK's decoder, and only when they are UTF-8, which it insists on."""
    assert comments_of(record) == comments
