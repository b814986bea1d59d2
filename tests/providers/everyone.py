"""Every fake provider, and how its own clients ask it: a good request each, from which tests make bad ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.providers.anthropic import Anthropic
from tests.providers.azure import Azure
from tests.providers.bedrock import Bedrock
from tests.providers.cohere import Cohere
from tests.providers.deepseek import DeepSeek
from tests.providers.gemini import Gemini
from tests.providers.groq import Groq
from tests.providers.lmstudio import LMStudio
from tests.providers.mistral import Mistral
from tests.providers.ollama import Ollama
from tests.providers.openrouter import OpenRouter
from tests.providers.server import Fake, running
from tests.providers.vllm import VLLM
from tests.providers.zai import ZAI

KINDS: tuple[type[Fake], ...] = (
    *(Anthropic, Azure, Bedrock, Cohere, DeepSeek, Gemini, Groq, LMStudio, Mistral, Ollama, OpenRouter, VLLM, ZAI),
)


@contextmanager
def everyone() -> Iterator[Mapping[str, Fake]]:
    """All of them, served, by name."""
    fakes = {kind.name: kind() for kind in KINDS}
    with running(*fakes.values()):
        yield fakes


@dataclass(frozen=True, slots=True)
class Good:
    """A request that the provider takes."""

    target: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]


_USER = {"role": "user", "content": "Hello"}
_TURNS = {"messages": [_USER]}
_ANTHROPIC = {"max_tokens": 50, **_TURNS}
GOOD: Mapping[str, Good] = {
    "anthropic": Good(
        "/v1/messages",
        {"x-api-key": Anthropic.key, "anthropic-version": "2023-06-01"},
        {"model": Anthropic.model, **_ANTHROPIC},
    ),
    "zai": Good(
        "/api/anthropic/v1/messages",
        {"authorization": f"Bearer {ZAI.key}", "anthropic-version": "2023-06-01"},
        {"model": ZAI.model, **_ANTHROPIC},
    ),
    "gemini": Good(
        f"/v1beta/models/{Gemini.model}:generateContent",
        {"x-goog-api-key": Gemini.key},
        {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]},
    ),
    "azure": Good(f"{Azure.path}?api-version=2024-10-21", {"api-key": Azure.key}, _TURNS),
    "cohere": Good("/v2/chat", {"authorization": f"Bearer {Cohere.key}"}, {"model": Cohere.model, **_TURNS}),
    "ollama": Good("/api/chat", {}, {"model": Ollama.model, "stream": False, **_TURNS}),
    **{
        kind.name: Good(kind.path, {"authorization": f"Bearer {kind.key or 'any'}"}, {"model": kind.model, **_TURNS})
        for kind in (DeepSeek, Groq, LMStudio, Mistral, OpenRouter, VLLM)
    },
}
