"""A client sees one answer from the first candidate that can give it, whatever the others before it do."""

import contextlib
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.faults import FaultUpstream, refused
from tests.support import Reply, Served, ask, events_of, key_policy, serve

KEY = "sk-fallback"
MODES = ("plain", "streamed")
# What a backend may do before the first token, and that must not reach the client.
BEFORE_THE_FIRST_BYTE = {
    "plain": (
        *("reset", "silence", "headers_silence", "status_500", "status_502", "status_503", "status_504", "status_529"),
        *("status_408", "status_409", "status_401", "status_403", "status_402", "status_429", "insufficient_quota"),
        *(
            "status_429:3600",
            "malformed",
            "not_json",
            "html_502",
            "empty",
            "long_length",
            "cut_rst",
            "cut_fin",
            "stall",
        ),
        *("not_http", "endless_header", "context_length_exceeded"),
    ),
    "streamed": (
        *("reset", "silence", "headers_silence", "status_500", "status_502", "status_503", "status_504", "status_529"),
        *("status_408", "status_409", "status_401", "status_403", "status_402", "status_429", "insufficient_quota"),
        *("status_429:3600", "not_json", "html_502", "empty", "not_http", "endless_header", "context_length_exceeded"),
        *("stream_error:0", "vllm_error:0", "cut_rst:0", "cut_fin:0", "cut_close:0", "stall:0", "no_finish:tokens=0"),
        *("malformed_end:0",),
    ),
}
CASES = [(mode, fault) for mode in MODES for fault in BEFORE_THE_FIRST_BYTE[mode]]
REFUSALS = ("status_400", "status_404", "status_413", "status_422", "content_policy")
# The fault of every candidate, and what the client is told.
VERDICTS = {
    "status_503": (502, "upstream_error", "upstream_error", openai.InternalServerError),
    "reset": (502, "upstream_error", "upstream_error", openai.InternalServerError),
    "status_401": (502, "upstream_error", "upstream_auth", openai.InternalServerError),
    "status_403": (502, "upstream_error", "upstream_auth", openai.InternalServerError),
    "not_json": (502, "upstream_error", "upstream_invalid_response", openai.InternalServerError),
    "silence": (504, "upstream_error", "upstream_timeout", openai.InternalServerError),
    "headers_silence": (504, "upstream_error", "upstream_timeout", openai.InternalServerError),
}


def named(*parts: str) -> str:
    """A name for policies from a fault's."""
    return "-".join(parts).replace(":", "-").replace("=", "-")


@pytest.fixture(scope="module")
def upstream() -> Iterator[FaultUpstream]:
    """Every backend at once: the model's name says what goes wrong."""
    with FaultUpstream.in_thread() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(upstream: FaultUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """For each fault and mode a backend of its own, since a backend that fails is left alone for a while."""
    with contextlib.ExitStack() as stack:
        backends: dict[str, Any] = {"good": {"base_url": upstream.url}}
        models: dict[str, Any] = {"good": {"backend": "good", "model": "up-good", "context": 1000000}}
        aliases: dict[str, Any] = {"patient": {"chain": ["good"], "timeouts": {"first_token": "20s"}}}

        def bad(name: str, fault: str) -> str:
            backends[name] = {"base_url": upstream.url, "api_keys": ["up-key"]}
            models[name] = {"backend": name, "model": f"fault:{fault}", "context": 8192}
            return name

        for mode, fault in CASES:
            aliases[named(mode, fault)] = [bad(named("bad", mode, fault), fault), "good"]
        for fault in REFUSALS:
            aliases[named(fault)] = [bad(named("bad", fault), fault), "good"]
        for mode in MODES:
            for fault in VERDICTS:
                chain = [bad(named("worse", str(n), mode, fault), fault) for n in range(2)]
                aliases[named("all", mode, fault)] = chain
        for mode in MODES:
            backends[f"refuses-{mode}"] = {"base_url": stack.enter_context(refused())}
            models[f"refuses-{mode}"] = {"backend": f"refuses-{mode}", "model": "nobody"}
            aliases[f"three-{mode}"] = [f"refuses-{mode}", bad(f"down-{mode}", "status_503"), "good"]
        policies = {
            "defaults": {
                "timeouts": {"connect": "2s", "first_token": "300ms", "idle": "300ms", "total": "20s"},
                "retry": {"attempts": 1, "backoff": "10ms"},
            },
            "backends": backends,
            "models": models,
            "aliases": aliases,
            "keys": {"tester": key_policy(KEY)},
        }
        yield stack.enter_context(serve(tmp_path_factory.mktemp("fallback"), policies))


def is_whole(reply: Reply, mode: str) -> bool:
    """Whether this is one complete answer of the good backend."""
    if mode == "plain":
        choice = reply.json["choices"][0]
        return bool(choice["finish_reason"] == "stop" and choice["message"]["content"])
    events = events_of(reply.body)
    roles = [choice["delta"].get("role") for event in events[:-1] for choice in event["choices"]]
    return events[-1] == "[DONE]" and roles.count("assistant") == 1 and b"error" not in reply.body


def send(gateway: Served, model: str, mode: str) -> Reply:
    """One request in this mode."""
    return gateway.chat(ask(model, stream=mode == "streamed"), key=KEY)


@pytest.mark.parametrize("mode", MODES)
def test_the_third_answers_when_the_first_refuses_and_the_second_is_down(gateway: Served, mode: str) -> None:
    """The SDK sees one answer, and `x-gateway-attempts: 3`."""
    client: Any = openai.OpenAI(base_url=gateway.base_url, api_key=KEY, max_retries=0)
    with client:
        raw = client.chat.completions.with_raw_response.create(
            **ask(f"three-{mode}"), **({"stream": True} if mode == "streamed" else {})
        )
        parsed = raw.parse()
        chunks = list(parsed) if mode == "streamed" else [parsed]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert {chunk.model for chunk in chunks} == {"up-good"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert raw.headers["x-gateway-attempts"] == "3"
    assert raw.headers["x-gateway-backend"] == "good"
    assert raw.headers["x-gateway-route"] == f"three-{mode}"


@pytest.mark.parametrize(("mode", "fault"), CASES)
def test_every_failure_before_the_first_byte_falls_over(gateway: Served, mode: str, fault: str) -> None:
    """The next candidate answers as if it had been asked alone."""
    reply = send(gateway, named(mode, fault), mode)
    assert reply.status == 200, reply.body
    assert is_whole(reply, mode), reply.body
    assert reply.headers["x-gateway-backend"] == "good"
    assert reply.headers["x-gateway-attempts"] == "2"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", VERDICTS)
def test_when_all_fail_the_error_says_who_failed_and_how(gateway: Served, fault: str, mode: str) -> None:
    """502 or 504, with the backends' names; never a backend's own 401 or 403."""
    status, kind, code, _ = VERDICTS[fault]
    reply = send(gateway, named("all", mode, fault), mode)
    assert (reply.status, reply.error["type"], reply.error["code"]) == (status, kind, code), reply.body
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-gateway-attempts"] == "2"
    assert reply.headers["x-gateway-route"] == named("all", mode, fault)
    assert named("worse", "0", mode, fault) in reply.error["message"]
    assert named("worse", "1", mode, fault) in reply.error["message"]
    assert "up-key" not in reply.error["message"]
    # The second request finds the api keys at rest, or the failure again: it is never the client who is to blame.
    again = send(gateway, named("all", mode, fault), mode)
    assert again.status in (502, 503, 504), again.body
    if again.status == 503:
        assert again.error["code"] == "no_backend_available"
        assert int(again.headers["retry-after"]) >= 1


@pytest.mark.parametrize("fault", VERDICTS)
def test_the_sdk_raises_what_it_would_retry(gateway: Served, fault: str) -> None:
    """A 5xx: the SDK's own retries are told apart from a client's mistake."""
    client: Any = openai.OpenAI(base_url=gateway.base_url, api_key=KEY, max_retries=0)
    with client, pytest.raises(VERDICTS[fault][3]):
        client.chat.completions.create(**ask(named("all", "plain", fault)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", REFUSALS)
def test_a_refusal_of_the_request_passes_with_its_own_body(
    gateway: Served, upstream: FaultUpstream, fault: str, mode: str
) -> None:
    """400, 404, 413 and 422 are the client's to see, and no other backend is asked."""
    before = len(upstream.log)
    reply = send(gateway, named(fault), mode)
    seen = upstream.log[before:]
    assert [each.model for each in seen] == [f"fault:{fault}"]
    assert reply.status == (400 if fault == "content_policy" else int(fault.removeprefix("status_")))
    assert list(reply.json) == ["error"]
    assert reply.error["type"] == "invalid_request_error"
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"].startswith("req_")
    assert reply.headers["x-request-id"] != "req_fault"
    assert reply.headers["x-gateway-backend"] == named("bad", fault)


def test_context_length_passes_when_no_larger_context_is_left(gateway: Served) -> None:
    """The backend's own 400 is the answer, since it tells the client what to do."""
    reply = send(gateway, named("bad", "plain", "context_length_exceeded"), "plain")
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")


def test_a_transient_failure_is_tried_once_more_on_the_same_backend(gateway: Served, upstream: FaultUpstream) -> None:
    """503, then an answer: one candidate, two tries, and the client sees neither."""
    before = len(upstream.log)
    upstream.script(["status_503", "ok"])
    reply = send(gateway, "good", "plain")
    assert reply.status == 200
    assert reply.headers["x-gateway-attempts"] == "1"
    assert [each.fault.name for each in upstream.log[before:]] == ["status_503", "ok"]


def test_a_silent_backend_is_not_asked_again(gateway: Served, upstream: FaultUpstream) -> None:
    """No answer within `first_token` goes straight to the next; the silent one sees its connection closed."""
    silent = [each for each in upstream.log if each.fault.name in ("silence", "headers_silence")]
    before = len(upstream.log)
    send(gateway, named("plain", "silence"), "plain")
    seen = [each.fault.name for each in upstream.log[before:]]
    assert seen.count("silence") <= 1
    upstream.wait(lambda: all(each.closed_at is not None for each in silent))


@pytest.mark.parametrize(
    "fault",
    [
        *("cut_rst:3", "cut_fin:3", "cut_close:3", "stall:3", "no_finish:gap=0.03"),
        # A pause before the error: what comes in one piece with it has not begun for the client, and is tried again.
        *("stream_error:after=3,gap=0.05", "vllm_error:after=3,gap=0.05"),
    ],
)
def test_a_stream_that_is_cut_never_looks_whole(gateway: Served, upstream: FaultUpstream, fault: str) -> None:
    """After the first byte: one error event, no `[DONE]`, nobody else is asked; the SDK raises."""
    before = len(upstream.log)
    upstream.script([fault] * 2)
    reply = send(gateway, "good", "streamed")
    events = events_of(reply.body)
    assert reply.status == 200
    assert "[DONE]" not in events
    assert [list(event) for event in events if "error" in event] == [["error"]]
    error = events[-1]["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["code"] == ("stream_stalled" if fault.startswith("stall") else "stream_interrupted")
    client: Any = openai.OpenAI(base_url=gateway.base_url, api_key=KEY, max_retries=0)
    with client, pytest.raises(openai.APIError) as caught:
        for _ in client.chat.completions.create(**ask("good"), stream=True):
            pass
    assert caught.value.code == error["code"]
    assert len(upstream.log) == before + 2


@pytest.mark.parametrize(
    "fault", ["no_done", "malformed:3", "close_delimited", "interim", "usage_in_finish", "drip:tokens=2"]
)
def test_a_strange_stream_that_is_whole_ends_whole(gateway: Served, upstream: FaultUpstream, fault: str) -> None:
    """`[DONE]` is there, or added; a malformed event is dropped."""
    upstream.script([fault])
    reply = send(gateway, "patient", "streamed")
    assert is_whole(reply, "streamed"), reply.body
    assert b"broken" not in reply.body
    assert b'"usage"' not in reply.body
