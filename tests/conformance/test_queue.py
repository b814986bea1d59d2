"""A backend that can do only a few at once: who waits, for how long, who is next, and who is sent elsewhere."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.conformance.stage import PATIENT, Open, Part, Stage, asked_of, policies_of
from tests.faults import FaultUpstream, Seen
from tests.support import key_policy, serve

BUSY = "ok:delay=0.6"


def slotted(count: int, size: int, timeout: str = "20s", fault: str = "ok") -> Part:
    """A backend with so many slots and places."""
    return Part(fault, backend={"slots": count, "queue": {"size": size, "timeout": timeout}})


CHAINS: Mapping[str, Sequence[Part | str]] = {
    "bounded": [slotted(3, 100, fault="ok:delay=0.05")],
    "fair": [slotted(1, 100)],
    "priority": [slotted(1, 100)],
    "spills": [slotted(1, 1), "ok"],
    "full": [slotted(1, 1)],
    "none-may-wait": [slotted(1, 0)],
    "slow": [slotted(1, 5, "300ms")],
    "slow-spills": [slotted(1, 5, "300ms"), "ok"],
    "left": [slotted(1, 5)],
    "broken": [slotted(1, 50, fault="status_503:delay=0.3"), "ok"],
    "limited": [slotted(1, 50), "ok"],
    "streams": [slotted(1, 5)],
}
KEYS = {"alice": 0, "bob": 0, "chief": 5}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """All these, with keys of two priorities."""
    with FaultUpstream.in_thread() as upstream:
        policies = policies_of(
            upstream.url,
            CHAINS,
            defaults={
                "timeouts": PATIENT,
                "retry": {"attempts": 0},
                "breaker": {"failures": 3, "open": "60s"},
            },
            server={},
            keys={name: key_policy(f"sk-{name}", priority=priority) for name, priority in KEYS.items()},
        )
        with serve(tmp_path_factory.mktemp("queue"), policies) as gateway:
            yield Stage(gateway, upstream)


class Line:
    """Requests in the order in which they joined the line of a backend with one slot, the first of them running."""

    def __init__(self, stage: Stage, model: str, first: str = BUSY) -> None:
        self.stage = stage
        self.model = model
        self.depth = 0
        self.before = len(stage.upstream.log)
        stage.upstream.script([first])
        self.requests = [Open(stage.gateway, model, text="holder", key="sk-alice")]
        stage.upstream.wait(lambda: len(stage.upstream.log) > self.before)

    def join(self, name: str, key: str = "alice", **fields: object) -> Open:
        """One more, which waits."""
        request = Open(self.stage.gateway, self.model, text=name, key=f"sk-{key}", **fields)
        self.requests.append(request)
        self.depth += 1
        self.until_depth(self.depth)
        return request

    def until_depth(self, depth: int) -> None:
        """Wait until so many wait."""
        self.depth = depth
        self.stage.until(lambda: waiting(self.stage, self.model) == depth)

    def served(self) -> list[str]:
        """Read all answers; in which order the backend got the requests."""
        replies = [request.reply() for request in self.requests]
        assert [reply.status for reply in replies] == [200] * len(replies)
        return [said(each) for each in self.stage.upstream.log[self.before :]]


def said(seen: Seen) -> str:
    """What the request said."""
    return str(seen.json["messages"][0]["content"])


def waiting(stage: Stage, model: str, place: int = 0) -> float:
    """How many wait, says the metric."""
    return stage.metric(f'gateway_queue_depth{{backend="{model}-{place}"}}')


def test_no_more_than_its_slots_run_at_once(stage: Stage) -> None:
    """40 requests at once for three slots: all are answered, and the backend never saw four."""
    stage.upstream.peak = 0
    replies = stage_all(stage, "bounded", 40)
    assert replies == [200] * 40
    assert stage.upstream.peak == 3


def test_workers_share_the_slots(tmp_path: Path) -> None:
    """However many serve, the backend is asked no more at once than it can do; whoever has too few is told at the start."""
    with FaultUpstream.in_thread() as upstream:
        policies = policies_of(upstream.url, {"many": [slotted(5, 100, fault="ok:delay=0.05")], "one": [slotted(1, 9)]})
        policies["server"] = {"auth": "none"}
        with serve(tmp_path, policies, "--workers", "2") as gateway:
            replies = Stage(gateway, upstream).tell_all("many", 60, at_once=20)
            assert [reply.status for reply in replies] == [200] * 60
            assert upstream.peak in (2, 3, 4)  # 2 for each; the kernel may give one of them all connections
            assert "one-0 may have 2 requests at once" in gateway.output


def stage_all(stage: Stage, model: str, count: int) -> list[int]:
    """So many requests at the same time: their statuses."""
    requests = [Open(stage.gateway, model, key="sk-alice") for _ in range(count)]
    return [request.reply().status for request in requests]


def test_it_is_fair_between_keys(stage: Stage) -> None:
    """Bob comes last and is served after one of Alice's, not after all of them."""
    line = Line(stage, "fair")
    for n in range(4):
        line.join(f"alice {n}", "alice")
    for n in range(2):
        line.join(f"bob {n}", "bob")
    assert line.served() == ["holder", "alice 0", "bob 0", "alice 1", "bob 1", "alice 2", "alice 3"]


def test_priority_goes_first(stage: Stage) -> None:
    """The chief comes last and is next; the others keep their turns."""
    line = Line(stage, "priority")
    line.join("alice 0", "alice")
    line.join("bob 0", "bob")
    chief = line.join("chief 0", "chief")
    assert line.served() == ["holder", "chief 0", "alice 0", "bob 0"]
    assert chief.connection.fileno() == -1


def test_the_answer_says_how_long_the_line_was(stage: Stage) -> None:
    """`x-gateway-queue-position` is where the waiting began; who did not wait has none. A stream keeps its slot."""
    line = Line(stage, "streams", "slow:gap=0.05")
    holder = line.requests.pop()
    first = line.join("a", stream=True)
    second = line.join("b")
    assert waiting(stage, "streams") == 2
    assert holder.reply().headers["x-gateway-queue-position"] is None
    assert first.reply().headers["x-gateway-queue-position"] == "1"
    assert second.reply().headers["x-gateway-queue-position"] == "2"
    assert [said(each) for each in stage.upstream.log[line.before :]] == ["holder", "a", "b"]
    whole = [each.finished_at for each in stage.upstream.log[line.before :]]
    started = [each.at for each in stage.upstream.log[line.before :]]
    assert whole[0] is not None
    assert whole[0] <= started[1] + 0.05


def test_a_full_queue_spills_to_the_next(stage: Stage) -> None:
    """At once."""
    line = Line(stage, "spills")
    line.join("waits")
    told = time.monotonic()
    reply = Open(stage.gateway, "spills", text="spilt", key="sk-bob").reply()
    assert time.monotonic() - told < 0.5
    assert (reply.status, reply.headers["x-gateway-backend"]) == (200, "spills-1")
    assert line.served() == ["holder", "spilt", "waits"]


@pytest.mark.parametrize(("model", "places"), [("full", 1), ("none-may-wait", 0)])
def test_a_full_queue_without_a_next_is_a_503_that_says_when(stage: Stage, model: str, places: int) -> None:
    """With `queue_full` and Retry-After; those that run and wait are not touched."""
    line = Line(stage, model)
    for n in range(places):
        line.join(str(n))
    reply = Open(stage.gateway, model, key="sk-bob").reply()
    assert (reply.status, reply.error["type"], reply.error["code"]) == (503, "service_unavailable_error", "queue_full")
    assert int(reply.headers["retry-after"]) >= 1
    assert line.served() == ["holder", *map(str, range(places))]


def test_waiting_ends_after_its_time(stage: Stage) -> None:
    """503 with `queue_timeout` and Retry-After; the backend never saw the request."""
    line = Line(stage, "slow")
    began = time.monotonic()
    reply = line.join("late").reply()
    took = time.monotonic() - began
    assert (reply.status, reply.error["code"]) == (503, "queue_timeout")
    assert int(reply.headers["retry-after"]) >= 1
    assert 0.25 < took < 0.6 + 1
    line.requests.pop()
    assert line.served() == ["holder"]


def test_waiting_too_long_goes_to_the_next(stage: Stage) -> None:
    """Which answers in its place."""
    line = Line(stage, "slow-spills", "ok:delay=1.5")
    reply = Open(stage.gateway, "slow-spills", text="late", key="sk-bob").reply()
    assert (reply.status, reply.headers["x-gateway-backend"]) == (200, "slow-spills-1")
    assert line.served() == ["holder", "late"]


def test_a_client_that_leaves_gives_its_place_up(stage: Stage) -> None:
    """Within 100 ms (0.5 s here) it is gone from the line; those behind it move up, and it is never sent."""
    line = Line(stage, "left")
    gone = line.join("gone")
    stays = line.join("stays")
    left = gone.leave()
    line.requests.remove(gone)
    line.until_depth(1)
    assert time.monotonic() - left < 0.5
    assert line.served() == ["holder", "stays"]
    assert stays.connection.fileno() == -1


def test_those_in_line_do_not_run_into_a_breaker_that_opened_meanwhile(stage: Stage) -> None:
    """Twelve wait for a backend that turns out to be down: three find out, the others go elsewhere at once."""
    line = Line(stage, "broken", "status_503:delay=0.5")
    for n in range(11):
        line.join(str(n))
    replies = [request.reply() for request in line.requests]
    assert [reply.status for reply in replies] == [200] * 12
    asked = [asked_of(each) for each in stage.upstream.log[line.before :]]
    assert (asked.count("broken-0"), asked.count("broken-1")) == (3, 12)


def test_those_in_line_let_a_backend_rest_that_asked_for_it_meanwhile(stage: Stage) -> None:
    """The first is told 429 for a minute; the five behind it go elsewhere without asking."""
    line = Line(stage, "limited", "status_429:retry_after=60,delay=0.5")
    for n in range(5):
        line.join(str(n))
    replies = [request.reply() for request in line.requests]
    assert [reply.status for reply in replies] == [200] * 6
    asked = [asked_of(each) for each in stage.upstream.log[line.before :]]
    assert (asked.count("limited-0"), asked.count("limited-1")) == (1, 6)
