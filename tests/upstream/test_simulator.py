"""The simulator answers as a strict OpenAI server, misbehaves as its seed says, and stops when it is closed."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.errors import InvalidRequest
from gateway.policy.schema import Simulator
from gateway.upstream.instances import instance_of
from gateway.upstream.simulated import Voice, respond, split_tokens
from gateway.upstream.simulator import SimulatorWire, choose_fault
from gateway.upstream.wire import ConnectError, ReadError, ReadTimeout, Reply, Wire

HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello there"}]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 3}},
            "required": ["city", "days"],
        },
    },
}


def fast(**changes: Any) -> Simulator:
    """Settings without delay."""
    return Simulator(**{"latency": "0ms", "tokens_per_second": 1e6, **changes})


async def ask(
    wire: Wire, body: Mapping[str, Any] | bytes, target: bytes = b"/v1/chat/completions", method: bytes = b"POST"
) -> tuple[int, bytes]:
    """Send and read to the end."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    reply = await wire.send(method, target, [], data, connect_timeout=5, timeout=5)
    parts = []
    while part := await reply.read(5):
        parts.append(part)
    await reply.aclose()
    return reply.status, b"".join(parts)


async def _drain(reply: Reply, parts: list[bytes]) -> None:
    while part := await reply.read(0.02):
        parts.append(part)


async def outcome(wire: Wire, body: Mapping[str, Any]) -> str:
    """What one request meets, as a word."""
    try:
        status, _ = await ask(wire, body)
    except ReadTimeout:
        return "timeout"
    except ReadError as error:
        return str(error)
    return str(status)


def events(body: bytes) -> list[dict[str, Any]]:
    """The JSON of every event; the last must be [DONE]."""
    *before, done, rest = body.split(b"\n\n")
    assert done == b"data: [DONE]"
    assert rest == b""
    return [orjson.loads(event.removeprefix(b"data: ")) for event in before]


def text_of(body: bytes) -> str:
    """What a plain answer says."""
    return str(orjson.loads(body)["choices"][0]["message"]["content"])


async def test_plain_answer_is_a_chat_completion_that_says_it_is_simulated() -> None:
    """A plain answer parses with the SDK's own type and its usage adds up."""
    status, body = await ask(SimulatorWire("demo-a", fast(tokens=25)), HELLO)
    assert status == 200
    answer = ChatCompletion.model_validate(orjson.loads(body), strict=True)
    assert "simulated answer from demo-a" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 25
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 25
    assert abs(answer.created - time.time()) < 60


async def test_plain_body_has_the_length_its_head_says() -> None:
    """content-length is the length of the body."""
    reply = await SimulatorWire("a", fast()).send(
        b"POST", b"/chat/completions?x=1", [], orjson.dumps(HELLO), connect_timeout=5, timeout=5
    )
    length = int(dict(reply.headers)[b"content-length"])
    body = b""
    while part := await reply.read(5):
        body += part
    assert len(body) == length
    assert await reply.read(5) == b""


async def test_stream_has_role_tokens_finish_and_done_and_says_the_same_as_plain() -> None:
    """A stream is one chunk per token under one id, and its text is the plain answer's."""
    plain = text_of((await ask(SimulatorWire("a", fast(tokens=12)), HELLO))[1])
    chunks = events((await ask(SimulatorWire("a", fast(tokens=12)), {**HELLO, "stream": True}))[1])
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert len(chunks) == 1 + 12 + 1
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == plain
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 13 + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)


async def test_include_usage_adds_one_last_chunk_and_null_before() -> None:
    """The usage chunk has no choices; the others carry `usage: null`."""
    request = {**HELLO, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 7}
    *before, last = events((await ask(SimulatorWire("a", fast()), request))[1])
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 7
    assert all(chunk["usage"] is None for chunk in before)
    assert before[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_the_output_limit_is_obeyed(name: str) -> None:
    """Never more tokens than the client allows, and finish_reason says so."""
    _, body = await ask(SimulatorWire("a", fast(tokens=40)), {**HELLO, name: 5})
    answer = orjson.loads(body)
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"
    assert len(split_tokens(text_of(body))) == 5


async def test_n_choices_interleave_and_all_are_paid_for() -> None:
    """n=3 gives three different texts, counted together."""
    wire = SimulatorWire("a", fast(tokens=20))
    answer = orjson.loads((await ask(wire, {**HELLO, "n": 3}))[1])
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 3
    assert answer["usage"]["completion_tokens"] == 60
    chunks = events((await ask(wire, {**HELLO, "n": 3, "stream": True}))[1])
    assert [chunk["choices"][0]["index"] for chunk in chunks[:6]] == [0, 1, 2, 0, 1, 2]


async def test_stop_ends_the_text_before_the_word() -> None:
    """A stop sequence is not part of the text, and the finish is `stop`."""
    answer = orjson.loads((await ask(SimulatorWire("a", fast()), {**HELLO, "stop": ["no model", "zzz"]}))[1])
    assert answer["choices"][0]["message"]["content"] == "This is a simulated answer from a; "
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
async def test_a_required_tool_is_called_with_arguments_that_fit(choice: object) -> None:
    """The arguments are an instance of the tool's schema, in one piece and in a stream."""
    wire = SimulatorWire("a", fast())
    request = {**HELLO, "tools": [WEATHER], "tool_choice": choice}
    answer = ChatCompletion.model_validate(orjson.loads((await ask(wire, request))[1]))
    call = (answer.choices[0].message.tool_calls or [])[0]
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert orjson.loads(call.function.arguments) == {"city": "simulated", "days": 3}
    assert answer.choices[0].finish_reason == "tool_calls"
    chunks = events((await ask(wire, {**request, "stream": True}))[1])
    deltas = [each["choices"][0]["delta"].get("tool_calls", [{}])[0] for each in chunks]
    assert deltas[0]["function"]["name"] == "get_weather"
    assert "".join(each["function"]["arguments"] for each in deltas if each) == call.function.arguments


@pytest.mark.parametrize(("prompt", "called"), [("please use a tool", True), ("GET_WEATHER now", True), ("hi", False)])
async def test_without_a_choice_the_prompt_decides_about_tools(prompt: str, called: bool) -> None:
    """A tool is called when the prompt asks for one, and never when tool_choice is none."""
    request = {**HELLO, "messages": [{"role": "user", "content": prompt}], "tools": [WEATHER]}
    for choice, expected in (("auto", called), ("none", False)):
        body = orjson.loads((await ask(SimulatorWire("a", fast()), {**request, "tool_choice": choice}))[1])
        assert ("tool_calls" in body["choices"][0]["message"]) is expected


async def test_response_formats_give_json() -> None:
    """json_schema gives an instance of the schema; json_object gives an object if the prompt says json."""
    wire = SimulatorWire("a", fast())
    schema = WEATHER["function"]["parameters"]  # type: ignore[index]
    wanted = {"type": "json_schema", "json_schema": {"name": "w", "schema": schema}}
    assert orjson.loads(text_of((await ask(wire, {**HELLO, "response_format": wanted}))[1]))["days"] == 3
    asked = {**HELLO, "messages": [{"role": "user", "content": "Give me JSON"}]}
    said = orjson.loads(text_of((await ask(wire, {**asked, "response_format": {"type": "json_object"}}))[1]))
    assert said["simulated"] is True
    status, _ = await ask(wire, {**HELLO, "response_format": {"type": "json_object"}})
    assert status == 400


async def test_a_begun_answer_is_continued_where_it_ends() -> None:
    """With the first tokens as the assistant's message, the rest follows, and only the rest is counted."""
    wire = SimulatorWire("a", fast(tokens=20))
    whole = text_of((await ask(wire, HELLO))[1])
    begun = "".join(split_tokens(whole)[:8])
    messages = [*HELLO["messages"], {"role": "assistant", "content": begun}]
    answer = orjson.loads((await ask(wire, {**HELLO, "messages": messages}))[1])
    assert begun + answer["choices"][0]["message"]["content"] == whole
    assert answer["usage"]["completion_tokens"] == 12


async def test_logprobs_name_every_token() -> None:
    """One entry a token, as the SDK expects."""
    request = {**HELLO, "logprobs": True, "top_logprobs": 1, "max_tokens": 4}
    answer = ChatCompletion.model_validate(orjson.loads((await ask(SimulatorWire("a", fast()), request))[1]))
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert "".join(each.token for each in logprobs.content or ()) == answer.choices[0].message.content


async def test_completions_embeddings_and_models_answer_too() -> None:
    """The other endpoints of an OpenAI-compatible server, under any prefix."""
    wire = SimulatorWire("a", fast(tokens=9))
    _, body = await ask(wire, {"model": "m", "prompt": ["x", "y"]}, b"/api/v1/completions")
    assert [choice["finish_reason"] for choice in orjson.loads(body)["choices"]] == ["stop", "stop"]
    chunks = events((await ask(wire, {"model": "m", "prompt": "x", "stream": True}, b"/v1/completions"))[1])
    assert len(chunks) == 10
    _, body = await ask(wire, {"model": "m", "input": ["a", "b"], "dimensions": 8}, b"/v1/embeddings")
    found = CreateEmbeddingResponse.model_validate(orjson.loads(body))
    assert [len(each.embedding) for each in found.data] == [8, 8]
    _, body = await ask(wire, b"", b"/v1/models", b"GET")
    assert orjson.loads(body)["data"][0]["owned_by"] == "simulator"
    assert (await ask(wire, b"", b"/v1/nonsense"))[0] == 404
    assert (await ask(wire, b"", b"/v1/chat/completions", b"GET"))[0] == 405


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"model": None}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "7"}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"tools": [{"type": "function"}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    ],
)
async def test_a_wrong_request_gets_400_that_names_the_field(changes: dict[str, Any], param: str) -> None:
    """Each mistake is a 400 in OpenAI's shape with its `param`."""
    status, body = await ask(SimulatorWire("a", fast(error_rate=1.0)), {**HELLO, **changes})
    error = orjson.loads(body)["error"]
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert param in error["message"] or param == "messages"


async def test_a_body_that_is_not_json_gets_400() -> None:
    """What cannot be parsed is refused, not guessed."""
    for body in (b"", b"{", b"[]"):
        status, answer = await ask(SimulatorWire("a", fast()), body)
        assert status == 400
        assert orjson.loads(answer)["error"]["code"] == "invalid_json"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = ["messages", "stream", "stream_options", "tools", "tool_choice", "response_format", "stop", "n", "logprobs"]


@given(st.dictionaries(st.sampled_from(_FIELDS), _VALUES), st.sampled_from(["chat/completions", "completions"]))
@settings(max_examples=300, deadline=None)
def test_no_request_makes_it_fall_over(changes: dict[str, Any], endpoint: str) -> None:
    """Whatever the fields hold, the answer is 200 or an error in OpenAI's shape."""
    body = orjson.dumps({**HELLO, "prompt": "x", "max_tokens": 2, **changes})
    answer = respond("POST", f"/v1/{endpoint}", body, voice=Voice("a", 1, 4), serial="s", now=0)
    assert answer.status in (200, 400)
    if answer.status == 400:
        assert orjson.loads(answer.frames[0].data)["error"]["type"] == "invalid_request_error"


_NUMBERS = st.integers(-20, 20)
_SCHEMAS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.one_of(
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": 3}, {"enum": ["x", 1]}]),
        st.builds(lambda low: {"type": "integer", "exclusiveMinimum": low}, _NUMBERS),
        st.builds(
            lambda low, more: {"type": "number", "minimum": low, "maximum": low + more}, _NUMBERS, st.integers(0, 9)
        ),
        st.builds(
            lambda high, step: {"type": "integer", "maximum": high, "multipleOf": step}, _NUMBERS, st.integers(1, 7)
        ),
        st.builds(lambda low: {"type": "string", "minLength": low, "maxLength": low + 2}, st.integers(0, 20)),
    ),
    lambda inner: st.one_of(
        st.builds(lambda item, least: {"type": "array", "items": item, "minItems": least}, inner, st.integers(0, 3)),
        st.builds(lambda one: {"anyOf": [one, {"type": "null"}]}, inner),
        st.builds(
            lambda fields: {
                "type": "object",
                "properties": fields,
                "required": list(fields),
                "additionalProperties": False,
            },
            st.dictionaries(st.text(max_size=4), inner, max_size=3),
        ),
    ),
    max_leaves=8,
)


@given(_SCHEMAS)
@settings(max_examples=150, deadline=None)
def test_an_instance_is_valid_for_its_schema(schema: dict[str, Any]) -> None:
    """jsonschema accepts what the simulator makes up."""
    jsonschema.validate(instance_of(schema), schema)


def test_a_recursive_schema_ends_or_is_refused() -> None:
    """A list that may end has an instance; one that may not is a 400."""
    node = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}}
    node["required"] = ["next"]
    assert instance_of({"$ref": "#/$defs/n", "$defs": {"n": node}}) == {"next": None}
    endless = {"type": "object", "properties": {"me": {"$ref": "#"}}, "required": ["me"]}
    with pytest.raises(InvalidRequest, match="no finite instance"):
        instance_of(endless)


_FAULTS = {"status_500": 0.2, "status_429": 0.2, "reset": 0.2, "cut": 0.2}


async def test_the_same_seed_gives_the_same_sequence_of_fates() -> None:
    """Two wires of one seed behave alike request by request; another seed behaves otherwise."""
    request = {**HELLO, "stream": True}
    sequences = []
    for seed in (7, 7, 8):
        wire = SimulatorWire("a", fast(seed=seed, faults=_FAULTS, error_rate=0.1, tokens=5))
        sequences.append([await outcome(wire, request) for _ in range(60)])
    assert sequences[0] == sequences[1] != sequences[2]
    assert {"200", "500", "503", "429"} <= set(sequences[0])
    assert sum("reset" in each for each in sequences[0]) > 3
    assert sum("cut" in each for each in sequences[0]) > 3


async def test_health_requests_do_not_disturb_the_sequence() -> None:
    """GET draws nothing from the seed and always works."""
    plain = SimulatorWire("a", fast(faults=_FAULTS))
    probed = SimulatorWire("a", fast(faults=_FAULTS))
    for _ in range(20):
        assert (await ask(probed, b"", b"/v1/models", b"GET"))[0] == 200
        assert await outcome(plain, HELLO) == await outcome(probed, HELLO)


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 0.5), st.floats(0, 0.5))
def test_faults_take_their_share(chance: float, error_rate: float, cut: float) -> None:
    """The line from 0 to 1 is divided as the rates say."""
    fault = choose_fault(error_rate, [("cut", cut)], chance)
    expected = "status_503" if chance < error_rate else "cut" if chance < error_rate + cut else None
    assert fault == expected


async def test_errors_are_in_openais_shape_and_429_says_when_to_come_back() -> None:
    """error_rate is 503, status_429 carries retry-after."""
    status, body = await ask(SimulatorWire("a", fast(error_rate=1.0)), HELLO)
    assert status == 503
    assert set(orjson.loads(body)["error"]) == {"message", "type", "param", "code"}
    reply = await SimulatorWire("a", fast(faults={"status_429": 1.0})).send(
        b"POST", b"/chat/completions", [], orjson.dumps(HELLO), connect_timeout=5, timeout=5
    )
    assert reply.status == 429
    assert dict(reply.headers)[b"retry-after"] == b"1"


async def test_silence_is_a_read_timeout() -> None:
    """No head ever comes; the wait ends with the caller's own limit."""
    with pytest.raises(ReadTimeout):
        await SimulatorWire("a", fast(faults={"silence": 1.0})).send(
            b"POST", b"/chat/completions", [], orjson.dumps(HELLO), connect_timeout=5, timeout=0.02
        )


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("fault", "raised"), [("cut", ReadError), ("stall", ReadTimeout)])
async def test_cut_and_stall_come_after_a_part_and_before_the_end(
    fault: str, raised: type[Exception], stream: bool
) -> None:
    """Something arrives, the end does not."""
    wire = SimulatorWire("a", fast(faults={fault: 1.0}, tokens=10))
    for _ in range(10):
        reply = await wire.send(
            b"POST", b"/chat/completions", [], orjson.dumps({**HELLO, "stream": stream}), connect_timeout=5, timeout=5
        )
        parts: list[bytes] = []
        with pytest.raises(raised):
            await _drain(reply, parts)
        got = b"".join(parts)
        assert got
        assert b"[DONE]" not in got
        if stream:
            assert b'"content":"This"' in got
        await reply.aclose()


async def test_latency_and_rate_are_what_the_settings_say() -> None:
    """A plain answer of 10 tokens at 100 a second after 100 ms takes at least 200 ms; a stream starts earlier."""
    wire = SimulatorWire("a", fast(latency="100ms", tokens_per_second=100, tokens=10))
    start = time.monotonic()
    await ask(wire, HELLO)
    assert 0.19 < time.monotonic() - start < 2
    start = time.monotonic()
    reply = await wire.send(
        b"POST", b"/chat/completions", [], orjson.dumps({**HELLO, "stream": True}), connect_timeout=5, timeout=0.05
    )
    with pytest.raises(ReadTimeout):
        await reply.read(0.01)
    arrivals = 0
    while await reply.read(5):
        arrivals += 1
    assert 0.19 < time.monotonic() - start < 2
    assert arrivals >= 3
    with pytest.raises(ReadTimeout):
        await wire.send(b"POST", b"/chat/completions", [], orjson.dumps(HELLO), connect_timeout=5, timeout=0.05)


async def test_closing_ends_a_waiting_read_at_once() -> None:
    """aclose() from another task wakes the reader with ReadError; closing twice is harmless."""
    wire = SimulatorWire("a", fast(latency="60s"))
    reply = await wire.send(
        b"POST", b"/chat/completions", [], orjson.dumps({**HELLO, "stream": True}), connect_timeout=5, timeout=5
    )
    reading = asyncio.create_task(reply.read(60))
    await asyncio.sleep(0)
    start = time.monotonic()
    await reply.aclose()
    await reply.aclose()
    with pytest.raises(ReadError):
        await reading
    assert time.monotonic() - start < 1
    with pytest.raises(ReadError):
        await reply.read(1)


async def test_a_cancelled_send_leaves_nothing_behind() -> None:
    """Cancelling while the head is waited for forgets the request."""
    wire = SimulatorWire("a", fast(latency="60s"))
    sending = asyncio.create_task(ask(wire, HELLO))
    await asyncio.sleep(0)
    assert "open=1" in repr(wire)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert "open=0" in repr(wire)


async def test_a_closed_wire_ends_its_replies_and_refuses() -> None:
    """Closing the wire ends a request that waits for its head, and the next one is refused."""
    wire = SimulatorWire("a", fast(latency="60s"))
    sending = asyncio.create_task(ask(wire, HELLO))
    await asyncio.sleep(0)
    await wire.aclose()
    with pytest.raises(ReadError):
        await sending
    with pytest.raises(ConnectError):
        await ask(wire, HELLO)


async def test_a_body_in_pieces_is_one_body() -> None:
    """An async iterable of bytes is joined before it is read."""

    async def pieces() -> AsyncIterator[bytes]:
        data = orjson.dumps(HELLO)
        yield data[:10]
        yield data[10:]

    reply = await SimulatorWire("a", fast()).send(
        b"POST", b"/chat/completions", [], pieces(), connect_timeout=5, timeout=5
    )
    assert reply.status == 200
