"""The shape of the policies: every field that a file may have, its default and its unit."""

import re
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d)$")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"^(\d+)\s*(B|KB|MB|GB|KiB|MiB|GiB)?$")
_BYTES = {None: 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

_LONGEST = 3650 * 86400.0  # seconds; what is longer is a slip of the pen
_LARGEST = 2**53 - 1  # what every store and every JSON reader can count exactly

ROLLING = {"second": 1.0, "minute": 60.0, "hour": 3600.0}
CALENDAR = ("day", "week", "month")


def parse_duration(value: object) -> float:
    """Seconds from `250ms`, `30s`, `5m`, `12h` or `7d`."""
    found = _DURATION.match(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{value!r} is not a duration; write a number with a unit: 250ms, 30s, 5m, 12h or 7d")
    seconds = float(found[1]) * _SECONDS[found[2]]
    if seconds > _LONGEST:
        raise ValueError(f"{value!r} is longer than ten years; write at most 3650d")
    return seconds


def parse_size(value: object) -> int:
    """Bytes from `32MiB`, `500KB` or a whole number."""
    found = _SIZE.match(str(value)) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
    if found is None:
        raise ValueError(f"{value!r} is not a size; write a number with a unit: 500KB, 32MiB or 1GiB")
    size = int(found[1][:20]) * _BYTES[found[2]]
    if not 0 < size <= _LARGEST:
        raise ValueError(f"{value!r} is not a size between 1B and 8388607GiB; write for example 32MiB")
    return size


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError("zero, and must be longer; write for example 30s")
    return value


def _period(value: object) -> str:
    if isinstance(value, str) and (value in ROLLING or value in CALENDAR or value == "total"):
        return value
    if isinstance(value, str) and _DURATION.match(value) and parse_duration(value) > 0:
        return value
    raise ValueError(
        f"{value!r} is not a period; write second, minute, hour, a duration such as 12h, day, week, month or total"
    )


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{value!r} is not a time zone; write a name such as UTC or Europe/Berlin") from None
    return value


def _exact_decimal(value: object) -> object:
    return Decimal(repr(value)) if isinstance(value, float) else _number(value)


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is not a number; write a number")  # noqa: TRY004 pydantic wants it
    return value


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        )
    except ValueError:
        good = False
    if not good or re.search(r"[^\x21-\x7e]", value) or parts.query or parts.fragment:
        raise ValueError("not a base URL; write for example http://127.0.0.1:11434/v1, without user, query or fragment")
    return value.rstrip("/")


def _secret(value: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", value):
        raise ValueError("not an API key: it is empty, or has spaces or line breaks in it; write the key alone")
    return value


def _hash(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
        raise ValueError("not a key's hash; write sha256: and the 64 hex digits that `printf %s KEY | sha256sum` gives")
    return value


def _moment(value: object) -> object:
    if isinstance(value, str):
        try:
            return date.fromisoformat(value)
        except ValueError:
            pass
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            pass
    if value is None or isinstance(value, date):
        return value
    raise ValueError(f"{value!r} is not a date; write 2027-01-01 or 2027-01-01T12:00:00Z")


Duration = Annotated[float, BeforeValidator(parse_duration)]
Timeout = Annotated[float, BeforeValidator(parse_duration), AfterValidator(_positive)]
Size = Annotated[int, BeforeValidator(parse_size)]
Usd = Annotated[Decimal, BeforeValidator(_exact_decimal), Field(ge=0, le=1_000_000_000, allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[int, BeforeValidator(_number), Field(ge=0, le=_LARGEST)]
Count = Annotated[int, BeforeValidator(_number), Field(ge=1, le=_LARGEST)]
Balance = Literal["round_robin", "weight", "cost", "latency", "least_busy"]


class Strict(BaseModel):
    """A frozen value in which an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Server(Strict):
    """How the gateway itself behaves. `drain` is in seconds, `max_body` in bytes."""

    max_body: Size = 32 * 2**20
    drain: Duration = 30.0
    auth: Literal["keys", "none"] = "keys"
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    store_down: Literal["deny", "allow"] = "deny"


class Timeouts(Strict):
    """Seconds: to connect, to the first token, between two tokens, and for a whole attempt."""

    connect: Timeout = 5.0
    first_token: Timeout = 30.0
    idle: Timeout = 30.0
    total: Timeout = 600.0


class Retry(Strict):
    """Extra tries on the same backend; backoff in seconds, doubled each time up to `max_backoff`, with full jitter."""

    attempts: Annotated[Amount, Field(le=10)] = 1
    backoff: Duration = 0.5
    max_backoff: Duration = 8.0


class Breaker(Strict):
    """Failures in a row that open it, seconds it stays open at first, successes that close it."""

    failures: Count = 5
    open: Timeout = 60.0
    successes: Count = 2


class Hedge(Strict):
    """Send the same request to the next candidate when no token came after this long: seconds, or the backend's p95."""

    after: Annotated[float | Literal["p95"], BeforeValidator(lambda v: v if v == "p95" else parse_duration(v))]


class Defaults(Strict):
    """What a route has unless it says otherwise."""

    timeouts: Timeouts = Timeouts()
    retry: Retry = Retry()
    breaker: Breaker = Breaker()


class Price(Strict):
    """US dollars per million tokens; `request` is per request. A missing cached or write price is the input price."""

    input: Usd = Decimal(0)
    output: Usd = Decimal(0)
    cached_input: Usd | None = None
    cache_write: Usd | None = None
    request: Usd = Decimal(0)


class Limit(Strict):
    """So much of one unit per period; `soft` warns and never rejects, `alert_at` are fractions of the amount."""

    usd: Usd | None = None
    tokens: Amount | None = None
    input_tokens: Amount | None = None
    output_tokens: Amount | None = None
    requests: Amount | None = None
    concurrent: Count | None = None
    per: Annotated[str, BeforeValidator(_period)] | None = None
    soft: bool = False
    alert_at: tuple[Fraction, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "Limit":
        units = [name for name in UNITS if getattr(self, name) is not None]
        if len(units) != 1:
            raise ValueError(
                f"a limit has exactly one unit of {', '.join(UNITS)}; this one has {len(units)}; write one"
            )
        if units == ["concurrent"]:
            if self.per is not None:
                raise ValueError("`concurrent` counts what runs now and has no period; remove `per`")
        elif self.per is None:
            raise ValueError("`per` is missing; write for example `per: day` (or minute, hour, month, 12h, total)")
        return self

    @cached_property
    def unit(self) -> str:
        """`usd`, `tokens`, `input_tokens`, `output_tokens`, `requests` or `concurrent`."""
        return next(name for name in UNITS if getattr(self, name) is not None)

    @cached_property
    def amount(self) -> Decimal | int:
        """The amount in its unit: US dollars, tokens or requests."""
        found: Decimal | int = getattr(self, self.unit)
        return found


UNITS = ("usd", "tokens", "input_tokens", "output_tokens", "requests", "concurrent")


class Queue(Strict):
    """Requests that may wait for a slot, and for how many seconds."""

    size: Amount = 100
    timeout: Timeout = 30.0


class Simulator(Strict):
    """How a simulated backend behaves; everything it does is drawn from `seed`."""

    latency: Duration = 0.05
    tokens_per_second: Positive = 200.0
    error_rate: Fraction = 0.0
    tokens: Count = 40
    faults: Mapping[Literal["status_500", "status_429", "reset", "silence", "cut", "stall"], Fraction] = Field(
        default_factory=dict
    )
    seed: int = 0


class Backend(Strict):
    """A server, or a provider's API, that answers for models."""

    provider: str = "openai"
    base_url: Annotated[str, AfterValidator(_url)] | None = None
    api_keys: tuple[Annotated[str, AfterValidator(_secret)], ...] = Field(default=(), repr=False)
    passthrough: tuple[str, ...] = ()
    local: bool = False
    slots: Count | None = None
    queue: Queue = Queue()
    simulator: Simulator | None = None
    limits: tuple[Limit, ...] = ()
    proxy: str | None = Field(default=None, repr=False)
    http2: bool = False
    ca_file: str | None = None
    drop_params: bool = False
    # A provider's own settings: api_version, region, project.
    options: Mapping[str, str] = Field(default_factory=dict, repr=False)

    @model_validator(mode="after")
    def _check(self) -> "Backend":
        if self.provider == "simulator":
            return self
        if self.simulator is not None:
            raise ValueError(
                "`simulator` stands at another provider; write `provider: simulator`, or remove `simulator`"
            )
        if self.base_url is None and self.provider == "openai":
            raise ValueError("`base_url` is missing; write for example base_url: http://127.0.0.1:11434/v1")
        return self


def _price(value: object) -> object:
    return Price() if value == "free" else value


class Model(Strict):
    """A model at a backend; price, context and max output come from the bundled list when absent. Sizes in tokens."""

    backend: str
    model: str
    context: Count | None = None
    max_output: Count | None = None
    price: Annotated[Price, BeforeValidator(_price)] | None = None
    prefill: bool = False
    tags: tuple[str, ...] = ()
    mode: Literal["chat", "completion", "embedding", "moderation", "image", "audio", "responses"] | None = None
    limits: tuple[Limit, ...] = ()


def _step(value: object) -> object:
    return {"any": [value]} if isinstance(value, str) else value


class Step(Strict):
    """One place in a chain: one model, or several to choose among."""

    any: Annotated[tuple[str, ...], Field(min_length=1)]
    by: Balance = "round_robin"
    weights: Mapping[str, Positive] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> "Step":
        stray = [name for name in self.weights if name not in self.any]
        if stray:
            raise ValueError(f"`weights` names {', '.join(stray)}, not in `any`; write only names that stand in `any`")
        return self


def _route(value: object) -> object:
    return {"chain": value} if isinstance(value, list) else value


class Route(Strict):
    """An alias or a task: a fallback chain in order, and what it overrides of the defaults."""

    chain: Annotated[tuple[Annotated[Step, BeforeValidator(_step)], ...], Field(min_length=1)]
    timeouts: Timeouts | None = None
    retry: Retry | None = None
    breaker: Breaker | None = None
    hedge: Hedge | None = None
    on_budget: Literal["degrade", "reject"] | None = None
    data: Literal["any", "local"] = "any"


class Team(Strict):
    """Keys that share limits."""

    limits: tuple[Limit, ...] = ()
    allow: tuple[str, ...] | None = None


class Key(Strict):
    """One key: the SHA-256 of the whole secret, what it may use, and until when."""

    hash: Annotated[str, BeforeValidator(_hash)]
    team: str | None = None
    allow: tuple[str, ...] = ("*",)
    limits: tuple[Limit, ...] = ()
    expires: Annotated[datetime | date | None, BeforeValidator(_moment)] = None
    priority: Annotated[int, BeforeValidator(_number), Field(ge=-1_000_000, le=1_000_000)] = 0
    on_budget: Literal["degrade", "reject"] | None = None


class Document(Strict):
    """One file. `version` is 1."""

    version: Literal[1] = 1
    server: Server = Server()
    defaults: Defaults = Defaults()
    backends: Mapping[str, Backend] = Field(default_factory=dict)
    models: Mapping[str, Model] = Field(default_factory=dict)
    aliases: Mapping[str, Annotated[Route, BeforeValidator(_route)]] = Field(default_factory=dict)
    tasks: Mapping[str, Annotated[Route, BeforeValidator(_route)]] = Field(default_factory=dict)
    limits: tuple[Limit, ...] = ()
    teams: Mapping[str, Team] = Field(default_factory=dict)
    keys: Mapping[str, Key] = Field(default_factory=dict)


class Policy(Document):
    """All files together, checked against each other.

    `disabled` maps a backend to the reason it is off; its models stay in their chains and are left out with it.
    `sources` are the files it was read from.
    """

    disabled: Mapping[str, str] = Field(default_factory=dict)
    sources: tuple[str, ...] = ()
