"""Anthropic's own SDK against the gateway: every kind of request, at backends that speak its format and at others."""

import base64
import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anthropic
import pytest

from tests.faults import FaultUpstream
from tests.providers.anthropic import Anthropic
from tests.providers.gemini import Gemini
from tests.providers.said import ARGUMENTS, CACHED, SCHEMA_ANSWER, Asked, sentence
from tests.providers.server import running
from tests.providers.vllm import VLLM
from tests.providers.zai import ZAI
from tests.support import Served, key_policy, serve

KEY = "sk-anthropic"
PRICE = {"input": 1, "output": 10, "cached_input": 0.5, "cache_write": 2}  # dollars per million tokens
PIXELS = bytes(range(256)) * 10
PICTURE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PIXELS).decode()},
}
SHOWN = f"image/png:{len(PIXELS)}"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"name": "get_weather", "description": "The weather of a city", "input_schema": SCHEMA}
WANTED = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "number"}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}
BACKENDS = ("native", "zai", "vllm", "gemini")


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if len(content) == 1 else list(content)}


@dataclass(frozen=True)
class Case:
    """A request, and the answer that every backend gives to it."""

    asked: Mapping[str, Any]
    text: str = ""
    calls: Sequence[Mapping[str, Any]] = ()
    ending: str = "end_turn"


CALLED = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Zürich"}}
CASES: Mapping[str, Case] = {
    "plain": Case({"messages": [user("Hello")]}, sentence(Asked("Hello"))),
    "system": Case(
        {"messages": [user("Hello")], "system": [{"type": "text", "text": "Be brief."}]},
        sentence(Asked("Hello", system="Be brief.")),
    ),
    "turns": Case(
        {"messages": [user("One"), {"role": "assistant", "content": "Two"}, user("Three")]}, sentence(Asked("Three"))
    ),
    "image": Case(
        {"messages": [user({"type": "text", "text": "What is this?"}, PICTURE)]},
        sentence(Asked("What is this?", images=[SHOWN])),
    ),
    "tool": Case({"messages": [user("Weather?")], "tools": [TOOL]}, calls=ARGUMENTS[:1], ending="tool_use"),
    "tools": Case({"messages": [user("Weather of both?")], "tools": [TOOL]}, calls=ARGUMENTS, ending="tool_use"),
    "forced": Case(
        {"messages": [user("Weather?")], "tools": [TOOL], "tool_choice": {"type": "tool", "name": "get_weather"}},
        calls=ARGUMENTS[:1],
        ending="tool_use",
    ),
    "forbidden": Case(
        {"messages": [user("Weather?")], "tools": [TOOL], "tool_choice": {"type": "none"}},
        sentence(Asked("Weather?")),
    ),
    "result": Case(
        {
            "messages": [
                user("Weather?"),
                {"role": "assistant", "content": [CALLED]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}]},
            ],
            "tools": [TOOL],
        },
        sentence(Asked("Weather?", results=["sunny"])),
    ),
    "limit": Case({"messages": [user("Hello")], "max_tokens": 3}, "Grüße! You said:", ending="max_tokens"),
    "stop": Case({"messages": [user("Hello")], "stop_sequences": [" said"]}, "Grüße! You", ending="stop_sequence"),
    "cached": Case({"messages": [user("Hello cached")]}, sentence(Asked("Hello cached"))),
    "schema": Case(
        {"messages": [user("JSON?")], "output_config": {"format": {"type": "json_schema", "schema": WANTED}}},
        SCHEMA_ANSWER,
    ),
}
NO_STOP_NAMED = ("gemini",)  # does not say which sequence it was, nor that it was one


@dataclass(frozen=True)
class House:
    """The gateway, and who stands behind it."""

    gateway: Served
    native: Anthropic
    zai: ZAI
    vllm: VLLM
    gemini: Gemini
    faults: FaultUpstream
    clients: dict[str, anthropic.Anthropic]

    def client(self, key: str = KEY) -> anthropic.Anthropic:
        """The synchronous SDK with this key."""
        if key not in self.clients:
            self.clients[key] = anthropic.Anthropic(base_url=self.gateway.url, api_key=key, max_retries=0)
        return self.clients[key]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    native, zai, vllm, gemini = Anthropic(), ZAI(), VLLM(), Gemini()
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(native, zai, vllm, gemini))
        faults = stack.enter_context(FaultUpstream.in_thread())
        size = {"price": PRICE, "context": 100_000, "max_output": 4000}
        policies = {
            "defaults": {
                "timeouts": {"first_token": "10s", "idle": "10s"},
                "retry": {"attempts": 0},
                "breaker": {"failures": 1000},
            },
            "server": {"max_body": "1MiB"},
            "backends": {
                "native": {"provider": "anthropic", "base_url": native.origin, "api_keys": [native.key]},
                "zai": {"provider": "anthropic", "base_url": f"{zai.origin}/api/anthropic", "api_keys": [zai.key]},
                "vllm": {"base_url": f"{vllm.origin}/v1", "api_keys": [vllm.key]},
                "gemini": {"provider": "gemini", "base_url": gemini.origin, "api_keys": [gemini.key]},
                "wrong-key": {"provider": "anthropic", "base_url": native.origin, "api_keys": ["sk-wrong"]},
                "faults": {"base_url": faults.url, "passthrough": ["fault:*"]},
                "down": {"base_url": "http://127.0.0.1:9/v1"},
            },
            "models": {
                "native": {"backend": "native", "model": native.model, "prefill": True, **size},
                "zai": {"backend": "zai", "model": zai.model, "prefill": True, **size},
                "vllm": {"backend": "vllm", "model": vllm.model, "prefill": True, **size},
                "gemini": {"backend": "gemini", "model": gemini.model, **size},
                "no-such": {"backend": "native", "model": "claude-gone", **size},
                "no-such-chat": {"backend": "vllm", "model": "gone", **size},
                "wrong-key": {"backend": "wrong-key", "model": native.model, **size},
                "down": {"backend": "down", "model": "m", **size},
            },
            "aliases": {
                "native-first": ["native", "vllm"],
                "vllm-first": ["vllm", "native"],
                "zai-first": ["zai", "native"],
                "vllm-only": ["vllm"],
            },
            "keys": {
                "all": key_policy(KEY),
                "few": key_policy("sk-few", allow=["vllm"]),
                "slow": key_policy("sk-slow", limits=[{"requests": 1, "per": "day"}]),
                "poor": key_policy("sk-poor", limits=[{"usd": 0.000001, "per": "total"}]),
                "thrifty": key_policy("sk-thrifty", limits=[{"usd": 0.002, "per": "total"}]),
                "rich": key_policy("sk-rich", limits=[{"usd": 5, "per": "total"}, {"tokens": 10**6, "per": "day"}]),
            },
        }
        with serve(tmp_path_factory.mktemp("anthropic"), policies) as gateway:
            found = House(gateway, native, zai, vllm, gemini, faults, {})
            yield found
            for client in found.clients.values():
                client.close()


def ask(house: House, model: str, fields: Mapping[str, Any], how: str) -> anthropic.types.Message:
    """The message, whichever way the SDK gets it."""
    asked: dict[str, Any] = {"model": model, "max_tokens": 200, **fields}
    if how == "sync":
        made: anthropic.types.Message = house.client().messages.create(**asked)
        return made
    with house.client().messages.stream(**asked) as stream:
        found: anthropic.types.Message = stream.get_final_message()
        return found


async def ask_async(house: House, model: str, fields: Mapping[str, Any], how: str) -> anthropic.types.Message:
    asked: dict[str, Any] = {"model": model, "max_tokens": 200, **fields}
    async with anthropic.AsyncAnthropic(base_url=house.gateway.url, api_key=KEY, max_retries=0) as client:
        if how == "async":
            made: anthropic.types.Message = await client.messages.create(**asked)
            return made
        async with client.messages.stream(**asked) as stream:
            found: anthropic.types.Message = await stream.get_final_message()
            return found


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


@pytest.mark.parametrize("how", ["sync", "streamed", "async", "async streamed"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
async def test_the_same_answer_everywhere(house: House, backend: str, name: str, how: str) -> None:
    """Text, calls and the reason to stop do not depend on whose format the backend speaks."""
    case = CASES[name]
    if how.startswith("async"):
        message = await ask_async(house, backend, case.asked, how)
    else:
        message = ask(house, backend, case.asked, how)
    assert text_of(message) == case.text
    assert [block.input for block in message.content if block.type == "tool_use"] == list(case.calls)
    assert all(block.name == "get_weather" and block.id for block in message.content if block.type == "tool_use")
    expected = "end_turn" if name == "stop" and backend in NO_STOP_NAMED else case.ending
    assert message.stop_reason == expected
    assert message.role == "assistant"
    assert message.id.startswith("msg_")
    used = message.usage
    assert used.input_tokens > 0
    assert used.output_tokens > 0
    assert (used.cache_read_input_tokens or 0) == (CACHED if name == "cached" else 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_metered_like_chat(house: House, backend: str, stream: bool) -> None:
    """The record has the tokens that the client saw, and what they cost."""
    asked: dict[str, Any] = {"model": backend, "max_tokens": 200, "messages": [user("Hello cached")], "stream": stream}
    raw: Any = house.client("sk-rich").messages.with_raw_response.create(**asked)
    assert float(raw.headers["x-gateway-budget-remaining-usd"]) < 5
    assert int(raw.headers["x-ratelimit-remaining-tokens"]) < 10**6
    if stream:
        usage = [event for event in raw.parse() if event.type == "message_delta"][-1].usage
        output = usage.output_tokens
    else:
        used = raw.parse().usage
        output = used.output_tokens
        written = used.cache_creation_input_tokens or 0
        cached = used.cache_read_input_tokens or 0
        cost = (used.input_tokens * 1 + cached * 0.5 + written * 2 + output * 10) / 10**6
        assert float(raw.headers["x-gateway-cost-usd"]) == pytest.approx(cost, abs=2e-9)
    line = house.gateway.line_of(raw.headers["x-request-id"])
    assert line["output_tokens"] == output
    assert line["cached_tokens"] == CACHED
    assert line["cost_usd"] > 0
    assert line["outcome"] == "ok"


def test_bytes_pass_through_to_who_speaks_it(house: House) -> None:
    """Unknown fields and forms of writing too; the model and the credential are the backend's, betas are forwarded."""
    raw = b'{ "model":"native" ,"max_tokens": 20,"metadata":{"user_id":"\\u00e9"},"messages":[{"role":"user","content":"a"}]}'
    reply = house.gateway.request(
        "POST",
        "/v1/messages?beta=true",
        raw,
        x_api_key=KEY,
        anthropic_beta="a-2025,b-2025",
        anthropic_version="2023-06-01",
    )
    assert reply.status == 200
    got = house.native.log[-1]
    assert got.body == raw.replace(b'"native"', f'"{house.native.model}"'.encode())
    assert got.headers["x-api-key"] == house.native.key
    assert got.headers["anthropic-beta"] == "a-2025,b-2025"
    assert "authorization" not in got.headers
    assert KEY not in json.dumps(dict(got.headers))
    assert reply.headers["request-id"] == reply.headers["x-request-id"]


def test_a_stream_of_its_own_passes_as_it_came(house: House) -> None:
    """Every event, pings included, with its name."""
    asked = {"model": "native", "max_tokens": 50, "stream": True, "messages": [user("Hello")]}
    reply = house.gateway.request("POST", "/v1/messages", asked, x_api_key=KEY)
    direct = house.native.answer(house.native.log[-1])
    assert reply.body == b"".join(direct.pieces)
    assert reply.headers.get_content_type() == "text/event-stream"


@pytest.mark.parametrize(
    ("key", "fields", "status", "kind", "code"),
    [
        (KEY, {"max_tokens": 0}, 400, anthropic.BadRequestError, "invalid_value"),
        (KEY, {"messages": []}, 400, anthropic.BadRequestError, "invalid_value"),
        ("sk-unknown", {}, 401, anthropic.AuthenticationError, "invalid_api_key"),
        ("sk-few", {}, 403, anthropic.PermissionDeniedError, "model_not_allowed"),
        (KEY, {"model": "nothing"}, 404, anthropic.NotFoundError, "model_not_found"),
        (KEY, {"system": "a" * 2**20}, 413, anthropic.RequestTooLargeError, "request_too_large"),
        ("sk-poor", {}, 429, anthropic.RateLimitError, "budget_exceeded"),
        (KEY, {"model": "wrong-key"}, 502, anthropic.InternalServerError, "upstream_auth"),
        (KEY, {"model": "down"}, 502, anthropic.InternalServerError, "upstream_error"),
    ],
)
def test_errors_are_what_the_sdk_raises(
    house: House, key: str, fields: Mapping[str, Any], status: int, kind: type[anthropic.APIStatusError], code: str
) -> None:
    """Each with the class of its status, the request's id, and OpenAI's four fields inside Anthropic's envelope."""
    asked: dict[str, Any] = {"model": "native", "max_tokens": 20, "messages": [user("Hello")], **fields}
    with pytest.raises(kind) as raised:
        house.client(key).messages.create(**asked)
    error = raised.value
    assert error.status_code == status
    body: Any = error.body
    assert body["type"] == "error"
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    assert body["error"]["code"] == code
    assert body["request_id"] == error.request_id == error.response.headers["x-request-id"]


def test_a_rate_limit_says_when_to_come_back(house: House) -> None:
    """As it does for chat."""
    client = house.client("sk-slow")
    client.messages.create(model="vllm", max_tokens=20, messages=[{"role": "user", "content": "Hello"}])
    with pytest.raises(anthropic.RateLimitError) as raised:
        client.messages.create(model="vllm", max_tokens=20, messages=[{"role": "user", "content": "Hello"}])
    assert int(raised.value.response.headers["retry-after"]) > 0


@pytest.mark.parametrize(("model", "said"), [("no-such", "claude-gone"), ("no-such-chat", "gone")])
def test_a_backends_own_refusal_is_shown_in_the_same_shape(house: House, model: str, said: str) -> None:
    """Whatever shape the backend gave it."""
    with pytest.raises(anthropic.NotFoundError) as raised:
        house.client().messages.create(model=model, max_tokens=20, messages=[{"role": "user", "content": "Hello"}])
    body: Any = raised.value.body
    assert said in str(body)


def test_wrong_methods_and_json_are_errors_of_the_same_shape(house: House) -> None:
    """From before the request is understood, too."""
    for reply in (
        house.gateway.request("GET", "/v1/messages", key=KEY),
        house.gateway.request("POST", "/v1/messages", b"{", key=KEY),
    ):
        assert reply.json["type"] == "error"
        assert reply.json["request_id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize("how", ["sync", "streamed"])
@pytest.mark.parametrize("alias", ["native-first", "vllm-first"])
def test_a_chain_over_formats_is_one_format(house: House, alias: str, how: str) -> None:
    """The first is overloaded, the second speaks otherwise; the client cannot tell."""
    first, second = (house.native, house.vllm) if alias == "native-first" else (house.vllm, house.native)
    before = len(second.log)
    first.next("overloaded")
    message = ask(house, alias, CASES["tool"].asked, how)
    assert message.stop_reason == "tool_use"
    assert first.idle
    assert len(second.log) == before + 1


@pytest.mark.parametrize("mood", ["cut:6", "error:6"])
@pytest.mark.parametrize("alias", ["native-first", "vllm-first", "zai-first"])
def test_a_cut_stream_goes_on_in_one_format(house: House, alias: str, mood: str) -> None:
    """One message from two backends: one head, one block of text, nothing twice, and usage of both."""
    first = {"native-first": house.native, "vllm-first": house.vllm, "zai-first": house.zai}[alias]
    first.next(mood)
    events = []
    with house.client().messages.stream(
        model=alias, max_tokens=200, messages=[{"role": "user", "content": "Hello"}]
    ) as stream:
        events += [event.type for event in stream]
        message = stream.get_final_message()
        request_id = stream.response.headers["x-request-id"]
    assert first.idle
    assert [block.type for block in message.content] == ["text"]
    assert text_of(message) == sentence(Asked("Hello"))
    assert (events.count("message_start"), events.count("content_block_start"), events.count("message_stop")) == (
        1,
        1,
        1,
    )
    assert message.stop_reason == "end_turn"
    line = house.gateway.line_of(request_id)
    assert len(line["attempts"]) == 2
    assert line["output_tokens"] == message.usage.output_tokens


@pytest.mark.parametrize("model", ["vllm-only", "gemini"])
def test_a_stream_that_cannot_go_on_ends_with_an_error(house: House, model: str) -> None:
    """Which the SDK raises; never an answer that looks whole."""
    fake = house.vllm if model == "vllm-only" else house.gemini
    fake.next("cut:4")
    client = house.client()
    with (
        pytest.raises(anthropic.APIStatusError) as raised,
        client.messages.stream(model=model, max_tokens=200, messages=[{"role": "user", "content": "Hello"}]) as stream,
    ):
        stream.get_final_message()
    body: Any = raised.value.body
    assert body["type"] == "error"
    assert body["error"]["code"] == "stream_interrupted"


def test_what_chat_cannot_say_goes_where_it_can(house: House) -> None:
    """Anthropic's own tools pass over the candidate that has no such thing; alone it is refused, with the field."""
    tool = {"type": "bash_20250124", "name": "bash"}
    asked: dict[str, Any] = {"max_tokens": 20, "messages": [user("Hello")], "tools": [tool]}
    with pytest.raises(anthropic.BadRequestError) as raised:
        house.client().messages.create(model="vllm-only", **asked)
    body: Any = raised.value.body
    assert body["error"]["param"] == "tools[0]"
    before = len(house.native.log)
    with pytest.raises(anthropic.BadRequestError):  # the fake does not know the tool either, and says so itself
        house.client().messages.create(model="vllm-first", **asked)
    assert len(house.native.log) == before + 1


@pytest.mark.parametrize("backend", ["native", "zai"])
def test_tokens_are_counted_by_who_can(house: House, backend: str) -> None:
    """The backend's own count, for its own model."""
    fake = house.native if backend == "native" else house.zai
    counted = house.client().messages.count_tokens(model=backend, messages=[{"role": "user", "content": "Hello"}])
    assert counted.input_tokens == 21
    assert fake.log[-1].path.endswith("/v1/messages/count_tokens")
    assert fake.log[-1].json["model"] == fake.model


@pytest.mark.parametrize("words", [10, 20_000])
def test_tokens_are_estimated_for_the_others(house: House, words: int) -> None:
    """About as many as there are, without asking anybody."""
    before = len(house.vllm.log)
    text = "word " * words
    counted = house.client().messages.count_tokens(model="vllm", messages=[{"role": "user", "content": text}])
    assert words <= counted.input_tokens <= words * 1.5 + 20
    assert len(house.vllm.log) == before


def test_counting_is_authorised_and_costs_nothing(house: House) -> None:
    """It needs a key that may use the model, and leaves no usage."""
    with pytest.raises(anthropic.PermissionDeniedError):
        house.client("sk-few").messages.count_tokens(model="native", messages=[{"role": "user", "content": "a"}])
    raw = house.client("sk-poor").messages.with_raw_response.count_tokens(
        model="vllm", messages=[{"role": "user", "content": "a"}]
    )
    line = house.gateway.line_of(raw.headers["x-request-id"])
    assert not line.get("output_tokens")
    assert not line.get("cost_usd")


def test_a_budget_lowers_the_output(house: House) -> None:
    """Of a request in Anthropic's format too, under its own name for the limit."""
    raw = house.client("sk-thrifty").messages.with_raw_response.create(
        model="native", max_tokens=4000, messages=[{"role": "user", "content": "Hello"}]
    )
    assert raw.headers["x-gateway-clamped"] == "true"
    assert 16 <= house.native.log[-1].json["max_tokens"] < 200


def test_the_client_leaving_closes_the_backend(house: House) -> None:
    """As it does for chat: the backend is told soon after."""
    before = len(house.faults.log)
    with house.client().messages.stream(
        model="fault:slow:gap=0.05,tokens=1000", max_tokens=2000, messages=[{"role": "user", "content": "Hello"}]
    ) as stream:
        next(iter(stream.text_stream))
    left = time.monotonic()
    seen = house.faults.log[before]
    house.faults.wait(lambda: seen.closed_at is not None)
    assert seen.closed_at is not None
    assert seen.closed_at - left < 0.5
    assert seen.finished_at is None
