"""Chooses, and says why: the candidates for one request, in order. Pure; `gateway explain` prints the same plan."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from gateway.budget.money import worst_case
from gateway.identity.principal import Principal
from gateway.policy.catalog import Catalog, Group, Route, Target
from gateway.values import value

FIRST = "first in the chain"
NEXT = "fallback"
LAST = "the last candidate is tried even so"
IN = "in"
RESTS = "rests"
OUT = "out"
MAX_WAIT = 5.0  # seconds: what asked to be left alone for longer is not waited for
_TRANSLATED = ("chat", "responses")  # modes of which either can answer a request for the other


class Obstacle(NamedTuple):
    """Why a backend is left alone, for how many seconds more, and whether it will surely answer after that.

    `shut` says that it cannot be asked at all before: it has no api key that may be used.
    """

    seconds: float
    why: str
    sure: bool
    shut: bool = False


class Health(Protocol):
    """How a backend is doing."""

    def obstacle(self, now: float) -> "Obstacle | None":
        """Why it should not be asked at `now`; None when it may."""
        ...

    @property
    def latency(self) -> float:
        """Seconds to the first token: a moving average that rises at once and falls slowly (peak-EWMA)."""
        ...

    @property
    def busy(self) -> int:
        """Requests that run there now."""
        ...


class Dice(Protocol):
    """Where the choices that are not the policy's come from."""

    def chance(self) -> float:
        """A number in [0, 1)."""
        ...

    def turn(self, group: str) -> int:
        """How often this balanced step has had its turn."""
        ...


@value
class Wish:
    """What a request asks for, as far as routing needs it. Sizes in tokens; `input_tokens` is an estimate."""

    model: str
    task: str | None = None
    input_tokens: int = 0
    max_output: int | None = None
    mode: str = "chat"


@value
class Candidate:
    """A target with its verdict: `in`, `rests` (in only when nothing else is left) or `out`; and the reason.

    `wait` is for how many seconds more it asked to be left alone: worth waiting for, when nothing else is left. `shut`
    as in Obstacle.
    """

    target: Target
    verdict: str
    reason: str
    wait: float | None = None
    shut: bool = False


@value
class Plan:
    """Where a request may go, in order. `rests_for` is how long until the first that rests is back, in seconds.

    `never` says why no candidate will ever answer this very request, since it must change: `too_long`, or `mode` when
    it is for another kind of model; empty where one could.
    """

    route: Route
    candidates: tuple[Candidate, ...]
    rests_for: float | None = None
    never: Literal["", "too_long", "mode"] = ""

    @property
    def chosen(self) -> list[Candidate]:
        """The candidates to try, in order."""
        return [candidate for candidate in self.candidates if candidate.verdict is IN]


def plan(
    catalog: Catalog,
    principal: Principal,
    wish: Wish,
    health: Mapping[str, Health],
    now: float,
    dice: Dice,
) -> Plan:
    """The plan for this wish; `now` is of the clock that `health` uses.

    Raises NotFound, PermissionDenied or InvalidRequest when the name itself leads nowhere.
    """
    route = catalog.find(wish.model, wish.task, principal)
    candidates: list[Candidate] = []
    rests_for: float | None = None
    for group in route.chain:
        for target in order(group, health, dice) if len(group.targets) > 1 else group.targets:
            why = _misfit(route, target, wish)
            if why:
                candidates.append(Candidate(target, OUT, why))
                continue
            obstacle = health[target.backend].obstacle(now)
            if obstacle is None:
                candidates.append(Candidate(target, IN, _reason(group, len(candidates))))
                continue
            rests_for = obstacle.seconds if rests_for is None else min(rests_for, obstacle.seconds)
            reason = f"{obstacle.why}, for {obstacle.seconds:.0f} s more"
            wait = obstacle.seconds if obstacle.sure else None
            candidates.append(Candidate(target, RESTS, reason, wait, obstacle.shut))
    if candidates and candidates[-1].verdict is not IN:
        _try_the_last(candidates)
        return Plan(route, tuple(candidates), rests_for, _never(candidates, wish))
    return Plan(route, tuple(candidates), rests_for)


def _never(candidates: list[Candidate], wish: Wish) -> Literal["", "too_long", "mode"]:
    if all(_is_too_small(candidate.target, wish) for candidate in candidates):
        return "too_long"
    return "mode" if not any(_is_of_mode(candidate.target, wish) for candidate in candidates) else ""


def _try_the_last(candidates: list[Candidate]) -> None:
    """Rather than no answer at all, let the last that fits be tried, though it may not answer.

    With nothing to try and nothing worth waiting for, that is the last that may answer at all.
    """
    fit = [n for n, candidate in enumerate(candidates) if candidate.verdict is not OUT]
    if any(candidates[n].verdict is IN or _is_soon_back(candidates[n]) for n in fit):
        fit = [n for n in fit[-1:] if not candidates[n].shut]
    for n in sorted(fit, key=lambda n: (not candidates[n].shut, n), reverse=True):
        last = candidates[n]
        if last.verdict is RESTS and last.wait is None:
            candidates[n] = Candidate(last.target, IN, f"{last.reason}; {LAST}")
            return


def _is_soon_back(candidate: Candidate) -> bool:
    return candidate.wait is not None and candidate.wait <= MAX_WAIT


def order(group: Group, health: Mapping[str, Health], dice: Dice) -> Sequence[Target]:
    """The targets of a balanced step, the one to try first in front, and those whose backend is off behind."""
    targets = [target for target in group.targets if not target.off]
    off = [target for target in group.targets if target.off]
    if len(targets) < 2:
        return targets + off
    if group.by == "weight":
        weight_of = dict(zip(group.targets, group.weights, strict=True))
        targets = _by_weight([(target, weight_of[target]) for target in targets], dice)
    elif group.by == "cost":
        targets.sort(key=_cost)
    elif group.by == "least_busy":
        targets.sort(key=lambda target: health[target.backend].busy)
    elif group.by == "latency":
        targets = _by_latency(targets, health, dice)
    else:
        start = dice.turn(group.name) % len(targets)
        targets = targets[start:] + targets[:start]
    return targets + off


def _by_weight(left: list[tuple[Target, float]], dice: Dice) -> list[Target]:
    ordered = []
    while left:
        point = dice.chance() * sum(weight for _, weight in left)
        for position, (_, weight) in enumerate(left):
            point -= weight
            if point < 0 or position == len(left) - 1:
                ordered.append(left.pop(position)[0])
                break
    return ordered


def _by_latency(left: list[Target], health: Mapping[str, Health], dice: Dice) -> list[Target]:
    """Two random choices, the faster first (Mitzenmacher 2001); the rest by latency behind them."""
    pair = [left.pop(int(dice.chance() * len(left))) for _ in range(2)]

    def speed(target: Target) -> float:
        return health[target.backend].latency * (health[target.backend].busy + 1)

    return sorted(pair, key=speed) + sorted(left, key=speed)


def _cost(target: Target) -> float:
    rates = target.facts.rates
    return float("inf") if rates is None else worst_case(1000, 1000, rates)


def fits(mode: str, wanted: str) -> bool:
    """Whether a model of this mode can answer a request for that one."""
    return mode == wanted or (mode in _TRANSLATED and wanted in _TRANSLATED)


def _misfit(route: Route, target: Target, wish: Wish) -> str:
    if target.off:
        return f"backend {target.backend!r} is off: {target.off}"
    if route.local_only and not target.local:
        return f"the route keeps data local, and backend {target.backend!r} is not"
    facts = target.facts
    if not _is_of_mode(target, wish):
        return f"it is a model for {facts.mode}, not for {wish.mode}"
    if _is_too_small(target, wish):
        return f"its context of {facts.context} tokens is too small for about {wish.input_tokens} tokens"
    return ""


def _is_of_mode(target: Target, wish: Wish) -> bool:
    mode = target.facts.mode
    return mode is None or mode == wish.mode or fits(mode, wish.mode)


def _is_too_small(target: Target, wish: Wish) -> bool:
    return target.facts.context is not None and wish.input_tokens > target.facts.context


def _reason(group: Group, position: int) -> str:
    if len(group.targets) > 1:
        return f"balanced by {group.by}"
    return NEXT if position else FIRST
