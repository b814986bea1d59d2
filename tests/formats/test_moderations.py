"""Moderations: texts and parts in, and a model that may be left out."""

from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.formats.moderations import DEFAULT_MODEL, ModerationRequest, parse_moderations


def asked(**fields: Any) -> ModerationRequest:
    """A request."""
    return parse_moderations(orjson.dumps(fields))


@pytest.mark.parametrize(
    ("given", "prompts", "text"),
    [
        ("a b", 1, "a b"),
        (["a", "b"], 2, "a\nb"),
        ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}], 2, "a\n"),
    ],
)
def test_the_shapes(given: Any, prompts: int, text: str) -> None:
    """Three of them."""
    request = asked(model="m", input=given)
    assert (request.extent.prompts, request.text(), request.mode) == (prompts, text, "moderation")


@pytest.mark.parametrize("given", [[], 1, {"type": "text"}, ["a", {"type": "text"}], [{"text": "a"}], [1]])
def test_other_shapes_are_refused(given: Any) -> None:
    """By the field."""
    with pytest.raises(InvalidRequest) as caught:
        asked(model="m", input=given)
    assert caught.value.param == "input"


@pytest.mark.parametrize("fields", [{}, {"model": None}])
def test_without_a_model_it_is_openais(fields: Any) -> None:
    """The bytes stay as they are for that one, and name any other."""
    request = asked(input=[{"type": "text", "text": "", "model": "inner"}], **fields)
    assert request.model == DEFAULT_MODEL
    assert request.encode(DEFAULT_MODEL) == request.raw
    assert orjson.loads(request.encode("other"))["model"] == "other"


def test_usage_is_counted() -> None:
    """No moderation says it."""
    answer = asked(input="a b c").read(b'{"id":"m","results":[]}', b"", "openai")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.estimated) == (4, 0, True)
