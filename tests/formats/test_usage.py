"""Every provider's usage becomes one shape, and what cannot be trusted becomes nothing."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats.usage import MAX_COUNT, Usage, parse_usage, usage_of

SHAPES: list[tuple[str, dict[str, Any], Usage]] = [
    ("chat", {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}, Usage(9, 12)),
    (
        "chat with every detail",
        {
            "prompt_tokens": 1000,
            "completion_tokens": 500,
            "total_tokens": 1500,
            "prompt_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 100, "audio_tokens": 50},
            "completion_tokens_details": {
                "reasoning_tokens": 200,
                "audio_tokens": 30,
                "accepted_prediction_tokens": 10,
                "rejected_prediction_tokens": 20,
            },
        },
        Usage(1000, 500, 600, 100, 200, 50, 30, 20),
    ),
    (
        "details that are null",
        {"prompt_tokens": 5, "completion_tokens": 6, "prompt_tokens_details": None, "completion_tokens_details": None},
        Usage(5, 6),
    ),
    ("embeddings", {"prompt_tokens": 8, "total_tokens": 8}, Usage(8)),
    ("only a total", {"total_tokens": 8}, Usage(8)),
    ("a null completion", {"prompt_tokens": 8, "completion_tokens": None, "total_tokens": 8}, Usage(8)),
    (
        "responses",
        {
            "input_tokens": 100,
            "input_tokens_details": {"cached_tokens": 64},
            "output_tokens": 40,
            "output_tokens_details": {"reasoning_tokens": 32},
            "total_tokens": 140,
        },
        Usage(100, 40, cached_input=64, reasoning=32),
    ),
    (
        "anthropic leaves cached tokens out of its input",
        {"input_tokens": 10, "cache_read_input_tokens": 500, "cache_creation_input_tokens": 200, "output_tokens": 30},
        Usage(710, 30, cached_input=500, cache_write=200),
    ),
    (
        "anthropic with two lifetimes",
        {
            "input_tokens": 1,
            "cache_creation_input_tokens": 30,
            "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
            "output_tokens": 2,
        },
        Usage(31, 2, cache_write=30, cache_write_1h=20),
    ),
    ("anthropic's message_delta", {"output_tokens": 15}, Usage(0, 15)),
    (
        "gemini",
        {
            "promptTokenCount": 100,
            "candidatesTokenCount": 20,
            "thoughtsTokenCount": 70,
            "cachedContentTokenCount": 40,
            "totalTokenCount": 190,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 68}, {"modality": "AUDIO", "tokenCount": 32}],
            "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 5}],
        },
        Usage(100, 90, cached_input=40, reasoning=70, audio_input=32, image_output=5),
    ),
    (
        "gemini with tools of its own",
        {"promptTokenCount": 10, "toolUsePromptTokenCount": 50, "candidatesTokenCount": 5, "totalTokenCount": 65},
        Usage(60, 5),
    ),
    (
        "deepseek",
        {
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "total_tokens": 110,
            "prompt_cache_hit_tokens": 64,
            "prompt_cache_miss_tokens": 36,
        },
        Usage(100, 10, cached_input=64),
    ),
    (
        "an openai-shaped proxy before anthropic",
        {
            "prompt_tokens": 700,
            "completion_tokens": 5,
            "cache_read_input_tokens": 500,
            "cache_creation_input_tokens": 9,
        },
        Usage(700, 5, cached_input=500, cache_write=9),
    ),
    (
        "cached tokens beside the prompt instead of in it",
        {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1000}},
        Usage(1010, 5, cached_input=1000),
    ),
    (
        "reasoning beside the completion, as the total shows",
        {
            "prompt_tokens": 10,
            "completion_tokens": 50,
            "total_tokens": 90,
            "completion_tokens_details": {"reasoning_tokens": 30},
        },
        Usage(10, 80, reasoning=30),
    ),
]


@pytest.mark.parametrize(("doc", "expected"), [row[1:] for row in SHAPES], ids=[row[0] for row in SHAPES])
def test_shape(doc: dict[str, Any], expected: Usage) -> None:
    """Each provider's shape is read to the same fields."""
    assert parse_usage(doc) == expected


@pytest.mark.parametrize("bad", [-1, True, False, 1.5, 12.0, "7", [], MAX_COUNT + 1])
@pytest.mark.parametrize(
    "place",
    [
        lambda bad: {"prompt_tokens": bad, "completion_tokens": 1},
        lambda bad: {"prompt_tokens": 1, "completion_tokens": bad},
        lambda bad: {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": bad},
        lambda bad: {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": bad}},
        lambda bad: {"input_tokens": 1, "output_tokens": bad},
        lambda bad: {"input_tokens": bad, "cache_read_input_tokens": 1},
        lambda bad: {"promptTokenCount": bad},
        lambda bad: {"promptTokenCount": 1, "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": bad}]},
    ],
)
def test_a_wrong_count_spoils_the_whole(place: Any, bad: Any) -> None:
    """A negative, fractional, boolean or textual count anywhere makes the usage unreadable."""
    assert parse_usage(place(bad)) is None


def test_nothing_known() -> None:
    """An object with no count in it is no usage."""
    assert parse_usage({}) is None
    assert parse_usage({"total_tokens": None, "cost": 0.1}) is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 2}}, Usage(1, 2)),
        ({"usage": None, "choices": []}, None),
        ({"usageMetadata": {"promptTokenCount": 3}}, Usage(3)),
        ({"type": "message_start", "message": {"usage": {"input_tokens": 4, "output_tokens": 1}}}, Usage(4, 1)),
        ({"type": "response.completed", "response": {"usage": {"input_tokens": 4, "output_tokens": 1}}}, Usage(4, 1)),
        ({"usage": None, "x_groq": {"usage": {"prompt_tokens": 1}}}, Usage(1)),
        ({"response": {"usage": None}, "message": "text"}, None),
    ],
)
def test_where_it_stands(body: dict[str, Any], expected: Usage | None) -> None:
    """The usage is found wherever a format's answer or event keeps it."""
    assert usage_of(body) == expected


def test_sum_of_two_attempts() -> None:
    """An answer continued by a second attempt consumed both, and is estimated if either was."""
    both = Usage(10, 5, cached_input=3) + Usage(20, 7, reasoning=2, estimated=True)
    assert both == Usage(30, 12, cached_input=3, reasoning=2, estimated=True)
    assert both.total_tokens == 42


def test_merge_of_two_reports() -> None:
    """Anthropic's message_start and message_delta are cumulative: the larger of each count stands."""
    assert Usage(100, 1, cached_input=40).merge(Usage(0, 25)) == Usage(100, 25, cached_input=40)


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**13) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["cached_tokens", "x"]), inner, max_size=2)
    ),
    max_leaves=3,
)
_NAMES = st.sampled_from(
    [
        "prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "prompt_tokens_details",
        "completion_tokens_details", "input_tokens_details", "cache_read_input_tokens", "cache_creation",
        "promptTokenCount", "promptTokensDetails", "thoughtsTokenCount", "prompt_cache_hit_tokens",
    ]
)  # fmt: skip


@given(st.dictionaries(_NAMES, _JUNK))
def test_any_json_is_read_or_refused(doc: dict[str, Any]) -> None:
    """Whatever a backend sends, the result is None or holds counts of which no part exceeds its whole."""
    usage = parse_usage(doc)
    if usage is not None:
        assert usage.input_tokens >= usage.cached_input + usage.cache_write
        assert usage.output_tokens >= usage.reasoning
        assert usage.cache_write >= usage.cache_write_1h
