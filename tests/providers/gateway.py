"""The real gateway in front of every fake provider, each as a backend in its own words, and chains between them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.providers.bedrock import REGION, Bedrock
from tests.providers.everyone import everyone
from tests.providers.server import Fake
from tests.support import Served, key_policy, serve

KEY = "sk-providers"
PRICE = {"input": 1, "output": 2, "cached_input": 0.5, "cache_write": 4}  # US dollars per million tokens
# Each backend: its fake, and what the policies say of it. Some fakes stand behind two, spoken to in two ways.
BACKENDS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "anthropic": ("anthropic", "", {"provider": "anthropic"}),
    "zai": ("zai", "/api/anthropic", {"provider": "anthropic"}),
    "gemini": ("gemini", "", {"provider": "gemini"}),
    "bedrock": (
        "bedrock",
        "",
        {
            "provider": "bedrock",
            "options": {
                "region": REGION,
                "aws_access_key_id": Bedrock.key,
                "aws_secret_access_key": Bedrock.secret,
            },
        },
    ),
    "azure": ("azure", "", {"provider": "azure", "options": {"api_version": "2024-10-21"}}),
    "cohere": ("cohere", "", {"provider": "cohere_chat"}),
    "ollama": ("ollama", "", {"provider": "ollama"}),
    "mistral": ("mistral", "/v1", {"provider": "mistral"}),
    "deepseek": ("deepseek", "", {}),
    "deepseek_translated": ("deepseek", "", {"provider": "deepseek"}),
    "groq": ("groq", "/openai/v1", {}),
    "groq_translated": ("groq", "/openai/v1", {"provider": "groq"}),
    "openrouter": ("openrouter", "/api/v1", {}),
    "openrouter_translated": ("openrouter", "/api/v1", {"provider": "openrouter"}),
    "vllm": ("vllm", "/v1", {}),
    "vllm_translated": ("vllm", "/v1", {"provider": "vllm"}),
    "lmstudio": ("lmstudio", "/v1", {}),
}
SECONDS = ("anthropic", "zai", "bedrock", "gemini", "mistral", "ollama", "vllm")  # who goes on with a begun answer


@dataclass(frozen=True, slots=True)
class Street:
    """A gateway and the providers behind it."""

    gateway: Served
    fakes: Mapping[str, Fake]

    def fake(self, backend: str) -> Fake:
        """The provider that a backend leads to."""
        return self.fakes[BACKENDS[backend][0]]


@contextmanager
def street(folder: Path, *extra: str) -> Iterator[Street]:
    """All of them, served, with the `extra` policies of `policies_of`."""
    with everyone() as fakes, serve(folder, policies_of(fakes, *extra)) as gateway:
        yield Street(gateway, fakes)


def policies_of(fakes: Mapping[str, Fake], *extra: str) -> dict[str, Any]:
    """A model named `backend` at each backend, and `wrong_backend`, the same with a wrong key.

    For every name in `extra` there are backends of its own, `extra_backend`, so that one that rests for a test does not
    rest for the next, and the alias `extra_chain_backend` goes on from there to another provider.
    """
    backends: dict[str, Any] = {}
    models: dict[str, Any] = {}
    aliases: dict[str, Any] = {}
    for name, (fake, path, settings) in BACKENDS.items():
        base = {**settings, "base_url": fakes[fake].origin + path}
        keys = {"api_keys": [fakes[fake].key]} if fakes[fake].key and fake != "bedrock" else {}
        wrong = {**base, "api_keys": ["a-wrong-key"]} if keys else base
        if fake == "bedrock":
            wrong = {**base, "options": {**settings["options"], "aws_secret_access_key": "another"}}
        backends[f"wrong_{name}"] = wrong
        models[f"wrong_{name}"] = _model(f"wrong_{name}", fakes[fake])
        for each in (name, *(f"{prefix}_{name}" for prefix in extra)):
            backends[each] = {**base, **keys}
            models[each] = _model(each, fakes[fake])
        for prefix in extra:
            aliases[f"{prefix}_chain_{name}"] = [f"{prefix}_{name}", second_of(name)]
    for name in SECONDS:
        aliases[f"from_openai_to_{name}"] = ["groq" if name == "vllm" else "vllm", name]
    models["roomy"] = {**models["openrouter"], "context": 200_000}
    return {
        "defaults": {"breaker": {"failures": 1000}, "retry": {"attempts": 0}},
        "backends": backends,
        "models": models,
        "aliases": aliases,
        "keys": {"tests": key_policy(KEY)},
    }


def second_of(backend: str) -> str:
    """Where the chain that begins at a backend goes on: at a provider of another format."""
    return "vllm" if BACKENDS[backend][0] in ("anthropic", "zai") else "anthropic"


def _model(backend: str, fake: Any) -> dict[str, Any]:
    name = "gpt-4o-mini" if fake.name == "azure" else fake.model
    return {"backend": backend, "model": name, "price": PRICE, "prefill": True, "context": 100_000, "max_output": 4000}
