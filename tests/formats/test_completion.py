"""Chunks and completions, as OpenAI's own SDK reads them."""

import orjson
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.formats.completion import Choice, Chunks, Said, ToolCall, chunks_of, completion, usage_fields
from gateway.formats.usage import Usage, parse_usage
from tests.formats.told import LABEL, read

COUNT = st.integers(0, 1000)


@given(st.builds(Usage, *[COUNT] * 7), COUNT)
def test_a_usage_is_read_back_as_it_was(parts: Usage, hour: int) -> None:
    """Whatever was cached, written, thought or heard."""
    usage = Usage(
        input_tokens=parts.input_tokens + parts.cached_input + parts.cache_write,
        output_tokens=parts.output_tokens + parts.reasoning,
        cached_input=parts.cached_input,
        cache_write=parts.cache_write,
        reasoning=parts.reasoning,
        audio_input=parts.audio_input,
        audio_output=parts.audio_output,
        cache_write_1h=min(hour, parts.cache_write),
    )
    assert parse_usage(usage_fields(usage)) == usage


def test_openai_s_sdk_reads_a_completion() -> None:
    """With calls, without text, and without any usage."""
    said = Said((Choice(calls=(ToolCall("c", "a", "{}"),), finish="tool_calls"),), None)
    found = ChatCompletion.model_validate(completion(said, LABEL))
    assert found.choices[0].message.tool_calls is not None
    assert (found.choices[0].message.content, found.usage, found.id) == (None, None, "chatcmpl-00ff")
    assert completion(Said((Choice(),), None), LABEL)["choices"][0]["message"]["content"] == ""


def test_openai_s_sdk_reads_every_chunk() -> None:
    """Each of the kinds there are."""
    said = Said((Choice("a", "b", (ToolCall("c", "n", "{}"),), "stop"),), Usage(1, 1))
    records = chunks_of(said, LABEL).split(b"\n\n")[:-2]
    found = [ChatCompletionChunk.model_validate(orjson.loads(record[6:])) for record in records]
    assert found[-1].usage is not None
    assert found[-1].choices == []


@given(st.lists(st.tuples(st.integers(0, 2), st.text(min_size=1)), min_size=1, max_size=8))
def test_pieces_of_text_reach_their_choice(pieces: list[tuple[int, str]]) -> None:
    """The quick way for the first choice writes the same as the other."""
    chunks = Chunks(LABEL)
    for index, piece in pieces:
        chunks.text(piece, index)
    found = read(chunks.take())
    assert found.text == "".join(piece for _, piece in pieces)
    assert found.roles == len({index for index, _ in pieces})
    assert chunks.take() == b""


def test_names_that_come_late_change_nothing() -> None:
    """All chunks of an answer bear one id and model."""
    chunks = Chunks(LABEL)
    chunks.named("", "")
    chunks.text("a")
    chunks.named("late", "late")
    chunks.text("b")
    assert {(chunk["id"], chunk["model"]) for chunk in read(chunks.take()).chunks} == {("chatcmpl-00ff", "asked-for")}


def test_the_end_is_told_once() -> None:
    """Also when a provider says it twice."""
    chunks = Chunks(LABEL)
    chunks.close()
    chunks.close()
    assert chunks.take() == b"data: [DONE]\n\n"
