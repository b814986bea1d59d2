"""Every provider that may be named: an answer in its documented shape comes out as OpenAI's, and nothing is fetched."""

import socket
import subprocess
import sys
from typing import Any

import orjson
import pytest

from gateway.formats.usage import parse_usage
from gateway.policy import providers as named
from gateway.upstream.litellm import providers
from gateway.upstream.litellm_library import Library
from tests.formats import told
from tests.upstream.rare import COHERE_AT_OCI, SPECIAL, Rare, completion
from tests.upstream.scripted import Script, says
from tests.upstream.translators import AWS, all_of, answer, ask, body, opened, refusal

PLAIN = {name: Rare({}, "some-model", "", completion()) for name in (*named.COMPATIBLE, "codestral", "mistral")}
EVERY = {**PLAIN, **SPECIAL, "huggingface": Rare({}, "org/some-model", "", completion())}
LISTS = """
import os, socket
from gateway.policy import providers as named
from gateway.upstream import litellm_library
def refuse(*_, **__): raise AssertionError("something wanted the network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
litellm_library._import()
from litellm.llms.openai_like.json_loader import JSONProviderRegistry
from litellm.types.utils import LlmProviders
from litellm.utils import ProviderConfigManager
enum = {each.value for each in LlmProviders}
every = enum | set(JSONProviderRegistry.list_providers())
parts = [named.TRANSLATED & every, named.OWN & every, set(named.REFUSED), named.NO_CHAT]
assert sum(map(len, parts)) == len(set().union(*parts)), "a name stands twice"
print("unsorted", sorted(every - set().union(*parts)))
print("unknown to litellm", sorted(named.TRANSLATED - every))
def config(name): return ProviderConfigManager.get_provider_chat_config("some-model", LlmProviders(name))
print("no config", sorted(name for name in named.TRANSLATED & enum if config(name) is None))
print("with one", sorted(name for name in named.NO_CHAT if config(name) is not None))
print("not listed", sorted(named.LISTED - set(JSONProviderRegistry.list_providers())))
"""


@pytest.fixture(autouse=True)
def _nothing_but_our_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """No translation opens a socket or looks a name up; credentials that lie around are not taken."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something wanted the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("WATSONX_TOKEN", "WATSONX_ZENAPIKEY", "SNOWFLAKE_JWT", "HF_TOKEN", "OCI_USER", "PROJECT_ID"):
        monkeypatch.setenv(name, "stray-secret")
    monkeypatch.setenv("HF_API_BASE", "http://evil.test")


def request(rare: Rare, **fields: Any) -> bytes:
    turn = {"role": "user", "content": rare.content}
    return body(rare.model, turn, **{**rare.fields, **fields})


def test_every_provider_of_litellm_is_served_or_refused_with_a_reason() -> None:
    """Its names are exactly ours: those that are served, those that are not, and those that have no chat."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LISTS], capture_output=True, text=True, timeout=100, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    lines = found.stdout.splitlines()
    assert lines == ["unsorted []", "unknown to litellm []", "no config []", "with one []", "not listed []"]


def test_what_a_policy_may_name_is_what_can_be_opened() -> None:
    """One list at `gateway check`, the other at the start."""
    assert providers() == named.TRANSLATED
    assert all(len(reason) > 20 for reason in named.REFUSED.values())
    assert named.why_refused("anthropic") is None


@pytest.mark.parametrize("provider", sorted(EVERY))
async def test_a_whole_answer_comes_out_as_openai_s(provider: str) -> None:
    """Asked for where the provider has it; with its own counts or with none, never with made-up ones."""
    rare = EVERY[provider]
    inner = says(Script(200, [orjson.dumps(rare.answer)]))
    wire = opened(inner, provider=provider, **rare.settings)
    found = await answer(wire, request(rare), key="the-key" if rare.settings.get("api_keys", True) else None)
    (choice,) = found["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("hello", "stop")
    usage = parse_usage(found["usage"]) if found.get("usage") else None
    assert (usage.input_tokens, usage.output_tokens) == (3, 4) if usage else not rare.counted
    (sent,) = inner.sent
    assert sent.path == (rare.path or sent.path)
    assert inner.origins[0].host == "provider.test"
    assert "stray-secret" not in repr(sent)
    assert "the-key" in repr(sent.headers) or not rare.settings.get("api_keys", True)


@pytest.mark.parametrize("provider", sorted(EVERY.keys() - {"oci", "sagemaker_chat", "sagemaker_nova", "snowflake"}))
async def test_a_stream_comes_out_as_openai_s(provider: str) -> None:
    """As events where the provider has them, else in one piece, shown as a stream."""
    rare = EVERY[provider]
    inner = says(Script(200, [orjson.dumps(rare.answer)]))
    if "choices" in rare.answer:
        inner = says(Script(200, CHUNKS, ((b"content-type", b"text/event-stream"),)))
    wire = opened(inner, provider=provider, **rare.settings)
    reply = await ask(wire, request(rare, stream=True))
    found = told.read(await all_of(reply))
    assert reply.status == 200
    assert (found.text, found.finish, found.done) == ("hello", ["stop"], True)
    streams = provider not in ("bytez", "fal_ai", "langflow", "langgraph", "nlp_cloud")
    asked = inner.sent[0].target.decode() + inner.sent[0].body.decode()
    assert ("stream" in asked.replace('"stream":false', "")) == streams


def chunk(finish: str | None = None, **delta: Any) -> bytes:
    doc = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + orjson.dumps(doc | {"choices": [choice]}) + b"\n\n"


CHUNKS = [chunk(role="assistant", content="hel"), chunk(content="lo"), chunk("stop"), b"data: [DONE]\n\n"]


async def test_cohere_s_models_at_oracle_have_a_format_of_their_own() -> None:
    """The last turn apart from what went before."""
    rare = SPECIAL["oci"]
    inner = says(Script(200, [orjson.dumps(COHERE_AT_OCI)]))
    wire = opened(inner, provider="oci", **rare.settings)
    system, past = {"role": "system", "content": "be brief"}, {"role": "assistant", "content": "yes?"}
    found = await answer(wire, body("cohere.command-r-plus", system, "hey", past, "hi", max_tokens=9), key=None)
    assert found["choices"][0]["message"]["content"] == "hello"
    assert found["usage"]["total_tokens"] == 7
    said = orjson.loads(inner.sent[0].body)["chatRequest"]
    assert (said["apiFormat"], said["message"], said["preambleOverride"], said["maxTokens"]) == (
        "COHERE",
        "hi",
        "be brief",
        9,
    )


@pytest.mark.parametrize(
    ("provider", "doc"),
    [
        ("nlp_cloud", {"error": "model is down"}),
        ("bytez", {"error": "model is down", "output": None}),
        ("langgraph", {"__error__": {"error": "X", "message": "model is down"}}),
        ("oci", {"code": "500", "message": "model is down"}),
    ],
)
async def test_an_error_with_a_good_status_stays_an_error(provider: str, doc: dict[str, Any]) -> None:
    """It is told as such, not as an answer."""
    rare = SPECIAL[provider]
    wire = opened(says(Script(200, [orjson.dumps(doc)])), provider=provider, **rare.settings)
    reply = await ask(wire, request(rare))
    assert orjson.loads(await all_of(reply))["error"]["message"] == "model is down"


@pytest.mark.parametrize("provider", ["nlp_cloud", "bytez", "langflow", "fal_ai"])
async def test_failures_keep_their_status(provider: str) -> None:
    """In OpenAI's shape, with what the provider says."""
    rare = SPECIAL[provider]
    wire = opened(says(Script(429, [b'{"detail": "Rate limit exceeded"}'])), provider=provider, **rare.settings)
    status, error = await refusal(wire, request(rare))
    assert (status, error["type"], error["message"]) == (429, "rate_limit_error", "Rate limit exceeded")


async def test_what_a_rare_provider_cannot_take_is_named() -> None:
    """And nothing is sent."""
    inner = says(Script(500))
    wire = opened(inner, provider="nlp_cloud")
    status, error = await refusal(wire, body("m", "hi", tools=[{"type": "function"}], seed=1))
    assert (status, error["code"]) == (400, "unsupported_parameter")
    assert "`tools`, `seed`" in error["message"]
    assert inner.sent == []


async def test_whether_a_listed_provider_s_model_takes_tools_is_for_it_to_say() -> None:
    """litellm does not know, and would leave them out."""
    inner = says(Script(200, [orjson.dumps(completion())]))
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    await answer(opened(inner, provider="poe"), body("m", "hi", tools=[tool], tool_choice="auto"))
    said = orjson.loads(inner.sent[0].body)
    assert (said["tools"], said["tool_choice"]) == ([tool], "auto")


def test_a_litellm_that_is_too_old_for_a_provider_is_told() -> None:
    """At the start, with what to do."""
    with pytest.raises(ValueError, match="install a newer one"):
        Library("yet-to-come")


def test_options_of_another_kind_than_aws_are_not_taken() -> None:
    """A wrong one is told before anything is served."""
    with pytest.raises(ValueError, match="no option `oci_user`"):
        opened(says(Script()), provider="sagemaker_chat", options={**AWS, "oci_user": "x"}, api_keys=())
