"""Four shapes of an input, and nothing else."""

from typing import Any

import pytest

from gateway.errors import InvalidRequest
from gateway.formats.inputs import count_inputs, text_of_inputs
from gateway.formats.tokens import estimate


@pytest.mark.parametrize(
    ("value", "count", "text"),
    [
        ("a b", 1, "a b"),
        ("", 1, ""),
        (["a", ""], 2, "a\n"),
        ([1, 2, 3], 1, " a a a"),
        ([[1], [2, 3]], 2, " a a a"),
    ],
)
def test_the_four_shapes(value: Any, count: int, text: str) -> None:
    """Counted, and spelt out for the counting of tokens."""
    assert count_inputs({"input": value}, "input") == count
    assert text_of_inputs(value) == text


def test_a_token_id_is_about_a_token() -> None:
    """Within a few in a hundred."""
    assert estimate(text_of_inputs([7] * 1000)) == pytest.approx(1000, rel=0.05)


@pytest.mark.parametrize(
    ("value", "code", "param"),
    [
        (None, "missing_field", "input"),
        ([], "invalid_value", "input"),
        (1, "invalid_value", "input"),
        (True, "invalid_value", "input"),
        ({"text": "a"}, "invalid_value", "input"),
        (["a", 1], "invalid_value", "input[1]"),
        ([1, "a"], "invalid_value", "input[0]"),
        ([1, -1], "invalid_value", "input[0]"),
        ([1.0], "invalid_value", "input[0]"),
        ([True], "invalid_value", "input[0]"),
        ([[1], []], "invalid_value", "input[1]"),
        ([[1], [2, "a"]], "invalid_value", "input[1]"),
        ([None], "invalid_value", "input[0]"),
    ],
)
def test_everything_else_is_refused(value: Any, code: str, param: str) -> None:
    """With the place of what is wrong."""
    with pytest.raises(InvalidRequest) as caught:
        count_inputs({"input": value}, "input")
    assert (caught.value.code, caught.value.param) == (code, param)
