"""The fake providers satisfy their own SDKs, so that what the gateway is tested against has the shape of the real thing."""

import asyncio
import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import anthropic
import openai
import pytest

from tests.providers.bedrock import REGION, Bedrock
from tests.providers.everyone import everyone
from tests.providers.said import ARGUMENTS
from tests.providers.server import Fake

boto3 = pytest.importorskip("boto3")  # of litellm; it has no types
botocore = pytest.importorskip("botocore")
ANSWER = "Grüße! You said: Hello cached — under: Be brief.. 世界 👩‍👩‍👧 end."
TOOL: Any = {
    "name": "get_weather",
    "description": "The weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def fakes() -> Iterator[Mapping[str, Fake]]:
    """All of them."""
    with everyone() as found:
        yield found


@pytest.mark.parametrize("name", ["anthropic", "zai"])
def test_anthropic_sdk(fakes: Mapping[str, Fake], name: str) -> None:
    """Whole, streamed, with tools, counted, and refused."""
    fake: Any = fakes[name]
    with anthropic.Anthropic(base_url=fake.origin + fake.prefix, api_key=fake.key, max_retries=0) as client:
        asked: Any = {
            "model": fake.model,
            "system": "Be brief.",
            "messages": [{"role": "user", "content": "Hello cached"}],
        }
        whole = client.messages.create(max_tokens=50, **asked)
        assert [block.type for block in whole.content] == ["text"]
        assert getattr(whole.content[0], "text", None) == ANSWER
        assert (whole.usage.input_tokens, whole.usage.cache_read_input_tokens) == (24, 16)
        with client.messages.stream(max_tokens=50, **asked) as stream:
            assert stream.get_final_text() == ANSWER
            assert stream.get_final_message().usage.output_tokens == whole.usage.output_tokens
        with client.messages.stream(max_tokens=50, tools=[TOOL], **asked) as stream:
            called = stream.get_final_message()
        assert (called.stop_reason, getattr(called.content[0], "input", None)) == ("tool_use", ARGUMENTS[0])
        assert client.messages.count_tokens(**asked).input_tokens == 44
        fake.next("rate_limited")
        with pytest.raises(anthropic.RateLimitError):
            client.messages.create(max_tokens=50, **asked)


async def test_anthropic_sdk_async(fakes: Mapping[str, Fake]) -> None:
    """The asynchronous client gets the same, and an error inside of a stream is raised."""
    fake = fakes["anthropic"]
    async with anthropic.AsyncAnthropic(base_url=fake.origin, api_key=fake.key, max_retries=0) as client:
        asked: Any = {
            "model": "claude-haiku-4-5",
            "max_tokens": 50,
            "messages": [{"role": "user", "content": "Hello"}],
        }
        async with client.messages.stream(**asked) as stream:
            assert (await stream.get_final_text()).startswith("Grüße! You said: Hello.")
        fake.next("error:4")
        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            async with client.messages.stream(**asked) as stream:
                await asyncio.wait_for(stream.get_final_text(), 20)


@contextlib.contextmanager
def bedrock_client(fake: Fake, secret: str = Bedrock.secret) -> Iterator[Any]:
    """Amazon's own client."""
    client = boto3.client(
        "bedrock-runtime",
        endpoint_url=fake.origin,
        region_name=REGION,
        aws_access_key_id=fake.key,
        aws_secret_access_key=secret,
        config=botocore.config.Config(retries={"total_max_attempts": 1}),
    )
    with contextlib.closing(client):
        yield client


def events_of(stream: Any) -> list[Any]:
    """All events of one of its streams, which is closed whatever they are."""
    with contextlib.closing(stream):
        return list(stream)


def test_bedrock_client(fakes: Mapping[str, Fake]) -> None:
    """Both operations, whole and streamed, over Amazon's own parser and signature."""
    with bedrock_client(fakes["bedrock"]) as client:
        asked = {
            "modelId": Bedrock.model,
            "messages": [{"role": "user", "content": [{"text": "Hello cached"}]}],
            "system": [{"text": "Be brief."}],
        }
        whole = client.converse(**asked)
        assert whole["output"]["message"]["content"] == [{"text": ANSWER}]
        assert whole["usage"]["cacheReadInputTokens"] == 16
        events = events_of(client.converse_stream(**asked)["stream"])
        deltas = [each["contentBlockDelta"]["delta"]["text"] for each in events if "contentBlockDelta" in each]
        assert "".join(deltas) == ANSWER
        assert events[-1]["metadata"]["usage"] == whole["usage"]
        spec = {"toolSpec": {"name": "get_weather", "inputSchema": {"json": TOOL["input_schema"]}}}
        called = client.converse(**asked, toolConfig={"tools": [spec]})
        assert called["output"]["message"]["content"][0]["toolUse"]["input"] == ARGUMENTS[0]
        body = {
            "anthropic_version": "bedrock-2023-05-31",
            "max_tokens": 50,
            "messages": [{"role": "user", "content": "Hi"}],
        }
        invoked = client.invoke_model(modelId=Bedrock.model, body=json.dumps(body))
        assert json.loads(invoked["body"].read())["content"][0]["text"].startswith("Grüße! You said: Hi.")
        parts = client.invoke_model_with_response_stream(modelId=Bedrock.model, body=json.dumps(body))["body"]
        assert json.loads(events_of(parts)[-1]["chunk"]["bytes"]) == {"type": "message_stop"}


def test_bedrock_refuses(fakes: Mapping[str, Fake]) -> None:
    """A signature by another secret, roles that do not alternate, and a throttled stream."""
    asked: Any = {"modelId": Bedrock.model, "messages": [{"role": "user", "content": [{"text": "Hello"}]}] * 2}
    with (
        bedrock_client(fakes["bedrock"], "another") as stranger,
        pytest.raises(botocore.exceptions.ClientError, match="InvalidSignatureException"),
    ):
        stranger.converse(**asked)
    with bedrock_client(fakes["bedrock"]) as client:
        with pytest.raises(botocore.exceptions.ClientError, match="must alternate"):
            client.converse(**asked)
        fakes["bedrock"].next("rate_limited", "error:3")
        asked["messages"].pop()
        with pytest.raises(client.exceptions.ThrottlingException):
            client.converse(**asked)
        with pytest.raises(botocore.exceptions.EventStreamError, match="throttlingException"):
            events_of(client.converse_stream(**asked)["stream"])


@pytest.mark.parametrize("name", ["azure", "deepseek", "groq", "lmstudio", "mistral", "openrouter", "vllm"])
def test_openai_sdk(fakes: Mapping[str, Fake], name: str) -> None:
    """Whole and streamed, with tools, and rate limited."""
    fake: Any = fakes[name]
    asked: Any = {"model": fake.model, "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello cached"}]}  # fmt: skip
    tools: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": TOOL["input_schema"]}}]
    with openai_client(fake) as client:
        whole = client.chat.completions.create(**asked)
        assert whole.choices[0].message.content == ANSWER
        with client.chat.completions.stream(**asked) as stream:
            assert stream.get_final_completion().choices[0].message.content == ANSWER
        called = client.chat.completions.create(tools=tools, **asked)
        assert json.loads((called.choices[0].message.tool_calls or [])[0].function.arguments) == ARGUMENTS[0]
        with client.chat.completions.stream(tools=tools, **asked) as stream:
            found = stream.get_final_completion().choices[0].message.tool_calls or []
        assert json.loads(found[0].function.arguments) == ARGUMENTS[0]
        fake.next("rate_limited")
        with pytest.raises(openai.InternalServerError if name == "lmstudio" else openai.RateLimitError):
            client.chat.completions.create(**asked)


def openai_client(fake: Any) -> openai.OpenAI:
    """The client that belongs to it."""
    if fake.name == "azure":
        return openai.AzureOpenAI(
            azure_endpoint=fake.origin,
            azure_deployment="gpt-4o-mini",
            api_version="2024-10-21",
            api_key=fake.key,
            max_retries=0,
        )
    base = fake.origin + fake.path.removesuffix("/chat/completions")
    return openai.OpenAI(base_url=base, api_key=fake.key or "any", max_retries=0)
