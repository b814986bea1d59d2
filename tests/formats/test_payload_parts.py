"""SageMaker's response stream."""

import orjson
import pytest

from gateway.formats.foreign import Unreadable
from gateway.formats.payload_parts import PayloadParts
from tests.providers.aws import frame

EVENTS = b'data: {"a":1}\n\ndata: [DONE]\n\n'


def part(payload: bytes) -> bytes:
    return frame(payload, {":message-type": "event", ":event-type": "PayloadPart"})


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_pieces_are_put_together_whatever_their_size(size: int) -> None:
    """Frames may be cut anywhere, and events inside them too."""
    raw = b"".join(part(EVENTS[at : at + 5]) for at in range(0, len(EVENTS), 5))
    parts = PayloadParts()
    assert b"".join(parts.feed(raw[at : at + size]) for at in range(0, len(raw), size)) + parts.finish() == EVENTS


def test_a_failure_is_an_error_event_and_nothing_follows() -> None:
    """AWS tells it in headers."""
    parts = PayloadParts()
    headers = {":message-type": "exception", ":exception-type": "ModelStreamError"}
    out = parts.feed(part(b"data: {}\n\n") + frame(b'{"Message":"out of memory"}', headers) + part(EVENTS))
    first, second, rest = out.split(b"\n\n")
    assert (first, rest) == (b"data: {}", b"")
    error = orjson.loads(second[6:])["error"]
    assert (error["message"], error["code"], error["status"]) == ("out of memory", "ModelStreamError", 500)
    assert parts.finish() == b""
    out = PayloadParts().feed(frame(b"", {":message-type": "error", ":error-code": "InternalStreamFailure"}))
    assert orjson.loads(out[6:])["error"]["status"] == 503


def test_what_is_cut_or_no_frame_is_told() -> None:
    """Nothing of it is."""
    parts = PayloadParts()
    parts.feed(part(EVENTS)[:-1])
    with pytest.raises(Unreadable, match="inside a message"):
        parts.finish()
    with pytest.raises(Unreadable):
        PayloadParts().feed(b"x" * 40)
