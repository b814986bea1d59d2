"""What models cost and can do according to the list in the litellm package, read as data and never imported.

The list has thousands of models and 3 MB of JSON, of which a gateway asks for few, some only when a client names them.
So the list is walked once for where each model stands, and a model asked for is read from the file then.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from importlib.util import find_spec
from json import JSONDecoder
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from gateway.budget.money import INCOMING, Rates, Tier, tier_of, unit_rate

_FILE = "model_prices_and_context_window_backup.json"
_LONGEST_ENTRY = 64 * 1024  # bytes; the longest today has 10 kB
_KEPT = 512  # models read and kept, so that passthrough names cannot fill the memory
_BETWEEN = re.compile(r"[\s,:]*")
_DATED = re.compile(r"(?:-\d{4}-\d{2}-\d{2}|[-@]20\d{6}|-latest|-00\d)$")
_TIERED = re.compile(r"^(?:in|out)put_cost_per_token_above_(\d+)k_tokens$")
_SERVICES = ("priority", "flex")
_FIELDS = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cached_input": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "cache_write_1h": "cache_creation_input_token_cost_above_1hr",
    "reasoning": "output_cost_per_reasoning_token",
    "audio_input": "input_cost_per_audio_token",
    "audio_output": "output_cost_per_audio_token",
    "image_output": "output_cost_per_image_token",
}
_MEASURES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "image": {"image": ("output_cost_per_image", "input_cost_per_image")},
    "audio": {
        "character": ("input_cost_per_character",),
        "second": ("input_cost_per_second", "output_cost_per_second"),
    },
}  # by mode: what its models are sold by, and the fields that say the price of one, of which the dearest counts
_MODES = {
    "image_generation": "image",
    "image_edit": "image",
    "audio_transcription": "audio",
    "audio_speech": "audio",
}  # the list's words, and the policies' for the same
_HOSTS = {
    "api.openai.com": "openai",
    "openai.azure.com": "azure",
    "cognitiveservices.azure.com": "azure",
    "services.ai.azure.com": "azure_ai",
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "gemini",
    "aiplatform.googleapis.com": "vertex_ai",
    "openrouter.ai": "openrouter",
    "api.deepseek.com": "deepseek",
    "api.z.ai": "zai",
    "open.bigmodel.cn": "zai",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral",
    "api.x.ai": "xai",
    "api.together.xyz": "together_ai",
    "api.together.ai": "together_ai",
    "api.fireworks.ai": "fireworks_ai",
    "api.deepinfra.com": "deepinfra",
    "api.perplexity.ai": "perplexity",
    "api.cerebras.ai": "cerebras",
    "api.cohere.com": "cohere",
    "api.cohere.ai": "cohere",
    "api.moonshot.ai": "moonshot",
    "api.moonshot.cn": "moonshot",
    "api.minimax.io": "minimax",
    "dashscope.aliyuncs.com": "dashscope",
    "dashscope-intl.aliyuncs.com": "dashscope",
    "api.novita.ai": "novita",
    "api.studio.nebius.com": "nebius",
    "api.studio.nebius.ai": "nebius",
    "api.tokenfactory.nebius.com": "nebius",
    "api.sambanova.ai": "sambanova",
    "api.hyperbolic.xyz": "hyperbolic",
    "inference.baseten.co": "baseten",
    "integrate.api.nvidia.com": "nvidia_nim",
    "api.voyageai.com": "voyage",
    "ai-gateway.vercel.sh": "vercel_ai_gateway",
    "amazonaws.com": "bedrock",
}  # a host, or the end of one, and the list's name for who answers there
_VENDORS = {"openai": "openai", "anthropic": "anthropic", "google": "gemini", "gemini": "gemini", "x-ai": "xai"}
_RESELLERS = frozenset({"openrouter", "vercel_ai_gateway"})  # they pass the vendor's price on
_UNKNOWN_HOST = ("openai", "anthropic", "gemini")  # whose bare names nobody else's models bear


@dataclass(frozen=True, slots=True)
class Listed:
    """What the list says of a model; sizes in tokens, None where it is silent.

    `name` is its name in the list. `rates` is None when there is no price to be trusted: a model sold by the pixel, or
    listed at 0 (which means unknown as often as free, but for moderation). `service` has the rates of other service
    tiers: `priority`, `flex`. `mode` is the policies' word (`models: mode`) where they have one: chat, completion,
    embedding, moderation, image, audio, responses; else the list's own. `deprecation` is the day it ends: YYYY-MM-DD.
    """

    name: str
    rates: Rates | None
    service: Mapping[str, Rates]
    context: int | None
    max_output: int | None
    prefill: bool
    mode: str | None
    deprecation: str | None

    def rates_for(self, service_tier: object) -> Rates | None:
        """The rates of a request or an answer with this `service_tier`; others than priority and flex are standard."""
        return self.service.get(service_tier, self.rates) if isinstance(service_tier, str) else self.rates


class PriceList:
    """Where each model stands in one file; `lookup` finds and reads one."""

    def __init__(self, path: Path | None, offsets: Mapping[str, int]) -> None:
        self._path = path
        self._offsets = offsets
        self._read: dict[str, Listed | None] = {}

    def __len__(self) -> int:
        return len(self._offsets)

    @classmethod
    def load(cls) -> "PriceList":
        """The list of the installed litellm; an empty one when there is no such package or file."""
        spec = find_spec("litellm")
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            path = Path(folder) / _FILE
            if path.is_file():
                return cls.read(path)
        return cls(None, {})

    @classmethod
    def read(cls, path: Path) -> "PriceList":
        """The list in this file: one JSON object of models by name. ValueError when it is not that."""
        return cls(path, dict(_walk(path.read_text("latin-1"))))  # latin-1: a character is a byte, so offsets are too

    def lookup(self, provider: str, where: str | None, model: str) -> Listed | None:
        """What the list says of `model` at a backend of this litellm `provider`, at this base URL or host; or None.

        The host, where it is known, decides whose price it is: the same name costs differently at two providers. At an
        unknown host with an OpenAI-compatible interface only names that one vendor alone uses are recognised, so that
        what is served locally is not listed. A version's date may be missing in the list.
        """
        families = _families(provider, where)
        for name, family in _candidates(families, model):
            if name in self._offsets:
                found = self._entry(name, family)
                if found is not None and (found.rates is not None or families != _UNKNOWN_HOST):
                    return found
        return None

    def _entry(self, name: str, family: str) -> Listed | None:
        """The list must say that the model is the family's own: its names without a prefix are many providers'."""
        key = f"{name} {family}"
        if key not in self._read:
            if len(self._read) >= _KEPT:
                self._read.clear()
            entry = self._parse(name)
            fits = entry is not None and _is_of(family, str(entry.get("litellm_provider")))
            self._read[key] = _listed(name, entry) if entry is not None and fits else None
        return self._read[key]

    def _parse(self, name: str) -> Mapping[str, Any] | None:
        if self._path is None:
            return None
        with self._path.open("rb") as file:
            file.seek(self._offsets[name])
            text = file.read(_LONGEST_ENTRY).decode("latin-1")
        decoder = JSONDecoder(parse_float=Decimal)
        try:
            found, end = decoder.raw_decode(text)
            entry, _ = decoder.raw_decode(text, _past(text, end))
        except ValueError:
            return None  # the file was replaced while we ran: unlisted, until the next reload walks it again
        return entry if found == name and isinstance(entry, dict) else None


def _walk(text: str) -> Iterator[tuple[str, int]]:
    """Each key of the outer object and where it begins, forgetting each value as soon as it is passed."""
    decoder = JSONDecoder()
    at = _past(text, text.index("{") + 1)
    while text[at : at + 1] == '"':
        begin = at
        name, at = decoder.raw_decode(text, at)
        entry, at = decoder.raw_decode(text, _past(text, at))
        if isinstance(entry, dict) and name != "sample_spec":
            yield name, begin
        at = _past(text, at)


def _past(text: str, at: int) -> int:
    found = _BETWEEN.match(text, at)
    return found.end() if found else at


def _families(provider: str, where: str | None) -> tuple[str, ...]:
    """The list's names for who answers, and nobody's when that cannot be told."""
    host = (urlsplit(where).hostname or "") if where and "//" in where else (where or "").partition(":")[0]
    for end, family in _HOSTS.items():
        if host == end or host.endswith("." + end):
            return (family,)
    if provider not in ("openai", "custom_openai", "openai_like"):
        return (provider.removeprefix("text-completion-").removesuffix("_chat"),)
    return _UNKNOWN_HOST if host else ("openai",)


def _candidates(families: tuple[str, ...], model: str) -> Iterator[tuple[str, str]]:
    """Names to look for, the surest first, each with the family that the list must name for it."""
    name = model.removeprefix("models/")
    names = [name]
    if (undated := _DATED.sub("", name)) != name:
        names.append(undated)
    if name.startswith("ft:"):
        names.append(":".join(name.split(":")[:2]))
    for form in names:
        for family in families:
            own = form.removeprefix(f"{family}/")
            yield f"{family}/{own}", family
            yield own, family
            vendor, _, rest = form.partition("/")
            if family in _RESELLERS and vendor in _VENDORS:
                yield from _candidates((_VENDORS[vendor],), rest)


def _is_of(family: str, listed: str) -> bool:
    """Whether the list's provider is the family or a branch of it, such as `vertex_ai-anthropic_models`."""
    return listed in (family, f"text-completion-{family}") or listed.startswith((f"{family}_", f"{family}-"))


def _listed(name: str, entry: Mapping[str, Any]) -> Listed:
    prefill, mode, ends = (entry.get(field) for field in ("supports_assistant_prefill", "mode", "deprecation_date"))
    mode = _MODES.get(mode, mode) if isinstance(mode, str) else None
    prices = _prices(entry)
    services = {suffix: _service_rates(entry, prices, f"_{suffix}") for suffix in _SERVICES}
    return Listed(
        name=name,
        rates=_rates(entry, prices) or _ranged_rates(entry) or _measured_rates(entry, mode),
        service=MappingProxyType({suffix: rates for suffix, rates in services.items() if rates is not None}),
        context=_size(entry, "max_input_tokens", "max_tokens"),
        max_output=_size(entry, "max_output_tokens", "max_tokens"),
        prefill=prefill is True,
        mode=mode,
        deprecation=ends if isinstance(ends, str) else None,
    )


def _rates(entry: Mapping[str, Any], prices: Mapping[str, Decimal], suffix: str = "") -> Rates | None:
    if not any(prices.values()):
        return None
    tiers = [tier_of(prices)]
    for thousands in sorted({int(found[1]) for field in entry if (found := _TIERED.match(field))}):
        long = _prices(entry, f"_above_{thousands}k_tokens{suffix}") or _prices(entry, f"_above_{thousands}k_tokens")
        tiers.append(tier_of(_in_proportion(long, prices), above=thousands * 1000, below=tiers[-1]))
    return Rates(tuple(tiers), unit_rate(_price(entry, "input_cost_per_request") or Decimal(0)))


def _service_rates(entry: Mapping[str, Any], standard: Mapping[str, Decimal], suffix: str) -> Rates | None:
    own = _prices(entry, suffix)
    return _rates(entry, _in_proportion(own, standard), suffix) if own else None


def _ranged_rates(entry: Mapping[str, Any]) -> Rates | None:
    """Prices by ranges of input length: `tiered_pricing: [{range: [0, 256000], input_cost_per_token: …}, …]`."""
    rows = entry.get("tiered_pricing")
    tiers: list[Tier] = []
    for row in rows if isinstance(rows, list) else ():
        prices = _prices(row)
        if not any(prices.values()):
            return None
        above = int(row["range"][0]) if tiers else 0
        tiers.append(tier_of(prices, above=above, below=tiers[-1] if tiers else None))
    return Rates(tuple(tiers)) if tiers else None


def _measured_rates(entry: Mapping[str, Any], mode: str | None) -> Rates | None:
    """Prices by the picture, character or second, of a model that has none by the token.

    A price of the input and one of the output of the same second are the same price, said twice. Moderation at 0 is
    free indeed.
    """
    if mode == "moderation":
        return Rates((tier_of({}),))
    rates: dict[str, int] = {}
    for measure, fields in _MEASURES.get(mode or "", {}).items():
        if dearest := max((_price(entry, field) or Decimal(0) for field in fields), default=Decimal(0)):
            rates[measure] = unit_rate(dearest)
    return Rates((tier_of({}),), **rates) if rates else None


def _prices(entry: Mapping[str, Any], suffix: str = "") -> dict[str, Decimal]:
    """US dollars per token by kind. Writing a cache for 0 only means that nothing is added to the price of input."""
    found = {kind: price for kind, field in _FIELDS.items() if (price := _price(entry, field + suffix)) is not None}
    if "cached_input" not in found and (hit := _price(entry, f"input_cost_per_token_cache_hit{suffix}")) is not None:
        found["cached_input"] = hit
    return {kind: price for kind, price in found.items() if price or not kind.startswith("cache_write")}


def _in_proportion(given: Mapping[str, Decimal], base: Mapping[str, Decimal]) -> dict[str, Decimal]:
    """A kind without its own price here keeps its proportion to input or output, as every provider's tiers do."""
    filled = dict(given)
    for kind, price in base.items():
        if kind not in given:
            whole = "input" if kind in INCOMING else "output"
            usual = base.get(whole)
            filled[kind] = price * given[whole] / usual if usual and whole in given else price
    return filled


def _price(entry: Mapping[str, Any], field: str) -> Decimal | None:
    value = entry.get(field)
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)) or value < 0:
        return None
    return Decimal(value)


def _size(entry: Mapping[str, Any], *fields: str) -> int | None:
    for field in fields:
        value = entry.get(field)
        if isinstance(value, (int, Decimal)) and not isinstance(value, bool) and value >= 1:
            return int(value)
    return None
