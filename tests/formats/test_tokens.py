"""The bound is never below a tokenizer's count, and the estimate is near it."""

import base64
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gateway.formats.tokens import UNBOUNDED, estimate, image_size, image_tokens, upper_bound
from tests.formats.samples import SAMPLES


def _bundled() -> Path:
    spec = find_spec("litellm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "litellm_core_utils" / "tokenizers"


@pytest.fixture(scope="module")
def o200k() -> Iterator[tiktoken.Encoding]:
    """OpenAI's tokenizer, from the file that litellm carries: nothing is downloaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(_bundled()))
        yield tiktoken.get_encoding("o200k_base")


@pytest.fixture(scope="module")
def claude() -> Tokenizer:
    """Anthropic's older tokenizer, which writes the text in Unicode's compatibility form (NFKC) first."""
    return Tokenizer.from_file(str(_bundled() / "anthropic_tokenizer.json"))


def bound(doc: dict[str, Any], model: str = "") -> int:
    """The bound of a body as a client would send it."""
    return upper_bound(doc, len(orjson.dumps(doc)), model)


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    """A chat of one message made of these parts."""
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}]}


def data_url(picture: bytes, kind: str = "png") -> str:
    """A picture inside a URL."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def image(url: str, **more: Any) -> dict[str, Any]:
    """A part with a picture, as chat completions have it."""
    return {"type": "image_url", "image_url": {"url": url, **more}}


def png(width: int, height: int) -> bytes:
    """The beginning of a PNG, and some bytes of picture."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + bytes(3000)


def jpeg(width: int, height: int) -> bytes:
    """A JPEG with a comment, a table and then its frame."""
    comment = b"\xff\xe1" + struct.pack(">H", 1002) + bytes(1000)
    table = b"\xff\xc4" + struct.pack(">H", 4) + bytes(2)
    return b"\xff\xd8" + comment + table + b"\xff\xc2" + struct.pack(">HBHH", 11, 8, height, width) + bytes(60)


def webp(kind: bytes, rest: bytes) -> bytes:
    """A WebP whose first chunk is of this kind."""
    return b"RIFF" + bytes(4) + b"WEBP" + kind + bytes(4) + rest + bytes(30)


# --- the bound ---


@settings(max_examples=150)
@given(text=st.text(max_size=300) | st.text("\ufdfa\u0958\u2057\u3316\U0001d160ﷲ½", max_size=300))
def test_the_bound_holds_for_any_text(o200k: tiktoken.Encoding, claude: Tokenizer, text: str) -> None:
    """No tokenizer counts more than the bound, even one that spells out compatibility characters first."""
    doc = {"model": "m", "messages": [{"role": "user", "content": text}]}
    parts = user({"type": "text", "text": text})
    most = max(len(o200k.encode_ordinary(text)), len(claude.encode(text).ids))
    assert bound(doc) >= most
    assert bound(parts) >= most
    assert bound({"model": "m", "input": [text]}) >= most
    assert bound({"model": "m", "prompt": text}) >= most


@pytest.mark.parametrize("spelt", ["\ufdfa", "\u0f79", "\u2a0c", "\U0001d161", "\u0958"])
def test_characters_that_are_spelt_out(o200k: tiktoken.Encoding, claude: Tokenizer, spelt: str) -> None:
    """One Arabic ligature of three bytes becomes eighteen letters, 15 tokens: the bound has room wherever it stands."""
    text = spelt * 400
    most = max(len(o200k.encode_ordinary(text)), len(claude.encode(text).ids))
    for doc in ({"prompt": text}, {"input": [text]}, user({"type": "text", "text": text}), {"tools": [{"name": text}]}):
        assert bound(doc) >= most


@given(st.text())
def test_json_is_never_shorter_than_its_text(text: str) -> None:
    """The body's length is at least the text's in UTF-8, escaped or not."""
    assert len(orjson.dumps(text)) >= len(text.encode()) + 2


@given(st.lists(st.integers(0, 300_000)))
def test_token_ids_are_bounded(ids: list[int]) -> None:
    """A prompt of token ids has no more tokens than its JSON has bytes."""
    assert bound({"model": "m", "prompt": ids}) >= len(ids)
    assert bound({"model": "m", "input": [ids, ids]}) >= 2 * len(ids)


def test_many_empty_messages(o200k: tiktoken.Encoding) -> None:
    """Messages cost their template's marks, about five tokens each, even when they are empty."""
    doc = {"model": "m", "messages": [{"role": "user", "content": ""}] * 1000}
    assert bound(doc) >= 1000 * 8


def test_tools_are_printed_again(o200k: tiktoken.Encoding) -> None:
    """Some templates print the tools with indentation; the bound has room for that."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"enum": list(range(300)), "é": "½" * 50}}}
    doc = {"model": "m", "messages": [], "tools": [tool] * 3}
    printed = orjson.dumps(doc["tools"], option=orjson.OPT_INDENT_2).decode()
    assert len(orjson.dumps(doc)) < len(printed)
    assert bound(doc) >= len(o200k.encode_ordinary(printed)) + 530


@pytest.mark.parametrize(
    "doc",
    [
        {"input": "x", "previous_response_id": "resp_1"},
        {"input": "x", "conversation": "conv_1"},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"input": [{"id": "msg_1"}]},
        {"prompt": {"id": "pmpt_1", "variables": {}}},
        {"input": "x", "tools": [{"type": "web_search"}]},
        {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "base64", "data": "x"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
    ],
)
def test_what_is_elsewhere_is_unbounded(doc: dict[str, Any]) -> None:
    """What the request only points at may be as long as the model's context."""
    assert bound(doc) == UNBOUNDED


def test_a_text_document_is_its_text() -> None:
    """Anthropic's plain text documents are in the body."""
    part = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "some text"}}
    assert bound(user(part)) < 1000


@pytest.mark.parametrize(
    "content", [{"type": []}, {"type": {}, "text": 7}, [[[]]], 5, True, [None, 1.5], {"content": {"content": []}}]
)
def test_wrong_shapes_are_the_backend_s_to_refuse(content: Any) -> None:
    """A content of no known shape neither raises nor loses the length of the body."""
    doc = {
        "model": "m",
        "messages": [{"role": "user", "content": content, "tool_calls": 3}],
        "tools": 5,
        "input": content,
    }
    assert bound(doc) >= len(orjson.dumps(doc))


def test_parts_within_parts_end() -> None:
    """Nesting deeper than any format's is not followed."""
    content: Any = "x"
    for _ in range(400):
        content = [{"type": "tool_result", "content": content}]
    assert upper_bound({"messages": content}, 20_000) == UNBOUNDED
    assert upper_bound({"tools": [content]}, 20_000) == UNBOUNDED
    assert upper_bound({"messages": [{"role": "assistant", "tool_calls": content}]}) == UNBOUNDED


# --- media ---


@pytest.mark.parametrize(
    ("picture", "size"),
    [
        (png(1024, 768), (1024, 768)),
        (b"GIF89a" + struct.pack("<HH", 320, 200) + bytes(20), (320, 200)),
        (jpeg(4000, 3000), (4000, 3000)),
        (webp(b"VP8X", bytes(4) + (639).to_bytes(3, "little") + (479).to_bytes(3, "little")), (640, 480)),
        (webp(b"VP8L", b"\x2f" + (99 | 49 << 14).to_bytes(4, "little")), (100, 50)),
        (webp(b"VP8 ", bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", 176, 144)), (176, 144)),
        (webp(b"ALPH", b""), None),
        (png(0, 5), None),
        (b"\xff\xd8\xff\xd9" + bytes(40), None),
        (b"BM" + bytes(60), None),
        (b"", None),
    ],
)
def test_size_of_a_picture(picture: bytes, size: tuple[int, int] | None) -> None:
    """A picture's size is read from its header, in the four formats that providers take."""
    assert image_size(base64.b64encode(picture).decode()) == size


def test_size_of_what_is_not_base64() -> None:
    """Letters that a lenient decoder would skip could move the header: then the size is unknown."""
    good = base64.b64encode(png(10, 10)).decode()
    assert image_size(good[:20] + "-_\n " + good[20:]) is None


@given(st.binary(max_size=80), st.sampled_from([b"", b"\xff\xd8", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF0000WEBPVP8L"]))
def test_any_bytes_are_no_danger(data: bytes, start: bytes) -> None:
    """A cut or foreign header gives no size, or a positive one."""
    found = image_size(base64.b64encode(start + data).decode())
    assert found is None or min(found) > 0


@pytest.mark.parametrize(
    ("model", "size", "tokens"),
    [
        ("gpt-4o", (1024, 1024), 765),
        ("gpt-4o", (2048, 4096), 1105),
        ("gpt-4o", (4000, 2000), 1445),
        ("gpt-4o-mini", (1024, 1024), 2833 + 4 * 5667),
        ("gpt-4.1-mini", (1024, 1024), 1659),
        ("o4-mini", (1800, 2400), 2642),
        ("claude-sonnet-4-5", (1092, 1092), 1590),
        ("claude-opus-4-7", (8000, 8000), 4784),
        ("gemini-2.5-flash", (384, 384), 258),
        ("gemini-2.5-flash", (1536, 1536), 4 * 258),
        ("qwen2.5-vl-72b-instruct", (1288, 966), 1610),
        ("pixtral-12b", (1024, 1024), 4096 + 64),
    ],
)
def test_pictures_by_published_formulas(model: str, size: tuple[int, int], tokens: int) -> None:
    """The bound of a picture is at least what its provider's documentation says it counts."""
    assert tokens <= image_tokens(size, model) <= image_tokens(None, model)
    assert tokens <= image_tokens(size)


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from(["gpt-4o", "gpt-5", "o3", "claude-x"]))
def test_any_picture_is_within_an_unknown_one(width: int, height: int, model: str) -> None:
    """A picture of known size counts no more than one that cannot be seen."""
    assert 0 < image_tokens((width, height), model) <= image_tokens(None, model)
    assert image_tokens((width, height), model) == image_tokens((height, width), model)


def test_low_detail() -> None:
    """OpenAI's low detail counts little, whatever the size; elsewhere the word means nothing."""
    assert image_tokens(None, "gpt-4o", "low") < image_tokens((600, 600), "gpt-4o")
    assert image_tokens(None, "gemini-2.5-pro", "low") == image_tokens(None, "gemini-2.5-pro")


def test_base64_is_not_text() -> None:
    """A picture's base64 is replaced by what the picture counts, in each format's way of sending it."""
    picture = png(512, 512) + bytes(300_000)
    encoded = base64.b64encode(picture).decode()
    ways: list[dict[str, Any]] = [
        image(data_url(picture)),
        {"type": "input_image", "image_url": data_url(picture)},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": encoded}},
        {"type": "tool_result", "content": [{"type": "image", "source": {"type": "base64", "data": encoded}}]},
    ]
    for part in ways:
        assert image_tokens((512, 512), "gpt-4o") < bound(user(part), "gpt-4o") < 2000


@pytest.mark.parametrize("part", [image("https://example.org/a.png"), {"type": "input_image", "file_id": "f"}])
def test_remote_pictures_are_the_largest(part: dict[str, Any]) -> None:
    """A picture that cannot be seen counts as any may."""
    assert bound(user(part), "gpt-4o") >= image_tokens(None, "gpt-4o")


def test_audio() -> None:
    """A minute of WAV counts by its own byte rate, of MP3 by its lowest; of anything else by its bytes."""
    rate = 32_000
    wav = b"RIFF" + bytes(4) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, rate, 2, 16) + bytes(60 * rate)
    slow = b"RIFF" + bytes(4) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 1, 1, 1, 8) + bytes(9000)
    mp3 = b"ID3" + bytes(60 * 1000)
    flac = b"fLaC" + bytes(3000)

    def of(data: bytes, kind: str) -> int:
        encoded = base64.b64encode(data).decode()
        return bound(user({"type": "input_audio", "input_audio": {"data": encoded, "format": kind}}))

    assert 60 * 32 <= of(wav, "wav") < 4000
    assert 60 * 32 <= of(mp3, "mp3") < 4000
    assert of(slow, "wav") >= 9000
    assert of(flac, "flac") >= 3000


# --- the estimate ---


@pytest.mark.parametrize("name", SAMPLES)
def test_the_estimate_is_near(o200k: tiktoken.Encoding, name: str) -> None:
    """English, code, German, French, Russian, Chinese, Japanese and Korean are within 10 % of a tokenizer's count."""
    counted = len(o200k.encode_ordinary(SAMPLES[name]))
    assert abs(estimate(SAMPLES[name]) - counted) <= counted * 0.10


def test_the_estimate_on_average(o200k: tiktoken.Encoding) -> None:
    """Over all samples the errors nearly cancel."""
    counted = sum(len(o200k.encode_ordinary(text)) for text in SAMPLES.values())
    assert abs(sum(map(estimate, SAMPLES.values())) - counted) <= counted * 0.07


def test_the_estimate_of_little() -> None:
    """Nothing is nothing, and anything is something."""
    assert estimate("") == 0
    assert 1 <= estimate("a") <= 2
    assert estimate(" ") == estimate("\n") == 1


@given(st.text(max_size=200))
def test_the_estimate_is_within_the_bytes(text: str) -> None:
    """An estimate is never beyond what the text could have: its bytes, and a quarter for rounding."""
    assert bool(estimate(text)) == bool(text)
    assert estimate(text) <= 1.25 * len(text.encode()) + 1


# --- speed ---


def test_quick() -> None:
    """A small body takes microseconds and a 2 MB one milliseconds: ten times the time aimed at is allowed here."""
    small = {
        "model": "m",
        "messages": [{"role": "system", "content": "x" * 80}, {"role": "user", "content": "x" * 150}],
    }
    large = {"model": "m", "messages": [{"role": "user", "content": "x" * 1000}] * 2000}
    begun = perf_counter()
    for _ in range(1000):
        upper_bound(small, 300)
    assert perf_counter() - begun < 0.05
    begun = perf_counter()
    upper_bound(large, 2_000_000)
    assert perf_counter() - begun < 0.05
