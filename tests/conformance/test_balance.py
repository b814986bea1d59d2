"""Balanced steps share the work as their strategy says, and a prompt goes only where it fits."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conformance.stage import PATIENT, Open, Stage, asked_of
from tests.faults import FaultUpstream
from tests.support import ask, serve

QUICK, SLOW = "fault:ok", "fault:ok:delay=0.15"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One step for each strategy, over backends of its own."""
    with FaultUpstream.in_thread() as upstream:
        backends: dict[str, Any] = {}
        models: dict[str, Any] = {}
        aliases: dict[str, Any] = {}

        def step(name: str, by: str, members: dict[str, dict[str, Any]], **more: Any) -> None:
            for member, settings in members.items():
                backends[member] = {"base_url": upstream.url, "api_keys": [member], **settings.pop("backend", {})}
                models[member] = {"backend": member, "model": QUICK, **settings}
            aliases[name] = [{"any": list(members), "by": by, **more}]

        step("turns", "round_robin", {"turn-a": {}, "turn-b": {}, "turn-c": {}})
        step("weights", "weight", {"heavy": {}, "light": {}}, weights={"heavy": 4, "light": 1})
        prices = {"dear": {"input": 9, "output": 9}, "cheap": {"input": 1, "output": 1}, "dearer": {"input": 20}}
        step("costs", "cost", {name: {"price": price} for name, price in prices.items()})
        step("latencies", "latency", {"slow": {"model": SLOW}, "fast": {}})
        step("loads", "least_busy", {"load-a": {}, "load-b": {}, "load-c": {}})
        step("falls", "round_robin", {"fall-a": {"model": "fault:status_503"}, "fall-b": {}})
        step("fits", "round_robin", {"small": {"context": 4096}, "large": {"context": 100_000}})
        models["tiny"] = {"backend": "small", "model": QUICK, "context": 1000}
        aliases["chain"] = ["tiny", "small", "large"]
        aliases["too-small"] = ["tiny"]
        policies = {
            "server": {"auth": "none"},
            "defaults": {
                "timeouts": PATIENT,
                "retry": {"attempts": 0},
                "breaker": {"failures": 100000},
            },
            "backends": backends,
            "models": models,
            "aliases": aliases,
        }
        with serve(tmp_path_factory.mktemp("balance"), policies) as gateway:
            yield Stage(gateway, upstream)


def shares(stage: Stage, model: str, count: int, at_once: int = 1) -> Counter[str]:
    """How many of so many requests each backend was sent."""
    before = len(stage.upstream.log)
    with ThreadPoolExecutor(at_once) as pool:
        replies = list(pool.map(lambda _: stage.gateway.chat(ask(model)), range(count)))
    assert [reply.status for reply in replies] == [200] * count
    return Counter(map(asked_of, stage.upstream.log[before:]))


@pytest.mark.parametrize("at_once", [1, 5])
def test_round_robin_is_even(stage: Stage, at_once: int) -> None:
    """Each a third, whoever comes at the same time."""
    assert shares(stage, "turns", 30, at_once) == {"turn-a": 10, "turn-b": 10, "turn-c": 10}


def test_weights_are_shares(stage: Stage) -> None:
    """Four to one: 160 of 200, give or take five standard deviations."""
    found = shares(stage, "weights", 200, 4)
    assert 160 - 29 < found["heavy"] < 160 + 29
    assert found["heavy"] + found["light"] == 200


def test_cost_prefers_the_cheapest(stage: Stage) -> None:
    """Always, while it answers."""
    assert shares(stage, "costs", 10) == {"cheap": 10}


def test_latency_prefers_the_faster(stage: Stage) -> None:
    """Once both are known."""
    shares(stage, "latencies", 4)
    found = shares(stage, "latencies", 40)
    assert found["fast"] >= 36


def test_least_busy_goes_where_least_is_running(stage: Stage) -> None:
    """Nine at once: three each; and one that is stuck gets no more."""
    before = len(stage.upstream.log)
    stage.upstream.script(["ok:delay=1"] * 9)
    requests = []
    for n in range(9):
        requests.append(Open(stage.gateway, "loads"))
        stage.upstream.wait(lambda n=n: len(stage.upstream.log) == before + n + 1)  # type: ignore[misc]
    found = Counter(map(asked_of, stage.upstream.log[before:]))
    assert [request.reply().status for request in requests] == [200] * 9
    assert found == {"load-a": 3, "load-b": 3, "load-c": 3}
    stage.upstream.script(["ok:delay=1.5"])
    stuck = Open(stage.gateway, "loads")
    stage.upstream.wait(lambda: len(stage.upstream.log) == before + 10)
    busy = asked_of(stage.upstream.log[-1])
    assert busy not in shares(stage, "loads", 6)
    assert stuck.reply().status == 200


def test_the_others_of_a_step_stand_in_for_one_that_fails(stage: Stage) -> None:
    """Every request is answered."""
    found = shares(stage, "falls", 10)
    assert found["fall-b"] == 10
    assert found["fall-a"] == 5


def test_a_prompt_goes_only_where_it_fits(stage: Stage) -> None:
    """About 2,000 tokens: not to the context of 1,000; about 20,000: only to that of 100,000; the reason is told."""
    told = stage.tell("chain", text="word " * 2000)
    assert told.asked == ["small"]
    for model in ("chain", "fits", "fits"):
        assert stage.tell(model, text="word " * 20_000).asked == ["large"]
    none = stage.tell("too-small", text="word " * 2000)
    assert (none.reply.status, none.reply.error["code"], none.seen) == (400, "context_length_exceeded", [])
    assert "context of 1000" in none.reply.error["message"]
    assert stage.tell("chain").asked == ["small"]
