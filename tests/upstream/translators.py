"""Translated backends at the strict fakes of their providers, without a network, and requests to ask them."""

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.policy.schema import Backend
from gateway.upstream.litellm import LitellmWire, open_litellm
from gateway.upstream.wire import Header, Reply
from tests.providers.anthropic import Anthropic
from tests.providers.azure import DEPLOYMENT, Azure
from tests.providers.bedrock import REGION, Bedrock
from tests.providers.cohere import Cohere
from tests.providers.deepseek import DeepSeek
from tests.providers.gemini import Gemini
from tests.providers.groq import Groq
from tests.providers.lmstudio import LMStudio
from tests.providers.mistral import Mistral
from tests.providers.ollama import Ollama
from tests.providers.openrouter import OpenRouter
from tests.providers.server import Fake
from tests.providers.vllm import VLLM
from tests.providers.zai import ZAI
from tests.upstream.scripted import ScriptedWire, at

HOST = "http://provider.test"
AWS = {"region": REGION, "aws_access_key_id": Bedrock.key, "aws_secret_access_key": Bedrock.secret}
SETTINGS: Mapping[type[Fake], Mapping[str, Any]] = {
    Anthropic: {"provider": "anthropic"},
    ZAI: {"provider": "anthropic", "base_url": f"{HOST}/api/anthropic"},
    Gemini: {"provider": "gemini"},
    Bedrock: {"provider": "bedrock", "options": AWS, "api_keys": ()},
    Azure: {"provider": "azure", "options": {"deployment": DEPLOYMENT}},
    Cohere: {"provider": "cohere"},
    Ollama: {"provider": "ollama", "api_keys": ()},
    Mistral: {"provider": "mistral", "base_url": f"{HOST}/v1"},
    DeepSeek: {"provider": "deepseek"},
    Groq: {"provider": "groq", "base_url": f"{HOST}/openai/v1"},
    OpenRouter: {"provider": "openrouter", "base_url": f"{HOST}/api/v1"},
    VLLM: {"provider": "vllm", "base_url": f"{HOST}/v1"},
    LMStudio: {"provider": "lm_studio", "base_url": f"{HOST}/v1", "api_keys": ()},
}
PICTURE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "at": {"type": "number"}}},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "weather",
        "schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "degrees": {"type": "number"}},
            "required": ["city", "degrees"],
            "additionalProperties": False,
        },
    },
}


def backend(**settings: Any) -> Backend:
    """A backend's settings, at the address of these tests and with a key unless they say otherwise."""
    return Backend.model_validate({"base_url": HOST, "api_keys": ("the-key",), **settings})


def opened(wire: ScriptedWire, **settings: Any) -> LitellmWire:
    """A translated backend over a wire."""
    return open_litellm("there", backend(**settings), wire.open)


def facing(fake: Fake) -> tuple[LitellmWire, ScriptedWire]:
    """A translated backend at a fake provider."""
    wire = at(fake)
    settings = {"api_keys": (fake.key,) if fake.key else (), **SETTINGS[type(fake)]}
    return opened(wire, **settings), wire


def key_of(fake: Fake) -> str | None:
    """The key that a backend at this provider sends in OpenAI's place, if any."""
    return fake.key if fake.key and "api_keys" not in SETTINGS[type(fake)] else None


def model_of(fake: Fake) -> str:
    """The model that the fake has."""
    found: str = fake.model  # type: ignore[attr-defined]
    return found


def body(model: str, *turns: Any, **fields: Any) -> bytes:
    """A chat request; a turn that is text is the user's."""
    messages = [{"role": "user", "content": turn} if isinstance(turn, str) else turn for turn in turns]
    return orjson.dumps({"model": model, "messages": messages, **fields})


async def ask(wire: LitellmWire, request: bytes, *headers: Header, key: str | None = "the-key") -> Reply:
    """Send a chat request as `upstream.openai` does."""
    credential = () if key is None else ((b"authorization", f"Bearer {key}".encode()),)
    target = b"/whatever/chat/completions?api_base=http://evil.test"
    return await wire.send(b"POST", target, (*headers, *credential), request, connect_timeout=1.0, timeout=1.0)


async def all_of(reply: Reply) -> bytes:
    """Everything that a reply has to say."""
    pieces = []
    while data := await reply.read(1.0):
        pieces.append(data)
    await reply.aclose()
    return b"".join(pieces)


async def answer(wire: LitellmWire, request: bytes, **how: Any) -> Any:
    """The parsed body of a good answer."""
    reply = await ask(wire, request, **how)
    out = await all_of(reply)
    assert reply.status == 200, out
    return orjson.loads(out)


async def refusal(wire: LitellmWire, request: bytes, **how: Any) -> Any:
    """Status and error of a refusal, in OpenAI's shape."""
    reply = await ask(wire, request, **how)
    error = orjson.loads(await all_of(reply))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return reply.status, error
