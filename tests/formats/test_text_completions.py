"""The older completions: what is asked, what is counted, and how a cut one goes on."""

import orjson
import pytest

from gateway.errors import InvalidRequest
from gateway.formats.request import NotAnAnswer, Untranslatable
from gateway.formats.text_completions import CompletionRequest, parse_completions


def asked(**fields: object) -> CompletionRequest:
    """A request."""
    return parse_completions(orjson.dumps({"model": "m", "prompt": "Once", **fields}))


@pytest.mark.parametrize(
    ("fields", "n", "prompts", "most"),
    [
        ({}, 1, 1, None),
        ({"n": 2}, 2, 1, None),
        ({"n": 2, "best_of": 5, "max_tokens": 9}, 5, 1, 9),
        ({"n": 2, "prompt": ["a", "b", "c"]}, 6, 3, None),
        ({"prompt": [1, 2, 3]}, 1, 1, None),
        ({"prompt": [[1, 2], [3]]}, 2, 2, None),
        ({"echo": True, "max_tokens": 0}, 1, 1, 0),
    ],
)
def test_every_answer_that_is_made_counts(fields: dict[str, object], n: int, prompts: int, most: int | None) -> None:
    """`best_of` are made although `n` are shown, for each prompt."""
    request = asked(**fields)
    assert (request.n, request.extent.prompts, request.extent.writes, request.max_output) == (n, prompts, True, most)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"echo": 1}, "echo"),
        ({"best_of": "2"}, "best_of"),
        ({"stream_options": []}, "stream_options"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, object], param: str) -> None:
    """By its field."""
    with pytest.raises(InvalidRequest) as caught:
        asked(**fields)
    assert caught.value.param == param


def test_the_body_for_a_backend() -> None:
    """Usage is asked for, and the limit has only its old name."""
    request = asked(stream=True)
    sent = orjson.loads(request.encode("other", max_output=5, output_field="max_completion_tokens"))
    assert sent["model"] == "other"
    assert sent["max_tokens"] == 5
    assert sent["stream_options"] == {"include_usage": True}
    assert "max_completion_tokens" not in sent
    with pytest.raises(Untranslatable):
        request.encode("other", provider="gemini")


def test_an_answer() -> None:
    """Its text, usage and reasons."""
    choices = [{"text": " upon", "finish_reason": "stop"}, {"text": " a time", "finish_reason": "length"}]
    usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    answer = asked().read(orjson.dumps({"id": "c", "choices": choices, "usage": usage}), b"", "openai")
    assert answer.text == " upon\n a time"
    assert answer.usage is not None
    assert (answer.usage.total_tokens, answer.finish_reasons, answer.response_id) == (4, ("stop", "length"), "c")
    with pytest.raises(NotAnAnswer):
        asked().read(b'{"id":"c"}', b"", "openai")


def test_a_cut_text_goes_on_after_what_was_delivered() -> None:
    """The prompt is longer by it, and the limit shorter."""
    rest = asked(max_tokens=10).go_on(" upon a", 3)
    assert rest is not None
    assert orjson.loads(rest.raw) == {"model": "m", "prompt": "Once upon a", "max_tokens": 7}
    assert (rest.doc["prompt"], rest.max_output, rest.mode) == ("Once upon a", 7, "completion")
    unlimited = asked().go_on(" upon", 1)
    assert unlimited is not None
    assert unlimited.max_output is None


@pytest.mark.parametrize("fields", [{"n": 2}, {"echo": True}, {"suffix": "end"}, {"prompt": [1]}, {"prompt": ["a"]}])
def test_what_cannot_go_on(fields: dict[str, object]) -> None:
    """Several texts, ids, and what must fit between two ends."""
    assert asked(**fields).go_on(" upon", 1) is None
