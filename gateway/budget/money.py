"""Money as integers: prices, what a request cost, the most it may cost, and how much output a budget affords."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from gateway.formats.usage import Usage
from gateway.policy.schema import Price

NANO = 10**9  # nano-dollars in a dollar
_ATTO = 10**18  # attodollars in a dollar: the unit of a price, so that a cost is exact until it is rounded once
_ATTO_PER_NANO = _ATTO // NANO
_KINDS = {
    "input": "input",
    "output": "output",
    "cached_input": "input",
    "cache_write": "input",
    "cache_write_1h": "cache_write",
    "reasoning": "output",
    "audio_input": "input",
    "audio_output": "output",
    "image_output": "output",
}  # each kind, and the kind that prices it when it has no price of its own
INCOMING = ("input", "cached_input", "cache_write", "cache_write_1h", "audio_input")
_OUTGOING = ("output", "reasoning", "audio_output", "image_output")
FREE_OUTPUT = 10**9  # tokens: what `affordable_output` answers when output costs nothing


def to_nano(usd: Decimal) -> int:
    """Nano-dollars, rounded up: for what is charged. Exact for up to nine decimals."""
    return _ceiling(usd, NANO)


def limit_nano(usd: Decimal) -> int:
    """Nano-dollars, rounded down: for a limit, which may not be exceeded even by a fraction of one."""
    numerator, denominator = usd.as_integer_ratio()
    return numerator * NANO // denominator


def format_usd(nano: int) -> str:
    """Dollars, exact and without exponent: at least two decimals, at most nine: `0.00`, `1.50`, `0.000012345`."""
    if nano < 0:
        return "-" + format_usd(-nano)
    fraction = nano % NANO
    cents, rest = divmod(fraction, 10_000_000)
    return f"{nano // NANO}.{cents:02d}" if not rest else f"{nano // NANO}.{fraction:09d}".rstrip("0")


@dataclass(frozen=True, slots=True)
class Tier:
    """Prices in attodollars per token that hold for the whole request when it has more than `above` input tokens.

    `dear_input` and `dear_output` are the dearest kinds of this tier and of all below it: what a request may cost when
    its input is only known to be at most so large.
    """

    above: int
    input: int
    output: int
    cached_input: int
    cache_write: int
    cache_write_1h: int
    reasoning: int
    audio_input: int
    audio_output: int
    image_output: int
    dear_input: int
    dear_output: int


@dataclass(frozen=True, slots=True)
class Rates:
    """What a model costs: `tiers` by rising `above`, the first of them 0; the others in attodollars.

    `request` is per request, `image` per picture made, `character` per character read aloud, `second` per second heard.
    """

    tiers: tuple[Tier, ...]
    request: int = 0
    image: int = 0
    character: int = 0
    second: int = 0

    @property
    def free(self) -> bool:
        """Whether nothing it does costs anything."""
        return not (self.request or self.image or self.character or self.second) and not any(
            tier.dear_input or tier.dear_output for tier in self.tiers
        )


def tier_of(prices: Mapping[str, Decimal], *, per: int = 1, above: int = 0, below: Tier | None = None) -> Tier:
    """Compile one tier from US dollars per `per` tokens (a power of ten) by kind, the names being those of `Tier`.

    A missing kind costs what its whole costs (`input` or `output`), a missing hour-long write what a write costs.
    Fractions of an attodollar are rounded up.
    """
    known = {name: _ceiling(usd, _ATTO // per) for name, usd in prices.items()}
    rates: dict[str, int] = {}
    for name, whole in _KINDS.items():
        rates[name] = known.get(name, rates.get(whole, 0))
    dear_input = max(rates[name] for name in INCOMING)
    dear_output = max(rates[name] for name in _OUTGOING)
    return Tier(
        above=above,
        **rates,
        dear_input=max(dear_input, below.dear_input if below else 0),
        dear_output=max(dear_output, below.dear_output if below else 0),
    )


def rates_of(price: Price) -> Rates:
    """Compile a policy's price, given in US dollars per million tokens."""
    million = {"input": price.input, "output": price.output}
    if price.cached_input is not None:
        million["cached_input"] = price.cached_input
    if price.cache_write is not None:
        million["cache_write"] = price.cache_write
    return Rates((tier_of(million, per=10**6),), unit_rate(price.request))


def unit_rate(usd: Decimal) -> int:
    """Attodollars per request, picture, character or second, rounded up: what `Rates` holds of each."""
    return _ceiling(usd, _ATTO)


def price_note(rates: Rates) -> str:
    """The prices as a usage record keeps them: US dollars per million tokens by kind, a line a tier, joined by `;`.

    `input=0.15 output=0.6 cached_input=0.075`; a kind that costs what its whole costs is left out. What is sold by
    other measures follows, in US dollars for one: `request=0.005`, `image=`, `character=`, `second=`.
    """
    notes = [_tier_note(tier) for tier in rates.tiers]
    units = (("request", rates.request), ("image", rates.image), ("character", rates.character))
    notes += [f"{name}={_per(rate, 1)}" for name, rate in (*units, ("second", rates.second)) if rate]
    return "; ".join(notes)


def _tier_note(tier: Tier) -> str:
    words = [f"above={tier.above}"] if tier.above else []
    for name, whole in _KINDS.items():
        rate = getattr(tier, name)
        if name == whole or rate != getattr(tier, whole):
            words.append(f"{name}={_per(rate, 10**6)}")
    return " ".join(words)


def _per(atto: int, tokens: int) -> str:
    usd = Decimal(atto * tokens) / _ATTO
    return f"{usd.normalize():f}"


def cost(usage: Usage, rates: Rates) -> int:
    """Nano-dollars for what was consumed, rounded up once. Parts beyond their whole are not charged twice."""
    tier = _tier(usage.input_tokens, rates)
    atto = rates.request
    if usage.images or usage.characters or usage.audio_ms:
        atto += _by_measure(usage, rates)
    text = usage.input_tokens
    if usage.cached_input or usage.cache_write or usage.audio_input:
        for count, rate in (
            (usage.audio_input, tier.audio_input),
            (usage.cache_write_1h, tier.cache_write_1h),
            (max(0, usage.cache_write - usage.cache_write_1h), tier.cache_write),
            (usage.cached_input, tier.cached_input),
        ):
            part = min(count, text)
            atto += part * rate
            text -= part
    atto += text * tier.input
    text = usage.output_tokens
    if usage.reasoning or usage.audio_output or usage.image_output:
        for count, rate in (
            (usage.image_output, tier.image_output),
            (usage.audio_output, tier.audio_output),
            (usage.reasoning, tier.reasoning),
        ):
            part = min(count, text)
            atto += part * rate
            text -= part
    return -(-(atto + text * tier.output) // _ATTO_PER_NANO)


def worst_case(input_tokens: int, output_tokens: int, rates: Rates, beside: Usage | None = None) -> int:
    """Nano-dollars that no usage of at most so many tokens can exceed: each kind and tier at its dearest.

    `beside` are the most pictures, characters and milliseconds that come with them.
    """
    tier = _tier(input_tokens, rates)
    atto = rates.request + input_tokens * tier.dear_input + output_tokens * tier.dear_output
    if beside is not None:
        atto += _by_measure(beside, rates)
    return -(-atto // _ATTO_PER_NANO)


def affordable_output(budget_nano: int, input_tokens: int, rates: Rates) -> int:
    """The most output tokens whose worst case, with this input, is within the budget.

    0 when not even the input is; `FREE_OUTPUT` at most, which is the answer when output costs nothing.
    """
    tier = _tier(input_tokens, rates)
    left = budget_nano * _ATTO_PER_NANO - rates.request - input_tokens * tier.dear_input
    if left < 0:
        return 0
    return min(left // tier.dear_output, FREE_OUTPUT) if tier.dear_output else FREE_OUTPUT


def _by_measure(usage: Usage, rates: Rates) -> int:
    """Attodollars for what is not sold by the token."""
    heard = -(-usage.audio_ms * rates.second // 1000)
    return usage.images * rates.image + usage.characters * rates.character + heard


def _tier(input_tokens: int, rates: Rates) -> Tier:
    tiers = rates.tiers
    found = tiers[0]
    if len(tiers) > 1:
        for tier in tiers:
            if input_tokens > tier.above:
                found = tier
    return found


def _ceiling(usd: Decimal, unit: int) -> int:
    numerator, denominator = usd.as_integer_ratio()  # exact, where Decimal's own product would round at 28 digits
    return -(-numerator * unit // denominator)
