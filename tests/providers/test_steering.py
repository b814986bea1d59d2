"""No client chooses a destination or a credential: every name by which litellm can be steered is refused or inert."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.providers.anthropic import Anthropic
from tests.providers.everyone import everyone
from tests.providers.gateway import KEY, Street, policies_of
from tests.providers.openrouter import OpenRouter
from tests.providers.said import Asked, sentence
from tests.providers.server import Answer, Fake, Got, as_json, running
from tests.support import Reply, ask, serve

TEXT = "Where to?"
SAID = sentence(Asked(TEXT))
# What litellm calls a parameter of its own, wherever it says so, and nothing of what OpenAI's clients may say.
COLLECT = """
import inspect, json, os
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm
from litellm.types.router import CredentialLiteLLMParams, GenericLiteLLMParams, LiteLLM_Params
from litellm.types.utils import all_litellm_params
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
names = set(all_litellm_params)
for each in (litellm.completion, litellm.acompletion, litellm.Router.__init__, litellm.Router.acompletion):
    names |= set(inspect.signature(each).parameters)
for each in (CredentialLiteLLMParams, GenericLiteLLMParams, LiteLLM_Params):
    names |= set(each.model_fields)
names -= {"self", "kwargs", "model", "messages", "stream", "model_name", "thinking"} | set(CompletionCreateParamsBase.__annotations__)
print(json.dumps(sorted(names)))
"""
KNOWN = {"api_base", "api_key", "base_url", "custom_llm_provider", "extra_headers", "fallbacks", "mock_response", "vertex_credentials"}  # fmt: skip
# A tenth of the names at a time, so that a failure says something and a name costs next to nothing.
PARTS = 10


class Trap(Fake):
    """Where a client would like the gateway to go. Nobody may ever ask it."""

    name = "trap"

    def answer(self, got: Got) -> Answer:
        return as_json({"trapped": got.path})


@pytest.fixture(scope="module")
def names() -> Sequence[str]:
    """Every name; litellm is asked in a process of its own."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COLLECT], capture_output=True, check=True, timeout=100)
    found: list[str] = json.loads(done.stdout.decode().splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def trap() -> Iterator[Trap]:
    """The trap, set."""
    found = Trap()
    with running(found):
        yield found


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory, trap: Trap) -> Iterator[Street]:
    """The gateway, in an environment that tries to lead astray as well."""
    folder: Path = tmp_path_factory.mktemp("steering")
    astray = dict.fromkeys(("ANTHROPIC_API_BASE", "ANTHROPIC_BASE_URL", "OPENROUTER_API_BASE", "OPENAI_BASE_URL"), trap.origin)  # fmt: skip
    with everyone() as fakes, serve(folder, policies_of(fakes), env=astray) as gateway:
        yield Street(gateway, fakes)


def part_of(names: Sequence[str], part: int) -> Sequence[str]:
    """A tenth of the names."""
    return names[part::PARTS]


def baits(trap: Trap) -> list[Any]:
    """Values that would lead to the trap, in each shape that such a parameter may have."""
    aim = {"api_base": trap.origin, "base_url": trap.origin, "api_key": "stolen", "model": "openai/gpt-4o"}
    return [trap.origin, aim, [aim], True]


def check(reply: Reply, seen: Sequence[Got], target: str, key: Mapping[str, str], bait: str) -> None:
    """It was refused here, or it went where the policies say with the key that they say, and with nothing of the bait."""
    for got in seen:
        assert got.target == target
        assert {name: got.headers.get(name) for name in key} == key
        assert bait not in json.dumps(dict(got.headers)).replace(got.headers["host"], "")
        assert "stolen" not in json.dumps(dict(got.headers))
    if reply.status == 200:
        assert len(seen) == 1
        assert SAID in json.loads(reply.body)["choices"][0]["message"]["content"]
    else:
        assert reply.status == 400, reply.body


def test_the_names_are_found(names: Sequence[str]) -> None:
    """The list is the one that matters: what it is known for is in it."""
    assert len(names) > 100
    assert set(names) >= KNOWN


@pytest.mark.parametrize("part", range(PARTS))
def test_in_the_body_to_a_translated_provider(town: Street, trap: Trap, names: Sequence[str], part: int) -> None:
    """Anthropic's format knows none of them: refused by name, and nobody is asked."""
    fake = town.fakes["anthropic"]
    for name in part_of(names, part):
        for value in baits(trap):
            before = len(fake.log)
            reply = town.gateway.chat({**ask("anthropic", TEXT), name: value}, key=KEY)
            check(reply, fake.log[before:], "/v1/messages", {"x-api-key": Anthropic.key}, trap.origin)
            if reply.status == 400:
                assert name in reply.error["message"]
            for got in fake.log[before:]:
                assert name not in got.json
                assert trap.origin not in got.body.decode()
    assert not trap.log


@pytest.mark.parametrize("part", range(PARTS))
def test_in_the_body_to_an_open_provider(town: Street, trap: Trap, names: Sequence[str], part: int) -> None:
    """Where unknown fields go on unchanged they are refused or go on inert, to where the policies say."""
    fake = town.fakes["openrouter"]
    for name in part_of(names, part):
        before = len(fake.log)
        reply = town.gateway.chat({**ask("openrouter_translated", TEXT), name: trap.origin}, key=KEY)
        key = {"authorization": f"Bearer {OpenRouter.key}"}
        check(reply, fake.log[before:], "/api/v1/chat/completions", key, trap.origin)
    assert not trap.log


@pytest.mark.parametrize("part", range(PARTS))
def test_in_headers_and_query(town: Street, trap: Trap, names: Sequence[str], part: int) -> None:
    """There they mean nothing, and none of it goes on."""
    fake = town.fakes["anthropic"]
    for name in part_of(names, part):
        before = len(fake.log)
        told = {
            form: trap.origin
            for form in {name.replace("-", "_"), f"x_{name}", f"x_litellm_{name}"}
            if form.isidentifier()
        }
        path = f"/v1/chat/completions?{name}={trap.origin}"
        reply = town.gateway.request("POST", path, ask("anthropic", TEXT), key=KEY, **told)
        assert reply.status == 200, (name, reply.body)
        check(reply, fake.log[before:], "/v1/messages", {"x-api-key": Anthropic.key}, trap.origin)
    assert not trap.log


@pytest.mark.parametrize("part", range(PARTS))
def test_in_anthropics_own_format(town: Street, trap: Trap, names: Sequence[str], part: int) -> None:
    """`/v1/messages` passes bytes through: the provider sees the field, at the right place, with the right key."""
    fake = town.fakes["anthropic"]
    for name in part_of(names, part):
        before = len(fake.log)
        body = {**ask("anthropic", TEXT), "max_tokens": 50, name: trap.origin}
        reply = town.gateway.request("POST", "/v1/messages", body, key=KEY)
        assert reply.status == 400, (name, reply.body)
        for got in fake.log[before:]:
            assert got.target == "/v1/messages"
            assert got.headers["x-api-key"] == Anthropic.key
    assert not trap.log


@pytest.mark.parametrize(
    "backend", ["anthropic", "gemini", "bedrock", "ollama", "cohere", "groq_translated", "mistral"]
)
def test_nothing_is_fetched_for_a_client(town: Street, trap: Trap, backend: str) -> None:
    """A URL in a message is refused or goes on to the provider; the gateway itself asks nobody."""
    for kind, inner in (
        ("image_url", {"url": f"{trap.origin}/a.png"}),
        ("file", {"file_id": f"{trap.origin}/a.pdf"}),
        ("video_url", {"url": f"{trap.origin}/a.mp4"}),
        ("input_audio", {"data": f"{trap.origin}/a.wav", "format": "wav"}),
    ):
        content = [{"type": "text", "text": TEXT}, {"type": kind, kind: inner}]
        body = {"model": backend, "messages": [{"role": "user", "content": content}]}
        assert town.gateway.chat(body, key=KEY).status in (400, 422)
    assert not trap.log


def test_the_model_chooses_no_provider(town: Street, trap: Trap) -> None:
    """litellm reads a destination out of a model's name; here a name is one that the policies have, or none."""
    for name in (
        "anthropic/claude-haiku-4-5",
        "openai/gpt-4o",
        f"custom/{trap.origin}",
        "bedrock/../x",
        "gemini/x?key=1",
    ):
        assert town.gateway.chat(ask(name, TEXT), key=KEY).status == 404
    assert not trap.log
