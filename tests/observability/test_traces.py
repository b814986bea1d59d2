"""Whole span trees through the real gateway, at a real collector over both protocols, by the OTEL_* variables alone."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.telemetry import names
from tests.conformance.stage import Part, policies_of
from tests.faults import FaultUpstream, text
from tests.observability.scene import (
    CLIENT_SPAN,
    QUICKLY,
    STATE,
    Scene,
    Tree,
    assert_is_a_tree,
    events_of_span,
    seconds,
    trace_headers,
)
from tests.support import ask, events_of, key_policy, serve
from tests.telemetry import collector

PRICE = {"input": 1, "output": 2}
SLOWLY = "ok:gap=0.03"  # ten tokens, 0.3 s
CHAINS: Mapping[str, Sequence[Part | str]] = {
    "plain": [Part("ok", model={"price": PRICE})],
    "streamed": [Part(SLOWLY, model={"price": PRICE})],
    "falls": ["status_503", "insufficient_quota", "ok"],
    "retry": ["ok"],
    "rested": ["ok"],
    "hedge-plain": ["ok:delay=3", "ok"],
    "hedge-streamed": ["ok:delay=3", "ok"],
    "cut": ["cut_fin:after=3,gap=0.03", Part("ok:gap=0.031", model={"prefill": True, "price": PRICE})],
    "broken": ["cut_fin:after=3"],
    "stalled": ["stall:3"],
    "silent": ["silence"],
    "leaving": ["silence"],
    "midway": [Part("slow:gap=0.05,tokens=1000")],
    "failed": ["status_500", "status_503"],
    "refused": ["content_policy"],
    "slots": [Part("ok:delay=0.3", backend={"slots": 1, "queue": {"size": 1, "timeout": "10s"}}), "ok"],
    "dear": [Part("ok", model={"price": {"input": 1000, "output": 1000}})],
}
KEYS = {
    "alice": key_policy("sk-alice", team="research"),
    "poor": key_policy("sk-poor", limits=[{"usd": 0.000001, "per": "day"}]),
    "rich": key_policy("sk-rich", team="research", limits=[{"usd": 100, "per": "day"}]),
}


def policies(upstream: FaultUpstream) -> dict[str, Any]:
    """Every chain as an alias, three keys, a team and a task."""
    return policies_of(
        upstream.url,
        CHAINS,
        routes={
            **{f"hedge-{mode}": {"hedge": {"after": "150ms"}} for mode in ("plain", "streamed")},
            **{name: {"retry": {"attempts": 0}} for name in ("falls", "failed", "broken", "stalled")},
        },
        defaults={
            "timeouts": {"connect": "5s", "first_token": "2s", "idle": "700ms", "total": "60s"},
            "retry": {"attempts": 1, "backoff": "20ms"},
            "breaker": {"failures": 100000},
        },
        tasks={"analysis": {"chain": ["plain-0"]}},
        teams={"research": {}},
        keys=KEYS,
    ) | {"server": {"auth": "keys"}}


@pytest.fixture(scope="module", params=["grpc", "http"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A gateway that was told of the collector by the standard variables, and by nothing else."""
    with opened(request.param, tmp_path_factory.mktemp("traces")) as found:
        yield found


@contextlib.contextmanager
def opened(protocol: str, folder: Path, **more: str) -> Iterator[Scene]:
    """The whole scene, with more variables in the gateway's environment."""
    receiving = collector.over_grpc() if protocol == "grpc" else collector.over_http()
    with (
        receiving as receiver,
        FaultUpstream.in_thread() as upstream,
        serve(folder, policies(upstream), env=receiver.environ(**QUICKLY, **more)) as gateway,
    ):
        yield Scene(gateway, upstream, receiver)


def assert_sent_on(tree: Tree) -> None:
    """Every attempt's own span, and the client's state, were told to the backend."""
    assert sorted(tree.sent_spans) == sorted(span.span_id for span in tree.attempts)
    for each in tree.seen:
        version, trace_id, _, flags = each.headers["traceparent"].split("-")
        assert (version, trace_id, flags) == ("00", tree.server.trace_id, "01")
        assert each.headers["tracestate"] == STATE


def test_a_plain_answer(scene: Scene) -> None:
    """Three spans with who asked, what was asked of whom, what came and what it cost; the collector got its headers."""
    tree = scene.tell("plain", max_tokens=50, temperature=0.5, top_p=0.9)
    assert_is_a_tree(tree)
    assert_sent_on(tree)
    assert tree.reply is not None
    assert tree.reply.status == 200
    server, genai, (attempt,) = tree.server, tree.genai, tree.attempts
    assert server.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "gateway.outcome": "ok",
        "gateway.key": "alice",
        "gateway.team": "research",
        "gateway.route": "plain",
        "gateway.request_id": tree.reply.headers["x-request-id"],
    }
    usage = tree.reply.json["usage"]
    assert genai.name == "chat fault:ok"
    assert genai.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "fault:ok",
        "gen_ai.request.stream": False,
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.response.id": tree.reply.json["id"],
        "gen_ai.response.model": "fault:ok",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gateway.route": "plain",
        "gateway.model": "plain-0",
        "gateway.backend": "plain-0",
        "gateway.cost_usd": pytest.approx((usage["prompt_tokens"] + 2 * usage["completion_tokens"]) / 1e6),
        "server.address": "127.0.0.1",
        "server.port": scene.upstream.port,
    }
    assert attempt.name == "POST plain-0"
    assert attempt.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "gen_ai.request.model": "fault:ok",
        "gateway.backend": "plain-0",
        "gateway.outcome": "ok",
        "gateway.attempt.reason": "first in the chain",
        "server.address": "127.0.0.1",
        "server.port": scene.upstream.port,
    }
    assert not any(span.failed for span in tree.spans)
    assert scene.collector.resource()["service.name"] == "under-test"
    assert all(headers["x-token"] == "s ecret" for headers in scene.collector.headers)


def test_a_streamed_answer_takes_as_long_as_its_stream(scene: Scene) -> None:
    """Every span lasts to the last byte; the first token stands in between, on both spans that saw it."""
    tree = scene.tell("streamed", stream=True)
    assert_is_a_tree(tree)
    assert_sent_on(tree)
    assert tree.outcomes == ["ok"]
    for span in (*tree.attempts, tree.genai, tree.server):
        assert 0.2 < seconds(span) < 5
    for span in (*tree.attempts, tree.genai):
        (at,) = (at for name, at, _ in span.events if name == "gateway.first_token")
        assert span.start < at < span.end - 0.15e9
    assert tree.genai.attributes["gen_ai.request.stream"] is True
    assert 0 < tree.genai.attributes["gen_ai.response.time_to_first_chunk"] < seconds(tree.genai) - 0.15
    assert tree.genai.attributes["gen_ai.usage.output_tokens"] == 10
    assert tree.genai.attributes["gen_ai.response.finish_reasons"] == ["stop"]


def test_a_fallback(scene: Scene) -> None:
    """Each candidate that was tried is a span: why it was asked, what it answered, and where the answer is from."""
    tree = scene.tell("falls")
    assert_is_a_tree(tree)
    assert_sent_on(tree)
    assert tree.outcomes == ["server_error", "quota", "ok"]
    assert [span.failed for span in tree.attempts] == [True, True, False]
    assert [span.attributes["http.response.status_code"] for span in tree.attempts] == [503, 429, 200]
    assert [span.attributes.get("error.type") for span in tree.attempts] == ["503", "429", None]
    reasons = [span.attributes["gateway.attempt.reason"] for span in tree.attempts]
    assert reasons[0] == "first in the chain"
    assert reasons[0] not in reasons[1:]
    assert [span.attributes["gateway.backend"] for span in tree.attempts] == ["falls-0", "falls-1", "falls-2"]
    assert tree.genai.attributes["gateway.backend"] == "falls-2"
    assert "error.type" not in tree.genai.attributes
    assert not tree.genai.failed
    assert not tree.server.failed


def test_a_retry(scene: Scene) -> None:
    """The second try at the same backend says how often it was sent before."""
    tree = scene.tell("retry", ["status_503", "ok"])
    assert_is_a_tree(tree)
    assert_sent_on(tree)
    assert tree.outcomes == ["server_error", "ok"]
    assert [span.attributes.get("http.request.resend_count") for span in tree.attempts] == [None, 1]
    first, second = tree.attempts
    assert first.end <= second.start + 1000


def test_a_backend_that_asked_for_a_moment(scene: Scene) -> None:
    """It is the same backend's second try, although it was left alone between the two."""
    tree = scene.tell("rested", ["status_429:retry_after=1", "ok"])
    assert_is_a_tree(tree)
    assert tree.outcomes == ["rate_limited", "ok"]
    assert [span.attributes.get("http.request.resend_count") for span in tree.attempts] == [None, 1]


@pytest.mark.parametrize("mode", ["plain", "streamed"])
def test_a_hedge(scene: Scene, mode: str) -> None:
    """Two attempts at the same time, of which one lost; the answer is the winner's, and nobody failed."""
    tree = scene.tell(f"hedge-{mode}", stream=mode == "streamed")
    assert_is_a_tree(tree)
    assert_sent_on(tree)
    lost, won = tree.attempts
    assert tree.outcomes == ["lost_hedge", "ok"]
    assert lost.start < won.start < lost.end
    assert "hedge" in won.attributes["gateway.attempt.reason"]
    assert tree.genai.attributes["gateway.backend"] == f"hedge-{mode}-1"
    assert tree.genai.attributes["gen_ai.request.model"] == "fault:ok"
    assert [span.failed for span in tree.spans] == [False] * 4


def test_a_cut_stream_that_was_continued(scene: Scene) -> None:
    """The first attempt was interrupted, the second goes on; the tokens of both stand on one span, and all is well."""
    tree = scene.tell("cut", stream=True)
    assert_is_a_tree(tree)
    assert_sent_on(tree)
    assert tree.outcomes == ["interrupted", "ok"]
    cut, rest = tree.attempts
    assert cut.failed
    assert cut.attributes["error.type"] == "interrupted"
    assert cut.attributes["http.response.status_code"] == 200
    assert seconds(cut) > 0.05
    assert cut.end <= rest.start + 1000
    assert seconds(rest) > 0.1
    assert "cut" in rest.attributes["gateway.attempt.reason"]
    assert (tree.genai.failed, tree.server.failed) == (False, False)
    assert tree.genai.attributes["gateway.usage.estimated"] is True
    assert tree.genai.attributes["gen_ai.usage.output_tokens"] >= 3 + 7
    assert tree.genai.attributes["gateway.backend"] == "cut-1"


@pytest.mark.parametrize(
    ("model", "code", "outcome"),
    [
        ("broken", "stream_interrupted", "interrupted"),
        ("stalled", "stream_stalled", "stalled"),
    ],
)
def test_a_stream_that_nobody_could_finish(scene: Scene, model: str, code: str, outcome: str) -> None:
    """The status was 200 and yet every span has failed, with the code that the client was told."""
    tree = scene.tell(model, stream=True)
    assert_is_a_tree(tree)
    assert tree.reply is not None
    assert events_of(tree.reply.body)[-1]["error"]["code"] == code
    assert tree.outcomes == [outcome]
    assert [span.failed for span in tree.spans] == [True] * 3
    assert tree.server.attributes["http.response.status_code"] == 200
    assert tree.server.attributes["error.type"] == tree.genai.attributes["error.type"] == code
    assert tree.genai.attributes["gateway.usage.estimated"] is True
    if model == "stalled":
        assert seconds(tree.attempts[0]) > 0.6


def test_a_budget_that_is_spent(scene: Scene) -> None:
    """Nobody was asked, so there is no GenAI span; the server span says why, and is not the server's failure."""
    tree = scene.tell("dear", key="sk-poor")
    assert_is_a_tree(tree)
    assert [span.kind for span in tree.spans] == ["SERVER"]
    assert not tree.server.failed
    assert tree.server.attributes["http.response.status_code"] == 429
    assert tree.server.attributes["error.type"] == "budget_exceeded"
    assert tree.server.attributes["gateway.key"] == "poor"
    assert tree.seen == []


def test_the_hold_is_an_event(scene: Scene) -> None:
    """When the budget was held and how much, on the span that was paid for."""
    tree = scene.tell("plain", key="sk-rich", max_tokens=50)
    assert_is_a_tree(tree)
    held = events_of_span(tree.genai)["gateway.hold"]["gateway.hold_usd"]
    assert 50 * 2 / 1e6 <= held < 1e-3


def test_a_client_that_left_before_the_first_token(scene: Scene) -> None:
    """The attempt was cancelled, which is no failure of the backend's."""
    before = len(scene.upstream.log)
    tree = scene.leave("leaving", lambda: len(scene.upstream.log) > before)
    assert_is_a_tree(tree)
    assert tree.outcomes == ["cancelled"]
    assert tree.server.attributes["error.type"] == tree.genai.attributes["error.type"] == "client_gone"
    assert tree.server.attributes["gateway.outcome"] == "client_gone"
    assert not any(span.failed for span in tree.spans)


def test_a_client_that_left_a_stream(scene: Scene) -> None:
    """The attempt ends when the client leaves, not when its first token came."""
    before = len(scene.upstream.log)
    tree = scene.leave("midway", lambda: scene.upstream.log[before].completion_tokens >= 5, read=True)
    assert_is_a_tree(tree)
    assert tree.outcomes == ["client_gone"]
    assert seconds(tree.attempts[0]) > 0.15
    assert tree.genai.attributes["gen_ai.usage.output_tokens"] >= 4
    assert not any(span.failed for span in tree.spans)


def test_when_all_have_failed(scene: Scene) -> None:
    """Every span has failed; the client's error is on the outer two, each backend's own on its attempt."""
    tree = scene.tell("failed")
    assert_is_a_tree(tree)
    assert_sent_on(tree)
    assert tree.outcomes == ["server_error", "server_error"]
    assert [span.failed for span in tree.spans] == [True] * 4
    assert [span.attributes["error.type"] for span in tree.attempts] == ["500", "503"]
    assert tree.server.attributes["http.response.status_code"] == 502
    assert tree.server.attributes["error.type"] == tree.genai.attributes["error.type"] == "upstream_error"


def test_a_silent_backend(scene: Scene) -> None:
    """The attempt lasts as long as was waited for it."""
    tree = scene.tell("silent")
    assert_is_a_tree(tree)
    assert tree.outcomes == ["timeout"]
    assert seconds(tree.attempts[0]) > 1.8
    assert tree.server.attributes["error.type"] == "upstream_timeout"


def test_a_backends_own_refusal(scene: Scene) -> None:
    """What the client did wrong is not the server's failure; the code is the backend's."""
    tree = scene.tell("refused")
    assert_is_a_tree(tree)
    assert tree.outcomes == ["client_error"]
    assert tree.server.attributes["http.response.status_code"] == 400
    assert tree.server.attributes["error.type"] == "content_policy_violation"
    assert not tree.server.failed
    assert tree.genai.failed


def test_waiting_for_a_slot(scene: Scene) -> None:
    """The wait is in the attempt's span, and an event says when it was over; one turned away is a span too."""
    trace_ids = []

    def one(number: int) -> int:
        trace_id, headers = trace_headers()
        trace_ids.append(trace_id)
        return scene.gateway.chat(ask("slots", str(number)), key="sk-alice", **headers).status

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(one, range(3))) == [200] * 3
    found: dict[str, list[collector.Span]] = {}

    def have_arrived() -> bool:
        for trace_id in trace_ids:
            found[trace_id] = [span for span in scene.collector.spans() if span.trace_id == trace_id]
        return all(any(span.kind == "SERVER" for span in spans) for spans in found.values())

    scene.until(have_arrived)
    trees = [Tree(None, spans, ()) for spans in found.values()]
    for tree in trees:
        assert_is_a_tree(tree)
    assert sorted(tree.outcomes for tree in trees) == [["ok"], ["ok"], ["queue_full", "ok"]]
    (waited,) = (
        span
        for tree in trees
        for span in tree.attempts
        if "gateway.queue_wait" in events_of_span(span) and "error.type" not in span.attributes
    )
    told = events_of_span(waited)["gateway.queue_wait"]["gateway.queue_seconds"]
    assert 0.1 < told < 5
    assert seconds(waited) > told + 0.2


def test_a_task(scene: Scene) -> None:
    """Asked for in a header, it is told as an attribute of our own."""
    trace_id, headers = trace_headers()
    scene.gateway.chat(ask("auto"), key="sk-alice", x_gateway_task="analysis", **headers)
    tree = scene._tree(trace_id, None, len(scene.upstream.log))
    assert tree.genai.attributes["gateway.task"] == "analysis"
    assert tree.genai.attributes["gateway.route"] == "task:analysis"


def test_without_a_traceparent_a_trace_begins_here(scene: Scene) -> None:
    """A new id goes to the backend, and the server span is a root; so is it with one that is not valid."""
    for headers in ({}, {"traceparent": "00-" + "0" * 32 + "-" + CLIENT_SPAN + "-01", "tracestate": STATE}):
        before = len(scene.upstream.log)
        scene.gateway.chat(ask("plain"), key="sk-alice", **headers)
        sent = scene.upstream.log[before].headers
        trace_id = sent["traceparent"].split("-")[1]
        assert int(trace_id, 16)
        assert "tracestate" not in sent
        tree = scene._tree(trace_id, None, before)
        assert (tree.server.parent_id, tree.server.remote_parent) == ("", False)


def test_what_the_client_does_not_sample_is_not_traced(scene: Scene) -> None:
    """Its trace goes on to the backend, flag 00; no span of it ever arrives."""
    trace_id, headers = trace_headers(sampled=False)
    before = len(scene.upstream.log)
    assert scene.gateway.chat(ask("plain"), key="sk-alice", **headers).status == 200
    sent = scene.upstream.log[before].headers
    assert sent["traceparent"] == f"00-{trace_id}-{CLIENT_SPAN}-00"
    assert sent["tracestate"] == STATE
    scene.tell("plain")
    assert [span for span in scene.collector.spans() if span.trace_id == trace_id] == []


def test_nothing_of_what_was_said_is_on_a_span(scene: Scene) -> None:
    """Capture is off by default."""
    tree = scene.tell("plain", text="marked-prompt")
    told = json.dumps([[span.attributes, span.events] for span in tree.spans])
    assert "marked-prompt" not in told
    assert text(2) not in told


def test_every_attribute_and_event_is_registered(scene: Scene) -> None:
    """On the spans where the registry says; and these traces have shown nearly all there is to show."""
    scene.tell("plain")
    registered = {attribute.key: set(attribute.spans) for attribute in names.ATTRIBUTES}
    events = {event.name: set(event.attributes) for event in names.SPAN_EVENTS}
    for span in scene.collector.spans():
        kind = (
            "server" if span.kind == "SERVER" else "genai" if "gen_ai.operation.name" in span.attributes else "attempt"
        )
        assert [key for key in span.attributes if kind not in registered[key]] == []
        for name, _, attributes in span.events:
            assert set(attributes) == events[name]


def test_the_genai_metrics(scene: Scene) -> None:
    """Duration, tokens and the time to the first chunk arrive over the same protocol, by model and backend."""
    scene.tell("streamed", stream=True)
    found: dict[str, Any] = {}

    def have_arrived() -> bool:
        for request in list(scene.collector.metrics):
            for metric in request.resource_metrics[0].scope_metrics[0].metrics:
                found[metric.name] = metric
        points = found["gen_ai.client.token.usage"].histogram.data_points if found else ()
        told = [collector.attributes_of(point.attributes) for point in points]
        return any(each["gen_ai.request.model"] == f"fault:{SLOWLY}" for each in told)

    scene.until(have_arrived)
    assert set(found) == {
        "gen_ai.client.token.usage",
        "gen_ai.client.operation.duration",
        "gen_ai.client.operation.time_to_first_chunk",
    }
    duration = _point(found["gen_ai.client.operation.duration"], **{"gen_ai.request.model": f"fault:{SLOWLY}"})
    assert duration.count >= 1
    assert duration.sum / duration.count > 0.2
    first = _point(found["gen_ai.client.operation.time_to_first_chunk"], **{"gen_ai.request.model": f"fault:{SLOWLY}"})
    assert first.sum / first.count < duration.sum / duration.count - 0.15
    for kind, tokens in (("input", 2), ("output", 10)):
        model = {"gen_ai.request.model": f"fault:{SLOWLY}", "gen_ai.token.type": kind}
        usage = _point(found["gen_ai.client.token.usage"], **model)
        assert usage.sum == tokens * usage.count


def _point(metric: Any, **wanted: str) -> Any:
    """The point that has these attributes, of those without an error."""
    (found,) = (
        point
        for point in metric.histogram.data_points
        if wanted.items() <= (told := collector.attributes_of(point.attributes)).items() and "error.type" not in told
    )
    return found


def test_content_only_when_it_was_asked_for(tmp_path: Path) -> None:
    """With the conventions' own variable prompt and answer stand on the GenAI span, plain, streamed and continued."""
    with opened("http", tmp_path, OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="true") as scene:
        for tree in (scene.tell("plain"), scene.tell("streamed", stream=True), scene.tell("cut", stream=True)):
            asked, said = (json.loads(tree.genai.attributes[f"gen_ai.{way}.messages"]) for way in ("input", "output"))
            assert asked == [{"role": "user", "parts": [{"type": "text", "content": "Hello"}]}]
            assert said[0]["parts"] == [{"type": "text", "content": text(10)}]
            assert said[0]["finish_reason"] == "stop"
        odd = {"role": "user", "content": [1, None, {"text": 5}], "tool_calls": ["x", {"function": 3}, None]}
        tree = scene.tell("plain", messages=[odd, {"role": "tool", "content": {"a": 1}}])
        assert "tool_call_response" in tree.genai.attributes["gen_ai.input.messages"]
        told = {"model": "plain", "prompt": "marked prompt", "messages": 5}
        scene.gateway.request("POST", "/v1/completions", told, key="sk-alice")
        scene.until(
            lambda: any(
                "marked prompt" in span.attributes.get("gen_ai.input.messages", "") for span in scene.collector.spans()
            )
        )


def test_sampling_by_the_standard_variables(tmp_path: Path) -> None:
    """Always off: what the client had begun goes on with flag 00, whatever its own was, and nothing is exported."""
    with opened("http", tmp_path, OTEL_TRACES_SAMPLER="always_off") as scene:
        trace_id, headers = trace_headers()
        scene.gateway.chat(ask("plain"), key="sk-alice", **headers)
        scene.gateway.chat(ask("plain"), key="sk-alice")
        first, second = (each.headers for each in scene.upstream.log)
        assert (first["traceparent"], first["tracestate"]) == (f"00-{trace_id}-{CLIENT_SPAN}-00", STATE)
        assert second["traceparent"].endswith("-00")
        scene.gateway.stop()
        assert scene.collector.spans() == []


def test_without_an_exporter_nothing_of_opentelemetry_is_there(tmp_path: Path) -> None:
    """The client's headers pass as they came, and none of the libraries is imported."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\natexit.register(lambda: open('modules', 'w').write('\\n'.join(sys.modules)))\n"
    )
    with (
        FaultUpstream.in_thread() as upstream,
        serve(tmp_path, policies(upstream), env={"PYTHONPATH": str(tmp_path)}) as gateway,
    ):
        _, headers = trace_headers()
        gateway.chat(ask("plain"), key="sk-alice", **headers)
        gateway.chat(ask("plain"), key="sk-alice")
        first, second = (each.headers for each in upstream.log)
        assert {name: first[name] for name in headers} == headers
        assert "traceparent" not in second
    modules = (tmp_path / "modules").read_text().split()
    assert "gateway.telemetry.tracing" in modules
    assert [
        name for name in modules if name.split(".")[0] in ("opentelemetry", "grpc", "google", "litellm", "redis")
    ] == []
