"""What a name leads to, for whom, and what is said when it leads nowhere."""

from typing import Any

import pytest

from gateway.budget.money import rates_of
from gateway.errors import InvalidRequest, NotFound, PermissionDenied
from gateway.identity.principal import ANONYMOUS, Principal, compile_globs
from gateway.policy.catalog import Catalog, Facts
from gateway.policy.schema import Price
from tests.policy.catalogs import backend, catalog, rates

SECTIONS: dict[str, Any] = {
    "backends": {
        "ollama": backend(local=True),
        "openai": backend(passthrough=["gpt-*", "o?-*"]),
        "other": backend(passthrough=["gpt-4*", "openai/*", "meta/*"]),
        "sim": {"provider": "simulator"},
    },
    "models": {
        "llama": {"backend": "ollama", "model": "llama3.2", "context": 4096},
        "mini": {"backend": "openai", "model": "gpt-4o-mini"},
        "priced": {"backend": "openai", "model": "gpt-x", "price": {"input": 1, "output": 2}, "max_output": 50},
        "toy": {"backend": "sim", "model": "toy"},
        "both": {"backend": "ollama", "model": "as-model"},
    },
    "aliases": {
        "fast": ["mini", "llama"],
        "both": ["mini"],
        "own": {
            "chain": [{"any": ["mini", "llama"], "by": "weight", "weights": {"mini": 3}}, "toy"],
            "data": "local",
            "on_budget": "degrade",
            "timeouts": {"first_token": "3s"},
        },
    },
    "tasks": {"general": ["llama"], "analysis": ["mini", "llama"]},
    "defaults": {"timeouts": {"connect": "2s", "first_token": "9s"}, "retry": {"attempts": 4}},
}


def made(**changes: Any) -> Catalog:
    return catalog(**{**SECTIONS, **changes})


def only(*globs: str) -> Principal:
    return Principal("alice", allowed=compile_globs(globs))


@pytest.mark.parametrize(
    ("asked", "task", "name", "kind", "targets"),
    [
        ("fast", None, "fast", "alias", ["mini", "llama"]),
        ("fast", "analysis", "fast", "alias", ["mini", "llama"]),
        ("task:analysis", None, "task:analysis", "task", ["mini", "llama"]),
        ("auto", "analysis", "task:analysis", "task", ["mini", "llama"]),
        ("auto", None, "task:general", "task", ["llama"]),
        ("auto", "", "task:general", "task", ["llama"]),
        ("llama", None, "llama", "model", ["llama"]),
        ("both", None, "both", "alias", ["mini"]),
        ("gpt-3.5", None, "gpt-3.5", "passthrough", ["gpt-3.5"]),
        ("openai/gpt-3.5", None, "openai/gpt-3.5", "passthrough", ["openai/gpt-3.5"]),
    ],
)
def test_what_a_name_leads_to(asked: str, task: str | None, name: str, kind: str, targets: list[str]) -> None:
    """Alias, then task, then model, then what a backend lets pass."""
    route = made().find(asked, task, ANONYMOUS)
    assert (route.name, route.kind) == (name, kind)
    assert [target.name for target in route.targets] == targets


@pytest.mark.parametrize(
    ("asked", "at"),
    [
        ("gpt-3.5", [("openai", "gpt-3.5")]),
        ("openai/gpt-3.5", [("openai", "gpt-3.5")]),
        ("gpt-4o", [("openai", "gpt-4o"), ("other", "gpt-4o")]),
        ("other/gpt-4o", [("other", "gpt-4o")]),
        ("other/meta/llama", [("other", "meta/llama")]),
        ("meta/llama", [("other", "meta/llama")]),
        ("openai/oss-20b", [("other", "openai/oss-20b")]),
        ("o3-mini", [("openai", "o3-mini")]),
    ],
)
def test_where_a_name_that_passes_goes(asked: str, at: list[tuple[str, str]]) -> None:
    """A backend's name in front chooses it, unless only another backend knows the whole name."""
    route = made().find(asked, None, ANONYMOUS)
    assert [(target.backend, target.model) for target in route.targets] == at
    assert route.label == "passthrough"
    assert {target.label for target in route.targets} == {f"{name}/*" for name, _ in at}


def test_a_backend_that_is_off_stands_behind() -> None:
    """A name that two backends know is asked at the one that runs."""
    found = made(disabled={"openai": "OPENAI_API_KEY is not set"}).find("gpt-4o", None, ANONYMOUS)
    assert [(target.backend, target.off) for target in found.targets] == [
        ("other", ""),
        ("openai", "OPENAI_API_KEY is not set"),
    ]


def test_names_that_pass_are_kept_within_bounds() -> None:
    """A client that asks for ever new names fills no memory."""
    names = made()
    for number in range(3000):
        names.find(f"gpt-{number}", None, ANONYMOUS)
    assert len(names._passed) <= 1024
    assert names.find("gpt-1", None, ANONYMOUS) is names.find("gpt-1", None, ANONYMOUS)


@pytest.mark.parametrize(
    "asked", ["nothing", "ollama/llama3.2", "ollama/", "/gpt-4o", "OPENAI/gpt-4o", "analysis", "task:x", ""]
)
def test_a_name_that_leads_nowhere(asked: str) -> None:
    """404, with the field and what to ask for instead."""
    with pytest.raises(NotFound) as caught:
        made().find(asked, None, ANONYMOUS)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("asked", "principal", "said"),
    [
        ("fsat", ANONYMOUS, "did you mean 'fast'?"),
        ("task:analysys", ANONYMOUS, "did you mean 'task:analysis'"),
        ("zzz", only("llama", "fast"), "this key may use fast, llama."),
        ("zzz", only(), "no model at all"),
        ("zzz", ANONYMOUS, "GET /v1/models lists all"),
    ],
)
def test_the_near_names_are_told(asked: str, principal: Principal, said: str) -> None:
    """But only those that this key may use."""
    with pytest.raises(NotFound, match="There is no model") as caught:
        made().find(asked, None, principal)
    assert said in caught.value.message


def test_what_a_key_may_not_use_is_not_told() -> None:
    """Near names come from its own list."""
    with pytest.raises(NotFound) as caught:
        made().find("llam", None, only("fast"))
    assert "llama" not in caught.value.message


@pytest.mark.parametrize(
    ("globs", "good", "bad"),
    [
        (("fast",), ["fast"], ["llama", "auto", "gpt-4o", "task:general"]),
        (("task:*",), ["auto", "task:analysis"], ["fast", "llama"]),
        (("gpt-*",), ["gpt-4o"], ["openai/gpt-4o", "fast"]),
        (("openai/*",), ["openai/gpt-3.5"], ["gpt-3.5"]),
        (("*",), ["fast", "auto", "openai/gpt-4o"], []),
    ],
)
def test_an_allow_list_is_held_to_the_name_that_was_asked(
    globs: tuple[str, ...], good: list[str], bad: list[str]
) -> None:
    """`auto` counts as its task; a name that exists but is not on the list is 403, not 404."""
    names = made()
    for name in good:
        assert names.find(name, None, only(*globs))
    for name in bad:
        with pytest.raises(PermissionDenied) as caught:
            names.find(name, None, only(*globs))
        assert (caught.value.status, caught.value.code, caught.value.param) == (403, "model_not_allowed", "model")


def test_an_unknown_task_is_told_with_those_there_are() -> None:
    """The header is what is wrong, so it is named."""
    with pytest.raises(InvalidRequest) as caught:
        made().find("auto", "nope", only("task:g*"))
    assert caught.value.param == "x-gateway-task"
    assert "general" in caught.value.message
    assert "analysis" not in caught.value.message


def test_auto_without_a_task_needs_a_general_one() -> None:
    """And says which header to send."""
    with pytest.raises(NotFound, match="x-gateway-task"):
        made(tasks={"analysis": ["llama"]}).find("auto", None, ANONYMOUS)


def test_what_is_visible() -> None:
    """Aliases, tasks, models, and of them only what this key may use."""
    names = [route.name for route in made().visible(ANONYMOUS)]
    assert names == ["both", "fast", "own", "task:general", "task:analysis", "llama", "mini", "priced", "toy"]
    kinds = [route.kind for route in made().visible(ANONYMOUS)]
    assert kinds == sorted(kinds, key=["alias", "task", "model"].index)
    assert [route.name for route in made().visible(only("task:*", "toy"))] == ["task:general", "task:analysis", "toy"]


def test_a_route_carries_what_it_overrides() -> None:
    """And the defaults where it says nothing."""
    own = made().find("own", None, ANONYMOUS)
    assert (own.local_only, own.on_budget, own.retry.attempts) == (True, "degrade", 4)
    assert (own.timeouts.first_token, own.timeouts.connect) == (3.0, 2.0)
    assert [(group.by, group.weights) for group in own.chain] == [("weight", (3.0, 1.0)), ("round_robin", (1.0,))]
    for name in ("llama", "gpt-4o", "fast", "auto"):
        plain = made().find(name, None, ANONYMOUS)
        assert (plain.timeouts.first_token, plain.retry.attempts) == (9.0, 4)
        assert (plain.on_budget, plain.local_only) == ("reject", False)


def test_the_policy_counts_before_the_bundled_list() -> None:
    """Price, context and output limit are the policy's where it names them, else the list's."""
    listed = Facts(rates=rates("7"), context=128_000, max_output=16_000, mode="chat")
    targets = made(facts={"gpt-x": listed, "gpt-4o-mini": listed}).targets()
    mine = rates_of(Price.model_validate({"input": 1, "output": 2}))
    assert (targets["priced"].facts.rates, targets["priced"].facts.max_output) == (mine, 50)
    assert (targets["priced"].facts.context, targets["priced"].facts.mode) == (128_000, "chat")
    assert targets["mini"].facts.rates == rates("7")
    assert targets["mini"].facts.max_output == 16_000


def test_what_is_free() -> None:
    """Local and simulated models without a price cost nothing; of any other the price is unknown."""
    targets = made().targets()
    for name in ("llama", "toy"):
        known = targets[name].facts.rates
        assert known is not None
        assert known.free
    assert targets["mini"].facts.rates is None


@pytest.mark.parametrize(("sizes", "smallest"), [([], 8192), ([128_000], 8192), ([128_000, 2048], 2048)])
def test_the_smallest_context(sizes: list[int], smallest: int) -> None:
    """Below it nobody needs to count tokens."""
    models = {f"m{n}": {"backend": "b", "model": "m", "context": size} for n, size in enumerate(sizes)}
    assert catalog(backends={"b": backend()}, models=models).smallest_context == smallest
