"""YAML with places: every value knows where it stands, and no file can exceed the bounds."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.positions import Fields, Place, Scalar, plain, read, scalars


def values(text: str) -> object:
    node, problems = read("f", text)
    assert node is not None
    assert problems == []
    return plain(node)


def refused(text: str) -> str:
    _, problems = read("f", text)
    return str(problems[-1])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-7", -7),
        ("1_000", 1000),
        ("0.1", Decimal("0.1")),
        ("1e-7", Decimal("1e-7")),
        ("1e9999", "1e9999"),
        ("9" * 41, "9" * 41),
        ("true", True),
        ("~", None),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2027-01-01", "2027-01-01"),
        (".inf", ".inf"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("|\n  a\n  b\n", "a\nb\n"),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    """Numbers are exact, quoted text is text, and no word but true, false and null is more than a word."""
    found = values(f"a: {text}")
    assert found == {"a": value}
    assert isinstance(found, dict)
    assert type(found["a"]) is type(value)


WORDS = st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=6)


@given(rows=st.dictionaries(WORDS, st.lists(WORDS, max_size=4), max_size=6), flow=st.booleans())
def test_every_value_stands_where_the_text_has_it(rows: dict[str, list[str]], flow: bool) -> None:
    """The place of a value, counted in the text itself, is the place that it was given."""
    lines = ["# ünï"]
    for name, items in rows.items():
        lines += [f"{name}: [{', '.join(items)}]"] if flow or not items else [f"{name}:", *(f"  - {i}" for i in items)]
    node, _ = read("f", "\n".join(lines) + "\n")
    assert node is not None
    for scalar in scalars(node):
        line = lines[scalar.place.line - 1]
        assert line[scalar.place.column - 1 :].startswith(scalar.text)
    for name, entry in node.entries.items():
        assert lines[entry.place.line - 1].startswith(f"{name}:")
        assert entry.place.column == 1


def test_columns_count_characters() -> None:
    """A letter outside ASCII moves what follows by one column, as an editor shows it."""
    node, _ = read("f", "ä: {ö: ü, b: c}")
    assert node is not None
    inner = node.entries["ä"].node
    assert isinstance(inner, Fields)
    assert inner.entries["b"].node == Scalar(Place("f", 1, 14), "c", "c")


def test_an_empty_file_is_an_empty_mapping() -> None:
    """Nothing, a comment, or a document that says null."""
    assert values("") == values("# x\n") == values("---\n") == values("null") == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a", "f:1:1: a policy file is a mapping; write sections such as `backends:`, `models:` and `aliases:`"),
        ("a: 1\n---\nb: 2", "f:2:1: a second document; a file holds one: remove `---` or split the file"),
        ("a: 1\na: 2", "f:2:1: `a` is written twice, first on line 1; keep one"),
        ("a:\n\t- b", "f:2:1: a tab stands where YAML wants spaces; indent with spaces"),
        ("a: %b", "f:1:4: a value cannot begin with this character; put the value in quotes"),
        ("a: \x00", "f:1:4: a control character; remove it"),
        ("a: *b", "f:1:4: an alias (`*…`) without an anchor before it; write `&name` there, or quote it"),
        ("a: &a [*a]", "f:1:8: an alias (`*…`) without an anchor before it; write `&name` there, or quote it"),
        ("a: !!set {b}", "f:1:4: a tag (`!…`); remove it: policies need none"),
        ("a: {<<: {b: c}}", "f:1:5: merge keys (`<<`) are not supported; write the fields out"),
        (
            "[a]: b",
            "f:1:1: a list, a mapping or an alias stands where a name is expected; write a name",
        ),
        (
            "a: [1, 2",
            "f:1:4: what begins here never ends; write the missing bracket or quote",
        ),
        ("a: 'b\n", "f:1:4: what begins here never ends; write the missing bracket or quote"),
        (
            "a: [1, 2\nb: 3",
            "f:2:2: did not find expected ',' or ']'; check brackets, quotes and indentation from line 1, column 4 on",
        ),
        (
            "a: b: c",
            (
                "f:1:5: mapping values are not allowed in this context; "
                "check the indentation, or put a text that contains `: ` in quotes"
            ),
        ),
    ],
)
def test_what_is_no_policy_file_is_said_with_its_remedy(text: str, problem: str) -> None:
    """Every way to be wrong has its own sentence and its place."""
    assert refused(text) == problem


def test_depth_is_bounded_through_aliases_too() -> None:
    """Neither brackets nor anchors inside anchors get deeper than the bound."""
    assert "nested deeper than 32 levels" in refused("a: " + "[" * 100_000)
    steps = "".join(f"a{i}: &a{i} {'[' * 20}*a{i - 1}{']' * 20}\n" for i in range(1, 200))
    assert refused("a0: &a0 x\n" + steps) == "f:3:29: nested deeper than 32 levels; write it flat"


def test_aliases_cannot_explode() -> None:
    """Ten aliases of ten aliases of ten … stop at the bound on values."""
    rows = ["a0: &a0 x", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10))]
    assert "more than 100000 values" in refused("\n".join(rows))
