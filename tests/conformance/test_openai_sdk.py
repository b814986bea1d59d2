"""The real OpenAI SDK gets through the gateway exactly what it gets from the backend itself."""

import asyncio
import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx
import openai
import pytest

from tests.conformance import upstream as up
from tests.support import Served, key_policy, serve

KEY = "sk-conformance"
USER = {"role": "user", "content": "What is the weather?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": True,
    },
}
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
PICTURE = "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 40).decode()
CASES: Mapping[str, Mapping[str, Any]] = {
    "bare": {"messages": [USER]},
    "settings": {
        "messages": [{"role": "system", "content": "Be brief."}, USER],
        "temperature": 1.0,
        "top_p": 0.1,
        "seed": 2**62 + 1,
        "stop": ["\n\n", "END"],
        "max_completion_tokens": 500,
        "logit_bias": {"50256": -100},
        "metadata": {"model": "not this one", "stream_options": "nor this"},
        "user": "a user",
    },
    "tools": {"messages": [USER], "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": True},
    "tool_results": {
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call_0", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "call_0", "content": '{"degrees": 1.0}'},
        ]
    },
    "json_schema": {"messages": [USER], "response_format": SCHEMA},
    "image": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": PICTURE, "detail": "high"}},
                ],
            }
        ]
    },
    "two_choices": {"messages": [USER], "n": 2},
    "logprobs": {"messages": [USER], "logprobs": True, "top_logprobs": 2},
    "unicode": {"messages": [{"role": "user", "content": up.TEXT + ' "model": "x" {}[],: \\" \ufeff \U0001f9d1‍🚀'}]},
    "unknown_fields": {
        "messages": [USER],
        "extra_body": {
            "top_k": 40,
            "x_big": 2**70 + 1,
            "x_float": 1.0,
            "x_null": None,
            "input": ["as", "embeddings", "have"],
            "encoding_format": "base64",
            "options": {"num_ctx": 4096, "model": "inner"},
        },
    },
    "two_megabytes": {"messages": [{"role": "user", "content": "0123456789abcdef" * 131072}]},
}
MODES: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "streamed": {"stream": True},
    "streamed_with_usage": {"stream": True, "stream_options": {"include_usage": True}},
}
Ask = Callable[[str, str, Mapping[str, Any]], Sequence[Mapping[str, Any]]]


def ask_sync(base_url: str, key: str, request: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What the synchronous SDK makes of the answer: one object, or every chunk."""
    with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        answer = client.chat.completions.create(**request)
        return [each.model_dump(exclude_unset=True) for each in (answer if request.get("stream") else [answer])]


def ask_async(base_url: str, key: str, request: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The same with the asynchronous SDK."""

    async def go() -> Sequence[Mapping[str, Any]]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
            answer = await client.chat.completions.create(**request)
            found = [each async for each in answer] if request.get("stream") else [answer]
            return [each.model_dump(exclude_unset=True) for each in found]

    return asyncio.run(go())


@pytest.fixture(scope="module")
def upstream() -> Iterator[up.Upstream]:
    """The backend."""
    with up.running() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(upstream: up.Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The gateway in front of it; `a-long-alias` and `m` differ from the backend's name of the model in length."""
    policies = {
        "backends": {"up": {"base_url": upstream.url, "api_keys": [up.KEY], "passthrough": [up.MODEL]}},
        "models": {"m": {"backend": "up", "model": up.MODEL, "price": {"input": 1, "output": 2, "cached_input": 0.5}}},
        "aliases": {"a-long-alias": ["m"]},
        "keys": {"tester": key_policy(KEY)},
    }
    with serve(tmp_path_factory.mktemp("sdk"), policies) as served:
        yield served


def sdk(gateway: Served) -> Any:
    """The synchronous client of the gateway; its types are not what is tested."""
    return openai.OpenAI(base_url=gateway.base_url, api_key=KEY, max_retries=0)


@pytest.mark.parametrize("ask", [ask_sync, ask_async])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_the_sdk_gets_what_the_backend_says(
    upstream: up.Upstream, gateway: Served, case: str, mode: str, ask: Ask
) -> None:
    """Field for field the same objects; and the backend reads the same bytes, but for the fields that may change."""
    request = {**CASES[case], **MODES[mode]}
    direct = ask(upstream.url, up.KEY, {**request, "model": up.MODEL})
    sent = upstream.got[-1]
    through = ask(gateway.base_url, KEY, {**request, "model": "a-long-alias"})
    arrived = upstream.got[-1]
    assert through == direct
    assert arrived is not sent
    added = b'"stream_options":{"include_usage":true},' if mode == "streamed" else b""
    assert arrived.body.count(added) >= 1
    assert arrived.body.replace(added, b"", 1) == sent.body


def test_the_answers_are_worth_comparing(upstream: up.Upstream) -> None:
    """The backend's own answers have what the comparison is about."""
    whole = ask_sync(upstream.url, up.KEY, {**CASES["two_choices"], "model": up.MODEL})[0]
    assert [choice["message"]["content"] for choice in whole["choices"]] == [up.TEXT, up.TEXT]
    assert whole["x_vendor"]["big"] == 123456789012345678901234567890
    chunks = ask_sync(upstream.url, up.KEY, {**CASES["tools"], "model": up.MODEL, "stream": True})
    calls = [chunk["choices"][0]["delta"].get("tool_calls") for chunk in chunks]
    assert {call[0]["index"] for call in calls if call} == {0, 1}


def test_a_plain_answer_passes_byte_for_byte(upstream: up.Upstream, gateway: Served) -> None:
    """Spaces, escapes and numbers of the body come as the backend wrote them."""
    reply = gateway.chat({**CASES["bare"], "model": "m"}, key=KEY)
    assert reply.body.decode() == up.plain(CASES["bare"])


def test_a_stream_passes_byte_for_byte_when_usage_was_asked_for(gateway: Served) -> None:
    """Comments, spaces and escapes of the events too."""
    request = {**CASES["two_choices"], **MODES["streamed_with_usage"]}
    reply = gateway.chat({**request, "model": "m"}, key=KEY)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.body == up.stream(request)


def test_a_stream_without_usage_shows_no_trace_of_it(gateway: Served) -> None:
    """Neither the chunk without choices nor `usage: null`; the events say what the backend says unasked, to the digit."""
    request = {**CASES["two_choices"], "stream": True}
    reply = gateway.chat({**request, "model": "m"}, key=KEY)
    assert b'"usage"' not in reply.body
    assert b'"choices": []' not in reply.body
    assert b'"choices":[]' not in reply.body
    wanted, got = up.stream(request).split(b"\n\n"), reply.body.split(b"\n\n")
    for event, expected in zip(got, wanted, strict=True):
        if expected.startswith(b"data: {"):
            assert json.loads(event.replace(b"data: ", b"")) == json.loads(expected.replace(b"data: ", b""))
        else:
            assert event == expected


def test_stream_options_that_the_client_sent_are_kept(upstream: up.Upstream, gateway: Served) -> None:
    """Only include_usage is added to them."""
    options = {"include_obfuscation": False, "x_other": 1.0, "include_usage": False}
    gateway.chat({**CASES["bare"], "model": "m", "stream": True, "stream_options": options}, key=KEY)
    assert json.loads(upstream.got[-1].body)["stream_options"] == {**options, "include_usage": True}


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        (
            b'{ "x":1.0,\t"model"\r\n:\n"a-long-alias" , "messages":[{"role":"user","content":"\\u00e9\\/"}],"y":1E40}',
            b'{ "x":1.0,\t"model"\r\n:\n"up-model" , "messages":[{"role":"user","content":"\\u00e9\\/"}],"y":1E40}',
        ),
        (
            b'{"metadata":{"model":"m"},"messages":[{"role":"user","content":"\\"model\\":\\"m\\""}],"model":"m"}\n',
            b'{"metadata":{"model":"m"},"messages":[{"role":"user","content":"\\"model\\":\\"m\\""}],"model":"up-model"}\n',
        ),
        (
            b'{"messages":[{"role":"user","content":""}],"big":-99999999999999999999999,"model":"up-model","a":[]}',
            b'{"messages":[{"role":"user","content":""}],"big":-99999999999999999999999,"model":"up-model","a":[]}',
        ),
        (
            '{"model":"m","messages":[{"role":"user","content":"👩‍👩‍👧‍👦 \u2028"}],"e":"\\ud83d\\ude00"}'.encode(),
            '{"model":"up-model","messages":[{"role":"user","content":"👩‍👩‍👧‍👦 \u2028"}],"e":"\\ud83d\\ude00"}'.encode(),
        ),
    ],
    ids=["spaces", "inner-names", "same-name", "emoji"],
)
def test_only_the_model_changes_in_the_bytes(
    upstream: up.Upstream, gateway: Served, sent: bytes, arrives: bytes
) -> None:
    """However the client writes its JSON."""
    assert gateway.chat(sent, key=KEY).status == 200
    assert upstream.got[-1].body == arrives


def test_a_field_named_twice_means_the_same_to_everybody(upstream: up.Upstream, gateway: Served) -> None:
    """The backend cannot be given another model than the one that was allowed and paid for."""
    body = b'{"model":"nobody","messages":[{"role":"user","content":"a"}],"model":"m","max_tokens":5,"max_tokens":6}'
    assert gateway.chat(body, key=KEY).status == 200
    arrived = json.loads(upstream.got[-1].body, object_pairs_hook=list)
    assert [value for name, value in arrived if name == "model"] == [up.MODEL]
    assert [value for name, value in arrived if name == "max_tokens"] == [6]


def test_the_backend_sees_its_own_key_and_nothing_of_the_client(upstream: up.Upstream, gateway: Served) -> None:
    """No key, cookie or SDK header of the client reaches a backend; what OpenAI's features need does."""
    headers = {"cookie": "a=b", "openai_beta": "assistants=v2", "x_custom": "c", "idempotency_key": "once"}
    assert gateway.chat({**CASES["bare"], "model": "m"}, key=KEY, **headers).status == 200
    ask_sync(gateway.base_url, KEY, {**CASES["bare"], "model": "m"})
    for got in upstream.got[-2:]:
        assert KEY not in str(got.headers)
        assert got.headers["authorization"] == f"Bearer {up.KEY}"
        assert not [name for name in got.headers if name.startswith(("x-", "cookie"))]
    assert upstream.got[-2].headers["openai-beta"] == "assistants=v2"
    assert upstream.got[-2].headers["idempotency-key"] == "once"


def test_an_x_api_key_is_a_key_too(gateway: Served) -> None:
    """As Anthropic's SDK sends it."""
    assert gateway.chat({**CASES["bare"], "model": "m"}, x_api_key=KEY).status == 200


def test_a_plain_answer_says_where_it_came_from_and_what_it_cost(gateway: Served) -> None:
    """The headers of CONTRACT section 3; 13 fresh and 8 cached tokens in, 13 out."""
    with sdk(gateway) as client:
        raw = client.chat.completions.with_raw_response.create(model="a-long-alias", messages=[USER])
    assert raw.headers["x-gateway-route"] == "a-long-alias"
    assert raw.headers["x-gateway-model"] == "m"
    assert raw.headers["x-gateway-backend"] == "up"
    assert raw.headers["x-gateway-attempts"] == "1"
    assert float(raw.headers["x-gateway-cost-usd"]) == pytest.approx((13 * 1 + 8 * 0.5 + 13 * 2) / 1e6)
    assert raw.headers["openai-processing-ms"] == "7"
    assert len(raw.headers.get_list("x-request-id")) == 1
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.parse()._request_id == raw.headers["x-request-id"]


def test_a_stream_says_where_it_comes_from(gateway: Served) -> None:
    """The same headers, but no cost: nobody knows it yet."""
    with sdk(gateway) as client:
        raw = client.chat.completions.with_raw_response.create(model="m", messages=[USER], stream=True)
        for _ in raw.parse():
            pass
    named = {name: value for name, value in raw.headers.items() if name.startswith("x-gateway")}
    assert named == {
        "x-gateway-route": "m",
        "x-gateway-model": "m",
        "x-gateway-backend": "up",
        "x-gateway-attempts": "1",
    }
    assert raw.headers["x-request-id"].startswith("req_")


def test_an_error_carries_its_request_id(gateway: Served) -> None:
    """`error.request_id` is what the log knows."""
    with sdk(gateway) as client, pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody", messages=[USER])
    assert caught.value.request_id is not None
    gateway.until(caught.value.request_id)


def test_every_request_has_an_id_of_its_own(gateway: Served) -> None:
    """On one connection too, whatever the answer."""
    with httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {KEY}"}) as client:
        paths = ["/livez", "/v1/models", "/nowhere", "/v1/models/m", "/metrics", "/readyz"]
        ids = [client.get(path).headers["x-request-id"] for path in paths * 3]
    assert len(set(ids)) == len(ids)


def test_the_sdk_lists_models(gateway: Served) -> None:
    """`client.models` finds every declared name."""
    with sdk(gateway) as client:
        assert [model.id for model in client.models.list()] == ["a-long-alias", "m"]
        assert client.models.retrieve("m").owned_by == "up"


def test_the_sdk_parses_structured_answers(gateway: Served) -> None:
    """`response_format` of a schema, read by the SDK's own helper."""
    with sdk(gateway) as client:
        answer = client.chat.completions.parse(model="m", messages=[USER], response_format=SCHEMA)
        assert json.loads(answer.choices[0].message.content or "") == {"city": "Zürich", "degrees": 1.0}
        with client.chat.completions.stream(model="m", messages=[USER], tools=[TOOL]) as events:
            final = events.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    assert [call.function.arguments for call in calls] == ['{"city":"Zürich","at":1.0}', '{"zone":"Asia/東京"}']
