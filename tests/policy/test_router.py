"""A plan: every candidate with its verdict and its reason, balanced as the policy says, and nothing changed by planning."""

import copy
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import NotFound
from gateway.identity.principal import ANONYMOUS
from gateway.policy.catalog import Catalog, Facts
from gateway.policy.router import IN, LAST, OUT, RESTS, Obstacle, Plan, Wish, plan
from tests.policy.catalogs import backend, catalog, rates

NOW = 1000.0


@dataclass
class Doing:
    """How a backend is said to be doing."""

    found: Obstacle | None = None
    latency: float = 0.0
    busy: int = 0

    def obstacle(self, now: float) -> Obstacle | None:
        assert now == NOW
        return self.found


class Turns:
    """Dice for tests: turns that count up, and chance from a seed."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._turns: Counter[str] = Counter()

    def chance(self) -> float:
        return self._random.random()

    def turn(self, group: str) -> int:
        self._turns[group] += 1
        return self._turns[group] - 1


MODELS = ("a", "b", "c")
BREAKER = Obstacle(12.0, "its breaker is open", sure=False)
SHUT = Obstacle(60.0, "no api key of it is usable (refused)", sure=False, shut=True)
LIMITED = Obstacle(4.0, "it asked to be left alone", sure=True)


def chained(
    *steps: Any, disabled: dict[str, str] | None = None, facts: dict[str, Facts] | None = None, **route: Any
) -> Catalog:
    """Models a, b and c, each at its own backend (c's local), and an alias `fast` over these steps."""
    return catalog(
        disabled=disabled,
        facts=facts,
        backends={name: backend(local=name == "c") for name in MODELS},
        models={name: {"backend": name, "model": name} for name in MODELS},
        aliases={"fast": {"chain": list(steps or MODELS), **route}},
    )


def planned(names: Catalog, wish: Wish | None = None, dice: Turns | None = None, **health: Doing) -> Plan:
    doing = {name: health.get(name, Doing()) for name in MODELS}
    return plan(names, ANONYMOUS, wish or Wish("fast"), doing, NOW, dice or Turns())


def verdicts(found: Plan) -> list[tuple[str, str, str]]:
    return [(candidate.target.name, candidate.verdict, candidate.reason) for candidate in found.candidates]


def first(found: Plan) -> str:
    return found.candidates[0].target.name


def test_a_chain_in_its_order() -> None:
    """All well: the first, and the others behind it."""
    found = planned(chained())
    assert verdicts(found) == [
        ("a", IN, "first in the chain"),
        ("b", IN, "fallback"),
        ("c", IN, "fallback"),
    ]
    assert found.chosen == list(found.candidates)
    assert found.rests_for is None


def test_a_name_that_leads_nowhere_has_no_plan() -> None:
    """The catalog's error is the router's."""
    with pytest.raises(NotFound):
        planned(chained(), Wish("nope"))


@pytest.mark.parametrize(
    ("names", "wish", "reason"),
    [
        (chained(disabled={"a": "A_KEY is not set"}), Wish("fast"), "backend 'a' is off: A_KEY is not set"),
        (chained(data="local"), Wish("fast"), "the route keeps data local, and backend 'a' is not"),
        (
            chained(facts={"a": Facts(context=4096)}),
            Wish("fast", input_tokens=5000),
            "its context of 4096 tokens is too small for about 5000 tokens",
        ),
        (chained(facts={"a": Facts(mode="embedding")}), Wish("fast"), "it is a model for embedding, not for chat"),
    ],
)
def test_who_is_left_out_and_why(names: Catalog, wish: Wish, reason: str) -> None:
    """The reason stands in the plan, for `gateway explain` to print."""
    found = planned(names, wish)
    assert verdicts(found)[0] == ("a", OUT, reason)
    assert "a" not in [candidate.target.name for candidate in found.chosen]


@pytest.mark.parametrize(
    "facts", [Facts(context=5000), Facts(context=None), Facts(mode="responses"), Facts(mode="chat")]
)
def test_who_fits_is_in(facts: Facts) -> None:
    """A context just large enough, or unknown."""
    assert planned(chained(facts={"a": facts}), Wish("fast", input_tokens=5000)).candidates[0].verdict is IN


@pytest.mark.parametrize("mode", ["completion", "embedding", "moderation", "image", "audio"])
def test_every_kind_of_request_has_its_own_models(mode: str) -> None:
    """A model of unknown mode may be asked for anything; a known one only for what it is."""
    wish = Wish("fast", mode=mode)
    assert planned(chained(facts={"a": Facts(mode=mode), "b": Facts(mode=None)}), wish).candidates[0].verdict is IN
    left_out = planned(chained(facts={"a": Facts(mode="chat")}), wish).candidates[0]
    assert (left_out.verdict, left_out.reason) == (OUT, f"it is a model for chat, not for {mode}")


def test_a_backend_that_rests_is_passed_over() -> None:
    """With the reason and for how long; what surely answers then may be waited for."""
    found = planned(chained(), a=Doing(BREAKER), b=Doing(LIMITED))
    assert verdicts(found) == [
        ("a", RESTS, "its breaker is open, for 12 s more"),
        ("b", RESTS, "it asked to be left alone, for 4 s more"),
        ("c", IN, "fallback"),
    ]
    assert [candidate.wait for candidate in found.candidates] == [None, 4.0, None]
    assert found.rests_for == 4.0


def test_the_last_candidate_is_tried_even_if_its_breaker_is_open() -> None:
    """Rather than no answer at all; those before it are left alone."""
    found = planned(chained(), a=Doing(BREAKER), b=Doing(BREAKER), c=Doing(BREAKER))
    assert [candidate.target.name for candidate in found.chosen] == ["c"]
    assert LAST in found.candidates[2].reason


def test_the_last_is_the_last_that_fits() -> None:
    """A candidate that is out is nobody's last hope."""
    found = planned(chained(disabled={"b": "off", "c": "off"}), a=Doing(BREAKER))
    assert [(candidate.target.name, candidate.verdict) for candidate in found.candidates] == [
        ("a", IN),
        ("b", OUT),
        ("c", OUT),
    ]


def test_the_last_is_not_asked_while_it_is_rate_limited() -> None:
    """It said when it will answer; before that it surely does not."""
    found = planned(chained("a"), a=Doing(LIMITED))
    assert found.chosen == []
    assert found.rests_for == 4.0


@pytest.mark.parametrize(("seconds", "tried"), [(60.0, ["b"]), (5.0, []), (4.0, [])])
def test_the_last_that_may_answer_is_tried_when_nothing_else_is_worth_waiting_for(
    seconds: float, tried: list[str]
) -> None:
    """A breaker only guesses; a rate limit is certain, and the request waits for a short one instead."""
    limited = Obstacle(seconds, "it asked to be left alone", sure=True)
    found = planned(chained(), a=Doing(BREAKER), b=Doing(BREAKER), c=Doing(limited))
    assert [candidate.target.name for candidate in found.chosen] == tried


@pytest.mark.parametrize(
    ("a", "b", "tried"), [(None, SHUT, ["a"]), (BREAKER, SHUT, ["a"]), (LIMITED, SHUT, []), (SHUT, SHUT, ["b"])]
)
def test_who_has_no_usable_api_key_is_not_tried_in_place_of_who_may_answer(
    a: Obstacle | None, b: Obstacle, tried: list[str]
) -> None:
    """Nothing could be sent to it; it stands in the plan only where all others are the same, to say what is wrong."""
    found = planned(chained("a", "b"), a=Doing(a), b=Doing(b))
    assert [candidate.target.name for candidate in found.chosen] == tried


def test_a_plan_may_be_empty() -> None:
    """Every candidate out, each with its reason."""
    found = planned(chained(disabled=dict.fromkeys(MODELS, "off")))
    assert found.chosen == []
    assert {candidate.verdict for candidate in found.candidates} == {OUT}


@pytest.mark.parametrize("by", ["round_robin", "weight", "cost", "latency", "least_busy"])
def test_every_balance_keeps_every_candidate(by: str) -> None:
    """The others stand behind the chosen one; what is off stands last; the next step of the chain after them."""
    names = chained({"any": ["a", "b"], "by": by}, "c", disabled={"a": "off"})
    for seed in range(5):
        found = planned(names, dice=Turns(seed))
        assert [candidate.target.name for candidate in found.candidates] == ["b", "a", "c"]
        assert found.candidates[0].reason == f"balanced by {by}"


def test_round_robin_is_even() -> None:
    """Each is first as often as the others, and the rest follow in turn."""
    names, dice = chained({"any": list(MODELS)}), Turns()
    orders = [[each.target.name for each in planned(names, dice=dice).candidates] for _ in range(30)]
    assert Counter(order[0] for order in orders) == {"a": 10, "b": 10, "c": 10}
    assert orders[:3] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]


def test_weights_are_kept_in_the_long_run() -> None:
    """Six to three to one, within five standard deviations; the one behind is drawn by weight as well."""
    names = chained({"any": list(MODELS), "by": "weight", "weights": {"a": 6, "b": 3, "c": 1}})
    dice, total = Turns(7), 4000
    plans = [planned(names, dice=dice) for _ in range(total)]
    shares = Counter(first(found) for found in plans)
    for name, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        deviation = (share * (1 - share) * total) ** 0.5
        assert abs(shares[name] - share * total) < 5 * deviation
    behind_a = Counter(found.candidates[1].target.name for found in plans if first(found) == "a")
    assert 2 < behind_a["b"] / behind_a["c"] < 4.5


def test_the_cheapest_first() -> None:
    """A model whose price nobody knows stands behind those that are known."""
    names = chained({"any": list(MODELS), "by": "cost"}, facts={"b": Facts(rates=rates("3")), "a": Facts()})
    assert [each.target.name for each in planned(names).candidates] == ["c", "b", "a"]


def test_the_least_busy_first() -> None:
    """By requests that run there now."""
    names = chained({"any": list(MODELS), "by": "least_busy"})
    found = planned(names, a=Doing(busy=3), b=Doing(busy=1), c=Doing(busy=2))
    assert [each.target.name for each in found.candidates] == ["b", "c", "a"]


def test_latency_never_prefers_the_slower_of_its_two() -> None:
    """Two random choices: the slowest of all is never first, the fastest most often, and nobody is always first."""
    names, dice = chained({"any": list(MODELS), "by": "latency"}), Turns(3)
    health = {"a": Doing(latency=0.1), "b": Doing(latency=0.5), "c": Doing(latency=2.0)}
    firsts = Counter(first(planned(names, None, dice, **health)) for _ in range(600))
    assert firsts["c"] == 0
    assert 330 < firsts["a"] < 470
    assert firsts["b"] == 600 - firsts["a"]


def test_latency_counts_those_who_wait_there() -> None:
    """A fast backend with a long line is a slow one."""
    names = chained({"any": ["a", "b"], "by": "latency"})
    assert first(planned(names, a=Doing(latency=0.1, busy=20), b=Doing(latency=0.5))) == "b"


def test_a_backend_without_a_measured_latency_is_tried() -> None:
    """Otherwise nobody would ever learn how fast it is."""
    names = chained({"any": ["a", "b"], "by": "latency"})
    assert first(planned(names, a=Doing(latency=0.1), b=Doing())) == "b"


HEALTH = st.builds(
    Doing,
    st.none() | st.builds(Obstacle, st.floats(0.01, 500), st.just("it rests"), sure=st.booleans()),
    st.floats(0, 60),
    st.integers(0, 50),
)


@given(
    health=st.fixed_dictionaries(dict.fromkeys(MODELS, HEALTH)),
    by=st.sampled_from(("round_robin", "weight", "cost", "latency", "least_busy")),
    off=st.sets(st.sampled_from(MODELS)),
    balanced=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_planning_changes_nothing(health: dict[str, Doing], by: str, off: set[str], balanced: int, seed: int) -> None:
    """The same in, the same out; every candidate once, with a reason; and somebody is in, or worth waiting for."""
    steps = [{"any": list(MODELS[:balanced]), "by": by}, *MODELS[balanced:]]
    names = chained(*steps, disabled=dict.fromkeys(off, "off"))
    before = copy.deepcopy(health)
    found = planned(names, None, Turns(seed), **health)
    assert planned(names, None, Turns(seed), **health) == found
    assert health == before
    assert sorted(candidate.target.name for candidate in found.candidates) == sorted(MODELS)
    assert all(candidate.reason for candidate in found.candidates)
    assert {each.target.name for each in found.candidates if each.verdict is OUT} == off
    if len(off) < len(MODELS):
        assert found.chosen or any(candidate.wait is not None for candidate in found.candidates)
    rests = [doing.found.seconds for name, doing in health.items() if name not in off and doing.found]
    assert found.rests_for == (min(rests) if rests else None)
