"""The real OpenAI SDK gets the same from every provider through the gateway, in OpenAI's words, however it asks."""

import asyncio
import base64
import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import openai
import pytest

from tests.providers.gateway import BACKENDS, KEY, PRICE, Street, street
from tests.providers.heard import Heard, heard
from tests.providers.said import ARGUMENTS, SCHEMA_ANSWER, Asked, Said, Tool, say

PNG = bytes.fromhex("89504e470d0a1a0a") + bytes(range(256))
PICTURE = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
SYSTEM = {"role": "system", "content": "Be brief."}
HELLO = {"role": "user", "content": "Hello"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Its name"}, "at": {"type": "number"}},
    "required": ["city"],
}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": PARAMETERS}}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "weather",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "degrees": {"type": "number"}},
            "required": ["city", "degrees"],
            "additionalProperties": False,
        },
    },
}
CALL = {"id": "call_abc", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Zürich"}'}}
RESULTS = [
    HELLO,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_abc", "content": "12 degrees"},
]
_TOOLS = (Tool("get_weather", PARAMETERS["properties"]),)  # type: ignore[arg-type]
# What is sent, and how a provider that understood all of it would have it.
CASES: Mapping[str, tuple[Mapping[str, Any], Asked]] = {
    "plain": ({"messages": [HELLO]}, Asked("Hello")),
    "system": (
        {"messages": [SYSTEM, {"role": "user", "content": "Hello cached"}], "temperature": 0.5},
        Asked("Hello cached", system="Be brief."),
    ),
    "turns": (
        {"messages": [HELLO, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Again"}]},
        Asked("Again"),
    ),
    "length": ({"messages": [HELLO], "max_tokens": 3}, Asked("Hello", limit=3)),
    "stop": ({"messages": [HELLO], "stop": ["世界"]}, Asked("Hello", stop=("世界",))),
    "tool": ({"messages": [HELLO], "tools": [TOOL]}, Asked("Hello", tools=_TOOLS)),
    "two_calls": ({"messages": [{"role": "user", "content": "both"}], "tools": [TOOL]}, Asked("both", tools=_TOOLS)),
    "tool_results": (
        {"messages": RESULTS, "tools": [TOOL]},
        Asked("Hello", tools=_TOOLS, results=("12 degrees",)),
    ),
    "image": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What?"},
                        {"type": "image_url", "image_url": {"url": PICTURE}},
                    ],
                }
            ]
        },
        Asked("What?", images=(f"image/png:{len(PNG)}",)),
    ),
    "json_schema": ({"messages": [HELLO], "response_format": SCHEMA}, Asked("Hello", wants_json=True)),
}
MODES: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "streamed": {"stream": True},
    "with_usage": {"stream": True, "stream_options": {"include_usage": True}},
}
# What the providers themselves cannot do; the client is told so.
UNABLE = {("deepseek", "image"), ("deepseek", "json_schema")}
UNABLE_STREAMED = ("groq", "json_schema")  # unless translated: then it comes whole and is told as a stream
UNCOUNTED = ("lmstudio", "ollama")  # these say nothing of what was cached


Asynchronous = tuple[asyncio.Runner, openai.AsyncOpenAI]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    """The gateway and everyone behind it."""
    with street(tmp_path_factory.mktemp("providers")) as found:
        yield found


@pytest.fixture(scope="module")
def client(town: Street) -> Iterator[openai.OpenAI]:
    """The SDK, pointed at the gateway."""
    with openai.OpenAI(base_url=town.gateway.base_url, api_key=KEY, max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def asynchronous(town: Street) -> Iterator[Asynchronous]:
    """The asynchronous SDK, and the loop that it lives in."""
    with asyncio.Runner() as runner:
        found = openai.AsyncOpenAI(base_url=town.gateway.base_url, api_key=KEY, max_retries=0)
        yield runner, found
        runner.run(found.close())


def ask(client: openai.OpenAI, **request: Any) -> Heard:
    """One request by the synchronous SDK."""
    raw = client.chat.completions.with_raw_response.create(**request)
    found: Any = raw.parse()
    return heard(list(found) if request.get("stream") else found, raw.headers)


def ask_async(asynchronous: Asynchronous, **request: Any) -> Heard:
    """The same by the asynchronous one."""
    runner, client = asynchronous

    async def go() -> Heard:
        raw = await client.chat.completions.with_raw_response.create(**request)
        found: Any = raw.parse()
        return heard([each async for each in found] if request.get("stream") else found, raw.headers)

    return runner.run(go())


def expected_usage(backend: str, said: Said) -> Mapping[str, int]:
    """The tokens that the client must be shown: cached ones are a part of the prompt's."""
    fake = BACKENDS[backend][0]
    cached = 0 if fake in UNCOUNTED else said.cached
    return {"prompt": said.input_tokens, "completion": said.output_tokens, "cached": cached}


def expected_cost(backend: str, said: Said) -> Decimal:
    """US dollars by `PRICE`. Only Anthropic's format tells what was written to the cache."""
    cached = expected_usage(backend, said)["cached"]
    written = said.written if BACKENDS[backend][0] in ("anthropic", "bedrock", "zai") else 0
    fresh = said.input_tokens - cached - written
    parts = (("input", fresh), ("cached_input", cached), ("cache_write", written), ("output", said.output_tokens))
    return sum((Decimal(str(PRICE[name])) * count for name, count in parts), Decimal()) / 1_000_000


def check(backend: str, case: str, got: Heard, *, stream: bool, counted: bool) -> None:
    """It is OpenAI's, and it says that all of the request was understood."""
    said = say(CASES[case][1])
    assert got.objects == {"chat.completion.chunk" if stream else "chat.completion"}
    if case == "json_schema":  # some write JSON through a tool, with the spaces of their own
        assert json.loads(got.text) == json.loads(SCHEMA_ANSWER)
        assert (got.calls, got.finish) == ([], "stop")
        return
    assert got.text == said.text
    assert got.calls == [("get_weather", each.arguments) for each in said.calls]
    assert got.finish == ("stop" if said.ending == "stop_sequence" else said.ending)
    if not counted:
        assert got.usage is None
        return
    assert got.usage is not None
    details = got.usage.get("prompt_tokens_details") or {}
    found = {"prompt": got.usage["prompt_tokens"], "completion": got.usage["completion_tokens"]}
    assert {**found, "cached": details.get("cached_tokens") or 0} == expected_usage(backend, said)
    assert got.usage["total_tokens"] == said.input_tokens + said.output_tokens
    if not stream:
        assert Decimal(got.headers["x-gateway-cost-usd"]) == expected_cost(backend, said)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_provider_answers_as_openai(
    client: openai.OpenAI, asynchronous: Asynchronous, backend: str, case: str, mode: str
) -> None:
    """Text, calls, finish_reason, usage and cost are right, synchronous and asynchronous, whole and streamed."""
    request: dict[str, Any] = {"model": backend, **CASES[case][0], **MODES[mode]}
    stream = mode != "plain"
    name = BACKENDS[backend][0]
    if (name, case) in UNABLE or (stream and (backend, case) == UNABLE_STREAMED):
        with pytest.raises((openai.BadRequestError, openai.UnprocessableEntityError)) as raised:
            ask(client, **request)
        assert raised.value.body
        return
    for got in (ask(client, **request), ask_async(asynchronous, **request)):
        check(backend, case, got, stream=stream, counted=mode != "streamed")
        assert got.headers["x-gateway-backend"] == backend


def test_the_cases_are_what_they_claim() -> None:
    """Two calls are two, and what is limited is cut short."""
    assert [each.arguments for each in say(CASES["two_calls"][1]).calls] == list(ARGUMENTS)
    assert say(CASES["length"][1]).ending == "length"
    assert say(CASES["stop"][1]).ending == "stop_sequence"
