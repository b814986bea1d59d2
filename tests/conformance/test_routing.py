"""A name leads where the policies say, for the keys that they say; the pages tell the same story."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.faults import FaultUpstream, refused
from tests.support import Served, ask, gateway_command, key_policy, serve

ALL, GLOBS, NONE = "sk-all", "sk-globs", "sk-none"


@pytest.fixture(scope="module")
def upstream() -> Iterator[FaultUpstream]:
    """Every backend at once; the backends differ in the path of their base URL."""
    with FaultUpstream.in_thread() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the gateway runs."""
    return tmp_path_factory.mktemp("routing")


@pytest.fixture(scope="module")
def gateway(upstream: FaultUpstream, folder: Path) -> Iterator[Served]:
    """A policy with a bit of everything."""
    with refused() as nobody:
        policies = {
            "backends": {
                "home": {"base_url": f"{upstream.origin}/home/v1", "local": True, "passthrough": ["llama*"]},
                "cloud": {"base_url": f"{upstream.origin}/cloud/v1", "passthrough": ["gpt-*", "llama-cloud"]},
                "off": {"base_url": f"{upstream.origin}/off/v1", "api_keys": ["${NOT_SET?}"], "passthrough": ["off-*"]},
                "down": {"base_url": nobody},
            },
            "models": {
                "small": {"backend": "home", "model": "up-small", "context": 100},
                "large": {"backend": "cloud", "model": "up-large"},
                "gone": {"backend": "off", "model": "up-gone"},
                "dead": {"backend": "down", "model": "up-dead"},
                "gpt-declared": {"backend": "cloud", "model": "up-declared"},
                "twin": {"backend": "cloud", "model": "up-twin"},
                "embedder": {"backend": "cloud", "model": "up-embedder", "mode": "embedding"},
            },
            "aliases": {
                "fast": ["gone", "small", "large"],
                "large-first": ["large", "small"],
                "twin": ["small"],
                "private": {"chain": ["large", "small"], "data": "local"},
                "nowhere": {"chain": ["large"], "data": "local"},
                "only-off": ["gone"],
                "walk": ["gone", "dead", "embedder", "large", "small"],
                "turns": [{"any": ["small", "large"], "by": "round_robin"}],
            },
            "tasks": {"general": ["small"], "analysis": ["large", "small"], "sql": ["gpt-declared"]},
            "keys": {
                "all": key_policy(ALL),
                "globs": key_policy(GLOBS, allow=["fast", "task:a*", "gpt-4*", "cloud/*"]),
                "none": key_policy(NONE, allow=[]),
            },
        }
        with serve(folder, policies) as served:
            yield served


# What is asked for (and the task's header), then: route, model, backend, and the name that the backend is given.
ROUTES: dict[str, tuple[str, str | None, tuple[str, str, str, str]]] = {
    "an alias": ("large-first", None, ("large-first", "large", "cloud", "up-large")),
    "a disabled backend is passed over": ("fast", None, ("fast", "small", "home", "up-small")),
    "a task": ("task:analysis", None, ("task:analysis", "large", "cloud", "up-large")),
    "auto": ("auto", None, ("task:general", "small", "home", "up-small")),
    "auto with a task": ("auto", "analysis", ("task:analysis", "large", "cloud", "up-large")),
    "a task's header without auto counts for nothing": ("small", "analysis", ("small", "small", "home", "up-small")),
    "a model": ("large", None, ("large", "large", "cloud", "up-large")),
    "a declared model before passthrough": (
        "gpt-declared",
        None,
        ("gpt-declared", "gpt-declared", "cloud", "up-declared"),
    ),
    "passthrough": ("gpt-4o-mini", None, ("gpt-4o-mini", "gpt-4o-mini", "cloud", "gpt-4o-mini")),
    "passthrough with the backend's name": ("cloud/gpt-4o", None, ("cloud/gpt-4o", "cloud/gpt-4o", "cloud", "gpt-4o")),
    "passthrough of the first that has it": (
        "llama-cloud",
        None,
        ("llama-cloud", "llama-cloud", "home", "llama-cloud"),
    ),
    "passthrough of the one that is named": (
        "cloud/llama-cloud",
        None,
        ("cloud/llama-cloud", "cloud/llama-cloud", "cloud", "llama-cloud"),
    ),
    "alias before model": ("twin", None, ("twin", "small", "home", "up-small")),
    "local data": ("private", None, ("private", "small", "home", "up-small")),
}


@pytest.mark.parametrize("name", ROUTES)
def test_a_name_leads_to_its_backend(gateway: Served, upstream: FaultUpstream, name: str) -> None:
    """The headers say where; the backend was given its own name for the model."""
    model, task, (route, target, backend, sent) = ROUTES[name]
    reply = gateway.chat(ask(model), key=ALL, **({"x_gateway_task": task} if task else {}))
    assert reply.status == 200, reply.body
    told = [reply.headers[f"x-gateway-{what}"] for what in ("route", "model", "backend")]
    assert told == [route, target, backend]
    assert upstream.log[-1].path == f"/{backend}/v1/chat/completions"
    assert upstream.log[-1].json["model"] == sent
    assert reply.json["model"] == sent


@pytest.mark.parametrize("model", ["cloud/large", "off/gpt-4o", "home/gpt-4o", "gpt", "cloud/", "/gpt-4o", "task:none"])
def test_a_name_that_leads_nowhere_is_a_404(gateway: Served, model: str) -> None:
    """`backend/name` is for that backend's passthrough alone."""
    reply = gateway.chat(ask(model), key=ALL)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("model", "why"),
    [("only-off", "NOT_SET"), ("off-model", "NOT_SET"), ("nowhere", "local")],
)
def test_a_route_without_a_usable_candidate_says_why(gateway: Served, model: str, why: str) -> None:
    """503 with each candidate's reason."""
    reply = gateway.chat(ask(model), key=ALL)
    assert (reply.status, reply.error["code"]) == (503, "no_backend_available")
    assert reply.error["type"] == "service_unavailable_error"
    assert why in reply.error["message"]
    assert int(reply.headers["retry-after"]) >= 1


def test_local_data_never_leaves_even_when_home_is_down(gateway: Served, upstream: FaultUpstream) -> None:
    """`data: local` has no exception."""
    before = len(upstream.log)
    upstream.script(["status_500"] * 2)
    assert gateway.chat(ask("private"), key=ALL).status == 502
    assert {seen.path.split("/")[1] for seen in upstream.log[before:]} == {"home"}


def test_a_prompt_too_large_for_a_context_goes_on_to_the_next(gateway: Served) -> None:
    """`small` takes 100 tokens."""
    reply = gateway.chat(ask("fast", "many words " * 2000), key=ALL)
    assert reply.headers["x-gateway-model"] == "large"


def test_a_balanced_step_takes_turns(gateway: Served) -> None:
    """round_robin."""
    models = [gateway.chat(ask("turns"), key=ALL).headers["x-gateway-model"] for _ in range(4)]
    assert models in (["small", "large"] * 2, ["large", "small"] * 2)


@pytest.mark.parametrize(
    ("model", "status"),
    [
        *(("fast", 200), ("task:analysis", 200), ("gpt-4o-mini", 200), ("cloud/gpt-3", 200)),
        *(("large", 403), ("small", 403), ("task:sql", 403), ("auto", 403), ("gpt-3.5", 403), ("home/llama3", 403)),
    ],
)
def test_a_key_may_use_what_its_globs_say(gateway: Served, model: str, status: int) -> None:
    """Aliases, tasks, models and passthrough names; `fast` leads to `small`, which by itself is not allowed."""
    reply = gateway.chat(ask(model), key=GLOBS)
    assert reply.status == status, reply.body
    if status == 403:
        assert reply.error["code"] == "model_not_allowed"
        assert "'globs'" in reply.error["message"]


def test_auto_with_an_allowed_task_is_allowed(gateway: Served) -> None:
    """What counts is the task, not the word `auto`."""
    assert gateway.chat(ask("auto"), key=GLOBS, x_gateway_task="analysis").status == 200
    assert gateway.chat(ask("auto"), key=GLOBS, x_gateway_task="sql").status == 403


def listed(gateway: Served, key: str) -> list[str]:
    """What `/v1/models` shows."""
    with openai.OpenAI(base_url=gateway.base_url, api_key=key, max_retries=0) as client:
        return [model.id for model in client.models.list()]


def test_models_lists_what_the_key_may_use_and_nothing_else(gateway: Served) -> None:
    """Every name of the list works as `model`; the list needs a key."""
    everything = listed(gateway, ALL)
    assert set(everything) >= {"auto", "fast", "private", "task:general", "task:sql", "small", "large", "gpt-declared"}
    assert listed(gateway, GLOBS) == ["fast", "task:analysis"]
    assert listed(gateway, NONE) == []
    assert gateway.request("GET", "/v1/models").status == 401


def test_one_model_is_shown_to_those_who_may_use_it(gateway: Served) -> None:
    """Others get the 404 that a name which is not there gets; names with a slash work."""
    assert gateway.request("GET", "/v1/models/fast", key=GLOBS).json["id"] == "fast"
    assert gateway.request("GET", "/v1/models/cloud/gpt-4o", key=GLOBS).json["owned_by"] == "cloud"
    assert gateway.request("GET", "/v1/models/task:analysis", key=GLOBS).status == 200
    assert gateway.request("GET", "/v1/models/cloud%2Fgpt-4o", key=GLOBS).json["id"] == "cloud/gpt-4o"
    for name in ("large", "nobody"):
        reply = gateway.request("GET", f"/v1/models/{name}", key=GLOBS)
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert gateway.request("GET", "/v1/models/fast").status == 401


def test_readyz_names_every_backend_and_why_it_is_off(gateway: Served) -> None:
    """A disabled backend is not usable, and the variable it wants is named."""
    reply = gateway.request("GET", "/readyz")
    assert reply.status == 200
    assert reply.json["status"] == "ready"
    assert reply.json["backends"]["home"] == {"usable": True}
    assert reply.json["backends"]["off"]["usable"] is False
    assert "NOT_SET" in reply.json["backends"]["off"]["reason"]


def test_livez_answers_without_a_key(gateway: Served) -> None:
    """For whoever watches the process."""
    reply = gateway.request("GET", "/livez")
    assert (reply.status, reply.json) == (200, {"status": "ok"})


def test_metrics_are_prometheus_text_that_counts(gateway: Served) -> None:
    """It parses, and the names of CONTRACT section 6 that a request can make are there."""

    def count() -> float:
        text = gateway.request("GET", "/metrics").body.decode()
        found = {family.name: family for family in text_string_to_metric_families(text)}
        wanted = {"route": "large-first", "model": "large", "backend": "cloud", "key": "all", "status": "200"}
        samples = [sample for sample in found["gateway_requests"].samples if sample.name.endswith("_total")]
        names.update(found)
        return sum(sample.value for sample in samples if wanted.items() <= sample.labels.items())

    names: dict[str, Any] = {}
    gateway.chat(ask("large-first"), key=ALL)
    before = count()
    gateway.chat(ask("large-first"), key=ALL)
    assert count() == before + 1
    assert names.keys() >= {
        *("gateway_requests", "gateway_request_duration_seconds", "gateway_time_to_first_token_seconds"),
        *("gateway_overhead_seconds", "gateway_attempts", "gateway_tokens", "gateway_cost_usd"),
        *("gateway_breaker_state", "gateway_inflight", "gateway_queue_depth"),
    }
    labels = [sample.labels for family in names.values() for sample in family.samples]
    assert not any("gpt-4o-mini" in label.values() for label in labels), "a passthrough name is the client's to invent"


@pytest.mark.parametrize(
    ("model", "task"), [("walk", None), ("fast", None), ("auto", "analysis"), ("gpt-4o-mini", None), ("private", None)]
)
def test_explain_prints_the_plan_that_is_walked(
    gateway: Served, upstream: FaultUpstream, folder: Path, model: str, task: str | None
) -> None:
    """With every candidate failing, those that were tried are those that `explain` says are in, in its order."""
    command = gateway_command("explain", "--model", model, "--policies", str(folder / "policies"), "--key", "all")
    extra = ["--task", task] if task else []
    run = subprocess.run(
        [*command, "--json", "--input-tokens", "5", *extra], capture_output=True, text=True, check=True
    )
    plan = json.loads(run.stdout)
    inside = [row for row in plan["candidates"] if row["verdict"] == "in"]
    assert all(row["reason"] for row in plan["candidates"])
    upstream.script(["status_422"])
    before = len(upstream.log)
    reply = gateway.chat(ask(model), key=ALL, **({"x_gateway_task": task} if task else {}))
    assert reply.status == 422
    assert reply.headers["x-gateway-route"] == plan["route"]
    reached = [row for row in inside if row["backend"] != "down"]
    assert [seen.model for seen in upstream.log[before:]] == [reached[0]["upstream_model"]]
    assert reply.headers["x-gateway-attempts"] == str(inside.index(reached[0]) + 1)


def test_explain_walks_the_whole_chain(gateway: Served, upstream: FaultUpstream, folder: Path) -> None:
    """All of the candidates that are in are tried, in order, and none that is out."""
    command = gateway_command("explain", "--model", "walk", "--policies", str(folder / "policies"), "--json")
    plan = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    verdicts = [(row["model"], row["verdict"]) for row in plan["candidates"]]
    assert verdicts == [("gone", "out"), ("dead", "in"), ("embedder", "out"), ("large", "in"), ("small", "out")]
    upstream.script(["status_401"])
    reply = gateway.chat(ask("walk", "word " * 3000), key=ALL)
    assert (reply.status, reply.headers["x-gateway-attempts"]) == (502, "2")
    assert [part in reply.error["message"] for part in ("down", "cloud", "home", "off")] == [True, True, False, False]
