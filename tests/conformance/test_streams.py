"""After the first token: a stream goes on elsewhere as one stream, or ends with the truth; never cut and looking whole."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import openai
import pytest

from tests.conformance.raw import CUT, HEAD, HOLD, chunk, framed, playing
from tests.conformance.stage import QUICK, Part, Stage, Told, policies_of
from tests.faults import FaultUpstream, text
from tests.support import ask, events_of, serve

PREFILL = Part(model={"prefill": True})
# A pause before the end, so that what came before has reached the client.
CUTS = {
    **{name: f"{name}:after=3,gap=0.02,pause=0.1" for name in ("cut_rst", "cut_fin", "cut_close", "stall")},
    "no_finish": "no_finish:tokens=3,gap=0.02",
    "malformed_end": "malformed_end:after=3,gap=0.02",
    "stream_error": "stream_error:after=3,gap=0.02",
    "vllm_error": "vllm_error:after=3,gap=0.02",
}
CHAINS: Mapping[str, Sequence[Part | str]] = {
    **{name: [fault, "ok", PREFILL] for name, fault in CUTS.items()},
    **{f"{name}-alone": [fault, "ok"] for name, fault in CUTS.items()},
    "twice": [CUTS["cut_fin"], Part("cut_rst:after=2,gap=0.02,pause=0.1", model={"prefill": True}), PREFILL],
    "down-then": [CUTS["cut_fin"], Part("status_503", model={"prefill": True}), PREFILL],
    "all-down": [CUTS["cut_fin"], Part("status_503", model={"prefill": True})],
    "refused-then": [CUTS["cut_fin"], Part("status_400", model={"prefill": True})],
    "itself": [Part(CUTS["cut_fin"], model={"prefill": True})],
    "several": [CUTS["cut_fin"], PREFILL],
    "tools": [CUTS["cut_fin"], PREFILL],
    "malformed": [Part("malformed:after=3,gap=0.02"), PREFILL],
    "no-done": ["no_done", PREFILL],
    "no-done-no-usage": ["no_done", PREFILL],
}
HELLO = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Hello "})
END = framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
PLAYS = {
    "finished-then-cut": [HEAD, HELLO, chunk({"content": "you."}), chunk({}, "stop"), CUT],
    "finished-then-silent": [HEAD, HELLO, chunk({"content": "you."}), chunk({}, "stop"), HOLD],
    "only-thoughts": [HEAD, chunk({"role": "assistant", "reasoning_content": "Hm. "}), CUT],
    "only-space": [HEAD, chunk({"role": "assistant", "content": "\n\n"}), CUT],
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """All these chains, and the plays in front of a candidate that could go on."""
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(FaultUpstream.in_thread())
        plays = {
            name: [Part(backend={"base_url": stack.enter_context(playing(play))}), PREFILL]
            for name, play in PLAYS.items()
        }
        policies = policies_of(
            upstream.url,
            {**CHAINS, **plays},
            defaults={
                "timeouts": QUICK,
                "retry": {"attempts": 1, "backoff": "20ms"},
                "breaker": {"failures": 100000},
            },
        )
        with serve(tmp_path_factory.mktemp("streams"), policies) as gateway:
            yield Stage(gateway, upstream)


def stream(stage: Stage, model: str, **fields: Any) -> tuple[Told, list[Any]]:
    """One streamed request, and its events."""
    told = stage.tell(model, stream=True, **fields)
    assert told.reply.status == 200
    return told, list(events_of(told.reply.body))


def assert_one_stream(events: list[Any], said: str) -> None:
    """It reads as if one backend had written it: one id, one role, one end, nothing twice and nothing left out."""
    assert events[-1] == "[DONE]"
    chunks = events[:-1]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    for name in ("id", "created", "model"):
        assert len({chunk[name] for chunk in chunks}) == 1, name
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [choice["delta"].get("role") for choice in choices if choice["delta"].get("role")] == ["assistant"]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == said
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    assert choices[-1]["finish_reason"] == "stop"


def assert_broken(events: list[Any], code: str) -> None:
    """One error event is its end, and no `[DONE]`."""
    assert "[DONE]" not in events
    assert [index for index, event in enumerate(events) if "error" in event] == [len(events) - 1]
    assert list(events[-1]) == ["error"]
    assert sorted(events[-1]["error"]) == ["code", "message", "param", "type"]
    assert (events[-1]["error"]["type"], events[-1]["error"]["code"]) == ("upstream_error", code)
    assert not any(choice["finish_reason"] for event in events[:-1] for choice in event["choices"])


@pytest.mark.parametrize("fault", CUTS)
def test_a_stream_that_breaks_goes_on_at_the_next_that_takes_its_beginning(stage: Stage, fault: str) -> None:
    """The candidate without `prefill` is left out; the one with it is given what was delivered."""
    told, events = stream(stage, fault, stream_options={"include_usage": True})
    assert told.places == [0, 2]
    assert_one_stream(events, text(10))
    *before, last = told.seen[1].json["messages"]
    assert before == told.seen[0].json["messages"]
    assert last == {"role": "assistant", "content": text(3).rstrip()}
    assert told.reply.headers["x-gateway-backend"] == f"{fault}-0"
    if fault == "stall":
        assert 0.45 < told.seen[1].at - told.seen[0].at < 3
        stage.upstream.wait(lambda: told.seen[0].closed_at is not None)


@pytest.mark.parametrize("fault", ["cut_fin", "stall"])
def test_the_usage_of_both_is_added_up(stage: Stage, fault: str) -> None:
    """For the client that asked, in the one chunk with usage; and for the gateway's own count."""
    tokens = [f'gateway_tokens_total{{direction="{way}",route="{fault}"' for way in ("input", "output")]
    before = [total(stage, each) for each in tokens]
    told, events = stream(stage, fault, stream_options={"include_usage": True})
    (usage,) = [chunk["usage"] for chunk in events[:-1] if chunk.get("usage")]
    assert usage == events[-2]["usage"]
    first, second = told.seen
    # What the first was asked and made is counted by the gateway, since it did not live to say so.
    assert usage["prompt_tokens"] > second.prompt_tokens
    assert second.completion_tokens + 3 <= usage["completion_tokens"] <= second.completion_tokens + 10
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert first.completion_tokens == 3
    counted = [total(stage, each) - had for each, had in zip(tokens, before, strict=True)]
    assert counted == [usage["prompt_tokens"], usage["completion_tokens"]]


def total(stage: Stage, begins: str) -> float:
    """The sum of the samples of `/metrics` that begin so."""
    lines = stage.gateway.request("GET", "/metrics").body.decode().splitlines()
    names = begins.partition("{")
    labels = names[2].split(",")
    found = [line for line in lines if line.startswith(names[0] + "{") and all(label in line for label in labels)]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def test_a_client_that_did_not_ask_sees_no_usage(stage: Stage) -> None:
    """Neither of the first stream nor of the second."""
    told, events = stream(stage, "cut_rst")
    assert_one_stream(events, text(10))
    assert b'"usage"' not in told.reply.body
    assert all(seen.json["stream_options"] == {"include_usage": True} for seen in told.seen)


def test_a_lowered_limit_is_asked_for_the_rest(stage: Stage) -> None:
    """What was delivered counts on the client's own `max_tokens`."""
    told, events = stream(stage, "cut_rst", max_tokens=12)
    assert told.seen[0].json["max_tokens"] == 12
    assert 2 <= told.seen[1].json["max_tokens"] <= 9
    assert events[-1] == "[DONE]"


def test_a_stream_may_break_twice(stage: Stage) -> None:
    """Each goes on where the last one stopped."""
    told, events = stream(stage, "twice", stream_options={"include_usage": True})
    assert told.places == [0, 1, 2]
    assert_one_stream(events, text(10))
    assert told.seen[2].json["messages"][-1] == {"role": "assistant", "content": text(5).rstrip()}
    assert len(told.seen[2].json["messages"]) == len(told.seen[0].json["messages"]) + 1


def test_one_that_cannot_go_on_is_passed_over(stage: Stage) -> None:
    """A 503 before its first token is tried once more, then the next."""
    told, events = stream(stage, "down-then")
    assert told.places == [0, 1, 1, 2]
    assert_one_stream(events, text(10))


@pytest.mark.parametrize("fault", CUTS)
def test_without_one_to_go_on_the_stream_ends_with_an_error(stage: Stage, fault: str) -> None:
    """What was delivered, then the error event; nobody is asked from the start. The SDK raises."""
    name = f"{fault}-alone"
    code = "stream_stalled" if fault == "stall" else "stream_interrupted"
    told, events = stream(stage, name)
    assert told.places == [0]
    assert_broken(events, code)
    assert told.text == text(3)
    client: Any = openai.OpenAI(base_url=stage.gateway.base_url, api_key="none", max_retries=0)
    with client, pytest.raises(openai.APIError) as caught:
        for _ in client.chat.completions.create(**ask(name), stream=True):
            pass
    assert caught.value.code == code
    if fault == "vllm_error":
        assert "the engine died" in events[-1]["error"]["message"]
        assert b'"object": "error"' not in told.reply.body


@pytest.mark.parametrize(("name", "places"), [("all-down", [0, 1, 1]), ("refused-then", [0, 1]), ("itself", [0])])
def test_when_those_to_go_on_fail_the_stream_ends_with_an_error(stage: Stage, name: str, places: list[int]) -> None:
    """The error is that of the stream, not that of the last candidate."""
    told, events = stream(stage, name)
    assert told.places == places
    assert_broken(events, "stream_interrupted")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("several", {"n": 2}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}),
    ],
)
def test_what_text_cannot_continue_ends_with_an_error(stage: Stage, name: str, fields: dict[str, Any]) -> None:
    """Several choices, and the call of a tool."""
    told, events = stream(stage, name, **fields)
    assert told.places == [0]
    assert_broken(events, "stream_interrupted")


def test_a_stream_without_done_is_whole(stage: Stage) -> None:
    """Its finish_reason says so: `[DONE]` is added, nobody else is asked."""
    for name, fields in (("no-done", {"stream_options": {"include_usage": True}}), ("no-done-no-usage", {})):
        told, events = stream(stage, name, **fields)
        assert told.places == [0]
        assert_one_stream(events, text(10))
        assert told.reply.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("name", ["finished-then-cut", "finished-then-silent"])
def test_a_stream_that_breaks_after_its_finish_reason_is_whole(stage: Stage, name: str) -> None:
    """There is nothing to go on with: another model would add to an answer that is complete."""
    told, events = stream(stage, name)
    assert told.places == []
    assert_one_stream(events, "Hello you.")


@pytest.mark.parametrize("name", ["only-thoughts", "only-space"])
def test_a_stream_with_nothing_to_begin_with_is_not_sent_from_the_start(stage: Stage, name: str) -> None:
    """Something has reached the client, and an assistant's beginning cannot be empty."""
    told, events = stream(stage, name)
    assert told.places == []
    assert_broken(events, "stream_interrupted")


def test_nobody_between_is_to_hold_a_stream_back(stage: Stage) -> None:
    """Caches and nginx's buffers are told so, once each, whatever the backend said."""
    headers = stream(stage, "malformed")[0].reply.headers
    assert headers.get_all("cache-control") == ["no-cache"]
    assert headers.get_all("x-accel-buffering") == ["no"]


def test_a_malformed_event_is_dropped_counted_and_logged(stage: Stage) -> None:
    """The rest of the stream is whole."""
    before = stage.metric('gateway_malformed_events_total{backend="malformed-0"}')
    told, events = stream(stage, "malformed")
    assert told.places == [0]
    assert_one_stream(events, text(10))
    assert b"broken" not in told.reply.body
    assert stage.metric('gateway_malformed_events_total{backend="malformed-0"}') == before + 1
    line = stage.until_logged("malformed_event", request_id=told.reply.headers["x-request-id"])
    assert (line["backend"], line["count"]) == ("malformed-0", 1)
