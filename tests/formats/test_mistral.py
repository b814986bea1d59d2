"""Where Mistral's chat differs from OpenAI's."""

import orjson

from gateway.formats.mistral import MendedAnswer, MendedStream, to_mistral

THOUGHT = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "so"}]


def test_ids_of_calls_are_made_short_the_same_way_everywhere() -> None:
    """Mistral takes nine letters and digits; a result still belongs to its call."""
    call = {"id": "call_abc", "type": "function", "function": {"name": "a", "arguments": "{}"}}
    kept = {**call, "id": "abcDEF123"}
    messages = to_mistral(
        [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "tool_calls": [call, kept]},
            {"role": "tool", "tool_call_id": "call_abc", "content": "1"},
            {"role": "tool", "tool_call_id": "abcDEF123", "content": "2"},
        ]
    )
    first, second = (each["id"] for each in messages[1]["tool_calls"])
    assert (messages[2]["tool_call_id"], messages[3]["tool_call_id"]) == (first, second)
    assert len(first) == 9
    assert first.isalnum()
    assert second == "abcDEF123"


def test_an_answer_s_beginning_is_marked_as_such() -> None:
    """Only at the end, and only if it calls nothing."""
    said = {"role": "assistant", "content": "The"}
    assert to_mistral([{"role": "user", "content": "x"}, said])[-1]["prefix"] is True
    assert "prefix" not in to_mistral([said, {"role": "user", "content": "x"}])[0]
    assert to_mistral([]) == []


def test_thoughts_are_taken_out_of_the_content() -> None:
    """Whole and streamed; everything else keeps its bytes."""
    doc = {"choices": [{"index": 0, "message": {"content": THOUGHT}, "finish_reason": "model_length"}]}
    whole = MendedAnswer()
    assert whole.feed(orjson.dumps(doc)) == b""
    choice = orjson.loads(whole.finish())["choices"][0]
    assert choice["message"] == {"content": "so", "reasoning_content": "hm"}
    assert choice["finish_reason"] == "length"
    streamed = MendedStream()
    delta = {"choices": [{"index": 0, "delta": {"content": THOUGHT}, "finish_reason": None}]}
    out = streamed.feed(b"data: " + orjson.dumps(delta) + b"\n\n")
    assert orjson.loads(out[6:])["choices"][0]["delta"] == {"content": "so", "reasoning_content": "hm"}


def test_what_needs_no_mending_keeps_its_bytes() -> None:
    """Numbers, escapes and order included; what is not JSON is left to whoever counts it."""
    body = b'{"choices":[{"message":{"content":"\\u00fc"}}],"n": 1.0}'
    whole = MendedAnswer()
    whole.feed(body[:9])
    whole.feed(body[9:])
    assert whole.finish() == body
    streamed = MendedStream()
    data = b"data: " + body + b"\n\n: ping\n\ndata: {broken\n\ndata: [DONE]\n\n"
    assert streamed.feed(data[:20]) + streamed.feed(data[20:]) + streamed.finish() == data


def test_a_tool_that_said_nothing_has_still_answered() -> None:
    """litellm leaves out messages without content, and Mistral wants an answer to each call."""
    nothing: tuple[object, ...] = ("", None, [])
    for content in nothing:
        assert to_mistral([{"role": "tool", "tool_call_id": "abcDEF123", "content": content}])[0]["content"] == " "
