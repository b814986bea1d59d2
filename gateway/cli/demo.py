"""The demo: simulated backends, one of them flaky, behind a demo key; and what to paste to try it."""

from gateway.identity.keyring import hash_of
from gateway.policy.loader import complete
from gateway.policy.schema import Document, Policy

KEY = "demo-key"


def demo_policy() -> Policy:
    """Policies that need no file, no key of any provider and no network."""
    document = Document.model_validate(
        {
            "backends": {
                "steady": {
                    "provider": "simulator",
                    "local": True,
                    "simulator": {"latency": "80ms", "tokens_per_second": 120, "seed": 7},
                },
                "flaky": {
                    "provider": "simulator",
                    "simulator": {"latency": "30ms", "tokens_per_second": 300, "error_rate": 0.4, "seed": 11},
                },
            },
            "models": {
                "steady-model": {"backend": "steady", "model": "simulated-steady", "context": 32768},
                "flaky-model": {
                    "backend": "flaky",
                    "model": "simulated-flaky",
                    "context": 128000,
                    "price": {"input": 0.15, "output": 0.60},
                },
                "embedder": {"backend": "steady", "model": "simulated-embedder", "mode": "embedding"},
            },
            "aliases": {
                "fast": ["flaky-model", "steady-model"],
                "smart": ["flaky-model", "steady-model"],
                "cheap": ["steady-model"],
                "local": {"chain": ["steady-model"], "data": "local"},
            },
            "tasks": {
                "general": ["steady-model", "flaky-model"],
                "analysis": ["flaky-model", "steady-model"],
                "code_generation": ["flaky-model", "steady-model"],
            },
            "keys": {"demo": {"hash": hash_of(KEY.encode())}},
        }
    )
    return complete(document, {}, ())


def how_to_try(base_url: str) -> str:
    """A `curl` line and three lines of Python that work as pasted."""
    return f"""
Try it with curl:

curl {base_url}/chat/completions -H "Authorization: Bearer {KEY}" -H "Content-Type: application/json" \
-d '{{"model": "fast", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

or with the OpenAI SDK (pip install openai):

from openai import OpenAI
client = OpenAI(base_url="{base_url}", api_key="{KEY}")
print(client.chat.completions.create(model="fast", messages=[{{"role": "user", "content": "Hello!"}}])\
.choices[0].message.content)
"""
