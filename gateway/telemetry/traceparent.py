"""The `traceparent` header of W3C Trace Context: what a client says of the trace that its request belongs to. Pure."""

import re
from dataclasses import dataclass

_PARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class Parent:
    """What a client's `traceparent` says; ids in lower-case hex."""

    trace_id: bytes
    span_id: bytes
    sampled: bool


def parse_traceparent(header: bytes | None) -> Parent | None:
    """A valid `traceparent` (W3C Trace Context, 3.2), or None: then a new trace begins."""
    found = _PARENT.fullmatch(header.strip(b" \t")) if header else None  # a parser may leave the space around a value
    if found is None or (found[1] == b"00" and found[5] is not None):
        return None
    if found[2] == b"0" * 32 or found[3] == b"0" * 16:
        return None
    return Parent(found[2], found[3], bool(int(found[4], 16) & 1))
