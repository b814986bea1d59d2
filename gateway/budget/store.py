"""What workers share about money: the books, usage records and managed keys, as one protocol that every store speaks.

The books hold, per *account* (a meter in one run of its window), what is spent and what each worker was granted.
One verb moves money, `sync`: a worker states, in absolute numbers, what it has spent of an account so far and what of
its grant it still has, and may ask for more. Stating instead of adding makes it safe to repeat: after a lost answer
the worker just states again. Each report carries a number that only rises; an older one that arrives late is ignored.
In a store, at every instant, spent + granted (whoever has it) <= limit, but for overruns and what `store_down: allow`
let pass. A grant whose worker's lease has run out is *in doubt*: it counts as spent until its worker comes back, an
operator releases it, or, on rolling and `concurrent` meters, until it cannot matter any more.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, Protocol
from zoneinfo import ZoneInfo

from gateway.budget.meter import BUCKETS, Meter, Span
from gateway.values import value

RECALL = 3.0  # seconds for which a refused draw asks the others to return what they hold idle
HEADROOM_SHARE = 8  # a draw takes at most this part of what is left beyond its need, so that grants shrink near a limit
KEEP_ROWS = 30 * 86_400.0  # seconds for which single usage records are kept; their hourly sums stay
KEEP_WORKERS = 7 * 86_400.0  # seconds after its lease for which a worker that holds nothing is remembered
KEEP_ACCOUNTS = 7 * 86_400.0  # seconds after its window for which an account is kept
HOUR = 3600
USAGE_BY = ("key", "team", "model", "backend", "task", "day")

UsageBy = Literal["key", "team", "model", "backend", "task", "day"]


class StoreDown(Exception):
    """The store did not answer, or not in time; whether it did what it was asked is unknown."""


class KeyExists(Exception):
    """A managed key of this name, or of this secret, is there already."""


class UnknownKey(Exception):
    """No managed key has this name."""


@dataclass(frozen=True, slots=True)
class Account:
    """A meter in one run of its window: what the books are kept under.

    `rolling` is the length of a rolling window in seconds, else 0. `forget`: seconds after a lease has run out until
    its grant no longer matters; None: never. `ends`: the epoch second at which the window ends; None: never.
    """

    id: str
    rolling: float = 0.0
    forget: float | None = None
    ends: float | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """What a worker states about one account, and what it asks for; amounts in the meter's integer unit.

    `spent`: (age in seconds, all this worker has spent so far) in rising order of the second; `base` is where the
    first of them begins, should the store have lost the account. `granted` is what it has left, `held` the part of
    that which running requests hold. It asks for `need` and would take `want`; 0 asks for nothing. `gone` takes the
    worker off the account.
    """

    account: Account
    limit: int
    spent: tuple[tuple[float, int], ...] = ()
    base: int = 0
    granted: int = 0
    held: int = 0
    need: int = 0
    want: int = 0
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """One exchange. `number` rises with each; `lease` is in seconds from now; `closing` ends the worker.

    `epoch` is the store's as the worker knows it, empty at first: a store that has lost its memory has a new one, and
    grants nothing until the workers have had `lease` seconds, at most 3, to state again what they know.
    """

    worker: str
    number: int
    lease: float
    entries: tuple[Entry, ...]
    epoch: str = ""
    closing: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How an account stands, after the report; amounts in the meter's unit, times in seconds from now.

    `granted` includes `held`; `idle` is what other live workers have granted and not held; `drawn` is what this report
    was granted. `recall`: another worker needs what is idle. `frees_in`: when a rolling window will have room for the
    `need` that was refused, None if that is not a matter of time; `clears_in`: when all of it has been forgotten.
    """

    spent: int = 0
    granted: int = 0
    held: int = 0
    in_doubt: int = 0
    idle: int = 0
    drawn: int = 0
    recall: bool = False
    frees_in: float | None = None
    clears_in: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The standings, in the order of the report's entries; no draw is granted unless all of the report's are.

    `applied` False: the report was older than one already seen and changed nothing. `recovering`: see `Report.epoch`.
    """

    epoch: str
    applied: bool
    recovering: bool
    standings: tuple[Standing, ...]


@value
class UsageRecord:
    """One attempt that produced tokens. `at` in epoch seconds, `cost` in nano-dollars, durations in seconds.

    `price` is what was charged by, as text; `input_tokens` include cached and cache-write ones.
    """

    at: float
    request_id: str
    key: str
    team: str
    task: str
    route: str
    model: str
    backend: str
    input_tokens: int
    output_tokens: int
    cost: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    price: str = ""
    duration: float = 0.0
    time_to_first_token: float | None = None
    retries: int = 0
    outcome: str = "ok"
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """What one key, team, model, backend, task or day (`name`) used; `cost` in nano-dollars."""

    name: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost: int


@dataclass(frozen=True, slots=True)
class ManagedKey:
    """A key that was made on the command line. `hash` is `sha256:…` of the whole secret; times in epoch seconds.

    `limits` is a JSON list in the shape of the policies' limits. Until `grace_until` the `previous` hash is valid too.
    """

    name: str
    hash: str
    created: float
    team: str | None = None
    allow: tuple[str, ...] = ("*",)
    limits: str = "[]"
    expires: float | None = None
    revoked_at: float | None = None
    previous: str | None = None
    grace_until: float | None = None


class Store(Protocol):
    """Every verb raises `StoreDown` when the store does not answer in time, and may then be repeated."""

    async def open(self) -> None:
        """Connect, and prepare what is missing."""

    async def close(self) -> None:
        """Let go of connections and files."""

    async def sync(self, report: Report) -> Reply:
        """Take a worker's statement, grant what it asks if all of it fits, and renew its lease."""

    async def standings(self, accounts: Sequence[Account]) -> tuple[Standing, ...]:
        """How accounts stand now; those never used stand at 0."""

    async def release(self, account: Account) -> int:
        """Give back what is in doubt on an account, for an operator who knows that it was not spent; the amount."""

    async def once(self, mark: str, seconds: float) -> bool:
        """True for the first caller to name `mark` within so many seconds, whatever the worker."""

    async def write_usage(self, batch: str, records: Sequence[UsageRecord]) -> None:
        """Keep records, and add them to their hours; a batch whose id was seen before changes nothing."""

    async def usage(self, by: UsageBy, since: float, zone: str = "UTC") -> list[UsageTotal]:
        """Sums of the hours from that of `since` (epoch seconds) on, sorted by name; days are those of `zone`."""

    async def recent_usage(self, count: int) -> list[UsageRecord]:
        """The last records that are still kept singly, newest first."""

    async def create_key(self, key: ManagedKey) -> None:
        """Add a managed key; raises `KeyExists`."""

    async def replace_key(self, key: ManagedKey, version: int) -> bool:
        """Put a key in the place of the one of its name; raises `UnknownKey`.

        False, and nothing is changed, when `keys_version` is no longer `version`: what was read may be out of date.
        """

    async def keys(self) -> list[ManagedKey]:
        """All managed keys by name, revoked ones included."""

    async def keys_version(self) -> int:
        """A number that changes whenever a managed key does: cheap enough to ask several times a second."""


def account_of(meter: Meter, span: Span) -> Account:
    """The account of a meter in one run of its window."""
    window = meter.window
    if window.kind == "rolling":
        return Account(meter.id, window.seconds, forget=window.seconds * (1 + 2 / BUCKETS))
    if window.kind == "running":  # what a dead worker was running runs no more
        return Account(meter.id, forget=0.0)
    return Account(f"{meter.id}#{span.id}", ends=span.end) if span.end is not None else Account(meter.id)


def drawn_of(need: int, want: int, free: int) -> int:
    """What a draw gets of `free` when its need fits: its need, and of what it would like beyond a share of the rest."""
    return need + min(max(want - need, 0), (free - need) // HEADROOM_SHARE)


def rotated(key: ManagedKey, new_hash: str, grace_until: float) -> ManagedKey:
    """The key with a new secret, the old one valid until `grace_until`."""
    return replace(key, hash=new_hash, previous=key.hash, grace_until=grace_until)


def revoked(key: ManagedKey, now: float) -> ManagedKey:
    """The key, refused from now on, with its old secret too."""
    return replace(key, revoked_at=now, previous=None, grace_until=None)


def by_hour(records: Iterable[UsageRecord]) -> dict[tuple[int, str, str, str, str, str], list[int]]:
    """(requests, input tokens, output tokens, cost) of each (hour since 1970, key, team, model, backend, task)."""
    sums: dict[tuple[int, str, str, str, str, str], list[int]] = {}
    for one in records:
        name = (int(one.at // HOUR), one.key, one.team, one.model, one.backend, one.task)
        known = sums.get(name)
        if known is None:
            sums[name] = [1, one.input_tokens, one.output_tokens, one.cost]
        else:
            known[0] += 1
            known[1] += one.input_tokens
            known[2] += one.output_tokens
            known[3] += one.cost
    return sums


def summed(rows: Iterable[tuple[object, int, int, int, int]], by: UsageBy, zone: str) -> list[UsageTotal]:
    """Totals from (name, requests, input tokens, output tokens, cost); by day, names are hours since 1970."""
    place = ZoneInfo(zone)
    sums: dict[str, tuple[int, ...]] = {}
    for name, *counts in rows:
        label = datetime.fromtimestamp(int(str(name)) * HOUR, place).date().isoformat() if by == "day" else str(name)
        sums[label] = tuple(one + two for one, two in zip(sums.get(label, (0, 0, 0, 0)), counts, strict=True))
    return [UsageTotal(label, *counts) for label, counts in sorted(sums.items())]
