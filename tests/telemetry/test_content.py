"""Captured content: OpenAI's messages in the conventions' shape."""

import orjson

from gateway.telemetry.content import input_json, output_json


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


def test_an_answer() -> None:
    """Its text and why it ended; `error` when it did not end."""
    told = {"role": "assistant", "parts": [{"type": "text", "content": "Hi."}], "finish_reason": "stop"}
    assert orjson.loads(output_json("Hi.", ("stop",))) == [told]
    assert orjson.loads(output_json("Hi.", ())) == [told | {"finish_reason": "error"}]
