"""Translated backends: what they send, what they make of what comes, and what they refuse to be told by a client."""

import inspect
import os
import socket
from typing import Any

import orjson
import pytest

from gateway.formats.usage import parse_usage
from gateway.policy.schema import Backend
from gateway.upstream.litellm import open_litellm, providers
from gateway.upstream.parameters import OPENAI
from gateway.upstream.wire import ConnectError, ReadError
from tests.formats import told
from tests.providers.anthropic import Anthropic
from tests.providers.bedrock import Bedrock
from tests.providers.cohere import Cohere
from tests.providers.deepseek import DeepSeek
from tests.providers.gemini import Gemini
from tests.providers.mistral import Mistral
from tests.providers.ollama import Ollama
from tests.providers.said import SCHEMA_ANSWER
from tests.providers.server import Fake
from tests.upstream.rare import SPECIAL
from tests.upstream.scripted import Script, says
from tests.upstream.translators import (
    AWS,
    CALL,
    HOST,
    PICTURE,
    SCHEMA,
    SETTINGS,
    TOOL,
    all_of,
    answer,
    ask,
    body,
    facing,
    key_of,
    model_of,
    opened,
    refusal,
)

KINDS = list(SETTINGS)
MESSAGE = orjson.dumps(
    {"type": "message", "id": "m", "model": "c", "content": [], "stop_reason": "end_turn", "usage": {"input_tokens": 1}}
)


@pytest.fixture(autouse=True)
def _nothing_but_our_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """No translation opens a socket or looks a name up; credentials that lie around are not taken."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something wanted the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GROQ_API_KEY", "MISTRAL_API_KEY", "AWS_BEARER_TOKEN_BEDROCK"):
        monkeypatch.setenv(name, "stray-secret")


async def both(fake: Fake, *turns: Any, **fields: Any) -> tuple[Any, told.Told]:
    """The whole answer and the streamed one to the same request."""
    wire, _ = facing(fake)
    found = await answer(wire, body(model_of(fake), *turns, **fields), key=key_of(fake))
    streamed = body(model_of(fake), *turns, **fields, stream=True, stream_options={"include_usage": True})
    reply = await ask(wire, streamed, key=key_of(fake))
    out = await all_of(reply)
    assert (reply.status, fake.refusals) == (200, []), (out, fake.refusals)
    assert any(pair[0] == b"content-type" and b"event-stream" in pair[1] for pair in reply.headers)
    return found, told.read(out.replace(b"\r\n", b"\n"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_every_provider_takes_a_conversation_and_its_answer_is_read(kind: type[Fake]) -> None:
    """System prompt, text in many scripts, usage, ids: whole and streamed alike."""
    found, streamed = await both(kind(), {"role": "system", "content": "be brief"}, "hello", max_tokens=100)
    choice = found["choices"][0]
    assert choice["message"]["content"] == streamed.text
    assert streamed.text.startswith("Grüße! You said: hello — under: be brief")
    assert (choice["finish_reason"], streamed.finish, streamed.done) == ("stop", ["stop"], True)
    assert streamed.usage is not None
    assert parse_usage(found["usage"]) == parse_usage(streamed.usage)
    assert found["usage"]["prompt_tokens"] == 23


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_every_provider_is_told_where_to_end(kind: type[Fake]) -> None:
    """A limit in tokens, and a stop sequence."""
    found, streamed = await both(kind(), "hello", max_tokens=2)
    assert (found["choices"][0]["finish_reason"], streamed.finish) == ("length", ["length"])
    found, streamed = await both(kind(), "hello", max_tokens=50, stop=["said"])
    assert found["choices"][0]["message"]["content"] == streamed.text == "Grüße! You"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_every_provider_calls_tools_and_takes_their_results(kind: type[Fake]) -> None:
    """Two calls at once, and what came of one that another provider had made."""
    found, streamed = await both(kind(), "call both", tools=[TOOL], tool_choice="auto", max_tokens=100)
    calls = found["choices"][0]["message"]["tool_calls"]
    wanted = [{"city": "Zürich", "at": 1.5}, {"city": "東京"}]
    assert [orjson.loads(call["function"]["arguments"]) for call in calls] == wanted
    assert [orjson.loads(arguments) for _, arguments in streamed.calls.values()] == wanted
    assert (found["choices"][0]["finish_reason"], streamed.finish) == ("tool_calls", ["tool_calls"])
    assert len(set(streamed.ids.values())) == 2
    made = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}
    _, streamed = await both(kind(), "hi", made, result, tools=[TOOL], max_tokens=100)
    assert "knowing: rain" in streamed.text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not DeepSeek], ids=lambda kind: kind.name)
async def test_every_provider_sees_images_and_keeps_to_a_schema(kind: type[Fake]) -> None:
    """As data; where there are no schemas, a tool stands for them. DeepSeek has neither."""
    picture = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
    _, streamed = await both(kind(), {"role": "user", "content": picture}, max_tokens=100)
    assert "showing: image/png:" in streamed.text
    found, streamed = await both(kind(), "as json", response_format=SCHEMA, max_tokens=100)
    assert orjson.loads(found["choices"][0]["message"]["content"]) == orjson.loads(SCHEMA_ANSWER)
    assert orjson.loads(streamed.text) == orjson.loads(SCHEMA_ANSWER)
    assert (found["choices"][0]["finish_reason"], streamed.finish) == ("stop", ["stop"])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not Cohere], ids=lambda kind: kind.name)
async def test_an_answer_that_was_cut_can_be_gone_on_with(kind: type[Fake]) -> None:
    """What was delivered goes as the assistant's beginning; Cohere takes none."""
    _, streamed = await both(kind(), "hello", {"role": "assistant", "content": "Grüße! You"}, max_tokens=50)
    assert streamed.text.strip().startswith("said: hello")


@pytest.mark.parametrize("kind", [Anthropic, Bedrock, Gemini, Cohere, Mistral], ids=lambda kind: kind.name)
async def test_what_was_cached_is_part_of_the_input(kind: type[Fake]) -> None:
    """However the provider counts it."""
    found, streamed = await both(kind(), "cached hello", max_tokens=50)
    usage = parse_usage(found["usage"])
    assert usage is not None
    assert usage.cached_input == 16
    assert usage.input_tokens == 42
    assert streamed.usage is not None
    assert parse_usage(streamed.usage) == usage


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_failures_keep_their_status_in_openai_s_shape(kind: type[Fake]) -> None:
    """A rate limit with its wait, a server that is overloaded."""
    fake = kind()
    wire, _ = facing(fake)
    fake.next("rate_limited", "overloaded")
    reply = await ask(wire, body(model_of(fake), "hello", max_tokens=5), key=key_of(fake))
    error = orjson.loads(await all_of(reply))["error"]
    assert reply.status in (429, 500, 503)
    assert error["message"]
    own = [answer.headers.get("retry-after") for answer in [fake.fail("rate_limited")]]
    assert [value.decode() for name, value in reply.headers if name == b"retry-after"] == [each for each in own if each]
    status, error = await refusal(wire, body(model_of(fake), "hello", max_tokens=5), key=key_of(fake))
    assert status in (429, 500, 502, 503, 529)
    assert error["message"]


@pytest.mark.parametrize("kind", [Anthropic, Gemini, Bedrock, Ollama], ids=lambda kind: kind.name)
async def test_errors_and_cuts_inside_a_stream_are_seen(kind: type[Fake]) -> None:
    """No stream that broke looks whole."""
    fake = kind()
    wire, _ = facing(fake)
    fake.next("error:4", "cut:4")
    request = body(model_of(fake), "hello", max_tokens=50, stream=True)
    found = told.read(await all_of(await ask(wire, request, key=key_of(fake))))
    assert found.error is not None
    assert (found.done, found.text != "") == (False, True)
    with pytest.raises(ReadError):
        await all_of(await ask(wire, request, key=key_of(fake)))


async def test_anthropic_is_sent_what_its_reference_has() -> None:
    """Path, headers and body, byte for byte what is meant."""
    inner = says(Script(200, [MESSAGE]))
    wire = opened(inner, provider="anthropic")
    request = body(
        "claude-x", {"role": "system", "content": "be brief"}, "hi", max_tokens=9, temperature=0.5, stop="x", top_k=4
    )
    await answer(wire, request)
    (sent,) = inner.sent
    assert (sent.method, sent.target) == (b"POST", b"/v1/messages")
    assert (sent.header("x-api-key"), sent.header("anthropic-version")) == ("the-key", "2023-06-01")
    assert sent.header("authorization") is None
    assert orjson.loads(sent.body) == {
        "model": "claude-x",
        "system": [{"type": "text", "text": "be brief"}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "max_tokens": 9,
        "temperature": 0.5,
        "stop_sequences": ["x"],
        "top_k": 4,
    }


@pytest.mark.parametrize(
    ("settings", "model", "target"),
    [
        ({"provider": "anthropic", "base_url": f"{HOST}/v1"}, "m", "/v1/messages"),
        ({"provider": "anthropic", "base_url": f"{HOST}/api/anthropic"}, "m", "/api/anthropic/v1/messages"),
        ({"provider": "anthropic", "base_url": f"{HOST}/v1/messages"}, "m", "/v1/messages"),
        ({"provider": "gemini"}, "gemini-x", "/v1beta/models/gemini-x:generateContent"),
        ({"provider": "gemini", "base_url": f"{HOST}/v1alpha"}, "gemini-x", "/v1alpha/models/gemini-x:generateContent"),
        ({"provider": "bedrock", "options": AWS}, "anthropic.x-v1:0", "/model/anthropic.x-v1%3A0/converse"),
        ({"provider": "cohere", "base_url": f"{HOST}/v2"}, "m", "/v2/chat"),
        ({"provider": "cohere"}, "m", "/v2/chat"),
        ({"provider": "ollama", "base_url": f"{HOST}/v1"}, "m", "/api/chat"),
        ({"provider": "ollama", "base_url": f"{HOST}/api"}, "m", "/api/chat"),
        (
            {"provider": "azure", "options": {"api_version": "2025-01-01-preview"}},
            "gpt-4o",
            "/openai/deployments/gpt-4o/chat/completions?api-version=2025-01-01-preview",
        ),
        (
            {"provider": "azure", "base_url": f"{HOST}/openai", "options": {"deployment": "a b"}},
            "gpt-4o",
            "/openai/deployments/a%20b/chat/completions?api-version=2024-10-21",
        ),
        ({"provider": "groq", "base_url": f"{HOST}/openai/v1"}, "m", "/openai/v1/chat/completions"),
        ({"provider": "mistral", "base_url": f"{HOST}/v1"}, "m", "/v1/chat/completions"),
        ({"provider": "zai", "base_url": f"{HOST}/api/paas/v4"}, "m", "/api/paas/v4/chat/completions"),
        (
            {"provider": "vertex_ai", "options": {"project": "p", "location": "us-east5"}},
            "claude-x@1",
            "/v1/projects/p/locations/us-east5/publishers/anthropic/models/claude-x@1:rawPredict",
        ),
        (
            {"provider": "vertex_ai", "options": {"project": "p"}},
            "gemini-x",
            "/v1/projects/p/locations/global/publishers/google/models/gemini-x:generateContent",
        ),
    ],
)
async def test_the_path_is_the_provider_s_whatever_the_client_asked_for(
    settings: dict[str, Any], model: str, target: str
) -> None:
    """With the version in the base URL or without it."""
    inner = says(Script(500))
    await ask(opened(inner, **settings), body(model, "hi", max_tokens=5))
    assert inner.sent[0].target.decode() == target


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ({"provider": "anthropic"}, "api.anthropic.com"),
        ({"provider": "gemini"}, "generativelanguage.googleapis.com"),
        ({"provider": "mistral"}, "api.mistral.ai"),
        ({"provider": "groq"}, "api.groq.com"),
        ({"provider": "deepseek"}, "api.deepseek.com"),
        ({"provider": "zai"}, "api.z.ai"),
        ({"provider": "cohere"}, "api.cohere.com"),
        ({"provider": "bedrock", "options": {**AWS, "region": "eu-west-3"}}, "bedrock-runtime.eu-west-3.amazonaws.com"),
        ({"provider": "vertex_ai", "options": {"project": "p"}}, "aiplatform.googleapis.com"),
        (
            {"provider": "vertex_ai", "options": {"project": "p", "location": "us-east5"}},
            "us-east5-aiplatform.googleapis.com",
        ),
    ],
)
def test_without_a_base_url_each_provider_is_where_it_is(settings: dict[str, Any], host: str) -> None:
    """And over TLS."""
    inner = says(Script())
    open_litellm("b", Backend.model_validate({"api_keys": ("k",), **settings}), inner.open)
    (origin,) = inner.origins
    assert (origin.scheme, origin.host, origin.port) == ("https", host, 443)


def test_ollama_without_a_base_url_is_on_this_machine() -> None:
    """Its usual port, without TLS."""
    inner = says(Script())
    open_litellm("b", Backend(provider="ollama"), inner.open)
    assert (inner.origins[0].scheme, inner.origins[0].host, inner.origins[0].port) == ("http", "localhost", 11434)


@pytest.mark.parametrize("provider", ["anthropic", "gemini", "groq", "mistral", "ollama", "cohere"])
async def test_a_backend_without_a_key_sends_none(provider: str) -> None:
    """Not one that lies in the environment either, since nobody said that it is this backend's."""
    inner = says(Script(500))
    await ask(opened(inner, provider=provider, api_keys=()), body("m", "hi", max_tokens=5), key=None)
    (sent,) = inner.sent
    assert "stray-secret" not in repr(sent)
    assert [name for name, _ in sent.headers if name in (b"authorization", b"x-api-key", b"x-goog-api-key")] == []


async def test_headers_of_the_request_go_on_and_no_others() -> None:
    """A trace, and what asks for a feature; nothing that could be a credential."""
    inner = says(Script(200, [MESSAGE]))
    wire = opened(inner, provider="anthropic")
    headers = (
        (b"traceparent", b"00-1"),
        (b"anthropic-beta", b"a-1"),
        (b"x-api-key", b"stolen"),
        (b"api-key", b"stolen"),
        (b"x-goog-api-key", b"stolen"),
        (b"host", b"evil.test"),
    )
    await all_of(await ask(wire, body("claude-x", "hi"), *headers))
    (sent,) = inner.sent
    assert (sent.header("traceparent"), sent.header("anthropic-beta")) == ("00-1", "a-1")
    assert "stolen" not in repr(sent)
    assert "evil.test" not in repr(sent)


def litellm_s_own_names() -> set[str]:
    """Every name that litellm reads as a setting of its own."""
    from litellm.main import completion
    from litellm.types.router import GenericLiteLLMParams
    from litellm.types.utils import all_litellm_params

    named = {*all_litellm_params, *GenericLiteLLMParams.model_fields, *inspect.signature(completion).parameters}
    return named - OPENAI - {"model", "messages", "stream", "stream_options", "thinking"}


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize(
    "provider", ["anthropic", "gemini", "bedrock", "vertex_ai", "groq", "mistral", "azure", "bytez"]
)
async def test_no_name_that_litellm_knows_steers_a_request(provider: str, *, drop: bool) -> None:
    """Each is refused, or changes neither where the request goes nor with which credential."""
    options = {"bedrock": AWS, "vertex_ai": {"project": "p"}}.get(provider, {})
    settings = {"provider": provider, "options": options, "drop_params": drop}
    model = "gemini-x" if provider == "vertex_ai" else "m"
    inner = says(Script(500))
    wire = opened(inner, **settings)
    await ask(wire, body(model, "hi", max_tokens=5))
    plain = inner.sent[0]
    unsigned = {b"authorization", b"x-amz-date"} if provider == "bedrock" else set()
    names = sorted(litellm_s_own_names())
    assert len(names) > 300
    for name in names:
        for value in ("https://evil.test/steal", {"a": "https://evil.test/steal"}):
            before = len(inner.sent)
            reply = await ask(wire, body(model, "hi", max_tokens=5, **{name: value}))
            if len(inner.sent) == before:
                error = orjson.loads(await all_of(reply))["error"]
                assert (reply.status, error["code"]) == (400, "unsupported_parameter"), name
                assert f"`{name}`" in error["message"]
                continue
            sent = inner.sent[-1]
            assert sent.target == plain.target, name
            same = [(a, b) for a, b in sent.headers if a not in unsigned]
            assert same == [(a, b) for a, b in plain.headers if a not in unsigned], name
            if sent.body != plain.body:  # it went on as it came, to a provider that is OpenAI-compatible
                assert orjson.loads(sent.body) == {**orjson.loads(plain.body), name: value}, name
                assert provider in ("groq", "mistral", "azure")
    assert inner.origins[0].host == "provider.test"


async def test_parameters_that_the_provider_lacks_are_all_named() -> None:
    """Nothing is sent; the answer says how to have them dropped."""
    inner = says(Script(200, [MESSAGE]))
    wire = opened(inner, provider="anthropic")
    status, error = await refusal(wire, body("claude-x", "hi", seed=1, logit_bias={"1": 2}, nonsense=True, n=2))
    assert (status, error["code"], error["param"]) == (400, "unsupported_parameter", "seed")
    assert all(f"`{name}`" in error["message"] for name in ("seed", "logit_bias", "nonsense", "n"))
    assert "drop_params: true" in error["message"]
    assert inner.sent == []


async def test_parameters_that_the_provider_lacks_are_dropped_where_the_policy_says_so() -> None:
    """The others stay."""
    inner = says(Script(200, [MESSAGE]))
    wire = opened(inner, provider="anthropic", drop_params=True)
    await answer(wire, body("claude-x", "hi", seed=1, logit_bias={"1": 2}, nonsense=True, max_tokens=7))
    assert orjson.loads(inner.sent[0].body).keys() == {"model", "messages", "max_tokens"}


async def test_what_an_openai_compatible_provider_may_know_goes_on_unchanged() -> None:
    """Its own fields are its own business."""
    inner = says(Script(200, [b"{}"]))
    wire = opened(inner, provider="openrouter", base_url=f"{HOST}/api/v1")
    await answer(wire, body("m", "hi", provider={"order": ["x"]}, transforms=["middle-out"]))
    sent = orjson.loads(inner.sent[0].body)
    assert (sent["provider"], sent["transforms"]) == ({"order": ["x"]}, ["middle-out"])


@pytest.mark.parametrize("provider", ["anthropic", "gemini", "bedrock", "ollama", "groq"])
@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "file:///etc/passwd", "gs://bucket/x", "ftp://a/b"])
async def test_nothing_is_fetched_for_a_client(provider: str, url: str) -> None:
    """The answer says what to send instead, and where it stood."""
    inner = says(Script(200, [MESSAGE]))
    wire = opened(inner, provider=provider, options=AWS if provider == "bedrock" else {})
    part = {"type": "image_url", "image_url": {"url": url}}
    status, error = await refusal(wire, body("m", {"role": "user", "content": [part]}))
    assert (status, error["param"]) == (400, "messages[0].content[0].image_url.url")
    assert "data URL" in error["message"]
    assert inner.sent == []


async def test_anthropic_fetches_images_itself() -> None:
    """Their URLs go on, when they are TLS."""
    inner = says(Script(200, [MESSAGE]))
    wire = opened(inner, provider="anthropic")
    part = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    await answer(wire, body("claude-x", {"role": "user", "content": [part]}))
    (image,) = orjson.loads(inner.sent[0].body)["messages"][0]["content"]
    assert image["source"] == {"type": "url", "url": "https://example.com/x.png"}


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{"role": "assistant", "tool_calls": [{"id": "x"}]}],
        [
            {
                "role": "assistant",
                "tool_calls": [{"id": "x", "type": "function", "function": {"name": "a", "arguments": "{"}}],
            }
        ],
        [{"role": "tool", "content": "x"}],
        [{"role": "nobody", "content": "x"}],
        [{"role": "user", "content": [None]}],
    ],
)
@pytest.mark.parametrize("provider", ["anthropic", "gemini", "bedrock", "ollama", "mistral"])
async def test_messages_that_make_no_sense_are_the_client_s_mistake(provider: str, messages: list[Any]) -> None:
    """A 400 of ours or the provider's own verdict, never a failure of the gateway."""
    inner = says(Script(400, [b'{"message":"no"}']))
    wire = opened(inner, provider=provider, options=AWS if provider == "bedrock" else {})
    status, error = await refusal(wire, body("m", *messages))
    assert status == 400
    assert error["message"]


@pytest.mark.parametrize("provider", ["anthropic", "gemini", "bedrock", "ollama", "mistral"])
async def test_a_refusal_to_translate_quotes_nothing_that_was_said(provider: str) -> None:
    """litellm's own messages hold the conversation that it could not read; the client's error holds none of it."""
    inner = says(Script(400, [b'{"message":"no"}']))
    wire = opened(inner, provider=provider, options=AWS if provider == "bedrock" else {})
    for odd in ({"role": {"marked": "role"}}, {"role": "nobody"}, {"role": "user", "content": ["marked part"]}):
        _, error = await refusal(wire, body("m", {"role": "system", "content": "marked"}, {"content": "marked", **odd}))
        assert "marked" not in error["message"]


async def test_anthropic_s_own_requests_pass_as_they_are() -> None:
    """Bytes both ways; only the key is put where Anthropic has it."""
    raw = b'{"model":"m", "messages":[]}'
    inner = says(Script(429, [b'{"type":"error"}'], [(b"retry-after", b"3")]))
    wire = opened(inner, provider="anthropic", base_url=f"{HOST}/api/anthropic")
    headers = ((b"authorization", b"Bearer the-key"), (b"anthropic-beta", b"b"), (b"x-api-key", b"stolen"))
    for path in (b"/v1/messages", b"/v1/messages/count_tokens"):
        reply = await wire.send(b"POST", b"/x" + path + b"?a=b", headers, raw, connect_timeout=1.0, timeout=1.0)
        sent = inner.sent[-1]
        assert (sent.target, sent.body) == (b"/api/anthropic" + path, raw)
        assert (sent.header("x-api-key"), sent.header("anthropic-beta")) == ("the-key", "b")
        assert sent.header("anthropic-version") == "2023-06-01"
        assert (reply.status, await all_of(reply), reply.headers) == (
            429,
            b'{"type":"error"}',
            [(b"retry-after", b"3")],
        )


@pytest.mark.parametrize("path", [b"/embeddings", b"/v1/messages", b"/audio/speech"])
async def test_what_cannot_be_translated_is_refused(path: bytes) -> None:
    """Without asking anyone."""
    inner = says(Script())
    wire = opened(inner, provider="gemini")
    reply = await wire.send(b"POST", path, (), b"{}", connect_timeout=1.0, timeout=1.0)
    assert reply.status == 404
    assert "chat requests only" in orjson.loads(await all_of(reply))["error"]["message"]
    assert inner.sent == []


async def test_a_probe_tells_nobody_who_asks() -> None:
    """It finds out whether the provider can be reached, and no more."""
    inner = says(Script(404))
    wire = opened(inner, provider="anthropic")
    headers = ((b"authorization", b"Bearer the-key"),)
    reply = await wire.send(b"GET", b"/v1/models", headers, b"", connect_timeout=1.0, timeout=1.0)
    assert reply.status == 404
    assert (inner.sent[0].target, inner.sent[0].header("authorization")) == (b"/", None)
    down = opened(says(Script()), provider="anthropic")
    down._inner.answer = lambda _: ConnectError("refused")  # type: ignore[attr-defined]
    with pytest.raises(ConnectError):
        await down.send(b"GET", b"/v1/models", (), b"", connect_timeout=1.0, timeout=1.0)


async def test_an_error_whose_body_does_not_come_is_told_by_its_status() -> None:
    """And the connection is given up."""
    inner = says(Script(503, [b"{"], ending="cut"))
    status, error = await refusal(opened(inner, provider="anthropic"), body("claude-x", "hi"))
    assert (status, error["message"]) == (503, "The provider answered with status 503.")
    assert inner.replies[0].closed


async def test_closing_closes_the_connections() -> None:
    """Those that lie below."""
    inner = says(Script())
    wire = opened(inner, provider="anthropic")
    await wire.aclose()
    assert inner.closed
    assert "there" in repr(wire)


@pytest.mark.parametrize(
    ("settings", "told_"),
    [
        ({"provider": "nonsense"}, "cannot be translated; write one of"),
        ({"provider": "github_copilot"}, "cannot be translated: it is signed in to by a person"),
        ({"provider": "replicate"}, "has to be asked for again and again"),
        ({"provider": "voyage"}, "litellm has no chat format for it"),
        ({"provider": "ragflow"}, "`base_url` is missing"),
        ({"provider": "snowflake"}, "`account_id` is missing"),
        ({"provider": "watsonx"}, "`region` is missing"),
        ({"provider": "watsonx", "options": {"region": "x", "auth": "y"}}, "write iam, token or zen"),
        ({"provider": "sagemaker_chat"}, "`region` is missing"),
        ({"provider": "sagemaker_chat", "options": {"region": "x"}}, "aws_access_key_id"),
        ({"provider": "langflow"}, "`base_url` is missing"),
        ({"provider": "anthropic", "options": {"regoin": "x"}}, "no option `regoin`; remove it"),
        ({"provider": "bedrock", "options": {"region": "x", "regoin": "x"}, "api_keys": ("k",)}, "no option `regoin`"),
        ({"provider": "bedrock", "options": {}}, "`region` is missing"),
        ({"provider": "bedrock", "options": {"region": "x"}}, "aws_access_key_id"),
        ({"provider": "vertex_ai", "options": {"project": "p"}}, "needs a service account"),
        ({"provider": "vertex_ai", "api_keys": ("k",)}, "`project` is missing"),
        ({"provider": "hosted_vllm"}, "`base_url` is missing"),
        ({"provider": "azure"}, "`base_url` is missing"),
    ],
)
def test_wrong_settings_are_told_with_what_to_write(settings: dict[str, Any], told_: str) -> None:
    """Before anything is served."""
    with pytest.raises(ValueError, match=r"backends\.b") as caught:
        open_litellm("b", Backend.model_validate(settings), says(Script()).open)
    assert told_ in str(caught.value)


@pytest.mark.parametrize("provider", sorted(providers() - {"bedrock", "vertex_ai", "vertex_ai_beta"} - SPECIAL.keys()))
async def test_every_provider_that_is_offered_works(provider: str) -> None:
    """It opens, and a plain request leaves for the right host with the backend's key."""
    inner = says(Script(500))
    wire = opened(inner, provider=provider)
    reply = await ask(wire, body("some-model", "hi"))
    assert reply.status == 500
    (sent,) = inner.sent
    assert "the-key" in repr(sent.headers)
    assert "some-model" in sent.body.decode() + sent.target.decode()
    assert inner.origins[0].host == "provider.test"


def test_litellm_was_told_to_stay_off_the_network() -> None:
    """Before it was imported, or it would have fetched files."""
    opened(says(Script()), provider="anthropic")
    assert os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
    assert os.environ["MAX_IMAGE_URL_DOWNLOAD_SIZE_MB"] == "0"
    from litellm.constants import MAX_IMAGE_URL_DOWNLOAD_SIZE_MB

    assert MAX_IMAGE_URL_DOWNLOAD_SIZE_MB == 0
