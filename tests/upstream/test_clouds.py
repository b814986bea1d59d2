"""Providers with URLs, credentials and framings of their own: what they are sent, and what is made of their streams."""

import socket
from typing import Any

import orjson
import pytest

from gateway.formats.usage import parse_usage
from gateway.upstream.wire import ProtocolError
from tests.formats import told
from tests.providers.aws import frame, problem_of_signature
from tests.providers.server import Got
from tests.upstream.rare import SPECIAL, completion
from tests.upstream.scripted import Script, ScriptedWire, says
from tests.upstream.translators import TOOL, all_of, answer, ask, body, opened

PART = {":message-type": "event", ":event-type": "PayloadPart"}
SSE = ((b"content-type", b"text/event-stream"),)


@pytest.fixture(autouse=True)
def _nothing_but_our_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """No translation opens a socket or looks a name up."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something wanted the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def facing(provider: str, *pieces: bytes, **options: str) -> tuple[Any, ScriptedWire]:
    settings = dict(SPECIAL[provider].settings)
    settings["options"] = {**settings.get("options", {}), **options}
    inner = says(Script(200, pieces, SSE))
    return opened(inner, provider=provider, **settings), inner


async def streamed(provider: str, *pieces: bytes, model: str = "", **fields: Any) -> told.Told:
    wire, _ = facing(provider, *pieces)
    request = body(model or SPECIAL[provider].model, "hi", stream=True, **fields)
    return told.read(await all_of(await ask(wire, request)))


async def test_snowflake_is_asked_for_claude_in_anthropic_s_format_and_for_others_in_openai_s() -> None:
    """With the kind of its token in a header."""
    wire, inner = facing("snowflake", orjson.dumps(SPECIAL["snowflake"].answer))
    system = {"role": "system", "content": "be brief"}
    found = await answer(wire, body("claude-sonnet-4-5", system, "hi", max_tokens=9, tools=[TOOL]), key="pat/secret")
    assert found["choices"][0]["message"]["content"] == "hello"
    (sent,) = inner.sent
    assert sent.header("authorization") == "Bearer secret"
    assert sent.header("x-snowflake-authorization-token-type") == "PROGRAMMATIC_ACCESS_TOKEN"
    said = orjson.loads(sent.body)
    assert (said["system"], said["max_tokens"]) == ([{"type": "text", "text": "be brief"}], 9)
    assert said["tools"][0]["name"] == "weather"
    wire, inner = facing("snowflake", orjson.dumps(completion()))
    assert (await answer(wire, body("llama3.1-70b", "hi", max_tokens=9)))["usage"]["total_tokens"] == 7
    assert inner.sent[0].path == "/api/v2/cortex/v1/chat/completions"
    assert orjson.loads(inner.sent[0].body)["max_completion_tokens"] == 9


async def test_snowflake_streams_claude_in_anthropic_s_events() -> None:
    """Usage included."""
    events = [
        {"type": "message_start", "message": {"id": "m", "model": "c", "usage": {"input_tokens": 3}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}},
        {"type": "message_stop"},
    ]
    pieces = [b"event: x\ndata: " + orjson.dumps(each) + b"\n\n" for each in events]
    found = await streamed("snowflake", *pieces)
    assert (found.text, found.finish, found.done) == ("hello", ["stop"], True)
    assert found.usage is not None
    assert found.usage["total_tokens"] == 7


async def test_watsonx_is_told_the_project_and_streams_from_another_place() -> None:
    """IBM's events have ids and names, which go no further."""
    wire, inner = facing("watsonx", orjson.dumps(completion()), api_version="2025-02-11")
    await answer(wire, body("ibm/granite-3-8b-instruct", "hi", max_tokens=9))
    (sent,) = inner.sent
    assert sent.target == b"/ml/v1/text/chat?version=2025-02-11"
    assert sent.header("authorization") == "Bearer the-key"
    said = orjson.loads(sent.body)
    assert (said["model_id"], said["project_id"], said["max_tokens"]) == ("ibm/granite-3-8b-instruct", "p-1", 9)
    assert "model" not in said
    choice = {"index": 0, "delta": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
    doc = {"id": "c", "model": "m", "created": 1, "model_id": "m", "choices": [choice]}
    record = b"id: 1\nevent: message\ndata: " + orjson.dumps(doc) + b"\n\n"
    wire, inner = facing("watsonx", record)
    out = await all_of(await ask(wire, body("deployment/d-1", "hi", stream=True)))
    assert inner.sent[0].path == "/ml/v1/deployments/d-1/text/chat_stream"
    assert {"model_id", "project_id", "stream"}.isdisjoint(orjson.loads(inner.sent[0].body))
    assert out == b"data: " + orjson.dumps(doc) + b"\n\n"


async def test_cloud_pak_s_own_keys_are_told_as_such() -> None:
    """They are exchanged for nothing."""
    wire, inner = facing("watsonx", orjson.dumps(completion()), auth="zen")
    await answer(wire, body("m", "hi"))
    assert inner.sent[0].header("authorization") == "ZenApiKey the-key"


async def test_sagemaker_is_sent_what_aws_can_verify() -> None:
    """Signed for the service, with the component in a header and the served model's name in the body."""
    wire, inner = facing("sagemaker_chat", orjson.dumps(completion()), model_id="part", hf_model_name="org/m")
    await answer(wire, body("my endpoint", "hi", max_tokens=9), key=None)
    (sent,) = inner.sent
    assert sent.target == b"/endpoints/my%20endpoint/invocations"
    assert sent.header("x-amzn-sagemaker-inference-component") == "part"
    assert (orjson.loads(sent.body)["model"], orjson.loads(sent.body)["max_tokens"]) == ("org/m", 9)
    options = SPECIAL["sagemaker_chat"].settings["options"]
    headers = {name.decode(): value.decode() for name, value in sent.headers} | {"host": "provider.test"}
    got = Got("POST", sent.target.decode(), headers, sent.body)
    key, secret = options["aws_access_key_id"], options["aws_secret_access_key"]
    assert problem_of_signature(got, key, secret, "us-east-1", "sagemaker") is None


async def test_sagemaker_streams_pieces_of_events_in_aws_s_frames() -> None:
    """A piece may end anywhere; Nova's body names no model."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    docs = [
        {"id": "c", "model": "m", "created": 1, "choices": [choice]},
        {"id": "c", "model": "m", "created": 1, "choices": [], "usage": usage},
    ]
    events = b"".join(b"data: " + orjson.dumps(doc) + b"\n\n" for doc in docs) + b"data: [DONE]\n\n"
    parts = [events[:20], events[20:50], events[50:]]
    raw = b"".join(frame(part, PART) for part in parts)
    wire, inner = facing("sagemaker_nova", raw[:30], raw[30:])
    request = body("my-nova", "hi", stream=True, stream_options={"include_usage": True})
    found = told.read(await all_of(await ask(wire, request, key=None)))
    assert (found.text, found.finish, found.done) == ("hello", ["stop"], True)
    assert found.usage is not None
    assert parse_usage(found.usage) is not None
    (sent,) = inner.sent
    assert sent.path == "/endpoints/my-nova/invocations-response-stream"
    said = orjson.loads(sent.body)
    assert ("model" in said, said["stream"], said["stream_options"]) == (False, True, {"include_usage": True})


async def test_a_stream_of_sagemaker_s_that_is_cut_is_seen() -> None:
    """Inside a frame there is no end."""
    wire, _ = facing("sagemaker_chat", frame(b"data: {}\n\n", PART)[:-3])
    with pytest.raises(ProtocolError):
        await all_of(await ask(wire, body("e", "hi", stream=True), key=None))


async def test_hugging_face_is_asked_without_looking_the_model_up() -> None:
    """Whoever serves it stands behind the router."""
    inner = says(Script(200, [orjson.dumps(completion())]))
    await answer(opened(inner, provider="huggingface"), body("together/org/model:cheapest", "hi"))
    assert inner.sent[0].path == "/v1/chat/completions"
    assert orjson.loads(inner.sent[0].body)["model"] == "together/org/model:cheapest"


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ({"provider": "huggingface"}, "router.huggingface.co"),
        ({"provider": "watsonx", "options": {"region": "eu-de"}}, "eu-de.ml.cloud.ibm.com"),
        ({"provider": "snowflake", "options": {"account_id": "a-b"}}, "a-b.snowflakecomputing.com"),
        (
            {"provider": "sagemaker_chat", **SPECIAL["sagemaker_chat"].settings},
            "runtime.sagemaker.us-east-1.amazonaws.com",
        ),
        ({"provider": "oci", **SPECIAL["oci"].settings}, "inference.generativeai.us-chicago-1.oci.oraclecloud.com"),
        ({"provider": "nlp_cloud"}, "api.nlpcloud.io"),
        ({"provider": "datarobot"}, "app.datarobot.com"),
        ({"provider": "veniceai"}, "api.venice.ai"),
        ({"provider": "ai21"}, "api.ai21.com"),
    ],
)
def test_without_a_base_url_each_is_where_it_is(settings: dict[str, Any], host: str) -> None:
    """And over TLS."""
    inner = says(Script())
    opened(inner, **{"base_url": None, **settings})
    assert (inner.origins[0].scheme, inner.origins[0].host, inner.origins[0].port) == ("https", host, 443)


async def test_a_model_s_name_stays_in_its_place() -> None:
    """Whatever a client calls it, no second request comes of it."""
    inner = says(Script(500))
    wire = opened(inner, provider="nlp_cloud")
    await ask(wire, body("../x y?z#\r\nhost: evil", "hi"))
    target = inner.sent[0].target
    assert b"\r" not in target
    assert b" " not in target
    assert target.endswith(b"/generation")
    assert target.count(b"/") == 2
