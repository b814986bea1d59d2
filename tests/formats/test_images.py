"""Pictures: how many, how many tokens at most, and what the answer says."""

from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.formats.images import ImageRequest, parse_images
from gateway.formats.request import NotAnAnswer
from gateway.formats.usage import Usage


def asked(**fields: Any) -> ImageRequest:
    """A request."""
    return parse_images(orjson.dumps({"model": "m", "prompt": "a fox", **fields}))


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 6240),
        ({"quality": "auto"}, 6240),
        ({"quality": "medium"}, 1584),
        ({"quality": "low", "size": "1024x1024"}, 408),
        ({"quality": "low", "size": "2048x3072"}, 4 * 408),
        ({"quality": "low", "size": "auto", "partial_images": 3}, 708),
    ],
)
def test_a_picture_has_at_most_so_many_tokens(fields: Any, tokens: int) -> None:
    """By quality, size and partial pictures."""
    request = asked(n=3, **fields)
    assert (request.n, request.max_output, request.extent.writes) == (3, tokens, False)
    assert request.extent.beside == Usage(images=3, image_output=3 * tokens)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"n": 0}, "n"),
        ({"size": 512}, "size"),
        ({"quality": True}, "quality"),
        ({"stream": 1}, "stream"),
    ],
)
def test_what_is_wrong_is_named(fields: Any, param: str) -> None:
    """By its field."""
    with pytest.raises(InvalidRequest) as caught:
        asked(**fields)
    assert caught.value.param == param


def test_what_an_answer_consumed() -> None:
    """Its own tokens, which are of pictures unless it says otherwise; without them as many as each may have."""
    usage: dict[str, Any] = {"input_tokens": 50, "output_tokens": 300, "total_tokens": 350}
    pictures = [{"b64_json": "AA"}] * 2
    told = asked(n=2).read(orjson.dumps({"data": pictures, "usage": usage}), b"", "openai").usage
    assert told == Usage(50, 300, image_output=300, images=2)
    usage["output_tokens_details"] = {"image_tokens": 272, "text_tokens": 28}
    told = asked(n=2).read(orjson.dumps({"data": pictures, "usage": usage}), b"", "openai").usage
    assert told == Usage(50, 300, image_output=272, images=2)
    counted = asked(n=2, quality="low").read(orjson.dumps({"data": pictures[:1]}), b"", "openai").usage
    assert counted == Usage(3, 408, image_output=408, images=1, estimated=True)
    with pytest.raises(NotAnAnswer):
        asked().read(b"{}", b"", "openai")
