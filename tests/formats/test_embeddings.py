"""Embeddings: what is asked, and what the answer says besides its vectors."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats.embeddings import EmbeddingsRequest, parse_embeddings
from gateway.formats.request import NotAnAnswer
from gateway.formats.usage import Usage

JSON = b"application/json"


def asked(body: bytes = b'{"model":"m","input":["one","two"]}') -> EmbeddingsRequest:
    """A request."""
    return parse_embeddings(body)


def test_what_it_is() -> None:
    """It writes nothing, and each input is bounded by the context alone."""
    request = asked()
    assert (request.mode, request.operation, request.path("openai")) == ("embedding", "embeddings", b"/embeddings")
    assert (request.extent.prompts, request.extent.writes, request.max_output, request.stream) == (2, False, 0, False)
    assert request.text() == "one\ntwo"


def test_a_model_named_twice_means_the_same_to_everybody() -> None:
    """As in chat."""
    request = asked(b'{"model":"nobody","input":"a","model":"m"}')
    assert (request.model, orjson.loads(request.raw)) == ("m", {"model": "m", "input": "a"})


@given(st.integers(0, 40), st.sampled_from([10, 1000, 3000]), st.booleans())
def test_the_usage_is_found_around_any_vectors(count: int, size: int, usage_first: bool) -> None:
    """In small answers and in large ones, of which the vectors are not read."""
    data = {"data": [{"object": "embedding", "index": n, "embedding": [0.5] * size} for n in range(count)]}
    usage = {"usage": {"prompt_tokens": 7, "total_tokens": 7}}
    body = orjson.dumps({"model": "e", **usage, **data} if usage_first else {**data, "model": "e", **usage})
    answer = asked().read(body, JSON, "openai")
    assert (answer.body, answer.usage, answer.response_model) == (body, Usage(7), "e")


def test_usage_that_is_missing_is_counted() -> None:
    """From the texts."""
    answer = asked().read(b'{"data":[]}', JSON, "openai")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.estimated) == (4, True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"data":{}}',
        b'{"error":{"message":"no"}}',
        b'{"x":"' + b"y" * 100_000 + b'","data":1}',
        b'{"data":[' + b"1," * 50_000 + b"1]",
    ],
)
def test_what_is_no_answer(body: bytes) -> None:
    """Large or small."""
    with pytest.raises(NotAnAnswer):
        asked().read(body, JSON, "openai")
