"""The client's traceparent: read when it is valid, ignored when it is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry.traceparent import Parent, parse_traceparent

TRACE, SPAN = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (b"00-%s-%s-01" % (TRACE, SPAN), True),
        (b"00-%s-%s-00" % (TRACE, SPAN), False),
        (b"00-%s-%s-03" % (TRACE, SPAN), True),
        (b" 00-%s-%s-01 \t" % (TRACE, SPAN), True),
        (b"cc-%s-%s-01-what-the-future-brings" % (TRACE, SPAN), True),
    ],
)
def test_valid_headers(header: bytes, *, sampled: bool) -> None:
    """Version 00 and later ones, with the sampled flag read as a bit."""
    assert parse_traceparent(header) == Parent(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"ff-%s-%s-01" % (TRACE, SPAN),
        b"00-%s-%s-01-more" % (TRACE, SPAN),
        b"00-%s-%s-01\n" % (TRACE, SPAN),
        b"00-%s-%s-1" % (TRACE, SPAN),
        b"00-%s-%s-01" % (TRACE.upper(), SPAN),
        b"00-%s-%s-01" % (b"0" * 32, SPAN),
        b"00-%s-%s-01" % (TRACE, b"0" * 16),
        b"00-%s-%s" % (TRACE, SPAN),
    ],
)
def test_headers_that_are_not_valid_begin_a_new_trace(header: bytes | None) -> None:
    """Whatever W3C Trace Context does not allow is as if it were not there."""
    assert parse_traceparent(header) is None


@given(st.binary(max_size=80))
def test_no_bytes_break_it(header: bytes) -> None:
    """A client may send anything."""
    found = parse_traceparent(header)
    assert found is None or len(found.trace_id) == 32
