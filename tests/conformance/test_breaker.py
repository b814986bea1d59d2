"""A backend that keeps failing is left alone, asked rarely, and trusted again: seen by the clients and by the backend."""

import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from tests.conformance.stage import QUICK, Part, Stage, asked_of, policies_of
from tests.faults import Fault, FaultUpstream
from tests.support import ask, serve

OPEN, HALF_OPEN, CLOSED = 2.0, 1.0, 0.0
CUT = "cut_fin:after=3,gap=0.02,pause=0.1"

CHAINS: Mapping[str, Sequence[Part | str]] = {
    "opens": ["status_503", "ok"],
    "in-a-row": ["ok", "ok"],
    "probes": ["ok", "ok"],
    "last": ["ok"],
    "both": ["ok", "ok"],
    "quota": [Part("insufficient_quota", keys=8), "ok"],
    "limited": [Part("status_429", keys=8), "ok"],
    "refuses": ["status_400", "ok"],
    "refuses-between": ["ok", "ok"],
    "refuses-probes": ["ok", "ok"],
    "cut": [CUT, "ok"],
    "strict": ["status_503", "ok"],
    "down": ["ok", "ok"],
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Breakers with the contract's numbers, but open for a second only."""
    with FaultUpstream.in_thread() as upstream:
        policies = policies_of(
            upstream.url,
            CHAINS,
            routes={"strict": {"breaker": {"failures": 2, "open": "30s"}}},
            defaults={
                "timeouts": QUICK,
                "retry": {"attempts": 0},
                "breaker": {"failures": 5, "open": "1s", "successes": 2},
            },
        )
        with serve(tmp_path_factory.mktemp("breaker"), policies) as gateway:
            yield Stage(gateway, upstream)


def state(stage: Stage, backend: str) -> float:
    """What the metric says: 0 closed, 1 half-open, 2 open."""
    return stage.metric(f'gateway_breaker_state{{backend="{backend}"}}')


def places(stage: Stage, model: str, count: int, script: Sequence[str] = (), **fields: Any) -> list[list[int]]:
    """So many requests one after the other, each answered: who was asked for each."""
    found = []
    for n in range(count):
        told = stage.tell(model, script[n : n + 1], **fields)
        assert told.reply.status == 200
        found.append(told.places)
    return found


def test_five_failures_in_a_row_open_it(stage: Stage) -> None:
    """Four do not; after the fifth it is not asked, `/readyz` and the metric say so, the log says why."""
    assert places(stage, "opens", 4) == [[0, 1]] * 4
    assert state(stage, "opens-0") == CLOSED
    assert places(stage, "opens", 1) == [[0, 1]]
    assert places(stage, "opens", 3) == [[1]] * 3
    assert state(stage, "opens-0") == OPEN
    assert "breaker is open" in stage.ready("opens-0")["reason"]
    assert stage.until_logged("breaker_opened", backend="opens-0")["reason"] == "status 503"


def test_a_success_between_starts_the_row_anew(stage: Stage) -> None:
    """Four failures, an answer, four failures."""
    script = ["status_503"] * 4 + ["ok"] + ["status_503"] * 4
    assert places(stage, "in-a-row", 9, script) == [[0, 1]] * 4 + [[0]] + [[0, 1]] * 4
    assert state(stage, "in-a-row-0") == CLOSED


def test_one_probe_at_a_time_doubles_the_time_or_closes_it(stage: Stage) -> None:
    """After a second one of many requests at once is let through; it fails: two seconds; two successes close it."""
    assert places(stage, "probes", 5, ["status_503"] * 5) == [[0, 1]] * 5
    opened = time.monotonic()
    assert places(stage, "probes", 1) == [[1]]
    time.sleep(1.2)
    assert state(stage, "probes-0") == HALF_OPEN
    before = len(stage.upstream.log)
    stage.upstream.script(["status_503:delay=0.3"])  # the probe comes first: nobody else may ask before it is back
    replies = stage.tell_all("probes", 8)
    assert [reply.status for reply in replies] == [200] * 8
    asked = [asked_of(each) for each in stage.upstream.log[before:]]
    assert asked.count("probes-0") == 1
    assert state(stage, "probes-0") == OPEN
    time.sleep(1.2)
    assert state(stage, "probes-0") == OPEN, "the second time is not longer than the first"
    stage.until(lambda: state(stage, "probes-0") == HALF_OPEN)
    assert time.monotonic() - opened < 10
    assert places(stage, "probes", 1) == [[0]]
    assert state(stage, "probes-0") == HALF_OPEN
    assert places(stage, "probes", 1) == [[0]]
    assert state(stage, "probes-0") == CLOSED
    stage.until_logged("breaker_closed", backend="probes-0")


def test_the_last_candidate_is_tried_even_if_open(stage: Stage) -> None:
    """There is nobody else: each request asks it, and the first that it can answer is answered."""
    for _ in range(8):
        told = stage.tell("last", ["status_503"])
        assert (told.reply.status, told.reply.error["code"], told.places) == (502, "upstream_error", [0])
    assert state(stage, "last-0") == OPEN
    told = stage.tell("last")
    assert (told.reply.status, told.places) == (200, [0])


def test_of_several_open_ones_only_the_last_is_tried(stage: Stage) -> None:
    """The others are left alone."""
    for _ in range(5):
        assert stage.tell("both", ["status_503", "status_503"]).reply.status == 502
    assert (state(stage, "both-0"), state(stage, "both-1")) == (OPEN, OPEN)
    assert places(stage, "both", 2) == [[1], [1]]


@pytest.mark.parametrize("name", ["quota", "limited"])
def test_a_limit_is_no_failure_of_the_backend(stage: Stage, name: str) -> None:
    """Eight times in a row, each with another key: the breaker stays closed."""
    assert places(stage, name, 8) == [[0, 1]] * 8
    assert state(stage, f"{name}-0") == CLOSED


def test_a_refusal_of_the_request_is_no_failure_of_the_backend(stage: Stage) -> None:
    """Clients that ask for what is wrong do not take it from the others."""
    for _ in range(8):
        told = stage.tell("refuses")
        assert (told.reply.status, told.places) == (400, [0])
    assert state(stage, "refuses-0") == CLOSED


def test_a_refusal_of_the_request_shows_that_the_backend_works(stage: Stage) -> None:
    """Failures before and after it are not in a row; as the answer to a probe it helps to close the breaker."""
    for fault in ["status_503"] * 4 + ["status_400"] + ["status_503"] * 4:
        stage.tell("refuses-between", [fault])
    assert state(stage, "refuses-between-0") == CLOSED
    assert places(stage, "refuses-probes", 5, ["status_503"] * 5) == [[0, 1]] * 5
    assert state(stage, "refuses-probes-0") == OPEN
    stage.until(lambda: state(stage, "refuses-probes-0") == HALF_OPEN)
    assert [stage.tell("refuses-probes", ["status_400"]).places for _ in range(2)] == [[0], [0]]
    assert state(stage, "refuses-probes-0") == CLOSED
    stage.until_logged("breaker_closed", backend="refuses-probes-0")


def test_streams_that_are_cut_are_failures_in_a_row(stage: Stage) -> None:
    """Although each began well."""
    for _ in range(5):
        told = stage.tell("cut", stream=True)
        assert told.places == [0]
        assert b"stream_interrupted" in told.reply.body
    assert state(stage, "cut-0") == OPEN
    told = stage.tell("cut", stream=True)
    assert (told.places, told.text) == ([1], "tok0 tok1 tok2 tok3 tok4 tok5 tok6 tok7 tok8 tok9 ")


def test_a_route_may_have_a_stricter_breaker(stage: Stage) -> None:
    """Two failures of its requests are enough, and it is open for as long as the route says."""
    assert places(stage, "strict", 3) == [[0, 1], [0, 1], [1]]
    assert float(stage.ready("strict-0")["reason"].split(" for ")[1].split()[0]) > 20


class Traffic:
    """Steady requests, plain and streamed, some at once; `failed` is what a client should never see."""

    def __init__(self, stage: Stage, model: str) -> None:
        self.done = 0
        self.failed: list[str] = []
        self._stage = stage
        self._model = model
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(4)]

    def _ask(self, number: int) -> None:
        for turn in itertools.count(number):
            if self._over.wait(0.04):
                return
            reply = self._stage.gateway.chat(ask(self._model, stream=bool(turn % 2)))
            whole = b"[DONE]" in reply.body if turn % 2 else reply.status == 200
            if reply.status != 200 or not whole or b'"error"' in reply.body:
                self.failed.append(f"{reply.status} {reply.body.decode()}")
            self.done += 1

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(20)


@dataclass(frozen=True)
class Outage:
    """How long the breaker is open at first, and how long the primary is down, in seconds."""

    open: float
    down: float

    @property
    def intervals(self) -> list[float]:
        """For how long the breaker is open each time; in the last of them the primary recovers."""
        found = [self.open]
        while sum(found) < self.down:
            found.append(found[-1] * 2)
        return found


@pytest.mark.parametrize(
    "outage",
    [
        pytest.param(Outage(open=1, down=4.2), id="scaled"),  # probes at about 1 and 3 s, back at 7
        # probes at about 5, 15 and 35 s, back at 75
        pytest.param(Outage(open=5, down=60), id="minute", marks=[pytest.mark.soak, pytest.mark.timeout(300)]),
    ],
)
def test_a_primary_that_is_down_for_a_while_is_not_noticed(tmp_path: Path, outage: Outage) -> None:
    """No client sees an error; one probe an interval; the traffic is back within one interval of its recovery."""
    with FaultUpstream.in_thread() as primary, FaultUpstream.in_thread() as second:
        policies = {
            "server": {"auth": "none"},
            "backends": {"primary": {"base_url": primary.url}, "second": {"base_url": second.url}},
            "models": {
                "one": {"backend": "primary", "model": "m"},
                "two": {"backend": "second", "model": "m"},
            },
            "aliases": {"steady": ["one", "two"]},
            "defaults": {
                "timeouts": QUICK,
                "retry": {"attempts": 1, "backoff": "20ms"},
                "breaker": {"failures": 5, "open": f"{outage.open:g}s", "successes": 2},
            },
        }
        *probed, last = outage.intervals
        with serve(tmp_path, policies) as gateway, Traffic(Stage(gateway, primary), "steady") as traffic:
            time.sleep(0.5)
            before = len(primary.log)
            assert before > 5
            primary.default = Fault("status_503")
            down = time.monotonic()
            time.sleep(outage.down)
            tries = [each.at - down for each in primary.log[before:]]
            primary.default = Fault()
            recovered = time.monotonic()
            primary.wait(lambda: any(each.finished_at for each in primary.log if each.at > recovered), timeout=last + 5)
            back = time.monotonic() - recovered
            time.sleep(0.5)
            after = [each for each in primary.log if each.at > recovered and each.method == "POST"]
        print(f"{traffic.done} requests; tried at {', '.join(f'{at:.2f}' for at in tries)} s; back after {back:.2f} s")
        assert traffic.failed == []
        assert traffic.done > 10 * outage.down
        first = [at for at in tries if at < 0.45 * outage.open]
        probes = tries[len(first) :]
        assert 5 <= len(first) <= 5 + 4 + 3, "five failures, what ran at once, and its retries"
        assert 1 <= len(probes) <= len(probed), f"tried at {tries}"
        gaps = [at - earlier for earlier, at in itertools.pairwise([first[0], *probes])]
        assert all(gap > 0.95 * least for gap, least in zip(gaps, probed, strict=False)), f"tried at {tries}"
        assert back < last + 1, "longer than the interval that it was in"
        assert len(after) > 5, "the traffic is not back"
