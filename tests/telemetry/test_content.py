"""Captured content: OpenAI's messages in the conventions' shape."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry.content import asked, input_json, output_json


@pytest.mark.parametrize(
    ("doc", "said"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, [("user", "a")]),
        ({"system": "s", "messages": [{"role": "user", "content": "a"}]}, [("system", "s"), ("user", "a")]),
        ({"instructions": "s", "input": "a"}, [("system", "s"), ("user", "a")]),
        ({"input": [{"role": "user", "content": "a"}]}, [("user", "a")]),
        ({"input": ["a", "b"]}, [("user", "a"), ("user", "b")]),
        ({"input": [[1, 2]]}, []),
        ({"prompt": "a"}, [("user", "a")]),
        ({"prompt": "a", "messages": 5}, [("user", "a")]),
        ({"messages": [5, None]}, []),
    ],
)
def test_what_was_asked_at_every_endpoint(doc: dict[str, Any], said: list[tuple[str, str]]) -> None:
    """Chat, Anthropic's messages, responses, embeddings and completions; what is none of these is left out."""
    assert [(message["role"], message["content"]) for message in asked(doc)] == said


def test_messages_of_every_kind() -> None:
    """Text, parts, images (named only), tool calls and their results."""
    told = orjson.loads(
        input_json(
            [
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {}}],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c1", "function": {"name": "look", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "seen"},
            ]
        )
    )
    assert told == [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
        {"role": "user", "parts": [{"type": "text", "content": "What?"}, {"type": "image_url"}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "look", "arguments": "{}"}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "seen"}]},
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(("role", "content", "tool_calls", "tool_call_id", "function", "text", "type", "id"))
SHAPED = st.recursive(
    JSON, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4), max_leaves=12
)


@given(st.lists(st.dictionaries(FIELDS, SHAPED | st.sampled_from(("tool", "user")), max_size=5), max_size=3))
def test_messages_of_any_shape(messages: list[dict[str, Any]]) -> None:
    """Whatever a client sends becomes one entry a message: an answer that is over must not fail for it."""
    assert len(orjson.loads(input_json(messages))) == len(messages)


def test_messages_nested_as_deeply_as_a_body_may_be() -> None:
    """What can be read can be told, if only that it was there."""
    content: Any = 1
    for _ in range(251):
        content = [content]
    message = {"role": "tool", "content": content}
    assert orjson.dumps({"messages": [message]})
    assert orjson.loads(input_json([message])) == [{"role": "user", "parts": []}]


def test_an_answer() -> None:
    """Its text and why it ended; `error` when it did not end."""
    told = {"role": "assistant", "parts": [{"type": "text", "content": "Hi."}], "finish_reason": "stop"}
    assert orjson.loads(output_json("Hi.", ("stop",))) == [told]
    assert orjson.loads(output_json("Hi.", ())) == [told | {"finish_reason": "error"}]
