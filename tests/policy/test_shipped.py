"""The shipped policies: they load anywhere, and every name that they use is one that the world knows."""

import importlib.util
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

import orjson
import pytest

from gateway.cli.check import warnings
from gateway.policy.loader import load, shipped
from gateway.policy.schema import Policy

VARIABLES = {
    "openai": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "gemini": "GEMINI_API_KEY",
    "openrouter": "OPENROUTER_API_KEY",
    "zai": "ZAI_API_KEY",
}


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load(shipped(), {})


@pytest.fixture(scope="module")
def listed() -> frozenset[str]:
    spec = importlib.util.find_spec("litellm")
    assert spec is not None
    folder = (spec.submodule_search_locations or [""])[0]
    return frozenset(orjson.loads((Path(folder) / "model_prices_and_context_window_backup.json").read_bytes()))


def served_by(policy: Policy, name: str) -> list[str]:
    return [
        backend
        for backend, settings in policy.backends.items()
        if any(fnmatchcase(name, glob) for glob in settings.passthrough)
    ]


def test_without_any_variable_the_cloud_is_off_and_local_backends_are_on(policy: Policy) -> None:
    """Each cloud backend says which variable would switch it on."""
    assert policy.disabled == {name: f"{variable} is not set" for name, variable in VARIABLES.items()}
    local = {name: backend.base_url for name, backend in policy.backends.items() if backend.local}
    assert local == {
        "ollama": "http://127.0.0.1:11434/v1",
        "lmstudio": "http://127.0.0.1:1234/v1",
        "vllm": "http://127.0.0.1:8000/v1",
    }


@pytest.mark.parametrize(("backend", "variable"), VARIABLES.items())
def test_a_variable_switches_its_backend_on(backend: str, variable: str) -> None:
    """And no other."""
    policy = load(shipped(), {variable: "sk-a"})
    assert set(policy.disabled) == set(VARIABLES) - {backend}
    assert policy.backends[backend].api_keys == ("sk-a",)


def test_the_names_that_were_promised_are_there(policy: Policy) -> None:
    """Four aliases and seven tasks."""
    assert set(policy.aliases) == {"fast", "smart", "cheap", "local"}
    tasks = "general analysis code_generation test_generation ui_generation config_management sql"
    assert set(policy.tasks) == set(tasks.split())


def test_every_route_can_be_answered_on_this_machine_alone(policy: Policy) -> None:
    """Without any variable no chain is empty, and `local` stays local even with all of them."""
    assert list(warnings(policy, time.time())) == []
    assert policy.aliases["local"].data == "local"
    models = [model for step in policy.aliases["local"].chain for model in step.any]
    assert all(policy.backends[policy.models[model].backend].local for model in models)


def test_the_door_is_open_on_loopback_only(policy: Policy) -> None:
    """`auth: none` is what makes the server refuse any other address; no key is shipped."""
    assert policy.server.auth == "none"
    assert not policy.keys


def test_the_list_of_prices_knows_every_cloud_model(policy: Policy, listed: frozenset[str]) -> None:
    """A model that is neither in the list nor priced here could not be paid for."""
    prefixes = ("", "gemini/", "zai/", "openrouter/")
    for name, model in policy.models.items():
        known = model.price is not None or policy.backends[model.backend].local
        assert known or any(prefix + model.model in listed for prefix in prefixes), name


@pytest.mark.parametrize(
    ("name", "backends"),
    [
        ("gpt-4o-mini", ["openai"]),
        ("gpt-5", ["openai"]),
        ("o3", ["openai"]),
        ("o4-mini", ["openai"]),
        ("chatgpt-4o-latest", ["openai"]),
        ("text-embedding-3-small", ["openai"]),
        ("claude-sonnet-4-6", ["anthropic"]),
        ("gemini-2.5-flash", ["gemini"]),
        ("glm-4.5", ["zai"]),
        ("meta-llama/llama-3.3-70b-instruct", ["openrouter"]),
        ("Qwen/Qwen3-8B", ["vllm"]),
        ("llama3.2:1b", ["ollama", "lmstudio"]),
        ("gpt-oss:20b", ["ollama", "lmstudio"]),
        ("lmstudio/llama3.2", []),
        ("no-such-model", []),
    ],
)
def test_undeclared_names_lead_where_people_expect(policy: Policy, name: str, backends: list[str]) -> None:
    """Code that says gpt-4o-mini needs only the new base_url, and a local model's name never leads to the cloud."""
    assert served_by(policy, name) == backends


def test_no_declared_name_hides_a_real_one(policy: Policy, listed: frozenset[str]) -> None:
    """Who asks for a model of the wide world gets that, and not one of ours that is called the same."""
    assert listed.isdisjoint([*policy.aliases, *policy.models])


def test_loading_is_quick_and_imports_nothing_heavy() -> None:
    """It happens at every start: some milliseconds, with room for a slow machine."""

    def rounds() -> Iterator[float]:
        for _ in range(6):
            yield time.perf_counter()
            load(shipped(), {})

    assert min(after - before for before, after in pairwise(rounds())) < 0.15
    assert "litellm" not in sys.modules or "gateway.upstream.litellm" in sys.modules
