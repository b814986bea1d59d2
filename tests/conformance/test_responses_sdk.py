"""OpenAI's own SDK against the gateway's `/v1/responses`: at backends that have it, and at others, from chat."""

import base64
import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from tests.faults import FaultUpstream
from tests.providers.anthropic import Anthropic
from tests.providers.responses import OpenAIResponses
from tests.providers.said import ARGUMENTS, CACHED, SCHEMA_ANSWER, Asked, say, sentence
from tests.providers.server import running
from tests.providers.vllm import VLLM
from tests.support import Served, key_policy, serve

KEY = "sk-all"
PRICE = {"input": 1, "output": 10, "cached_input": 0.5}  # dollars per million tokens
PIXELS = bytes(range(256)) * 10
PICTURE = f"data:image/png;base64,{base64.b64encode(PIXELS).decode()}"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "name": "get_weather", "description": "The weather", "parameters": SCHEMA, "strict": False}
WANTED = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "number"}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}
LONG = " ".join(f"word{n}" for n in range(30))
BACKENDS = ("native", "vllm", "anthropic")


@dataclass(frozen=True)
class Case:
    """A request, and the answer that every backend gives to it."""

    asked: Mapping[str, Any]
    text: str = ""
    calls: Sequence[Mapping[str, Any]] = ()
    status: str = "completed"


CASES: Mapping[str, Case] = {
    "plain": Case({"input": "Hello"}, sentence(Asked("Hello"))),
    "instructions": Case({"input": "Hello", "instructions": "Be brief."}, sentence(Asked("Hello", system="Be brief."))),
    "turns": Case(
        {
            "input": [
                {"role": "user", "content": "One"},
                {"role": "assistant", "content": "Two"},
                {"role": "user", "content": [{"type": "input_text", "text": "Three"}]},
            ]
        },
        sentence(Asked("Three")),
    ),
    "image": Case(
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "What is this?"},
                        {"type": "input_image", "image_url": PICTURE, "detail": "auto"},
                    ],
                }
            ]
        },
        sentence(Asked("What is this?", images=[f"image/png:{len(PIXELS)}"])),
    ),
    "tool": Case({"input": "Weather?", "tools": [TOOL]}, calls=ARGUMENTS[:1]),
    "tools": Case({"input": "Weather of both?", "tools": [TOOL], "tool_choice": "auto"}, calls=ARGUMENTS),
    "result": Case(
        {
            "input": [
                {"role": "user", "content": "Weather?"},
                {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city":"Bern"}'},
                {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
            ],
            "tools": [TOOL],
        },
        sentence(Asked("Weather?", results=["sunny"])),
    ),
    "limit": Case({"input": LONG, "max_output_tokens": 16}, say(Asked(LONG, limit=16)).text, status="incomplete"),
    "cached": Case({"input": "Hello cached"}, sentence(Asked("Hello cached"))),
    "schema": Case(
        {"input": "JSON?", "text": {"format": {"type": "json_schema", "name": "a", "schema": WANTED, "strict": True}}},
        SCHEMA_ANSWER,
    ),
}


@dataclass(frozen=True)
class House:
    """The gateway, and who stands behind it."""

    gateway: Served
    native: OpenAIResponses
    other: OpenAIResponses
    vllm: VLLM
    anthropic: Anthropic
    faults: FaultUpstream
    clients: dict[str, openai.OpenAI]

    def client(self, key: str = KEY) -> openai.OpenAI:
        """The synchronous SDK with this key."""
        if key not in self.clients:
            self.clients[key] = openai.OpenAI(base_url=self.gateway.base_url, api_key=key, max_retries=0)
        return self.clients[key]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    native, other, vllm, anthropic = OpenAIResponses("a"), OpenAIResponses("b"), VLLM(), Anthropic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(native, other, vllm, anthropic))
        faults = stack.enter_context(FaultUpstream.in_thread())
        size = {"price": PRICE, "context": 100_000, "max_output": 4000}
        has = {"options": {"responses": "true"}, "api_keys": list(native.keys)}
        policies = {
            "defaults": {
                "timeouts": {"first_token": "10s", "idle": "10s"},
                "retry": {"attempts": 0},
                "breaker": {"failures": 1000},
            },
            "backends": {
                "native": {"base_url": f"{native.origin}/v1", **has},
                "other": {"base_url": f"{other.origin}/v1", **has},
                "vllm": {"base_url": f"{vllm.origin}/v1", "api_keys": [vllm.key]},
                "anthropic": {"provider": "anthropic", "base_url": anthropic.origin, "api_keys": [anthropic.key]},
                "faults": {"base_url": faults.url, "passthrough": ["fault:*"]},
            },
            "models": {
                "native": {"backend": "native", "model": native.model, **size},
                "other": {"backend": "other", "model": other.model, **size},
                "vllm": {"backend": "vllm", "model": vllm.model, "prefill": True, **size},
                "anthropic": {"backend": "anthropic", "model": anthropic.model, "prefill": True, **size},
                "gone": {"backend": "native", "model": "gpt-gone", **size},
            },
            "aliases": {
                "two": ["native", "other"],
                "native-first": ["native", "vllm"],
                "vllm-first": ["vllm", "native"],
                "vllm-anthropic": ["vllm", "anthropic"],
                "native-only": ["native"],
            },
            "keys": {
                "all": key_policy(KEY),
                "bob": key_policy("sk-bob"),
                "few": key_policy("sk-few", allow=["vllm"]),
                "poor": key_policy("sk-poor", limits=[{"usd": 0.000001, "per": "total"}]),
                "thrifty": key_policy("sk-thrifty", limits=[{"usd": 0.002, "per": "total"}]),
                "rich": key_policy("sk-rich", limits=[{"usd": 5, "per": "total"}, {"tokens": 10**6, "per": "day"}]),
            },
        }
        with serve(tmp_path_factory.mktemp("responses"), policies) as gateway:
            found = House(gateway, native, other, vllm, anthropic, faults, {})
            yield found
            for client in found.clients.values():
                client.close()


def collected(events: Sequence[Any]) -> Response:
    """What a plain stream of events comes to, numbered without a gap."""
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last: Response = events[-1].response
    assert last.output_text == text
    return last


def ask(house: House, model: str, fields: Mapping[str, Any], how: str) -> Response:
    """The response, whichever way the SDK gets it."""
    asked: dict[str, Any] = {"model": model, **fields}
    if how == "sync":
        made: Response = house.client().responses.create(**asked)
        return made
    if how == "events":
        return collected(list(house.client().responses.create(**asked, stream=True)))
    last = None
    with house.client().responses.stream(**asked) as stream:
        for event in stream:
            last = event
    assert last is not None
    found: Response = getattr(last, "response")  # noqa: B009 - of a union, only the last event has it
    return found


async def ask_async(house: House, model: str, fields: Mapping[str, Any], how: str) -> Response:
    asked: dict[str, Any] = {"model": model, **fields}
    async with openai.AsyncOpenAI(base_url=house.gateway.base_url, api_key=KEY, max_retries=0) as client:
        if how == "async":
            made: Response = await client.responses.create(**asked)
            return made
        return collected([event async for event in await client.responses.create(**asked, stream=True)])


@pytest.mark.parametrize("how", ["sync", "events", "stream", "async", "async events"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
async def test_the_same_answer_everywhere(house: House, backend: str, name: str, how: str) -> None:
    """Text, calls and the status do not depend on what the backend speaks."""
    case = CASES[name]
    if how.startswith("async"):
        response = await ask_async(house, backend, case.asked, how)
    else:
        response = ask(house, backend, case.asked, how)
    assert response.output_text == case.text
    calls = [item for item in response.output if item.type == "function_call"]
    assert [json.loads(call.arguments) for call in calls] == list(case.calls)
    assert all(call.name == "get_weather" and call.call_id for call in calls)
    assert response.status == case.status
    if case.status == "incomplete":
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"
    assert response.object == "response"
    assert response.id.startswith("resp_")
    assert response.usage is not None
    assert response.usage.output_tokens > 0
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.usage.input_tokens_details.cached_tokens == (CACHED if name == "cached" else 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_metered_like_chat(house: House, backend: str, stream: bool) -> None:
    """The record has the tokens that the client saw, and what they cost."""
    asked: dict[str, Any] = {"model": backend, "input": "Hello cached", "stream": stream}
    raw: Any = house.client("sk-rich").responses.with_raw_response.create(**asked)
    assert float(raw.headers["x-gateway-budget-remaining-usd"]) < 5
    assert int(raw.headers["x-ratelimit-remaining-tokens"]) < 10**6
    response = list(raw.parse())[-1].response if stream else raw.parse()
    line = house.gateway.line_of(raw.headers["x-request-id"])
    assert line["input_tokens"] == response.usage.input_tokens
    assert line["output_tokens"] == response.usage.output_tokens
    assert line["cached_tokens"] == CACHED
    assert line["cost_usd"] > 0
    if not stream:
        assert float(raw.headers["x-gateway-cost-usd"]) == pytest.approx(line["cost_usd"], abs=2e-9)


def test_bytes_pass_through_to_who_has_it(house: House) -> None:
    """All but the model stays as it came, both ways, streamed or not."""
    for stream in (b"false", b"true"):
        raw = b'{ "model":"native" ,"metadata":{"a":"\\u00e9"}, "input":"a","stream": ' + stream + b"}"
        reply = house.gateway.request("POST", "/v1/responses", raw, key=KEY)
        got = house.native.log[-1]
        assert got.body == raw.replace(b'"native"', f'"{house.native.model}"'.encode())
        (response_id,) = list(house.native.kept)[-1:]
        assert response_id.encode() in reply.body
        assert reply.status == 200


@pytest.mark.parametrize("alias", ["native-only", "two", "vllm-first"])
def test_what_goes_on_goes_where_it_was(house: House, alias: str) -> None:
    """Under the very api key that made it, at once, however often; also when another candidate stands first."""
    first = ask(house, "native", {"input": "First"}, "sync")
    before = len(house.native.log)
    for turn in range(4):
        response = ask(house, alias, {"input": f"Turn {turn}", "previous_response_id": first.id}, "sync")
        assert first.output_text in response.output_text
        assert response.previous_response_id == first.id
    assert len(house.native.log) == before + 4


def test_what_goes_on_may_be_streamed(house: House) -> None:
    """A response that was streamed is gone on with like any other, as a stream too."""
    first = ask(house, "native", {"input": "First"}, "events")
    second = ask(house, "two", {"input": "Second", "previous_response_id": first.id}, "events")
    assert first.output_text in second.output_text


@pytest.mark.parametrize("place", ["first key", "second key", "second backend"])
def test_what_another_worker_made_is_found(house: House, place: str) -> None:
    """Every candidate is asked, with each of its keys, until one knows it."""
    fake = house.other if place == "second backend" else house.native
    key = fake.keys[1 if place == "second key" else 0]
    made = json.loads(json.dumps(next(iter(house.native.kept.values()), ("", {"output": []}))[1]))
    made["output"] = [{"type": "message", "content": [{"type": "output_text", "text": "Long ago"}]}]
    made_id = f"resp_elsewhere_{place.replace(' ', '_')}"
    fake.kept[made_id] = key, {**made, "id": made_id}
    response = ask(house, "two", {"input": "And?", "previous_response_id": made_id}, "sync")
    assert "Long ago" in response.output_text
    again = house.client().responses.retrieve(made_id)
    assert again.id == made_id


def test_what_nobody_knows_is_refused(house: House) -> None:
    """With the backend's own words."""
    with pytest.raises(openai.BadRequestError) as raised:
        ask(house, "two", {"input": "And?", "previous_response_id": "resp_nowhere"}, "sync")
    assert raised.value.code == "previous_response_not_found"
    with pytest.raises(openai.NotFoundError):
        house.client().responses.retrieve("resp_nowhere")


def test_one_keys_responses_are_not_anothers(house: House) -> None:
    """Neither to go on from, nor to read, nor to delete."""
    mine = ask(house, "native", {"input": "Secret"}, "sync")
    bob = house.client("sk-bob")
    with pytest.raises(openai.BadRequestError) as raised:
        bob.responses.create(model="native", input="And?", previous_response_id=mine.id)
    assert raised.value.code == "previous_response_not_found"
    with pytest.raises(openai.NotFoundError):
        bob.responses.retrieve(mine.id)
    with pytest.raises(openai.NotFoundError):
        bob.responses.delete(mine.id)
    assert mine.id in house.native.kept


def test_a_kept_response_can_be_read_and_deleted(house: House) -> None:
    """Where it is kept, with its own answers."""
    client = house.client()
    made = ask(house, "native", {"input": "Keep this"}, "sync")
    assert client.responses.retrieve(made.id).output_text == made.output_text
    assert list(client.responses.input_items.list(made.id)) == []
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        client.responses.cancel(made.id)
    client.responses.delete(made.id)
    assert made.id not in house.native.kept
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/v1/responses/resp_1", 405),
        ("POST", "/v1/responses/resp_1", 405),
        ("GET", "/v1/responses/resp_1/cancel", 405),
        ("GET", "/v1/responses/..%2fmodels", 404),
        ("GET", "/v1/responses/resp_1/other", 404),
        ("GET", "/v1/responses", 405),
    ],
)
def test_only_these_ways_lead_somewhere(house: House, method: str, path: str, status: int) -> None:
    """No path of the client's choosing reaches a backend."""
    before = len(house.native.log)
    reply = house.gateway.request(method, path, key=KEY)
    assert reply.status == status
    assert reply.error["message"]
    assert len(house.native.log) == before


def test_who_may_not_use_the_model_cannot_read_its_responses(house: House) -> None:
    """A key without a model at that backend finds nothing there."""
    made = ask(house, "native", {"input": "Keep this"}, "sync")
    house_other = house.client("sk-few")
    with pytest.raises(openai.NotFoundError):
        house_other.responses.retrieve(made.id)


@pytest.mark.parametrize(
    ("key", "fields", "kind", "code"),
    [
        (KEY, {"max_output_tokens": 0}, openai.BadRequestError, "invalid_value"),
        (KEY, {"background": True}, openai.BadRequestError, "invalid_value"),
        ("sk-unknown", {}, openai.AuthenticationError, "invalid_api_key"),
        ("sk-few", {}, openai.PermissionDeniedError, "model_not_allowed"),
        (KEY, {"model": "nothing"}, openai.NotFoundError, "model_not_found"),
        (KEY, {"model": "gone"}, openai.NotFoundError, "model_not_found"),
        ("sk-poor", {}, openai.RateLimitError, "budget_exceeded"),
        (KEY, {"model": "vllm", "previous_response_id": "resp_1"}, openai.BadRequestError, "invalid_value"),
        (KEY, {"model": "vllm", "tools": [{"type": "web_search"}]}, openai.BadRequestError, "invalid_value"),
    ],
)
def test_errors_are_what_the_sdk_raises(
    house: House, key: str, fields: Mapping[str, Any], kind: type[openai.APIStatusError], code: str
) -> None:
    """Each with the class of its status and its code."""
    asked: dict[str, Any] = {"model": "native", "input": "Hello", **fields}
    with pytest.raises(kind) as raised:
        house.client(key).responses.create(**asked)
    assert raised.value.code == code
    assert raised.value.request_id


def test_a_tool_that_a_backend_runs_goes_where_it_can(house: House) -> None:
    """The first candidate has no such thing, the second has."""
    before = len(house.native.log)
    response = ask(
        house, "vllm-first", {"input": "Hello", "tools": [{"type": "web_search"}], "tool_choice": "none"}, "sync"
    )
    assert response.output_text == sentence(Asked("Hello"))
    assert len(house.native.log) == before + 1


@pytest.mark.parametrize("how", ["sync", "events"])
@pytest.mark.parametrize("mood", ["rate_limited", "broken"])
def test_a_chain_over_formats_is_one_format(house: House, mood: str, how: str) -> None:
    """The first fails, the second speaks chat; the client cannot tell."""
    house.native.next(mood, mood)
    response = ask(house, "native-first", CASES["tool"].asked, how)
    house.native._moods.clear()
    assert [item.type for item in response.output] == ["function_call"]


def test_a_failed_response_is_tried_elsewhere(house: House) -> None:
    """It failed before its first item, so nobody has seen anything of it."""
    house.native.next("failed")
    response = ask(house, "native-first", {"input": "Hello"}, "stream")
    assert response.output_text == sentence(Asked("Hello"))


@pytest.mark.parametrize("mood", ["cut:7", "error:7"])
@pytest.mark.parametrize("alias", ["native-first", "vllm-anthropic"])
@pytest.mark.parametrize("how", ["events", "stream"])
def test_a_cut_stream_goes_on_in_one_format(house: House, alias: str, mood: str, how: str) -> None:
    """One response from two backends: one head, one item, numbers without a gap, nothing twice."""
    first = house.native if alias == "native-first" else house.vllm
    first.next(mood)
    response = ask(house, alias, {"input": "Hello"}, how)
    assert first.idle
    assert [item.type for item in response.output] == ["message"]
    assert response.output_text == sentence(Asked("Hello"))
    assert response.status == "completed"


def test_a_stream_that_cannot_go_on_ends_with_an_error(house: House) -> None:
    """Which the SDK raises; never an answer that looks whole."""
    house.native.next("cut:7")
    seen = []
    with pytest.raises(openai.APIError) as raised:
        seen += [
            event.type for event in house.client().responses.create(model="native-only", input="Hello", stream=True)
        ]
    assert "response.completed" not in seen
    body: Any = raised.value.body
    assert body["code"] == "stream_interrupted"


def test_a_budget_lowers_the_output(house: House) -> None:
    """Under its own name for the limit."""
    raw = house.client("sk-thrifty").responses.with_raw_response.create(
        model="native", max_output_tokens=4000, input="Hello"
    )
    assert raw.headers["x-gateway-clamped"] == "true"
    assert 16 <= house.native.log[-1].json["max_output_tokens"] < 200


def test_the_client_leaving_closes_the_backend(house: House) -> None:
    """As it does for chat: the backend is told soon after."""
    before = len(house.faults.log)
    stream = house.client().responses.create(model="fault:slow:gap=0.05,tokens=1000", input="Hello", stream=True)
    for event in stream:
        if event.type == "response.output_text.delta":
            break
    stream.close()
    left = time.monotonic()
    seen = house.faults.log[before]
    house.faults.wait(lambda: seen.closed_at is not None)
    assert seen.closed_at is not None
    assert seen.closed_at - left < 0.5
    assert seen.finished_at is None
