"""Before the first token: who is asked again, who is asked next, and who is left alone, seen from both sides."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import pytest

from tests.conformance.raw import CUT, HOLD, PAUSE, playing
from tests.conformance.stage import QUICK, Part, Stage, key_of, policies_of
from tests.fault_table import ERRORS
from tests.faults import FaultUpstream, refused
from tests.support import serve

TRANSIENT = ("status_408", "status_409", "status_500", "status_502", "status_503", "status_504", "status_529", "reset")
SILENT = ("silence", "headers_silence")
REFUSALS = ("status_400", "status_404", "status_413", "status_422", "content_policy")
AUTH = ("status_401", "status_403")
MODES = ("plain", "streamed")
NOWHERE = f"http://{'no-such-host' * 6}/v1"  # a label of 72 letters: no resolver has to be asked

CHAINS: Mapping[str, Sequence[Part | str]] = {
    **{f"short-alone-{mode}": ["ok"] for mode in MODES},
    "short": ["ok", "ok"],
    "both-short": ["ok", "ok"],
    "short-then-down": ["ok", "status_503"],
    "long-alone": ["ok"],
    "long": ["ok", "ok"],
    "no-retry-after-alone": ["status_429"],
    "no-retry-after": ["status_429", "ok"],
    "quota": ["insufficient_quota", "ok"],
    "quota-alone": ["insufficient_quota"],
    **{f"{fault}-{mode}": [fault, "ok"] for fault in (*TRANSIENT, *SILENT) for mode in MODES},
    **{f"{fault}-passing": ["ok", "ok"] for fault in TRANSIENT},
    "budget": ["status_503", "ok"],
    "silent-alone": ["silence"],
    "no-room": [
        Part("context_length_exceeded", model={"context": 8192}),
        Part(model={"context": 4096}),
        Part(model={"context": 8192}),
        Part(model={"context": 32768}),
        Part(model={"context": 65536}),
    ],
    "no-larger": [Part("context_length_exceeded", model={"context": 8192}), Part(model={"context": 4096})],
    "larger-down": [
        Part("context_length_exceeded", model={"context": 8192}),
        Part("status_503", model={"context": 32768}),
    ],
    **{fault: [fault, "ok"] for fault in (*REFUSALS, *AUTH)},
    **{f"{fault}-alone": [fault] for fault in AUTH},
    "rotation": [Part(keys=3)],
    **{f"second-key-{fault}": [Part(keys=2)] for fault in ("401", "403", "quota", "429-long", "429-short")},
    "all-keys": [Part("status_401", keys=3), "ok"],
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """All these chains; no breaker opens here."""
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(FaultUpstream.in_thread())
        urls = {name: stack.enter_context(playing(play)) for name, play in PLAYS.items()}
        urls |= {"refused": stack.enter_context(refused()), "dns": NOWHERE}
        policies = policies_of(
            upstream.url,
            {**CHAINS, **{name: [Part(backend={"base_url": url}), "ok"] for name, url in urls.items()}},
            routes={"late-body": {"timeouts": {"first_token": "1500ms"}}},
            defaults={
                "timeouts": QUICK,
                "retry": {"attempts": 1, "backoff": "20ms"},
                "breaker": {"failures": 100000},
            },
        )
        with serve(tmp_path_factory.mktemp("retries"), policies) as gateway:
            yield Stage(gateway, upstream)


# Errors whose bodies do not come: the status has said enough.
PLAYS = {
    "error-then-cut": [b"HTTP/1.1 503 Busy\r\ncontent-length: 100\r\n\r\n{", CUT],
    "error-in-drops": [b"HTTP/1.1 503 Busy\r\ncontent-length: 100\r\n\r\n", *[b" ", PAUSE] * 99],
    "late-body": [
        *[PAUSE] * 14,
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n",
        HOLD,
    ],
}


@pytest.mark.parametrize("mode", MODES)
def test_429_with_a_short_retry_after_is_waited_for_when_nobody_else_can_answer(stage: Stage, mode: str) -> None:
    """The same backend is asked again after that time, and the client sees one good answer."""
    told = stage.tell(f"short-alone-{mode}", ["status_429:1", "ok"], stream=mode == "streamed")
    assert told.reply.status == 200
    assert told.places == [0, 0]
    assert 0.95 < told.seen[1].at - told.seen[0].at < 4


def test_429_with_a_short_retry_after_goes_elsewhere_when_somebody_else_can_answer(stage: Stage) -> None:
    """At once; while the first rests it is not asked, and `/readyz` says so; then it is again."""
    told = stage.tell("short", ["status_429:2"])
    assert (told.reply.status, told.places) == (200, [0, 1])
    assert told.took < 1.8
    again = stage.tell("short")
    assert (again.reply.status, again.places) == (200, [1])
    assert not stage.ready("short-0")["usable"]
    assert "left alone" in stage.ready("short-0")["reason"]
    stage.until(lambda: bool(stage.ready("short-0")["usable"]))
    assert stage.tell("short").places == [0]


def test_when_all_ask_for_time_the_first_that_is_back_is_asked(stage: Stage) -> None:
    """Not the first of the chain."""
    told = stage.tell("both-short", ["status_429:4", "status_429:1", "ok"])
    assert (told.reply.status, told.places) == (200, [0, 1, 1])
    assert 0.95 < told.took < 3.9


def test_429_is_waited_for_when_the_other_candidate_fails(stage: Stage) -> None:
    """Nothing else can answer sooner, as it turns out."""
    told = stage.tell("short-then-down", ["status_429:1", "status_503", "status_503", "ok"])
    assert (told.reply.status, told.places) == (200, [0, 1, 1, 0])


def test_429_with_a_long_retry_after_and_nobody_else_is_an_error_that_says_when(stage: Stage) -> None:
    """Nobody waits a minute; the next request does not even ask."""
    told = stage.tell("long-alone", ["status_429:60"])
    assert (told.reply.status, told.reply.error["code"], told.places) == (502, "upstream_error", [0])
    assert 50 <= int(told.reply.headers["retry-after"]) <= 60
    again = stage.tell("long-alone")
    assert (again.reply.status, again.reply.error["code"]) == (503, "no_backend_available")
    assert 50 <= int(again.reply.headers["retry-after"]) <= 60
    assert again.seen == []


def test_429_with_a_long_retry_after_rests_the_backend_that_long(stage: Stage) -> None:
    """The next candidate answers this request and those after it."""
    told = stage.tell("long", ["status_429:60"])
    assert (told.reply.status, told.places) == (200, [0, 1])
    for _ in range(3):
        again = stage.tell("long")
        assert (again.reply.status, again.places) == (200, [1])


def test_429_without_retry_after_goes_to_the_next(stage: Stage) -> None:
    """It is not asked a second time by the same request."""
    told = stage.tell("no-retry-after")
    assert (told.reply.status, told.places) == (200, [0, 1])
    alone = stage.tell("no-retry-after-alone")
    assert (alone.reply.status, alone.reply.error["code"], alone.places) == (502, "upstream_error", [0])


def test_429_for_want_of_money_rests_the_key(stage: Stage) -> None:
    """The next candidate; afterwards the one without money is not asked; alone, it is not the client's fault."""
    told = stage.tell("quota")
    assert (told.reply.status, told.places) == (200, [0, 1])
    assert stage.tell("quota").places == [1]
    assert "out of quota" in stage.ready("quota-0")["reason"]
    assert stage.until_logged("api_key_rests", backend="quota-0", reason="out of quota")
    alone = stage.tell("quota-alone")
    assert (alone.reply.status, alone.reply.error["type"], alone.places) == (502, "upstream_error", [0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_transient_failure_is_tried_once_more_then_elsewhere(stage: Stage, fault: str, mode: str) -> None:
    """Exactly one retry, with the same body."""
    told = stage.tell(f"{fault}-{mode}", stream=mode == "streamed")
    assert (told.reply.status, told.places) == (200, [0, 0, 1])
    assert told.reply.headers["x-gateway-attempts"] == "2"
    assert told.reply.headers["x-gateway-backend"] == f"{fault}-{mode}-1"
    assert told.seen[0].body == told.seen[1].body


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_failure_that_passes_is_not_seen(stage: Stage, fault: str) -> None:
    """The retry is answered: nobody else is asked."""
    told = stage.tell(f"{fault}-passing", [fault, "ok"])
    assert (told.reply.status, told.places) == (200, [0, 0])
    assert told.reply.headers["x-gateway-attempts"] == "1"


@pytest.mark.parametrize("name", ["refused", "dns"])
def test_a_backend_that_cannot_be_reached_is_tried_once_more_then_the_next(stage: Stage, name: str) -> None:
    """A refused connection, and a host that nobody knows."""
    told = stage.tell(name)
    assert (told.reply.status, told.places) == (200, [1])
    assert stage.metric(f'gateway_attempts_total{{backend="{name}-0",outcome="connect_error"}}') == 2


@pytest.mark.parametrize(("name", "longest"), [("error-then-cut", 2), ("error-in-drops", 7)])
def test_an_error_whose_body_does_not_come_is_what_its_status_says(stage: Stage, name: str, longest: float) -> None:
    """A 503: one retry, then the next; neither silence nor single bytes hold the request up for long."""
    told = stage.tell(name)
    assert (told.reply.status, told.places) == (200, [1])
    assert stage.metric(f'gateway_attempts_total{{backend="{name}-0",outcome="server_error"}}') == 2
    assert told.took < longest


def test_a_head_does_not_buy_a_backend_more_time(stage: Stage) -> None:
    """Its head came after 1.4 s of the 1.5 until the first token, and then nothing."""
    told = stage.tell("late-body")
    assert (told.reply.status, told.places) == (200, [1])
    assert stage.metric('gateway_attempts_total{backend="late-body-0",outcome="timeout"}') == 1
    assert 1.4 < told.took < 2.5


def test_retries_keep_within_one_budget(stage: Stage) -> None:
    """60 requests to a backend that fails: each is answered by the next, at most 20 % (or 3) were sent twice."""
    before = len(stage.upstream.log)
    first = [stage.tell("budget").places for _ in range(3)]
    assert first == [[0, 0, 1]] * 3, "three retries are always allowed"
    replies = stage.tell_all("budget", 57, at_once=4)
    assert [reply.status for reply in replies] == [200] * 57
    failed = [each for each in stage.upstream.log[before:] if key_of(each) == "budget-0#1"]
    assert 63 <= len(failed) <= 60 + 12


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", SILENT)
def test_silence_leads_to_the_next_without_a_retry(stage: Stage, fault: str, mode: str) -> None:
    """After `first_token` (500 ms) the next is asked, and the silent one's connection is closed."""
    told = stage.tell(f"{fault}-{mode}", stream=mode == "streamed")
    assert (told.reply.status, told.places) == (200, [0, 1])
    assert 0.45 < told.seen[1].at - told.seen[0].at < 2
    silent = told.seen[0]
    stage.upstream.wait(lambda: silent.closed_at is not None)
    assert silent.closed_at is not None
    assert silent.closed_at - told.seen[1].at < 0.5


def test_silence_of_the_last_is_a_504(stage: Stage) -> None:
    """With the time that it takes to know."""
    told = stage.tell("silent-alone")
    assert (told.reply.status, told.reply.error["code"], told.places) == (504, "upstream_timeout", [0])
    assert told.took < 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_goes_to_a_larger_context(stage: Stage, *, stream: bool) -> None:
    """Those that are no larger are left out, and the smaller ones too."""
    told = stage.tell("no-room", stream=stream)
    assert (told.reply.status, told.places) == (200, [0, 3])


def test_a_prompt_that_is_too_long_for_all_is_the_clients_to_see(stage: Stage) -> None:
    """The backend's own body, since it says what to do."""
    told = stage.tell("no-larger")
    assert (told.reply.status, told.places) == (400, [0])
    assert told.reply.error == own_error("context_length_exceeded")
    down = stage.tell("larger-down")
    assert (down.reply.status, down.places) == (502, [0, 1, 1])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", REFUSALS)
def test_a_refusal_passes_at_once(stage: Stage, fault: str, *, stream: bool) -> None:
    """With its status and its own body; nobody else is asked, and nobody twice."""
    told = stage.tell(fault, stream=stream)
    assert (told.reply.status, told.places) == (ERRORS[fault][0], [0])
    assert told.reply.error == own_error(fault)
    assert told.reply.headers["x-gateway-backend"] == f"{fault}-0"


def own_error(fault: str) -> dict[str, str | None]:
    """The error object that the upstream sends."""
    _, kind, param, code, message = ERRORS[fault]
    return {"message": message, "type": kind, "param": param, "code": code}


@pytest.mark.parametrize("fault", AUTH)
def test_a_refused_key_rests_and_nobody_blames_the_client(stage: Stage, fault: str) -> None:
    """The next candidate answers; the operator is told; alone, it is a 502 and never a 401 or 403."""
    told = stage.tell(fault)
    assert (told.reply.status, told.places) == (200, [0, 1])
    assert stage.tell(fault).places == [1]
    assert stage.until_logged("api_key_rests", backend=f"{fault}-0", reason="refused")
    assert "refused" in stage.ready(f"{fault}-0")["reason"]
    alone = stage.tell(f"{fault}-alone")
    assert (alone.reply.status, alone.reply.error["code"], alone.places) == (502, "upstream_auth", [0])
    unsent = stage.tell(f"{fault}-alone")
    assert (unsent.reply.status, unsent.reply.error["code"], unsent.places) == (502, "upstream_auth", [])
    assert f"no api key of backend '{fault}-alone-0' is usable" in unsent.reply.error["message"]


def test_several_api_keys_share_the_work(stage: Stage) -> None:
    """Each its part; one that is refused rests, and the others take its part over."""
    used = [key_of(stage.tell("rotation").seen[0]) for _ in range(6)]
    assert sorted(used) == sorted(["rotation-0#1", "rotation-0#2", "rotation-0#3"] * 2)
    told = stage.tell("rotation", ["status_401", "ok"])
    assert told.reply.status == 200
    refused_key, other = map(key_of, told.seen)
    assert refused_key != other
    used = [key_of(stage.tell("rotation").seen[0]) for _ in range(6)]
    assert set(used) == {"rotation-0#1", "rotation-0#2", "rotation-0#3"} - {refused_key}
    assert stage.ready("rotation-0") == {"usable": True}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("401", "status_401"),
        ("403", "status_403"),
        ("quota", "insufficient_quota"),
        ("429-long", "status_429:60"),
        ("429-short", "status_429:4"),
    ],
)
def test_another_key_of_the_same_backend_answers_when_there_is_no_other_candidate(
    stage: Stage, name: str, fault: str
) -> None:
    """At once: the limit and the refusal were one key's."""
    told = stage.tell(f"second-key-{name}", [fault, "ok"])
    assert told.reply.status == 200
    assert len({key_of(each) for each in told.seen}) == 2
    assert told.took < 2
    assert stage.tell(f"second-key-{name}").reply.status == 200


def test_each_key_of_a_backend_is_refused_once(stage: Stage) -> None:
    """The next candidate stands before the other keys; then all keys rest."""
    for _ in range(4):
        assert stage.tell("all-keys").reply.status == 200
    refused_keys = [key_of(each) for each in stage.upstream.log if key_of(each).startswith("all-keys-0")]
    assert sorted(refused_keys) == ["all-keys-0#1", "all-keys-0#2", "all-keys-0#3"]
