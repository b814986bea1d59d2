"""Where a route hedges, a second candidate is asked when the first is slow; the first token wins, and it stays rare."""

import time
from collections.abc import Iterator, Mapping, Sequence

import pytest

from tests.conformance.stage import PATIENT, Part, Stage, asked_of, policies_of
from tests.faults import FaultUpstream, Seen, text
from tests.support import serve

SLOW = "ok:delay=3"
CHAINS: Mapping[str, Sequence[Part | str]] = {
    **{f"second-wins-{mode}": [SLOW, "ok"] for mode in ("plain", "streamed")},
    "first-wins": ["ok:delay=0.5", SLOW],
    "quick": ["ok", "ok"],
    "fails": ["status_503", "ok"],
    "both-fail": ["status_503:delay=0.5", "status_503"],
    "one-refuses": ["status_503:delay=0.6", "status_400"],
    "off": ["ok:delay=0.6", "ok"],
    "rare": ["ok", "ok"],
    "p95": ["ok", "ok"],
    "resting": ["ok", "ok", "ok"],
    "left": ["silence", "silence"],
    "cut": [SLOW, "cut_fin:after=3,gap=0.02,pause=0.1", Part(model={"prefill": True})],
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """All hedge after 200 ms, but for `off`, which does not, and `p95`, which finds its time out."""
    with FaultUpstream.in_thread() as upstream:
        routes = {name: {"hedge": {"after": "200ms"}} for name in CHAINS if name != "off"}
        routes["p95"] = {"hedge": {"after": "p95"}}
        policies = policies_of(
            upstream.url,
            CHAINS,
            routes=routes,
            defaults={
                "timeouts": PATIENT,
                "retry": {"attempts": 1, "backoff": "20ms"},
                "breaker": {"failures": 100000},
            },
        )
        with serve(tmp_path_factory.mktemp("hedge"), policies) as gateway:
            yield Stage(gateway, upstream)


def assert_closed(stage: Stage, seen: Seen, since: float) -> None:
    """The loser's connection was closed soon after the winner's first token."""
    stage.upstream.wait(lambda: seen.closed_at is not None)
    assert seen.closed_at is not None
    assert seen.finished_at is None
    assert seen.closed_at - since < 0.5


@pytest.mark.parametrize("mode", ["plain", "streamed"])
def test_the_second_is_asked_after_the_time_and_wins(stage: Stage, mode: str) -> None:
    """The client has one whole answer long before the first would have answered, and the first is closed."""
    told = stage.tell(f"second-wins-{mode}", stream=mode == "streamed")
    assert (told.reply.status, told.places, told.text) == (200, [0, 1], text(10))
    assert told.reply.headers["x-gateway-backend"] == f"second-wins-{mode}-1"
    assert 0.18 < told.seen[1].at - told.seen[0].at < 1.5
    assert told.took < 2.5
    assert_closed(stage, told.seen[0], told.seen[1].at)
    assert told.seen[1].body.replace(b"second-wins", b"") != b""


def test_the_first_may_still_win(stage: Stage) -> None:
    """The second was asked in vain, and is closed."""
    told = stage.tell("first-wins", stream=True)
    assert (told.reply.status, told.places, told.text) == (200, [0, 1], text(10))
    assert told.reply.headers["x-gateway-backend"] == "first-wins-0"
    first = told.seen[0].head_at
    assert first is not None
    assert_closed(stage, told.seen[1], first)


def test_a_quick_one_is_not_hedged(stage: Stage) -> None:
    """Nor one that fails: that goes the usual way."""
    for _ in range(5):
        assert stage.tell("quick").places == [0]
    told = stage.tell("fails")
    assert (told.reply.status, told.places) == (200, [0, 0, 1])


def test_without_hedge_nobody_else_is_asked(stage: Stage) -> None:
    """It is off by default."""
    assert stage.tell("off").places == [0]


def test_when_both_fail_the_error_is_told(stage: Stage) -> None:
    """As without a hedge."""
    told = stage.tell("both-fail")
    assert (told.reply.status, told.reply.error["code"]) == (502, "upstream_error")
    assert set(told.places) == {0, 1}


def test_a_refusal_by_the_second_says_more_than_a_failure_of_the_first(stage: Stage) -> None:
    """The client sees what is wrong with its request, from whoever said so."""
    told = stage.tell("one-refuses")
    assert (told.reply.status, set(told.places)) == (400, {0, 1})
    assert told.reply.headers["x-gateway-backend"] == "one-refuses-1"


def test_it_stays_below_five_in_a_hundred(stage: Stage) -> None:
    """100 slow requests: every one could do with a hedge, and at most five have one."""
    before = len(stage.upstream.log)
    stage.upstream.script(["ok:delay=0.35"] * 100)
    replies = stage.tell_all("rare", 100, at_once=25)
    stage.upstream._script.clear()
    assert [reply.status for reply in replies] == [200] * 100
    asked = [asked_of(each) for each in stage.upstream.log[before:]]
    assert asked.count("rare-0") == 100
    assert 1 <= asked.count("rare-1") <= 5


def test_p95_is_what_the_backend_itself_usually_takes(stage: Stage) -> None:
    """With too few answers known nobody is hedged; after thirty quick ones a slow one is, soon."""
    told = stage.tell("p95", ["ok:delay=0.6"])
    assert told.places == [0]
    assert [reply.status for reply in stage.tell_all("p95", 40)] == [200] * 40
    told = stage.tell("p95", ["ok:delay=3", "ok"])
    assert told.places == [0, 1]
    assert told.took < 2
    assert told.seen[1].at - told.seen[0].at < 1.5


def test_one_that_rests_is_not_asked_beside_another(stage: Stage) -> None:
    """It asked to be left alone; the one behind it is the next."""
    assert stage.tell("resting", ["status_429:60"]).places == [0, 1]
    told = stage.tell("resting", ["ok:delay=3", "ok"])
    assert told.places == [1, 2]


def test_a_client_that_leaves_closes_both(stage: Stage) -> None:
    """Within 100 ms (0.5 s here)."""
    from tests.conformance.stage import Open

    before = len(stage.upstream.log)
    with Open(stage.gateway, "left", stream=True) as request:
        stage.upstream.wait(lambda: len(stage.upstream.log) == before + 2)
        time.sleep(0.05)
        left = request.leave()
    for seen in stage.upstream.log[before:]:
        assert_closed(stage, seen, left)


def test_the_winner_may_be_cut_and_is_gone_on_with(stage: Stage) -> None:
    """At the one behind it."""
    told = stage.tell("cut", stream=True)
    assert (told.places, told.text) == ([0, 1, 2], text(10))
    assert told.reply.body.endswith(b"data: [DONE]\n\n")
