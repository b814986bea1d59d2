"""`${NAME}` and `${NAME?}`: what fills them, what their absence does, and what is no variable."""

import pytest

from gateway.policy.positions import plain, read
from gateway.policy.variables import OFF_URL, Filled, fill


def filled(text: str, **environ: str) -> Filled:
    root, problems = read("f", text)
    assert root is not None
    assert problems == []
    return fill(root, environ)


def test_a_variable_gives_its_value_without_surrounding_space() -> None:
    """A trailing line break, as from a secret's file, is not a part of the value."""
    found = filled("teams: {a: 'x${A}y$${A}', b: ['${A}${B}']}", A=" 1\n", B="2")
    assert plain(found.root) == {"teams": {"a": "x1y${A}", "b": ["12"]}}
    assert not found.problems


@pytest.mark.parametrize("environ", [{}, {"A": ""}, {"A": " \n"}])
def test_a_missing_variable_is_an_error_with_its_remedy(environ: dict[str, str]) -> None:
    """Unset and empty are the same."""
    (problem,) = filled("teams: {a: '${A}'}", **environ).problems
    assert str(problem) == "f:1:12: ${A} is not set; export A, or write ${A?} in a backend that may be off"


def test_an_optional_variable_outside_a_backend_is_an_error() -> None:
    """Only a backend can be switched off."""
    (problem,) = filled("server: {timezone: '${A?}'}").problems
    assert str(problem).startswith(
        "f:1:20: ${A?} stands outside a backend, and only a backend can be switched off; write"
    )


@pytest.mark.parametrize("text", ["${", "${}", "${a-b}", "${1A}", "${A??}", "${${A}}", "${A", "x ${ y"])
def test_what_is_no_variable_is_an_error(text: str) -> None:
    """Anything else between `${` and `}` is told apart from a plain `${`."""
    problems = filled(f"teams: {{a: '{text}'}}", A="v").problems
    assert problems
    assert "not a variable; write ${NAME}" in str(problems[0])


def test_a_backend_goes_on_with_the_keys_it_has() -> None:
    """Only when the last optional key is missing does the backend go off."""
    text = "backends: {b: {api_keys: ['${A?}', '${B?}', plain]}, c: {api_keys: ['${A?}', '${B?}']}}"
    found = filled(text, B="b")
    assert plain(found.root)["backends"] == {"b": {"api_keys": ["b", "plain"]}, "c": {"api_keys": ["b"]}}
    assert not found.disabled
    assert filled(text).disabled == {"c": "A and B are not set"}


def test_a_backend_that_is_off_still_has_a_shape() -> None:
    """The field that cannot be filled is left out, and a base_url is one that never resolves."""
    found = filled("backends: {b: {base_url: 'http://${H?}/v1', slots: '${N?}', local: true}}")
    assert plain(found.root)["backends"]["b"] == {"base_url": OFF_URL, "local": True}
    assert found.disabled == {"b": "H and N are not set"}
