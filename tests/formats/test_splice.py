"""Changed fields, and everything else in the bytes it came in: for any JSON object in any spelling."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.formats.splice import names_twice, remove_field, replace_fields, replace_model

NAMES = ("model", "max_tokens", "stream_options", "messages", "n", "a", "", 'q"uote', "bäck\\slash", "\U0001f600", "\n")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(('"model"', '"model":"x"', '{"model":', "\\", "}", "]", ",", ":", '\\"'))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
SPACES = st.text(" \t\r\n", max_size=3)
CHANGES = st.dictionaries(st.sampled_from((*NAMES[:5], "added")), VALUES, max_size=4)


@st.composite
def spelled_strings(draw: Any, value: str) -> str:
    """A JSON string in one of its spellings: each character as it is, or escaped."""
    out = []
    for character in value:
        plain = character >= " " and character not in '"\\'
        way = draw(st.sampled_from(("plain", "escape", "escape in capitals") if plain else ("escape", "short")))
        units = character.encode("utf-16-be")
        escaped = "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))
        if way == "plain":
            out.append(character)
        elif way == "short":
            out.append({'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character, escaped))
        else:
            out.append(escaped if way == "escape" else "\\u" + escaped[2:6].upper() + escaped[6:])
    return '"' + "".join(out) + '"'


@st.composite
def spelled(draw: Any, value: Any) -> str:
    """JSON for a value, with spaces wherever they may stand."""
    before, after = draw(SPACES), draw(SPACES)
    if isinstance(value, str):
        text = draw(spelled_strings(value))
    elif isinstance(value, list):
        text = "[" + (",".join(draw(spelled(item)) for item in value) or draw(SPACES)) + "]"
    elif isinstance(value, dict):
        text = draw(spelled_object(list(value.items())))
    else:
        text = json.dumps(value)
    return str(before + text + after)


@st.composite
def spelled_object(draw: Any, fields: list[tuple[str, Any]]) -> str:
    """JSON for an object with these fields, which may name one twice."""
    inner = []
    for name, value in fields:
        inner.append(draw(SPACES) + draw(spelled_strings(name)) + draw(SPACES) + ":" + draw(spelled(value)))
    return "{" + (",".join(inner) or draw(SPACES)) + "}"


@st.composite
def objects(draw: Any, *, unique: bool = True, model: bool = False) -> bytes:
    """A JSON object in any spelling; its names are written in any spelling too."""
    by = (lambda field: field[0]) if unique else None
    fields = draw(st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=6, unique_by=by))
    if model:
        fields = [field for field in fields if field[0] != "model" or not unique]
        fields.insert(draw(st.integers(0, len(fields))), ("model", draw(st.sampled_from(("fast", "a", 'x"y', "é")))))
    before, after = draw(SPACES), draw(SPACES)
    return str(before + draw(spelled_object(fields)) + after).encode()


def dumped(changes: dict[str, Any]) -> dict[str, bytes]:
    return {name: orjson.dumps(value) for name, value in changes.items()}


@settings(max_examples=60)
@given(raw=objects(), changes=CHANGES)
def test_it_parses_to_the_object_with_the_changes(raw: bytes, changes: dict[str, Any]) -> None:
    """The changed bytes mean exactly the old object with the new fields."""
    doc = orjson.loads(raw)
    assert orjson.loads(replace_fields(raw, doc, dumped(changes))) == {**doc, **orjson.loads(orjson.dumps(changes))}


@settings(max_examples=60)
@given(raw=objects(), changes=CHANGES)
def test_every_other_byte_stays(raw: bytes, changes: dict[str, Any]) -> None:
    """Putting the old values back gives the old bytes: nothing else was touched, nor moved."""
    doc = orjson.loads(raw)
    here = {name: b"0" for name in changes if name in doc}
    marked = {name: b"\x00%d\x00" % number for number, name in enumerate(here)}
    changed = replace_fields(raw, doc, marked)
    rest = raw
    for mark in sorted(marked.values(), key=changed.index):
        before, _, after = changed.partition(mark)
        assert rest.startswith(before)
        rest = rest[len(before) :]
        _, end = json.JSONDecoder().raw_decode(rest.decode())
        rest = rest.decode()[end:].encode()
        changed = after
    assert rest == changed


@settings(max_examples=60)
@given(raw=objects(), changes=CHANGES)
def test_fields_that_are_added_stand_in_front(raw: bytes, changes: dict[str, Any]) -> None:
    """What was there keeps its bytes, behind the new fields."""
    doc = orjson.loads(raw)
    new = {name: orjson.dumps(value) for name, value in changes.items() if name not in doc}
    changed = replace_fields(raw, doc, new)
    begin = raw.index(b"{") + 1
    assert changed.startswith(raw[:begin])
    assert changed.endswith(raw[begin:])
    assert len(changed) == len(raw) + sum(len(orjson.dumps(k)) + len(v) + 2 for k, v in new.items()) - (
        1 if new and not doc else 0
    )


@settings(max_examples=60)
@given(raw=objects(unique=False), changes=CHANGES)
def test_a_field_named_twice_stands_once_after_a_change(raw: bytes, changes: dict[str, Any]) -> None:
    """Two readers that disagree about which of two counts find only one."""
    doc = orjson.loads(raw)
    changed = replace_fields(raw, doc, dumped(changes))
    pairs: list[tuple[str, Any]] = json.loads(changed, object_pairs_hook=list)
    assert len({name for name, _ in pairs}) == len(pairs)
    assert orjson.loads(changed) == {**doc, **orjson.loads(orjson.dumps(changes))}


@settings(max_examples=60)
@given(raw=objects(unique=False))
def test_names_twice_sees_through_every_spelling(raw: bytes) -> None:
    """`"n"` and `"\\u006e"` are one name."""
    pairs: list[tuple[str, Any]] = json.loads(raw, object_pairs_hook=list)
    assert names_twice(raw) is (len({name for name, _ in pairs}) < len(pairs))


@settings(max_examples=60)
@given(raw=objects(model=True), model=st.sampled_from(("gpt-4o-mini", "a", 'q"uo\\te', "ü")))
@example(raw=b'{"mod\\u0065l": "fast", "metadata": {"model": "fast"}}', model="gpt-4o-mini")
@example(raw=b'{"x": "\\"model", "m\\u006fdel": "fast", "y": {"a\\"model": "fast"}}', model="gpt-4o-mini")
def test_the_model_is_replaced_wherever_it_stands(raw: bytes, model: str) -> None:
    """However the field is spelled, and whatever else says `"model"`."""
    doc = orjson.loads(raw)
    changed = replace_model(raw, doc, orjson.dumps(model))
    assert orjson.loads(changed) == {**doc, "model": model}


@settings(max_examples=60)
@given(raw=objects(model=True, unique=False))
def test_a_model_named_twice_is_one_model_afterwards(raw: bytes) -> None:
    """No backend can take a model that was not checked."""
    changed = replace_model(raw, orjson.loads(raw), b'"checked"')
    pairs: list[tuple[str, Any]] = json.loads(changed, object_pairs_hook=list)
    assert [value for name, value in pairs if name == "model"] == ["checked"]


@pytest.mark.parametrize(
    ("raw", "changed"),
    [
        (b'{"model":"fast","n":1}', b'{"model":"m","n":1}'),
        (b'{ "n" : 1.0 ,\r\n "model"\t: "fast" }\n', b'{ "n" : 1.0 ,\r\n "model"\t: "m" }\n'),
        (
            b'{"big":123456789012345678901234567890,"model":"fast"}',
            b'{"big":123456789012345678901234567890,"model":"m"}',
        ),
        (b'{"model":"f\\u0061st","x":"\\/"}', b'{"model":"m","x":"\\/"}'),
        (
            b'{"messages":[{"content":"\\"model\\": 1"}],"model":"fast"}',
            b'{"messages":[{"content":"\\"model\\": 1"}],"model":"m"}',
        ),
    ],
)
def test_the_model_alone_is_replaced(raw: bytes, changed: bytes) -> None:
    """Spaces, spellings of numbers and escapes stay as the client wrote them."""
    assert replace_model(raw, orjson.loads(raw), b'"m"') == changed


def test_an_empty_object_takes_fields() -> None:
    """There is no comma before nothing."""
    assert replace_fields(b"{ }", {}, {"a": b"1", "b": b"[]"}) == b'{"a":1,"b":[] }'


@settings(max_examples=60)
@given(raw=objects(unique=False), name=st.sampled_from((*NAMES, "absent")))
def test_a_field_is_removed_and_the_rest_keeps_its_bytes(raw: bytes, name: str) -> None:
    """However often and however spelled it stands, it is gone, and every other member is spelled as before."""
    changed = remove_field(raw, name)
    doc = orjson.loads(raw)
    assert orjson.loads(changed) == {each: value for each, value in doc.items() if each != name}
    left = iter(raw)
    assert all(byte in left for byte in changed), "something was added or moved"
    if doc and name not in doc:
        assert changed == raw


@pytest.mark.parametrize(
    ("raw", "changed"),
    [
        (b'{"usage":null}', b"{}"),
        (b'{"usage":null,"a":1}', b'{"a":1}'),
        (b'{"a":1,"usage":{"b":[1,{}]}}', b'{"a":1}'),
        (b'{"a": 1.0 , "usage" : null , "b":"\\u00e9"}', b'{"a": 1.0 , "b":"\\u00e9"}'),
        (b'{"a":{"usage":1},"\\u0075sage":2}', b'{"a":{"usage":1}}'),
        (b'{"a":"\\"usage\\":1"}', b'{"a":"\\"usage\\":1"}'),
    ],
)
def test_the_field_alone_is_removed(raw: bytes, changed: bytes) -> None:
    """First, last, in the middle or alone; never one of the same name further down."""
    assert remove_field(raw, "usage") == changed
