"""Near a limit a prompt is counted, and the count is a bound too."""

import asyncio

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.budget.tokenizer import Tokenizers, encoding_of
from gateway.formats.chat import ChatRequest, parse_chat
from gateway.formats.tokens import upper_bound

PROSE = "The ship came into the harbour in the evening, and nobody on the quay knew her name. " * 40


def request(*texts: str, **fields: object) -> ChatRequest:
    """A chat of a message for each text."""
    messages = [{"role": "user", "content": text} for text in texts]
    return parse_chat(orjson.dumps({"model": "m", "messages": messages, **fields}))


def bound(asked: ChatRequest, model: str = "gpt-4o-mini") -> int | None:
    """What the tokenizers say."""
    return asyncio.run(Tokenizers().bound(asked, model))


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o-mini", "o200k_base"),
        ("openai/gpt-4.1", "o200k_base"),
        ("o3-mini", "o200k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("claude-sonnet-5-5", None),
        ("llama3.2", None),
    ],
)
def test_only_models_whose_tokenizer_is_known_are_counted(model: str, encoding: str | None) -> None:
    """A guess would be no bound."""
    assert encoding_of(model) == encoding
    assert (bound(request(PROSE), model) is None) == (encoding is None)


def test_prose_is_a_third_of_its_bytes() -> None:
    """That is what makes counting worth it."""
    asked = request(PROSE, PROSE)
    counted = bound(asked)
    assert counted is not None
    assert counted < upper_bound(asked.doc, len(asked.raw), "gpt-4o-mini") / 3


@settings(max_examples=40)
@given(st.lists(st.text(max_size=400), min_size=1, max_size=4))
def test_the_count_is_never_below_the_texts_own(texts: list[str]) -> None:
    """Whatever the escapes in the JSON do, all of the text and a template's marks fit in it."""
    asked = request("x" * 600, *texts)
    tokenizers = Tokenizers()

    async def both() -> tuple[int | None, int]:
        counted = await tokenizers.bound(asked, "gpt-4o")
        encoding = tokenizers._encodings["o200k_base"]
        return counted, sum(len(encoding.encode_ordinary(text)) + 4 for text in ("x" * 600, *texts))

    counted, real = asyncio.run(both())
    assert counted is not None
    assert counted >= real


def test_pictures_and_short_requests_are_left_to_their_bytes() -> None:
    """A tokenizer knows nothing of a picture, and a short prompt is not worth its loading."""
    assert bound(request("Hello!")) is None
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 900}}
    raw = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": [picture]}]})
    assert bound(parse_chat(raw)) is None
