"""Responses in chat's words and back: every kind of item, what is left out, and what cannot be said."""

import contextlib
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.formats.request import Untranslatable
from gateway.formats.responses_chat import ending, output_of, response_of, to_chat, usage_doc
from gateway.formats.usage import Usage, parse_usage

CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "42"}


def messages(*items: Any) -> list[Any]:
    found: list[Any] = to_chat({"input": list(items)})["messages"]
    return found


def test_a_string_is_what_the_user_says() -> None:
    """With the instructions before it."""
    assert to_chat({"input": "Hi", "instructions": "Be brief."})["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


def test_items_become_turns() -> None:
    """Text, pictures, files and sound, each as chat has it."""
    parts = [
        {"type": "input_text", "text": "Look"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    ]
    said = {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]}
    found = messages({"role": "developer", "content": "a"}, said, {"role": "user", "content": parts})
    assert found[:2] == [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert found[2]["content"] == [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    ]


def test_calls_belong_to_one_turn() -> None:
    """What the assistant said and all that it called are one message, as chat demands; reasoning is left out."""
    said = {"role": "assistant", "content": "Let me see."}
    second = {**CALL, "call_id": "call_2"}
    found = messages(said, {"type": "reasoning", "id": "rs_1", "summary": []}, CALL, second, RESULT)
    assert [message["role"] for message in found] == ["assistant", "tool"]
    assert found[0]["content"] == "Let me see."
    assert [call["id"] for call in found[0]["tool_calls"]] == ["call_1", "call_2"]
    assert found[1] == {"role": "tool", "tool_call_id": "call_1", "content": "42"}
    assert messages(CALL, RESULT)[0]["content"] is None


def test_settings() -> None:
    """What chat has too goes on under its name there, what it has no word for is left out."""
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    found = to_chat(
        {
            "input": "a",
            "tools": [{"type": "function", **function}],
            "tool_choice": {"type": "function", "name": "f"},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}, "verbosity": "low"},
            "temperature": 0.5,
            "parallel_tool_calls": False,
            "reasoning": {"effort": "low"},
            "store": True,
            "include": ["reasoning.encrypted_content"],
            "metadata": {"a": "b"},
        }
    )
    assert found == {
        "messages": [{"role": "user", "content": "a"}],
        "temperature": 0.5,
        "parallel_tool_calls": False,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}},
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input[0].content[0]"),
    ],
)
def test_what_chat_cannot_say_is_named(fields: Mapping[str, Any], param: str) -> None:
    """The answer would be another, so it is refused, with the field; another candidate may take it."""
    with pytest.raises(Untranslatable) as refused:
        to_chat({"input": "a", **fields})
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"role": "robot", "content": "a"}, "input[0].role"),
        ({"content": "a"}, "input[0].role"),
        ({"role": "user", "content": 1}, "input[0].content"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[0].content[0].text"),
        ({"type": "function_call", "name": "f", "arguments": "{}"}, "input[0].call_id"),
        ({"type": "function_call_output", "call_id": "a", "output": 1}, "input[0].output"),
    ],
)
def test_what_is_wrong_is_named(item: Any, param: str) -> None:
    """An item without what it must have is the client's error."""
    with pytest.raises(InvalidRequest) as refused:
        messages(item)
    assert refused.value.param == param


def test_an_answer() -> None:
    """Text and calls are items in that order; a refusal is a part of its own."""
    call = {"id": "call_1", "function": {"name": "f", "arguments": '{"a":1}'}}
    text, called = output_of({"content": "Hi", "tool_calls": [call]}, "x")
    assert text["content"] == [{"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}]
    assert (called["call_id"], called["name"], called["arguments"]) == ("call_1", "f", '{"a":1}')
    (refused,) = output_of({"content": None, "refusal": "No."}, "x")
    assert refused["content"] == [{"type": "refusal", "refusal": "No."}]
    (empty,) = output_of({}, "x")
    assert empty["content"] == []
    assert [item["type"] for item in output_of({"tool_calls": [call]}, "x")] == ["function_call"]


def test_the_response_says_what_was_asked() -> None:
    """As OpenAI's does, and why it is incomplete."""
    doc = {"instructions": "Be brief.", "temperature": 0.5, "tools": [{"type": "function", "name": "f"}]}
    found = response_of(doc, response_id="resp_1", model="m", created=7, status="incomplete", cut="max_output_tokens")
    assert found["instructions"] == "Be brief."
    assert found["tools"] == doc["tools"]
    assert found["incomplete_details"] == {"reason": "max_output_tokens"}
    assert ending("length") == ("incomplete", "max_output_tokens")
    assert ending("tool_calls") == ("completed", None)


@given(
    st.builds(
        lambda cached, rest, thought, made: Usage(
            cached + rest, thought + made, cached_input=cached, reasoning=thought
        ),
        *[st.integers(0, 10**6)] * 4,
    )
)
def test_usage_comes_back_as_it_was(usage: Usage) -> None:
    """What we write of it, we read as the same."""
    assert parse_usage(usage_doc(usage)) == usage


_NAMES = st.sampled_from(["type", "text", "content", "role", "call_id", "name", "arguments", "output", "image_url"])
_KINDS = st.sampled_from(["message", "function_call", "function_call_output", "user", "assistant", "input_text"])
_LEAVES = st.none() | st.integers(-9, 9) | st.text(max_size=3) | _KINDS


@given(
    st.recursive(
        _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4), max_leaves=12
    )
)
def test_no_item_is_a_fault_of_ours(content: Any) -> None:
    """Whatever stands in an item, it is translated or refused."""
    items = [
        {"type": kind, "role": "user", "content": content, "call_id": "a", "name": "n", "arguments": content}
        for kind in ("message", "function_call", "function_call_output")
    ]
    for item in (*items, content if isinstance(content, dict) else {}):
        with contextlib.suppress(InvalidRequest):
            assert orjson.dumps(messages(item))
