"""What is read of a chat request, what is refused and how, and what goes out changed: nothing but what must."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.formats.chat import MAX_MODEL_NAME, ChatRequest, parse_chat, text_of

HELLO = [{"role": "user", "content": "Hello!"}]


def request(**fields: Any) -> ChatRequest:
    """A parsed request for `fast` with one message and these fields."""
    return parse_chat(orjson.dumps({"model": "fast", "messages": HELLO, **fields}))


def refused(raw: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(raw)
    return caught.value


@pytest.mark.parametrize(
    ("raw", "code", "param", "said"),
    [
        (b"", "invalid_json", None, "not valid JSON"),
        (b"{", "invalid_json", None, "not valid JSON"),
        (b'{"model": "\xff"}', "invalid_json", None, "not valid JSON"),
        (b"[]", "invalid_json", None, "JSON object, not a list"),
        (b"null", "invalid_json", None, "JSON object, not null"),
        (b"true", "invalid_json", None, "JSON object, not a boolean"),
        (b"{}", "missing_field", "model", "GET /v1/models"),
        (b'{"model": null}', "missing_field", "model", "missing"),
        (b'{"model": ""}', "missing_field", "model", "missing"),
        (b'{"model": 7}', "invalid_value", "model", "not a number"),
        (b'{"model": "a\\n"}', "invalid_value", "model", "printable"),
        (b'{"model": "%s"}' % (b"m" * (MAX_MODEL_NAME + 1)), "invalid_value", "model", str(MAX_MODEL_NAME)),
        (b'{"model": "m"}', "missing_field", "messages", "send a list"),
        (b'{"model": "m", "messages": []}', "invalid_value", "messages", "at least one"),
        (b'{"model": "m", "messages": "hi"}', "invalid_value", "messages", "list"),
        (b'{"model": "m", "messages": ["hi"]}', "invalid_value", "messages[0]", "not a string"),
        (b'{"model": "m", "messages": [{"role": "user"}, 1]}', "invalid_value", "messages[1]", "object"),
        (b'{"model": "m", "messages": [{"content": "x"}]}', "missing_field", "messages[0].role", "role"),
        (b'{"model": "m", "messages": [{"role": 1}]}', "invalid_value", "messages[0].role", "string"),
    ],
)
def test_what_is_wrong_is_named(raw: bytes, code: str, param: str | None, said: str) -> None:
    """The code, the field and what to write instead."""
    error = refused(raw)
    assert (error.status, error.code, error.param) == (400, code, param)
    assert said in error.message


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("stream", "yes", "stream"),
        ("stream", 1, "stream"),
        ("stream_options", [], "stream_options"),
        ("stream_options", {"include_usage": "yes"}, "stream_options.include_usage"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", -5, "max_tokens"),
        ("max_tokens", True, "max_tokens"),
        ("max_tokens", "10", "max_tokens"),
        ("max_tokens", 1.5, "max_tokens"),
        ("max_completion_tokens", [], "max_completion_tokens"),
        ("n", 0, "n"),
        ("n", {}, "n"),
    ],
)
def test_a_wrong_type_is_named(field: str, value: Any, param: str) -> None:
    """What counts for money or for the shape of the answer has the right type."""
    error = refused(orjson.dumps({"model": "m", "messages": HELLO, field: value}))
    assert (error.code, error.param) == ("invalid_value", param)


def test_what_is_read() -> None:
    """Defaults where nothing stands, the smaller of two output limits, and null like absent."""
    plain = request()
    assert (plain.model, plain.stream, plain.include_usage, plain.max_output, plain.n) == (
        "fast",
        False,
        False,
        None,
        1,
    )
    full = request(stream=True, stream_options={"include_usage": True}, max_tokens=9, max_completion_tokens=7, n=3)
    assert (full.stream, full.include_usage, full.max_output, full.n) == (True, True, 7, 3)
    nulls = request(stream=None, stream_options=None, max_tokens=None, n=None, temperature=None)
    assert (nulls.stream, nulls.include_usage, nulls.max_output, nulls.n) == (False, False, None, 1)


def test_an_unchanged_request_goes_out_as_it_came() -> None:
    """Not a byte differs when the backend calls the model as the client does."""
    raw = b'\n{ "model" : "fast",\t"messages":[{"role":"user","content":"\\u0041"}], "x": 1.0e2, "x-y": [1,] }'.replace(
        b",]", b"]"
    )
    assert parse_chat(raw).encode("fast", ask_usage=True) is raw


def test_only_the_model_changes() -> None:
    """What the gateway does not know passes as it stands."""
    raw = b'{ "unknown" : 1e5, "model":"fast", "messages":[{"role":"user","content":"\\"model\\""}] }'
    assert parse_chat(raw).encode("llama3.2", ask_usage=True) == raw.replace(b'"model":"fast"', b'"model":"llama3.2"')


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"stream": True}, {"include_usage": True}),
        ({"stream": True, "stream_options": None}, {"include_usage": True}),
        ({"stream": True, "stream_options": {"include_usage": False, "x": 1}}, {"include_usage": True, "x": 1}),
        ({"stream": True, "stream_options": {"include_usage": True, "x": 1}}, {"include_usage": True, "x": 1}),
        ({"stream": False}, None),
        ({}, None),
    ],
)
def test_usage_is_asked_for_on_streams_alone(fields: dict[str, Any], sent: Any) -> None:
    """Other options of the stream stay."""
    assert orjson.loads(request(**fields).encode("m", ask_usage=True)).get("stream_options") == sent


@pytest.mark.parametrize(
    ("fields", "limit", "sent"),
    [
        ({}, 50, {"max_tokens": 50}),
        ({"max_tokens": 100}, 50, {"max_tokens": 50}),
        ({"max_completion_tokens": 100}, 50, {"max_completion_tokens": 50}),
        ({"max_tokens": 100, "max_completion_tokens": 70}, 50, {"max_tokens": 50, "max_completion_tokens": 50}),
        ({"max_tokens": 50, "max_completion_tokens": None}, 50, {"max_tokens": 50, "max_completion_tokens": None}),
        ({"max_tokens": 100}, None, {"max_tokens": 100}),
    ],
)
def test_a_lowered_limit_stands_in_the_clients_own_field(
    fields: dict[str, Any], limit: int | None, sent: dict[str, Any]
) -> None:
    """A backend that knows only one of the two names is given the one that its client used."""
    doc = orjson.loads(request(**fields).encode("m", ask_usage=True, max_output=limit))
    assert {name: doc[name] for name in ("max_tokens", "max_completion_tokens") if name in doc} == sent


def test_the_limits_name_is_the_backends_when_the_client_sent_none() -> None:
    """Older servers know only `max_tokens`, OpenAI's newer models only the other."""
    sent = orjson.loads(request().encode("m", ask_usage=True, max_output=5, output_field="max_completion_tokens"))
    assert sent["max_completion_tokens"] == 5
    assert "max_tokens" not in sent


@pytest.mark.parametrize("name", ["model", "messages", "stream", "stream_options", "max_tokens", "n"])
@pytest.mark.parametrize("spelling", ["plain", "escaped"])
def test_a_telling_field_named_twice_goes_out_once(name: str, spelling: str) -> None:
    """A backend that takes the first of two must not be told something else than the gateway read."""
    good = {"model": "fast", "messages": HELLO, "stream": False, "stream_options": None, "max_tokens": 5, "n": 1}
    bad = {
        "model": "dear",
        "messages": [{"role": "user", "content": "long" * 9}],
        "stream": True,
        "stream_options": {},
        "max_tokens": 10**6,
        "n": 128,
    }
    first = name if spelling == "plain" else f"\\u{ord(name[0]):04x}{name[1:]}"
    raw = b'{"%s":%s,' % (first.encode(), orjson.dumps(bad[name])) + orjson.dumps(good)[1:]
    parsed = parse_chat(raw)
    sent = parsed.encode(parsed.model, ask_usage=True)
    pairs: list[tuple[str, Any]] = json.loads(sent, object_pairs_hook=list)
    assert len({each for each, _ in pairs}) == len(pairs)
    assert orjson.loads(sent)[name] == good[name]


def test_a_body_too_deep_to_be_written_again_is_refused() -> None:
    """Never a fault of the gateway itself, whatever would have to be changed in it."""
    deep = b"[" * 400 + b"]" * 400
    error = refused(b'{"model":"m","n":1,"n":1,"messages":[{"role":"user"}],"x":%s}' % deep)
    assert error.code == "invalid_json"
    assert "nested" in error.message


NAMES = st.sampled_from(
    ("model", "messages", "stream", "stream_options", "max_tokens", "n", "include_usage", "role", "x")
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**6) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)
REQUESTS = st.fixed_dictionaries({}, optional={"model": ANYTHING | st.just("m"), "messages": ANYTHING | st.just(HELLO)})


@given(fields=REQUESTS, more=st.dictionaries(NAMES, ANYTHING, max_size=5))
def test_any_object_is_read_or_refused(fields: dict[str, Any], more: dict[str, Any]) -> None:
    """Nothing that a client sends is a fault of the gateway; what is read can be written and counted."""
    try:
        parsed = parse_chat(orjson.dumps({**more, **fields}))
    except InvalidRequest:
        return
    text_of(parsed.doc)
    sent = orjson.loads(parsed.encode("other", ask_usage=True, max_output=3))
    changed = {"model", "stream_options", "max_tokens", "max_completion_tokens"}
    assert {name: value for name, value in sent.items() if name not in changed} == {
        name: value for name, value in parsed.doc.items() if name not in changed
    }


def test_the_text_of_a_request() -> None:
    """Strings, text parts, tool calls and tools; no image."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    parts = [{"type": "text", "text": "two"}, image, {"type": "text", "text": "three"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "four"}}]}
    doc = request(
        messages=[{"role": "system", "content": "one"}, {"role": "user", "content": parts}, call],
        tools=[{"function": {"name": "five"}}],
    ).doc
    text = text_of(doc)
    for word in ("one", "two", "three", "four", "five"):
        assert word in text
    assert "AAAA" not in text
