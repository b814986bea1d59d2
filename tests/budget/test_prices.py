"""The list of prices is read as data, model by model, without importing litellm."""

import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.budget.money import Rates, cost, price_note, rates_of, tier_of
from gateway.budget.prices import Listed, PriceList
from gateway.formats.usage import Usage
from gateway.policy.schema import Price

MODELS: dict[str, dict[str, Any]] = {
    "sample_spec": {"max_tokens": "words", "input_cost_per_token": 0.0},
    "gpt-mini": {
        "litellm_provider": "openai",
        "input_cost_per_token": 1.5e-07,
        "output_cost_per_token": 6e-07,
        "cache_read_input_token_cost": 7.5e-08,
        "input_cost_per_token_priority": 2.5e-07,
        "output_cost_per_token_priority": 1e-06,
        "input_cost_per_token_flex": 7.5e-08,
        "max_input_tokens": 128000,
        "max_output_tokens": 16384,
        "mode": "chat",
    },
    "ft:gpt-mini": {"litellm_provider": "openai", "input_cost_per_token": 3e-07, "output_cost_per_token": 1.2e-06},
    "whisper": {"litellm_provider": "openai", "input_cost_per_second": 0.0001, "output_cost_per_second": 0.0},
    "sonnet": {
        "litellm_provider": "anthropic",
        "input_cost_per_token": 3e-06,
        "output_cost_per_token": 1.5e-05,
        "cache_read_input_token_cost": 3e-07,
        "cache_creation_input_token_cost": 3.75e-06,
        "cache_creation_input_token_cost_above_1hr": 6e-06,
        "input_cost_per_token_above_200k_tokens": 6e-06,
        "output_cost_per_token_above_200k_tokens": 2.25e-05,
        "supports_assistant_prefill": True,
        "deprecation_date": "2026-11-30",
        "search_context_cost_per_query": {"gpt-nested": {"input_cost_per_token": 1}},
    },
    "bedrock-sonnet-v1:0": {"litellm_provider": "bedrock_converse", "input_cost_per_token": 4e-06, "max_tokens": 9},
    "gemini/flash": {"litellm_provider": "gemini", "input_cost_per_token": 3e-07, "input_cost_per_audio_token": 1e-06},
    "gemini/gemma-local": {"litellm_provider": "gemini", "input_cost_per_token": 0, "output_cost_per_token": 0},
    "zai/glm": {"litellm_provider": "zai", "input_cost_per_token": 6e-07, "cache_creation_input_token_cost": 0},
    "groq/openai/oss": {"litellm_provider": "groq", "input_cost_per_token": 1.5e-07},
    "ollama/llama": {"litellm_provider": "ollama", "input_cost_per_token": 0.0, "max_input_tokens": 4096},
    "pplx/online": {
        "litellm_provider": "pplx",
        "input_cost_per_request": 0.005,
        "input_cost_per_token": 0.0,
        "output_cost_per_token": 2.8e-06,
    },
    "dashscope/qwen": {
        "litellm_provider": "dashscope",
        "tiered_pricing": [
            {"input_cost_per_token": 5e-08, "output_cost_per_token": 4e-07, "range": [0, 256000.0]},
            {"input_cost_per_token": 2.5e-07, "output_cost_per_token": 2e-06, "range": [256000.0, 1000000.0]},
        ],
    },
    "dashscope/odd": {"litellm_provider": "dashscope", "tiered_pricing": [{"range": [0, 5]}]},
    "hearer": {
        "litellm_provider": "openai",
        "mode": "audio_transcription",
        "input_cost_per_second": 0.0001,
        "output_cost_per_second": 0.0001,
    },
    "speaker": {"litellm_provider": "openai", "mode": "audio_speech", "input_cost_per_character": 1.5e-05},
    "painter": {
        "litellm_provider": "openai",
        "mode": "image_generation",
        "output_cost_per_image": 0.04,
        "input_cost_per_image": 0.001,
    },
    "token-painter": {
        "litellm_provider": "openai",
        "mode": "image_generation",
        "input_cost_per_token": 5e-06,
        "output_cost_per_image_token": 4e-05,
        "output_cost_per_image": 0.04,
    },
    "pixel-painter": {"litellm_provider": "openai", "mode": "image_generation", "input_cost_per_pixel": 1e-08},
    "guard": {"litellm_provider": "openai", "mode": "moderation", "input_cost_per_token": 0.0},
    "strange": {"litellm_provider": "openai", "input_cost_per_token": -1e-07, "output_cost_per_token": True},
}


@pytest.fixture(params=["compact", "indented"])
def prices(tmp_path: Path, request: pytest.FixtureRequest) -> PriceList:
    """A small list, whichever way the file is laid out."""
    path = tmp_path / "prices.json"
    path.write_bytes(orjson.dumps(MODELS, option=orjson.OPT_INDENT_2 if request.param == "indented" else 0))
    return PriceList.read(path)


@pytest.mark.parametrize(
    ("provider", "where", "model", "name"),
    [
        ("openai", "https://api.openai.com/v1", "gpt-mini", "gpt-mini"),
        ("openai", "https://api.openai.com/v1", "openai/gpt-mini", "gpt-mini"),
        ("openai", "https://api.openai.com/v1", "gpt-mini-2024-07-18", "gpt-mini"),
        ("openai", "https://api.openai.com/v1", "ft:gpt-mini:org::id", "ft:gpt-mini"),
        ("openai", "api.openai.com:443", "gpt-mini", "gpt-mini"),
        ("openai", None, "gpt-mini", "gpt-mini"),
        ("openai", "http://127.0.0.1:9000/v1", "gpt-mini", "gpt-mini"),
        ("openai", "http://gateway.example/v1", "gemini/flash", "gemini/flash"),
        ("openai", "https://openrouter.ai/api/v1", "openai/gpt-mini", "gpt-mini"),
        ("openai", "https://openrouter.ai/api/v1", "google/flash", "gemini/flash"),
        ("openai", "https://generativelanguage.googleapis.com/v1beta/openai/", "models/flash-001", "gemini/flash"),
        ("openai", "https://api.groq.com/openai/v1", "openai/oss", "groq/openai/oss"),
        ("anthropic", None, "sonnet-20250929", "sonnet"),
        ("anthropic", "http://127.0.0.1:9000", "sonnet-latest", "sonnet"),
        ("anthropic", "https://api.z.ai/api/anthropic", "glm", "zai/glm"),
        ("zai", None, "zai/glm", "zai/glm"),
        ("bedrock", "https://bedrock-runtime.us-east-1.amazonaws.com", "bedrock-sonnet-v1:0", "bedrock-sonnet-v1:0"),
    ],
)
def test_found(prices: PriceList, provider: str, where: str | None, model: str, name: str) -> None:
    """A model is found under the name that its provider has in the list."""
    found = prices.lookup(provider, where, model)
    assert found is not None
    assert found.name == name
    assert found.rates is not None


@pytest.mark.parametrize(
    ("provider", "where", "model"),
    [
        ("openai", "http://127.0.0.1:11434/v1", "llama"),
        ("openai", "http://127.0.0.1:8000/v1", "gemma-local"),
        ("openai", "http://127.0.0.1:8000/v1", "glm"),
        ("openai", "https://api.openai.com/v1", "sonnet"),
        ("openai", "https://api.z.ai/api/paas/v4", "gpt-mini"),
        ("openai", "https://openrouter.ai/api/v1", "z-ai/glm"),
        ("openai", "https://api.openai.com.evil.example/v1", "openai/oss"),
        ("openai", None, "sample_spec"),
        ("openai", None, "gpt-nested"),
        ("openai", None, ""),
        ("anthropic", None, "gpt-mini"),
    ],
)
def test_not_listed(prices: PriceList, provider: str, where: str | None, model: str) -> None:
    """What is served locally, by another provider, or only looks like a model, has no price."""
    assert prices.lookup(provider, where, model) is None


def test_what_is_listed(prices: PriceList) -> None:
    """Sizes, mode, prefill and the last day come with the price; what the list leaves out is None."""
    mini = prices.lookup("openai", None, "gpt-mini")
    assert mini is not None
    assert (mini.context, mini.max_output, mini.mode) == (128000, 16384, "chat")
    assert (mini.prefill, mini.deprecation) == (False, None)
    sonnet = prices.lookup("anthropic", None, "sonnet")
    assert sonnet is not None
    assert (sonnet.context, sonnet.max_output, sonnet.mode) == (None, None, None)
    assert (sonnet.prefill, sonnet.deprecation) == (True, "2026-11-30")


def rates(prices: PriceList, provider: str, model: str) -> Rates:
    """The rates of a model that must have some."""
    found = prices.lookup(provider, None, model)
    assert found is not None
    assert found.rates is not None
    return found.rates


def test_floats_are_exact(prices: PriceList) -> None:
    """1.5e-07 in the file is fifteen hundredths of a dollar per million, to the last digit."""
    policy = rates_of(Price(input=Decimal("0.15"), output=Decimal("0.60"), cached_input=Decimal("0.075")))
    assert rates(prices, "openai", "gpt-mini") == policy


def test_long_context_and_cache(prices: PriceList) -> None:
    """A tier without its own cache prices keeps their proportion to its input."""
    assert price_note(rates(prices, "anthropic", "sonnet")) == (
        "input=3 output=15 cached_input=0.3 cache_write=3.75 cache_write_1h=6; "
        "above=200000 input=6 output=22.5 cached_input=0.6 cache_write=7.5 cache_write_1h=12"
    )


def test_ranges(prices: PriceList) -> None:
    """Prices by ranges of input are tiers."""
    expected = "input=0.05 output=0.4; above=256000 input=0.25 output=2"
    assert price_note(rates(prices, "dashscope", "qwen")) == expected


def test_other_kinds(prices: PriceList) -> None:
    """A price per request, and audio dearer than text; a cache written for nothing still costs its input."""
    assert cost(Usage(100, 10), rates(prices, "pplx", "online")) == 5_000_000 + 10 * 2800
    assert cost(Usage(100, 0, audio_input=40), rates(prices, "gemini", "flash")) == 60 * 300 + 40 * 1000
    assert cost(Usage(100, 0, cache_write=100), rates(prices, "zai", "glm")) == 100 * 600


def test_service_tiers(prices: PriceList) -> None:
    """OpenAI's priority and flex have their own rates; what they leave out keeps its proportion."""
    mini = prices.lookup("openai", None, "gpt-mini")
    assert mini is not None
    assert mini.rates_for("priority") is mini.service["priority"]
    assert price_note(mini.service["priority"]) == "input=0.25 output=1 cached_input=0.125"
    assert price_note(mini.service["flex"]) == "input=0.075 output=0.6 cached_input=0.0375"
    others: list[object] = [None, "auto", "default", 5, []]
    for other in others:
        assert mini.rates_for(other) is mini.rates


@pytest.mark.parametrize(
    ("provider", "model"), [("ollama", "llama"), ("openai", "whisper"), ("openai", "strange"), ("dashscope", "odd")]
)
def test_no_price_to_trust(prices: PriceList, provider: str, model: str) -> None:
    """Zero, a price by the second, or nonsense is not a price per token; the rest of the entry still serves."""
    found = prices.lookup(provider, None, model)
    assert found is not None
    assert found.rates is None
    assert found.rates_for("priority") is None


@pytest.mark.parametrize(
    ("model", "mode", "note"),
    [
        ("hearer", "audio", "input=0 output=0; second=0.0001"),
        ("speaker", "audio", "input=0 output=0; character=0.000015"),
        ("painter", "image", "input=0 output=0; image=0.04"),
        ("token-painter", "image", "input=5 output=0 image_output=40"),
        ("pixel-painter", "image", None),
        ("guard", "moderation", "input=0 output=0"),
    ],
)
def test_what_is_not_sold_by_the_token(prices: PriceList, model: str, mode: str, note: str | None) -> None:
    """By the picture, character or second, and never by two measures at once; the mode is the policies' word."""
    found = prices.lookup("openai", None, model)
    assert found is not None
    assert found.mode == mode
    assert (price_note(found.rates) if found.rates is not None else None) == note


def test_a_replaced_file_lists_nothing(tmp_path: Path) -> None:
    """When the package is upgraded under a running gateway, a model is unlisted rather than priced as another."""
    path = tmp_path / "prices.json"
    path.write_bytes(orjson.dumps(MODELS))
    prices = PriceList.read(path)
    path.write_bytes(orjson.dumps({"gpt-other": MODELS["sonnet"], **MODELS}))
    assert prices.lookup("openai", None, "gpt-mini") is None
    path.write_bytes(b"")
    assert prices.lookup("anthropic", None, "sonnet") is None


@pytest.mark.parametrize("text", ["", "no json", '{"a": {"b": 1', '{"a": tru}'])
def test_a_file_that_is_no_list(tmp_path: Path, text: str) -> None:
    """A file that is not a JSON object is an error at the start, not a wrong price later."""
    path = tmp_path / "prices.json"
    path.write_text(text)
    with pytest.raises(ValueError):
        PriceList.read(path)


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    """Clients that name thousands of models do not fill the memory."""
    path = tmp_path / "prices.json"
    many = {f"m{i}": {"litellm_provider": "openai", "input_cost_per_token": i * 1e-9} for i in range(1, 2000)}
    path.write_bytes(orjson.dumps(many))
    prices = PriceList.read(path)
    for name in many:
        assert prices.lookup("openai", None, name) is not None
        prices.lookup("openai", None, f"{name}-unknown")
    assert len(prices._read) <= 512


def test_the_bundled_list() -> None:
    """litellm's own list is found and read, and knows the models that people use."""
    prices = PriceList.load()
    assert len(prices) > 1000
    mini = prices.lookup("openai", "https://api.openai.com/v1", "gpt-4o-mini")
    assert mini is not None
    assert mini.rates is not None
    assert mini.rates.tiers[0] == tier_of(
        {"input": Decimal("0.15"), "output": Decimal("0.60"), "cached_input": Decimal("0.075")}, per=10**6
    )
    assert (mini.context, mini.max_output, mini.mode) == (128000, 16384, "chat")
    for name, measure in (("whisper-1", "second"), ("tts-1", "character")):
        sold = prices.lookup("openai", "https://api.openai.com/v1", name)
        assert sold is not None
        assert sold.rates is not None
        assert getattr(sold.rates, measure) > 0


def test_every_bundled_model_can_be_read() -> None:
    """No entry of litellm's list is beyond this reader, and what has a price has one in each of its tiers."""
    prices = PriceList.load()
    read = [prices._entry(name, str((prices._parse(name) or {}).get("litellm_provider"))) for name in prices._offsets]
    listed = [found for found in read if isinstance(found, Listed)]
    assert len(listed) == len(prices)
    priced = [found.rates for found in listed if found.rates is not None]
    assert len(priced) > 1000
    for found in priced:
        edges = [tier.above for tier in found.tiers]
        assert edges == sorted(set(edges))
        assert edges[0] == 0


def test_litellm_is_not_imported() -> None:
    """Reading the list leaves litellm unimported: it would take seconds and 200 MB."""
    program = (
        "import sys; from gateway.budget.prices import PriceList; "
        "assert PriceList.load().lookup('openai', None, 'gpt-4o-mini'); "
        "assert not any(name.partition('.')[0] == 'litellm' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_without_litellm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package there is no list, and nothing has a price."""
    monkeypatch.setattr("gateway.budget.prices.find_spec", lambda _name: None)
    prices = PriceList.load()
    assert len(prices) == 0
    assert prices.lookup("openai", None, "gpt-4o-mini") is None
