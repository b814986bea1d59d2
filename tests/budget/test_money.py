"""Costs worked out by hand, and the three sums that must never disagree: cost, worst case, affordable output."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.budget.money import (
    FREE_OUTPUT,
    NANO,
    Rates,
    affordable_output,
    cost,
    format_usd,
    limit_nano,
    price_note,
    rates_of,
    tier_of,
    to_nano,
    unit_rate,
    worst_case,
)
from gateway.formats.usage import Usage, parse_usage
from gateway.policy.schema import Price


def per_million(above: int = 0, **usd: str) -> Any:
    """One tier from dollars per million tokens."""
    return tier_of({name: Decimal(price) for name, price in usd.items()}, per=10**6, above=above)


def tiered(*prices: tuple[int, dict[str, str]]) -> Rates:
    """Rates of several tiers."""
    tiers: list[Any] = []
    for above, usd in prices:
        named = {name: Decimal(price) for name, price in usd.items()}
        tiers.append(tier_of(named, per=10**6, above=above, below=tiers[-1] if tiers else None))
    return Rates(tuple(tiers))


MINI = Rates((per_million(input="0.15", output="0.60", cached_input="0.075"),))
AUDIO = Rates((per_million(input="2.50", output="10", audio_input="40", audio_output="80"),))
O1 = Rates((per_million(input="15", output="60", cached_input="7.50"),))
EMBED = Rates((per_million(input="0.02", output="0"),))
SONNET = Rates((per_million(input="3", output="15", cached_input="0.30", cache_write="3.75", cache_write_1h="6"),))
GEMINI_PRO = tiered(
    (0, {"input": "1.25", "output": "10", "cached_input": "0.125"}),
    (200_000, {"input": "2.50", "output": "15", "cached_input": "0.25"}),
)
GEMINI_FLASH = Rates((per_million(input="0.30", output="2.50", cached_input="0.03", audio_input="1"),))
DEEPSEEK = Rates((per_million(input="0.28", output="0.42", cached_input="0.028"),))
REASONER = Rates((per_million(input="1", output="2", reasoning="3"),))
ONLINE = Rates((per_million(input="0", output="2.80"),), unit_rate(Decimal("0.005")))
GPT54 = tiered(
    (0, {"input": "2.50", "output": "15", "cached_input": "0.25"}),
    (272_000, {"input": "5", "output": "22.50", "cached_input": "0.50"}),
)
IMAGE = Rates((per_million(input="0.30", output="2.50", image_output="30"),))


def chat(given: int, made: int, **more: Any) -> dict[str, Any]:
    """An OpenAI usage."""
    details: dict[str, Any] = {
        name: more.pop(name) for name in ("reasoning_tokens", "rejected_prediction_tokens") if name in more
    }
    prompt = {"cached_tokens": more.pop("cached", 0), "audio_tokens": more.pop("audio_in", 0)}
    details["audio_tokens"] = more.pop("audio_out", 0)
    assert not more
    return {
        "prompt_tokens": given,
        "completion_tokens": made,
        "total_tokens": given + made,
        "prompt_tokens_details": prompt,
        "completion_tokens_details": details,
    }


def claude(given: int, made: int, read: int = 0, written: int = 0, hour: int = 0) -> dict[str, Any]:
    """An Anthropic usage; `written` is what is kept five minutes."""
    return {
        "input_tokens": given,
        "output_tokens": made,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written + hour,
        "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": hour},
    }


def gemini(given: int, made: int, thoughts: int = 0, cached: int = 0, audio: int = 0) -> dict[str, Any]:
    """A Gemini usage, thoughts beside the candidates."""
    return {
        "promptTokenCount": given,
        "candidatesTokenCount": made,
        "thoughtsTokenCount": thoughts,
        "cachedContentTokenCount": cached,
        "totalTokenCount": given + made + thoughts,
        "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": audio}],
    }


def deepseek(hit: int, miss: int, made: int) -> dict[str, Any]:
    """A DeepSeek usage."""
    return {
        "prompt_tokens": hit + miss,
        "completion_tokens": made,
        "total_tokens": hit + miss + made,
        "prompt_cache_hit_tokens": hit,
        "prompt_cache_miss_tokens": miss,
    }


# A price of 1 dollar per million tokens is 1000 nano-dollars a token: 0.15 is 150, 0.075 is 75.
GOLDEN: list[tuple[str, Rates, dict[str, Any], int]] = [
    ("1 openai: 1000*150 + 500*600", MINI, chat(1000, 500), 450_000),
    ("2 openai, one token each: 150 + 600", MINI, chat(1, 1), 750),
    ("3 openai cached: 200*150 + 800*75 + 100*600", MINI, chat(1000, 100, cached=800), 150_000),
    ("4 openai all cached: 1000*75", MINI, chat(1000, 0, cached=1000), 75_000),
    ("5 openai reasoning is output: 100*15000 + 900*60000", O1, chat(100, 900, reasoning_tokens=800), 55_500_000),
    (
        "6 reasoning with its own price: 10*1000 + 20*2000 + 80*3000",
        REASONER,
        chat(10, 100, reasoning_tokens=80),
        290_000,
    ),
    (
        "7 rejected prediction is in the completion: 10*150 + 70*600",
        MINI,
        chat(10, 70, rejected_prediction_tokens=40),
        43_500,
    ),
    ("8 audio in: 20*2500 + 80*40000 + 10*10000", AUDIO, chat(100, 10, audio_in=80), 3_350_000),
    ("9 audio out: 100*2500 + 10*10000 + 90*80000", AUDIO, chat(100, 100, audio_out=90), 7_550_000),
    (
        "10 audio both: 40*40000 + 10*2500 + 30*80000 + 5*10000",
        AUDIO,
        chat(50, 35, audio_in=40, audio_out=30),
        4_075_000,
    ),
    ("11 embeddings: 1234*20", EMBED, {"prompt_tokens": 1234, "total_tokens": 1234}, 24_680),
    (
        "12 responses: 36*15000 + 64*7500 + 40*60000",
        O1,
        {
            "input_tokens": 100,
            "output_tokens": 40,
            "total_tokens": 140,
            "input_tokens_details": {"cached_tokens": 64},
            "output_tokens_details": {"reasoning_tokens": 32},
        },
        3_420_000,
    ),
    ("13 anthropic: 100*3000 + 50*15000", SONNET, claude(100, 50), 1_050_000),
    ("14 anthropic read: 100*3000 + 1000*300 + 50*15000", SONNET, claude(100, 50, read=1000), 1_350_000),
    ("15 anthropic written: 100*3000 + 1000*3750 + 50*15000", SONNET, claude(100, 50, written=1000), 4_800_000),
    ("16 anthropic written for an hour: 1000*6000", SONNET, claude(0, 0, hour=1000), 6_000_000),
    ("17 anthropic both: 200*3750 + 300*6000 + 400*300 + 10*3000", SONNET, claude(10, 0, 400, 200, 300), 2_700_000),
    ("18 gemini at the edge: 200000*1250 + 10*10000", GEMINI_PRO, gemini(200_000, 10), 250_100_000),
    ("19 gemini over the edge: 200001*2500 + 10*15000", GEMINI_PRO, gemini(200_001, 10), 500_152_500),
    ("20 gemini long, cached: 100000*2500 + 150000*250", GEMINI_PRO, gemini(250_000, 0, cached=150_000), 287_500_000),
    ("21 gemini thoughts: 100*1250 + (20 + 80)*10000", GEMINI_PRO, gemini(100, 20, thoughts=80), 1_125_000),
    ("22 gemini audio: 68*300 + 32*1000 + 10*2500", GEMINI_FLASH, gemini(100, 10, audio=32), 77_400),
    ("23 gemini cached: 60*300 + 40*30 + 10*2500", GEMINI_FLASH, gemini(100, 10, cached=40), 44_200),
    ("24 deepseek: 64*28 + 36*280 + 10*420", DEEPSEEK, deepseek(64, 36, 10), 16_072),
    ("25 deepseek, nothing cached: 100*280 + 10*420", DEEPSEEK, deepseek(0, 100, 10), 32_200),
    ("26 per request: 5000000 + 100*2800", ONLINE, chat(1000, 100), 5_280_000),
    ("27 openai long, cached: 100000*5000 + 200000*500 + 22500", GPT54, chat(300_000, 1, cached=200_000), 600_022_500),
    ("28 openai just short: 272000*2500 + 15000", GPT54, chat(272_000, 1), 680_015_000),
    (
        "29 pictures made: 10*300 + 1290*30000 + 5*2500",
        IMAGE,
        {
            "promptTokenCount": 10,
            "candidatesTokenCount": 1295,
            "totalTokenCount": 1305,
            "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1290}],
        },
        38_715_500,
    ),
    (
        "30 half nano-dollars are rounded up once: 3*37.5 = 112.5",
        Rates((per_million(input="0.0375"),)),
        chat(3, 0),
        113,
    ),
    ("31 nothing", MINI, chat(0, 0), 0),
]


@pytest.mark.parametrize(("rates", "doc", "nano"), [row[1:] for row in GOLDEN], ids=[row[0] for row in GOLDEN])
def test_golden(rates: Rates, doc: dict[str, Any], nano: int) -> None:
    """What a provider reports costs what was worked out by hand."""
    usage = parse_usage(doc)
    assert usage is not None
    assert cost(usage, rates) == nano


def test_policy_prices() -> None:
    """A policy's price is per million tokens; a missing cached or write price is the input price."""
    price = Price(input=Decimal("0.20"), output=Decimal("0.80"), request=Decimal("0.01"))
    assert cost(Usage(10, 10, cached_input=5, cache_write=3), rates_of(price)) == 10 * 200 + 10 * 800 + 10_000_000
    cheap = Price(input=Decimal(1), cached_input=Decimal("0.1"), cache_write=Decimal("1.25"))
    assert cost(Usage(100, 0, cached_input=50, cache_write=40), rates_of(cheap)) == 50 * 100 + 40 * 1250 + 10 * 1000


def test_free() -> None:
    """A free model costs nothing, whatever it produced, and affords any output."""
    rates = rates_of(Price())
    assert rates.free
    assert not rates_of(Price(request=Decimal("0.1"))).free
    assert not MINI.free
    assert cost(Usage(10**6, 10**6), rates) == worst_case(10**6, 10**6, rates) == 0
    assert affordable_output(0, 10**6, rates) == FREE_OUTPUT


def test_what_is_not_sold_by_the_token() -> None:
    """Pictures, characters and seconds by their own prices, beside the tokens; a part of a second by its part."""
    nothing = per_million(input="0", output="0")
    each = {name: unit_rate(Decimal(usd)) for name, usd in (("image", "0.04"), ("character", "0.000015"))}
    rates = Rates((nothing,), **each, second=unit_rate(Decimal("0.0001")))
    assert not rates.free
    assert cost(Usage(images=3), rates) == 3 * 40_000_000
    assert cost(Usage(characters=11, input_tokens=5), rates) == 11 * 15_000
    assert cost(Usage(audio_ms=2500), rates) == 250_000
    assert cost(Usage(audio_ms=1), Rates((nothing,), second=unit_rate(Decimal("0.000000001")))) == 1
    both = Usage(images=1, characters=1, audio_ms=1000)
    assert worst_case(0, 0, rates, both) == cost(both, rates) == 40_000_000 + 15_000 + 100_000
    assert price_note(rates) == "input=0 output=0; image=0.04; character=0.000015; second=0.0001"


def test_parts_larger_than_the_whole_are_not_charged_twice() -> None:
    """Parts that add up to more than the input, as some backends report audio that is also cached, cost the input at most."""
    usage = Usage(100, 0, cached_input=100, cache_write=100, audio_input=100)
    assert cost(usage, AUDIO) == 100 * 40_000


def test_dollars_to_nano() -> None:
    """Charges round up, limits round down, and nine decimals are exact."""
    assert to_nano(Decimal("0.000000001")) == limit_nano(Decimal("0.000000001")) == 1
    assert (to_nano(Decimal("1.0000000001")), limit_nano(Decimal("1.0000000001"))) == (NANO + 1, NANO)
    long = Decimal("12345678901234567890123456789.000000001")
    assert to_nano(long) == limit_nano(long) == 12345678901234567890123456789 * NANO + 1


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (12_345, "0.000012345"),
        (1_500_000_000, "1.50"),
        (10 * NANO, "10.00"),
        (123_456_780_000, "123.45678"),
        (-5, "-0.000000005"),
        (-2 * NANO, "-2.00"),
    ],
)
def test_format(nano: int, text: str) -> None:
    """Dollars are written exactly, without exponent, with at least two decimals."""
    assert format_usd(nano) == text


@given(st.integers(-(10**15), 10**15))
def test_format_is_exact(nano: int) -> None:
    """What is written reads back as the same amount."""
    assert Decimal(format_usd(nano)) * NANO == nano


def test_note() -> None:
    """The note of a record has every price that differs from its whole's, per million tokens."""
    assert price_note(MINI) == "input=0.15 output=0.6 cached_input=0.075"
    assert price_note(ONLINE) == "input=0 output=2.8; request=0.005"
    assert price_note(GEMINI_PRO).endswith("; above=200000 input=2.5 output=15 cached_input=0.25")


def test_no_money_affords_nothing() -> None:
    """A budget that does not pay for the input affords no output."""
    assert affordable_output(worst_case(1000, 0, MINI) - 1, 1000, MINI) == 0


_USD = st.decimals(0, 100, places=7)
_KIND = st.sampled_from(
    ["cached_input", "cache_write", "cache_write_1h", "reasoning", "audio_input", "audio_output", "image_output"]
)
_SIZE = st.integers(0, 10**6)


@st.composite
def some_rates(draw: st.DrawFn) -> Rates:
    """Any prices: of some kinds, in up to three tiers, dearer or cheaper than the tier below."""
    tiers: list[Any] = []
    for above in sorted({0, *draw(st.lists(st.sampled_from([100, 1000, 200_000]), max_size=2))}):
        prices = {"input": draw(_USD), "output": draw(_USD), **draw(st.dictionaries(_KIND, _USD))}
        tiers.append(tier_of(prices, per=10**6, above=above, below=tiers[-1] if tiers else None))
    return Rates(tuple(tiers), unit_rate(draw(_USD)))


@given(some_rates(), _SIZE, _SIZE, st.data())
def test_cost_is_within_the_worst_case(rates: Rates, bound_in: int, bound_out: int, data: st.DataObject) -> None:
    """Whatever is consumed of at most so many tokens, by whatever kinds, costs the worst case at most."""
    parts: dict[str, Any] = {
        name: data.draw(_SIZE)
        for name in (
            "cached_input",
            "cache_write",
            "cache_write_1h",
            "reasoning",
            "audio_input",
            "audio_output",
            "image_output",
        )
    }
    usage = Usage(data.draw(st.integers(0, bound_in)), data.draw(st.integers(0, bound_out)), **parts)
    assert 0 <= cost(usage, rates) <= worst_case(bound_in, bound_out, rates)


@given(some_rates(), _SIZE, st.integers(0, 10**12))
def test_affordable_output_is_exact(rates: Rates, bound_in: int, budget: int) -> None:
    """The answer fits the budget, and one token more would not."""
    tokens = affordable_output(budget, bound_in, rates)
    if worst_case(bound_in, 0, rates) > budget:
        assert tokens == 0
    else:
        assert worst_case(bound_in, tokens, rates) <= budget
        assert tokens == FREE_OUTPUT or worst_case(bound_in, tokens + 1, rates) > budget


@given(some_rates(), _SIZE, _SIZE, st.integers(0, 1000))
def test_more_costs_no_less(rates: Rates, bound_in: int, bound_out: int, more: int) -> None:
    """The worst case grows with both bounds, so a hold that was raised is never lowered by it."""
    assert worst_case(bound_in, bound_out, rates) <= worst_case(bound_in + more, bound_out, rates)
    assert worst_case(bound_in, bound_out, rates) <= worst_case(bound_in, bound_out + more, rates)


def test_estimated_costs_the_same() -> None:
    """An estimate is priced like a report."""
    assert cost(replace(Usage(10, 10), estimated=True), MINI) == cost(Usage(10, 10), MINI)
