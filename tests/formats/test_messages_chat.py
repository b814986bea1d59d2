"""Anthropic's messages in chat's words and back: every kind of block, what is left out, and what cannot be said."""

import contextlib
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.formats.messages_chat import message_of, to_chat, usage_doc
from gateway.formats.request import Untranslatable
from gateway.formats.usage import Usage, parse_usage

PIXEL = "iVBORw0KGgo="
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return to_chat({"messages": list(messages), **fields})


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def test_a_conversation_keeps_its_turns() -> None:
    """System first, then every turn in its order, with its own role."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    system = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind.", "cache_control": {}}]
    assert chat(*turns, system=system)["messages"] == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        *turns,
    ]


def test_pictures_become_urls() -> None:
    """Base64 becomes a data URL, a URL stays one."""
    pointed = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
    (message,) = chat(user({"type": "text", "text": "Look"}, PICTURE, pointed))["messages"]
    assert message["content"] == [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
    ]


def test_documents_go_as_files_or_text() -> None:
    """A PDF is a file with its name, plain text is text."""
    pdf = {
        "type": "document",
        "title": "a.pdf",
        "source": {"type": "base64", "media_type": "application/pdf", "data": "AA"},
    }
    text = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}}
    (message,) = chat(user(pdf, text))["messages"]
    assert message["content"] == [
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}},
        {"type": "text", "text": "words"},
    ]


def test_tools_and_what_they_told() -> None:
    """A call keeps its id; its result is a message of its own, before what the user says beside it."""
    called = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "42"}, PICTURE]}
    messages = chat(
        {"role": "assistant", "content": [thought, {"type": "text", "text": "Let me see."}, called]},
        user({"type": "text", "text": "And?"}, result),
    )["messages"]
    assert messages[0] == {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [{"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
    }
    assert messages[1] == {"role": "tool", "tool_call_id": "toolu_1", "content": "42"}
    assert [part["type"] for part in messages[2]["content"]] == ["text", "image_url"]


def test_a_call_without_words_has_no_content() -> None:
    """OpenAI wants null there, not an empty string."""
    (message,) = chat({"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]})[
        "messages"
    ]
    assert message["content"] is None


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_the_choice_of_tools(choice: Mapping[str, Any], said: object) -> None:
    """Each of Anthropic's four has its word in chat."""
    tool = {"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
    found = chat(user(), tools=[tool], tool_choice={**choice, "disable_parallel_tool_use": True})
    assert found["tool_choice"] == said
    assert found["parallel_tool_calls"] is False
    function = {"name": "f", "parameters": {"type": "object"}, "description": "d"}
    assert found["tools"] == [{"type": "function", "function": function}]


def test_settings() -> None:
    """What chat has too goes on under its name there, what it has no word for is left out."""
    found = chat(
        user(),
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        stop_sequences=["END"],
        metadata={"user_id": "u1"},
        thinking={"type": "enabled", "budget_tokens": 2000},
        service_tier="auto",
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    )
    assert found == {
        "messages": [],
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["END"],
        "user": "u1",
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
    }


def test_a_long_user_id_is_hashed() -> None:
    """OpenAI takes 64 characters; the hash is still the same user."""
    first, again = (chat(user(), metadata={"user_id": "u" * 65})["user"] for _ in range(2))
    assert first == again
    assert len(first) == 64


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"messages": [user({"type": "image", "source": {"type": "file", "file_id": "f"}})]}, "messages[0].content[0]"),
        ({"messages": [user({"type": "container_upload", "file_id": "f"})]}, "messages[0].content[0]"),
    ],
)
def test_what_chat_cannot_say_is_named(fields: Mapping[str, Any], param: str) -> None:
    """The answer would be another, so it is refused, with the field; another candidate may take it."""
    with pytest.raises(Untranslatable) as refused:
        to_chat({"messages": [user()], **fields})
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (user({"type": "text"}), "messages[0].content[0].text"),
        (user({"type": "tool_result", "content": "a"}), "messages[0].content[0].tool_use_id"),
        (user({"type": "tool_result", "tool_use_id": "a", "content": 1}), "messages[0].content[0].content"),
        ({"role": "assistant", "content": [{"type": "tool_use", "id": "a"}]}, "messages[0].content[0].name"),
        ({"role": "robot", "content": "a"}, "messages[0].role"),
    ],
)
def test_what_is_wrong_is_named(message: Any, param: str) -> None:
    """A block without what it must have is the client's error."""
    with pytest.raises(InvalidRequest) as refused:
        chat(message)
    assert refused.value.param == param


def answer(message: Any, finish: str = "stop", **choice: Any) -> dict[str, Any]:
    doc = {"id": "chatcmpl-1", "model": "m-1", "choices": [{"message": message, "finish_reason": finish, **choice}]}
    return message_of(doc, Usage(20, 5, cached_input=8, cache_write=2), ["END"], thinks=True)


def test_an_answer() -> None:
    """Reasoning, text and calls are blocks in that order; usage counts what was cached apart."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    found = answer({"content": "Hi", "reasoning_content": "hm", "tool_calls": [call]}, "tool_calls")
    assert found == {
        "id": "msg_chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": "m-1",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "Hi"},
            {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "cache_creation_input_tokens": 2,
            "cache_read_input_tokens": 8,
            "output_tokens": 5,
        },
    }


@pytest.mark.parametrize(
    ("finish", "stop"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("content_filter", "refusal"),
        ("whatever", "end_turn"),
    ],
)
def test_why_it_ended(finish: str, stop: str) -> None:
    """Each finish_reason has its stop_reason."""
    assert answer({"content": "a"}, finish)["stop_reason"] == stop


def test_the_stop_sequence_that_a_server_names() -> None:
    """vLLM says which of them it was; a token's number is not one."""
    assert answer({"content": "a"}, stop_reason="END")["stop_sequence"] == "END"
    assert answer({"content": "a"}, stop_reason=128009)["stop_reason"] == "end_turn"


def test_a_refusal_is_shown() -> None:
    """Its words are text, and the reason says so."""
    found = answer({"content": None, "refusal": "No."})
    assert found["content"] == [{"type": "text", "text": "No."}]
    assert found["stop_reason"] == "refusal"


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "nothing"])
def test_wrong_arguments_are_kept(arguments: str) -> None:
    """A tool's input must be an object; what a model wrote instead stays to be seen."""
    call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
    assert answer({"tool_calls": [call]})["content"][0]["input"] == {"INVALID_JSON": arguments}


@given(
    st.builds(
        lambda cached, written, rest, made: Usage(cached + written + rest, made, cached, written),
        *[st.integers(0, 10**6)] * 4,
    )
)
def test_usage_comes_back_as_it_was(usage: Usage) -> None:
    """What we write of it, we read as the same."""
    assert parse_usage(usage_doc(usage)) == usage


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["type", "text", "content", "source", "id", "name", "input", "tool_use_id", "data"]),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_no_block_is_a_fault_of_ours(content: Any) -> None:
    """Whatever stands in a block, it is translated or refused."""
    blocks = [
        {
            "type": kind,
            "content": content,
            "text": content,
            "source": content,
            "id": "a",
            "name": "n",
            "input": content,
            "tool_use_id": "a",
        }
        for kind in ("text", "image", "tool_result", "document", "search_result")
    ]
    for block in blocks:
        with contextlib.suppress(InvalidRequest):
            assert orjson.dumps(chat(user(block), {"role": "assistant", "content": [block]}))
