"""Changes a few top-level fields of a JSON object in its own bytes, so that everything else goes out as it came in."""

import re
from collections.abc import Mapping
from typing import Any

import orjson

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]', re.DOTALL)
_ONLY_MODEL = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*("[^"\\]*")')


def replace_model(raw: bytes, doc: Mapping[str, Any], model: bytes) -> bytes:
    """`raw` with the value of its top-level `model` replaced by the JSON string `model`.

    Where no name can hide in escapes (`\\u006d`), a `"model"` that stands only once is that field's name: `doc` has it.
    """
    if raw.count(b'"model"') == 1 and b"\\u00" not in raw:
        found = _ONLY_MODEL.search(raw)
        if found is not None and orjson.loads(found[1]) == doc["model"]:
            return raw[: found.start(1)] + model + raw[found.end(1) :]
    return replace_fields(raw, doc, {"model": model})


def with_model(raw: bytes, doc: Mapping[str, Any], model: str, changes: Mapping[str, bytes]) -> bytes:
    """`raw`, a valid JSON object that parses to `doc`, for this model and with these changes; untouched without any."""
    if not changes:
        return raw if model == doc["model"] else replace_model(raw, doc, orjson.dumps(model))
    if model != doc["model"]:
        changes = {**changes, "model": orjson.dumps(model)}
    return replace_fields(raw, doc, changes)


def replace_fields(raw: bytes, doc: Mapping[str, Any], changes: Mapping[str, bytes]) -> bytes:
    """`raw`, a valid JSON object that parses to `doc`, with these top-level fields set to these JSON values.

    An object that names a field twice is written anew, so that no reader can take the value we did not see.
    """
    spans = _value_spans(raw)
    if spans is None:
        return orjson.dumps({**doc, **{name: orjson.Fragment(value) for name, value in changes.items()}})
    edits = sorted((*spans[name], value) for name, value in changes.items() if name in spans)
    pieces: list[bytes] = []
    position = raw.index(b"{") + 1
    pieces.append(raw[:position])
    added = [orjson.dumps(name) + b":" + value for name, value in changes.items() if name not in spans]
    if added:
        pieces.append(b",".join(added) + (b"," if spans else b""))
    for start, end, value in edits:
        pieces += (raw[position:start], value)
        position = end
    pieces.append(raw[position:])
    return b"".join(pieces)


def remove_field(raw: bytes, name: str) -> bytes:
    """`raw`, a valid JSON object, without its top-level field `name`."""
    kept: list[bytes] = []
    depth = opened = start = 0
    member: str | None = None
    for token in _TOKEN.finditer(raw):
        mark = raw[token.start()]
        if depth == 1 and mark in b",}":
            if member is not None and member != name:
                kept.append(raw[start : token.start()])
            if mark == 0x7D:
                return raw[:opened] + b",".join(kept) + raw[token.start() :]
            member, start = None, token.end()
        elif depth == 1 and mark == 0x22 and member is None:
            member = orjson.loads(token[0])
        elif mark in b"{[":
            depth += 1
            if depth == 1:
                opened = start = token.end()
        elif mark in b"}]":
            depth -= 1
    return raw


def names_twice(raw: bytes) -> bool:
    """Whether a top-level field stands more than once."""
    return _value_spans(raw) is None


def _value_spans(raw: bytes) -> dict[str, tuple[int, int]] | None:
    spans: dict[str, tuple[int, int]] = {}
    depth = 0
    name: str | None = None
    start = -1
    for token in _TOKEN.finditer(raw):
        mark = raw[token.start()]
        if mark in b"{[":
            depth += 1
        elif mark in b"}]":
            depth -= 1
            if depth == 0 and name is not None:
                spans[name] = _trimmed(raw, start, token.start())
        elif depth == 1:
            if mark == 0x22 and name is None:
                name = orjson.loads(token[0])
                if name in spans:
                    return None
            elif mark == 0x3A and start < 0:
                start = token.end()
            elif mark == 0x2C and name is not None:
                spans[name] = _trimmed(raw, start, token.start())
                name, start = None, -1
    return spans


def _trimmed(raw: bytes, start: int, end: int) -> tuple[int, int]:
    while raw[start] in b" \t\r\n":
        start += 1
    while raw[end - 1] in b" \t\r\n":
        end -= 1
    return start, end
