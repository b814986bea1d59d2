"""What the client gets when a provider fails, in each provider's own way: the next one's answer, or an error it can use."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import openai
import pytest

from tests.providers.gateway import BACKENDS, KEY, SECONDS, Street, second_of, street
from tests.providers.heard import Heard, heard
from tests.providers.said import Asked, sentence
from tests.support import ask as body_of

TEXT = "Hello, tell me a story of seven little goats"
WHOLE = sentence(Asked(TEXT))
MOODS = ("limited", "busy", "broken", "poor", "long", "cut", "failing")
# How each provider says that there is no money left; the others do not say it, or ask for none.
POOR = ("anthropic", "zai", "cohere", "mistral", "deepseek", "groq", "openrouter")
LONG = ("anthropic", "gemini", "bedrock", "lmstudio")
# How the next requests fare, at whose backends, and what that may be known as.
FAILS: Mapping[str, tuple[str, set[str]]] = {
    "rate_limited": ("limited", {"rate_limited", "server_error"}),  # servers of one's own are busy, and say 503
    "overloaded": ("busy", {"server_error", "rate_limited"}),  # Z.ai says 429
    "broken": ("broken", {"server_error"}),
    "out_of_money": ("poor", {"quota"}),
}
# A request that the provider itself refuses, and a part of what it says.
HOT: Mapping[str, Any] = {"temperature": 1.9}
BAD: Mapping[str, tuple[Mapping[str, Any], str]] = {
    **dict.fromkeys(("anthropic", "zai", "bedrock"), (HOT, "Input should be less than or equal to 1")),
    "gemini": ({"top_p": 1.5}, "Input should be less than or equal to 1"),
    "cohere": (HOT, "temperature: Input should be less than or equal to 1"),
    "mistral": (HOT, "body.temperature: Input should be less than or equal to 1.5"),
    "deepseek": ({"temperature": 3}, "the valid range of temperature is [0, 2]"),
    "groq": ({"temperature": 3}, "Input should be less than or equal to 2"),
    "openrouter": ({"temperature": 3}, "Input should be less than or equal to 2"),
    "azure": ({"temperature": 3}, "Input should be less than or equal to 2"),
    "vllm": ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "String should match pattern"),
    "lmstudio": ({"response_format": {"type": "json_object"}}, "must be 'json_schema' or 'text'"),
    "ollama": ({"reasoning_effort": "high"}, "does not support thinking"),
}


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    """The gateway, with backends of its own for every mood."""
    with street(tmp_path_factory.mktemp("chains"), *MOODS) as found:
        yield found


@pytest.fixture(scope="module")
def client(town: Street) -> Iterator[openai.OpenAI]:
    """The SDK, pointed at the gateway."""
    with openai.OpenAI(base_url=town.gateway.base_url, api_key=KEY, max_retries=0) as found:
        yield found


def tell(client: openai.OpenAI, model: str, **fields: Any) -> Heard:
    """One request."""
    raw = client.chat.completions.with_raw_response.create(**body_of(model, TEXT, **fields))
    found: Any = raw.parse()
    return heard(list(found) if fields.get("stream") else found, raw.headers)


def outcomes(town: Street, backend: str) -> Counter[str]:
    """How tries at a backend ended, as `/metrics` has it."""
    text = town.gateway.request("GET", "/metrics").body.decode()
    found = re.findall(rf'^gateway_attempts_total{{backend="{backend}",outcome="(\w+)"}} (\S+)$', text, re.MULTILINE)
    return Counter({outcome: int(float(count)) for outcome, count in found})


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_provider_refuses_the_client_is_told(town: Street, backend: str, stream: bool) -> None:
    """The status and the message are the provider's, the shape is OpenAI's, and nobody else is asked."""
    fields, says = BAD[BACKENDS[backend][0]]
    reply = town.gateway.chat(body_of(f"broken_chain_{backend}", TEXT, stream=stream, **fields), key=KEY)
    assert reply.status in (400, 422), reply.body
    assert says in reply.body.decode()
    assert reply.headers["x-gateway-attempts"] == "1"
    if BACKENDS[backend][2]:
        assert says in reply.error["message"]


@pytest.mark.parametrize("backend", [name for name in BACKENDS if BACKENDS[name][0] not in ("lmstudio", "ollama")])
def test_a_bad_key_of_the_operators_is_never_shown(town: Street, backend: str) -> None:
    """The client's own key is good: it gets a 502 that does not say what the provider said."""
    for stream in (False, True):
        reply = town.gateway.chat(body_of(f"wrong_{backend}", TEXT, stream=stream), key=KEY)
        assert reply.status in (502, 503), reply.body  # 503 while the only key rests
        assert reply.error["code"] in ("upstream_auth", "no_backend_available")
        assert "key" not in reply.error["message"].lower().replace("api key", "")
        assert "a-wrong-key" not in town.gateway.output


@pytest.mark.parametrize(
    ("backend", "mood"),
    [
        (backend, mood)
        for backend in BACKENDS
        for mood in FAILS
        if mood != "out_of_money" or BACKENDS[backend][0] in POOR
    ],
)
def test_the_next_provider_answers(town: Street, client: openai.OpenAI, backend: str, mood: str) -> None:
    """A provider that is limited, overloaded, broken or unpaid is passed over, whatever it calls that."""
    prefix, among = FAILS[mood]
    town.fake(backend).next(mood)
    before = outcomes(town, f"{prefix}_{backend}")
    got = tell(client, f"{prefix}_chain_{backend}")
    assert town.fake(backend).idle
    assert (got.text, got.finish) == (WHOLE, "stop")
    assert (got.headers["x-gateway-backend"], got.headers["x-gateway-attempts"]) == (second_of(backend), "2")
    found = outcomes(town, f"{prefix}_{backend}") - before
    assert found.total() == 1
    assert set(found) <= among


@pytest.mark.parametrize("backend", [name for name in BACKENDS if BACKENDS[name][0] in LONG])
def test_a_prompt_that_is_too_long_is_known_as_such(town: Street, backend: str) -> None:
    """Each provider says it in other words; the client is told by OpenAI's code when nobody has more room."""
    town.fake(backend).next("too_long")
    reply = town.gateway.chat(body_of(f"long_{backend}", TEXT), key=KEY)
    assert reply.status == 400
    assert outcomes(town, f"long_{backend}") == Counter(context_length=1)
    if BACKENDS[backend][2]:
        assert reply.error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("mood", ["cut:6", "error:6"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stream_goes_on_in_the_same_format(town: Street, client: openai.OpenAI, backend: str, mood: str) -> None:
    """Cut, or ended by the provider's own error: another provider continues, and the client sees one answer."""
    town.fake(backend).next(mood)
    second = second_of(backend)
    before = len(town.fake(second).log)
    got = tell(client, f"{'cut' if mood.startswith('cut') else 'failing'}_chain_{backend}", stream=True)
    assert (got.text, got.finish) == (WHOLE, "stop")
    assert got.objects == {"chat.completion.chunk"}
    (seen,) = town.fake(second).log[before:]
    begun = seen.json["messages"][-1]
    if mood.startswith("error") and begun["role"] == "user":
        return  # the error came with the first tokens, before any of them was sent on: there was nothing to go on with
    said = begun["content"] if isinstance(begun["content"], str) else begun["content"][0]["text"]
    assert begun["role"] == "assistant"
    assert said
    assert WHOLE.startswith(said)


@pytest.mark.parametrize("second", SECONDS)
def test_every_provider_goes_on_with_what_another_began(town: Street, client: openai.OpenAI, second: str) -> None:
    """An OpenAI-compatible server's stream is cut, and each format is given its beginning as it wants it."""
    first = "groq" if second == "vllm" else "vllm"
    town.fake(first).next("cut:5")
    refused = len(town.fake(second).refusals)
    got = tell(client, f"from_openai_to_{second}", stream=True, stream_options={"include_usage": True})
    assert (got.text, got.finish) == (WHOLE, "stop")
    assert got.usage is not None
    assert got.usage["completion_tokens"] >= len(re.findall(r"\s*\S+", WHOLE))
    assert len(town.fake(second).refusals) == refused
    assert "Grüße!" in json.dumps(town.fake(second).log[-1].json, ensure_ascii=False)
