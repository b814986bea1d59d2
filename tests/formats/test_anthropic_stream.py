"""Anthropic's messages and events read as chat completions."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats.anthropic_stream import Events, read_answer
from gateway.formats.completion import Misread, ProviderError, completion, usage_fields
from gateway.formats.foreign import Sse
from gateway.formats.usage import Usage, parse_usage
from tests.formats.told import LABEL, Told, play, sse, stream

USAGE = {
    "input_tokens": 10,
    "cache_read_input_tokens": 300,
    "cache_creation_input_tokens": 50,
    "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
    "output_tokens": 7,
}
START = {
    "type": "message_start",
    "message": {"id": "msg_1", "model": "claude-x", "content": [], "usage": {**USAGE, "output_tokens": 1}},
}
STOP = {"type": "message_stop"}


def message(*content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "stop_reason": "end_turn"}
    return {**head, "content": list(content), "usage": USAGE, **fields}


def block(index: int, begun: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    started = {"type": "content_block_start", "index": index, "content_block": begun}
    pieces = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [started, *pieces, {"type": "content_block_stop", "index": index}]


def ending(reason: str, output: int = 7) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": output}}


def told(*events: dict[str, Any], json_tool: str | None = None, names: dict[str, str] | None = None) -> Told:
    return play(stream(Sse(), Events(names=names or {}, json_tool=json_tool)), sse(*events))


def text(piece: str) -> dict[str, Any]:
    return {"type": "text_delta", "text": piece}


def arguments(piece: str) -> dict[str, Any]:
    return {"type": "input_json_delta", "partial_json": piece}


def test_a_message_becomes_a_completion() -> None:
    """Text, stop reason, ids and the usage whose input includes what was cached."""
    said = read_answer(message({"type": "text", "text": "Grüße"}), names={}, json_tool=None)
    found = completion(said, LABEL)
    assert found["choices"][0]["message"]["content"] == "Grüße"
    assert found["choices"][0]["finish_reason"] == "stop"
    assert (found["id"], found["model"], found["created"]) == ("msg_1", "claude-x", LABEL.created)
    assert parse_usage(found["usage"]) == Usage(360, 7, cached_input=300, cache_write=50, cache_write_1h=30)


def test_calls_of_tools_get_the_names_that_the_client_gave() -> None:
    """A tool whose name had to be changed on the way is called by its own."""
    use = {"type": "tool_use", "id": "toolu_1", "name": "a_b", "input": {"city": "東京"}}
    said = read_answer(message(use, stop_reason="tool_use"), names={"a_b": "a/b"}, json_tool=None)
    call = said.choices[0].calls[0]
    assert (call.id, call.name, call.arguments) == ("toolu_1", "a/b", '{"city":"東京"}')
    assert said.choices[0].finish == "tool_calls"
    assert completion(said, LABEL)["choices"][0]["message"]["content"] is None


def test_the_tool_that_stands_for_a_schema_is_the_answer_itself() -> None:
    """Its arguments are the text, and no call is shown."""
    use = {"type": "tool_use", "id": "toolu_1", "name": "json_tool_call", "input": {"a": 1}}
    said = read_answer(message(use, stop_reason="tool_use"), names={}, json_tool="json_tool_call")
    assert (said.choices[0].text, said.choices[0].finish, said.choices[0].calls) == ('{"a":1}', "stop", [])


def test_thinking_is_kept_with_its_signature() -> None:
    """A client sends it back with the results of its tools, and Anthropic checks it."""
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    said = read_answer(message(thought, {"type": "text", "text": "so"}), names={}, json_tool=None)
    shown = completion(said, LABEL)["choices"][0]["message"]
    assert (shown["reasoning_content"], shown["thinking_blocks"], shown["content"]) == ("hm", [thought], "so")


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("model_context_window_exceeded", "length"),
        ("something_new", "stop"),
    ],
)
def test_every_stop_reason_has_its_finish_reason(reason: str, finish: str) -> None:
    """Whole and streamed alike."""
    said = read_answer(message({"type": "text", "text": "x"}, stop_reason=reason), names={}, json_tool=None)
    assert said.choices[0].finish == finish
    assert told(START, *block(0, {"type": "text", "text": ""}, text("x")), ending(reason), STOP).finish == [finish]


def test_what_is_no_message_is_not_read() -> None:
    """An error is told apart from something else."""
    with pytest.raises(Misread):
        read_answer({"choices": []}, names={}, json_tool=None)
    with pytest.raises(ProviderError) as caught:
        read_answer(
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, names={}, json_tool=None
        )
    assert caught.value.status == 529


def test_a_stream_becomes_chunks() -> None:
    """One role, the text in pieces, one finish_reason, the usage in a chunk of its own, and the end."""
    found = told(
        START,
        *block(0, {"type": "text", "text": ""}, text("Grü"), text("ße")),
        ending("end_turn"),
        STOP,
    )
    assert (found.text, found.finish, found.roles, found.done) == ("Grüße", ["stop"], 1, True)
    assert found.chunks[0]["id"] == "msg_1"
    assert found.usage == usage_fields(Usage(360, 7, cached_input=300, cache_write=50, cache_write_1h=30))


def test_calls_are_streamed_side_by_side_with_text() -> None:
    """Each call has its place; one without arguments gets an empty object."""
    found = told(
        START,
        *block(0, {"type": "text", "text": ""}, text("Let me see")),
        *block(
            1,
            {"type": "tool_use", "id": "t1", "name": "a", "input": {}},
            arguments(""),
            arguments('{"x"'),
            arguments(":1}"),
        ),
        *block(2, {"type": "tool_use", "id": "t2", "name": "b", "input": {}}, arguments("")),
        ending("tool_use"),
        STOP,
    )
    assert found.calls == {0: ["a", '{"x":1}'], 1: ["b", "{}"]}
    assert (found.ids, found.finish) == ({0: "t1", 1: "t2"}, ["tool_calls"])


def test_a_streamed_schema_is_text() -> None:
    """Also when the model thinks before it."""
    found = told(
        START,
        *block(0, {"type": "thinking", "thinking": ""}, {"type": "thinking_delta", "thinking": "hm"}),
        *block(1, {"type": "tool_use", "id": "t", "name": "json_tool_call", "input": {}}, arguments('{"a":1}')),
        ending("tool_use"),
        STOP,
        json_tool="json_tool_call",
    )
    assert (found.text, found.reasoning, found.finish, found.calls) == ('{"a":1}', "hm", ["stop"], {})


def test_what_the_provider_searches_itself_is_not_the_client_s_call() -> None:
    """Its own tools run at its side."""
    found = told(
        START,
        *block(0, {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}, arguments('{"q":"x"}')),
        *block(1, {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}),
        *block(2, {"type": "text", "text": ""}, text("found")),
        ending("end_turn"),
        STOP,
    )
    assert (found.text, found.calls, found.malformed) == ("found", {}, 0)


def test_an_error_event_ends_the_stream() -> None:
    """With the status that it would have had, and nothing after it."""
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    found = told(START, *block(0, {"type": "text", "text": ""}, text("a")), error, ending("end_turn"), STOP)
    assert found.error is not None
    assert (found.error["status"], found.error["message"], found.done) == (529, "Overloaded", False)


def test_a_stream_that_is_cut_does_not_look_whole() -> None:
    """Without its stop reason there is no end."""
    found = told(START, *block(0, {"type": "text", "text": ""}, text("a")))
    assert (found.text, found.finish, found.done) == ("a", [], False)


def test_a_stream_without_its_last_event_is_whole_after_its_stop_reason() -> None:
    """Some who speak the format leave `message_stop` out."""
    assert told(START, *block(0, {"type": "text", "text": ""}, text("a")), ending("end_turn")).done


def test_pings_show_that_the_provider_lives() -> None:
    """They become comments, which reset whoever waits and mean nothing."""
    translation = stream(Sse(), Events(names={}, json_tool=None))
    assert translation.feed(sse({"type": "ping"})) == b": ping\n\n"


@given(step=st.integers(1, 40), words=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6))
def test_a_stream_means_the_same_however_it_is_split(step: int, words: list[str]) -> None:
    """Bytes arrive in any pieces, also in the middle of a character."""
    data = sse(
        START, *block(0, {"type": "text", "text": ""}, *[text(word) for word in words]), ending("end_turn"), STOP
    )
    found = play(stream(Sse(), Events(names={}, json_tool=None)), data, step)
    assert (found.text, found.done, found.malformed) == ("".join(words), True, 0)
