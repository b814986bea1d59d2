"""Anthropic's own SDK gets the same from every provider through the gateway, in Anthropic's words."""

import asyncio
import base64
from collections.abc import Iterator, Mapping
from typing import Any

import anthropic
import pytest
from anthropic.types import Message

from tests.providers.gateway import BACKENDS, KEY, Street, street
from tests.providers.said import Asked, Tool, say

PNG = bytes.fromhex("89504e470d0a1a0a") + bytes(range(256))
HELLO: Any = {"role": "user", "content": "Hello"}
SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}, "at": {"type": "number"}}}
TOOL: Any = {"name": "get_weather", "description": "Weather", "input_schema": SCHEMA}
RESULTS: Any = [
    HELLO,
    {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_a", "name": "get_weather", "input": {"city": "a"}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_a", "content": "12 degrees"}]},
]  # fmt: skip
PICTURE: Any = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()},
}
_TOOLS = (Tool("get_weather", SCHEMA["properties"]),)
CASES: Mapping[str, tuple[Mapping[str, Any], Asked]] = {
    "system": (
        {"system": "Be brief.", "messages": [{"role": "user", "content": "Hello cached"}]},
        Asked("Hello cached", system="Be brief."),
    ),
    "length": ({"messages": [HELLO], "max_tokens": 3}, Asked("Hello", limit=3)),
    "stop": ({"messages": [HELLO], "stop_sequences": ["世界"]}, Asked("Hello", stop=("世界",))),
    "tools": ({"messages": [{"role": "user", "content": "both"}], "tools": [TOOL]}, Asked("both", tools=_TOOLS)),
    "tool_results": ({"messages": RESULTS, "tools": [TOOL]}, Asked("Hello", tools=_TOOLS, results=("12 degrees",))),
    "image": (
        {"messages": [{"role": "user", "content": [PICTURE, {"type": "text", "text": "What?"}]}]},
        Asked("What?", images=(f"image/png:{len(PNG)}",)),
    ),
}
UNABLE = ("deepseek", "image")
UNCOUNTED = ("lmstudio", "ollama")
_ENDINGS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
Asynchronous = tuple[asyncio.Runner, anthropic.AsyncAnthropic]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    """The gateway and everyone behind it."""
    with street(tmp_path_factory.mktemp("messages"), "busy") as found:
        yield found


@pytest.fixture(scope="module")
def client(town: Street) -> Iterator[anthropic.Anthropic]:
    """The SDK, pointed at the gateway."""
    with anthropic.Anthropic(base_url=town.gateway.url, api_key=KEY, max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def asynchronous(town: Street) -> Iterator[Asynchronous]:
    """The asynchronous SDK, and the loop that it lives in."""
    with asyncio.Runner() as runner:
        found = anthropic.AsyncAnthropic(base_url=town.gateway.url, api_key=KEY, max_retries=0)
        yield runner, found
        runner.run(found.close())


async def both_ways(client: anthropic.AsyncAnthropic, request: Any) -> tuple[Message, Message]:
    """The answer whole, and the same as a stream put together."""
    whole = await client.messages.create(**request)
    async with client.messages.stream(**request) as stream:
        return whole, await stream.get_final_message()


def check(backend: str, case: str, got: Message) -> None:
    """It is Anthropic's, and it says that all of the request was understood."""
    said = say(CASES[case][1])
    assert (got.type, got.role) == ("message", "assistant")
    assert "".join(block.text for block in got.content if block.type == "text") == said.text
    calls = [block for block in got.content if block.type == "tool_use"]
    assert [(call.name, call.input) for call in calls] == [("get_weather", each.arguments) for each in said.calls]
    assert len({call.id for call in calls}) == len(calls)
    if case == "stop":  # only Anthropic's own formats tell which sequence it was
        assert got.stop_reason in ("end_turn", "stop_sequence")
    else:
        assert got.stop_reason == _ENDINGS[said.ending]
    cached = 0 if BACKENDS[backend][0] in UNCOUNTED else said.cached
    written = got.usage.cache_creation_input_tokens or 0
    assert (got.usage.cache_read_input_tokens or 0) == cached
    assert got.usage.input_tokens + cached + written == said.input_tokens
    assert got.usage.output_tokens == said.output_tokens


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_provider_answers_as_anthropic(
    client: anthropic.Anthropic, asynchronous: Asynchronous, backend: str, case: str
) -> None:
    """Text, calls, stop_reason and usage are right, synchronous and asynchronous, whole and streamed."""
    request: Any = {"model": backend, "max_tokens": 400, **CASES[case][0]}
    if (BACKENDS[backend][0], case) == UNABLE:
        with pytest.raises(anthropic.APIStatusError) as raised:
            client.messages.create(**request)
        assert raised.value.status_code in (400, 422)
        return
    runner, async_client = asynchronous
    for got in (client.messages.create(**request), *runner.run(both_ways(async_client, request))):
        check(backend, case, got)
    with client.messages.stream(**request) as stream:
        check(backend, case, stream.get_final_message())


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_are_counted_everywhere(client: anthropic.Anthropic, backend: str) -> None:
    """By the provider where it can count, else by the gateway."""
    found = client.messages.count_tokens(model=backend, messages=[HELLO], system="Be brief.")
    assert found.input_tokens > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_next_provider_answers_in_the_same_format(town: Street, client: anthropic.Anthropic, backend: str) -> None:
    """A chain from one format to another is one format to the client."""
    town.fake(backend).next("overloaded")
    got = client.messages.create(model=f"busy_chain_{backend}", max_tokens=400, messages=[HELLO])
    assert town.fake(backend).idle
    assert [block.text for block in got.content if block.type == "text"] == [say(Asked("Hello")).text]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cut_stream_goes_on_in_the_same_format(town: Street, client: anthropic.Anthropic, backend: str) -> None:
    """What another provider continues is still one message."""
    town.fake(backend).next("cut:6")
    with client.messages.stream(model=f"busy_chain_{backend}", max_tokens=400, messages=[HELLO]) as stream:
        got = stream.get_final_message()
    assert town.fake(backend).idle
    assert "".join(block.text for block in got.content if block.type == "text") == say(Asked("Hello")).text
    assert got.stop_reason == "end_turn"
