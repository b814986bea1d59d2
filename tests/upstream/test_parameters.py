"""The fields of a chat request, sorted for a provider."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.upstream.parameters import OPENAI, Sorted, sort

KNOWN = frozenset(("temperature", "max_tokens", "tools"))


def sorted_(doc: dict[str, Any], **how: Any) -> Sorted:
    usual: dict[str, Any] = {"known": KNOWN, "own": {"top_k"}, "rest_goes_on": False, "labels": False, "drop": False}
    return sort({"model": "m", "messages": [], **doc}, backend="there", provider="p", **{**usual, **how})


def test_each_field_goes_where_it_belongs() -> None:
    """What is null means nothing."""
    found = sorted_({"temperature": 0.5, "top_k": 3, "seed": None, "stream": True, "stream_options": {}})
    assert (found.given, found.own, found.rest) == ({"temperature": 0.5}, {"top_k": 3}, {})


def test_everything_that_is_not_known_is_named_at_once() -> None:
    """With the backend, and what to do."""
    with pytest.raises(InvalidRequest) as caught:
        sorted_({"seed": 1, "banana": 2, "temperature": 1})
    assert caught.value.param == "seed"
    assert all(word in caught.value.message for word in ("`seed`, `banana`", "'there'", "drop_params: true"))


def test_what_is_not_known_is_dropped_only_where_it_is_said() -> None:
    """But what would steer is refused there too."""
    assert sorted_({"seed": 1, "banana": 2, "temperature": 1}, drop=True).given == {"temperature": 1}
    with pytest.raises(InvalidRequest, match="cannot be chosen by a client") as caught:
        sorted_({"api_base": "x", "fallbacks": ["y"]}, drop=True)
    assert "`api_base`, `fallbacks`" in caught.value.message


@pytest.mark.parametrize(
    "field",
    [
        {"n": 1},
        {"frequency_penalty": 0.0},
        {"response_format": {"type": "text"}},
        {"tools": []},
        {"tool_choice": "auto"},
    ],
)
def test_what_says_nothing_is_no_reason_to_refuse(field: dict[str, Any]) -> None:
    """Clients send defaults without meaning anything."""
    assert sorted_(field) == Sorted({})


def test_who_asks_is_told_only_to_those_who_take_it() -> None:
    """No answer depends on `user`, and some SDKs always send it."""
    assert sorted_({"user": "bob"}) == Sorted({})
    assert sorted_({"user": "bob"}, labels=True).rest == {"user": "bob"}
    assert sorted_({"user": "bob"}, known=KNOWN | {"user"}).given == {"user": "bob"}


def test_an_openai_compatible_provider_gets_what_only_it_may_know() -> None:
    """But not what OpenAI has and it has not."""
    found = sorted_({"guided_json": {}, "temperature": 1}, rest_goes_on=True)
    assert (found.given, found.rest) == ({"temperature": 1}, {"guided_json": {}})
    with pytest.raises(InvalidRequest, match="`seed`"):
        sorted_({"seed": 1}, rest_goes_on=True)


@given(st.dictionaries(st.text(max_size=70), st.integers(), max_size=30), st.booleans())
def test_no_field_is_lost_or_doubled(doc: dict[str, Any], rest_goes_on: bool) -> None:
    """Each is given, own, on its way, or named in the refusal; and a refusal is short."""
    doc = {name: value for name, value in doc.items() if name not in ("model", "messages", "stream", "stream_options")}
    try:
        found = sorted_(doc, rest_goes_on=rest_goes_on)
    except InvalidRequest as error:
        assert len(error.message) < 2000  # noqa: PT017 - both ways out are right
        return
    named = [*found.given, *found.own, *found.rest]
    assert len(named) == len(set(named))
    assert set(doc) - set(named) <= OPENAI
