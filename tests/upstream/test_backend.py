"""A backend's health: whose key rests, for how long, and what its latency is taken to be."""

from collections.abc import AsyncIterable, Sequence
from typing import Any

import pytest

from gateway.policy.schema import Backend as BackendSettings
from gateway.policy.schema import Breaker as BreakerSettings
from gateway.upstream.backend import Backend, origin_of
from gateway.upstream.retry import KEY_REST, Failure, Kind
from gateway.upstream.wire import Header, Reply


class Nowhere:
    """A wire that nothing is sent over."""

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Sequence[Header],
        body: bytes | AsyncIterable[bytes],
        *,
        connect_timeout: float,
        timeout: float,
    ) -> Reply:
        raise NotImplementedError

    async def aclose(self) -> None:
        return None


def backend(name: str = "here", *keys: str, url: str = "http://127.0.0.1:11434/v1") -> Backend:
    settings = BackendSettings(base_url=url, api_keys=keys)
    breaker = BreakerSettings.model_validate({"failures": 2, "open": "60s", "successes": 1})
    return Backend(name, settings, breaker, Nowhere())


def refused(kind: Kind = Kind.AUTH, retry_after: float | None = None) -> Failure:
    return Failure(kind, "status 401", status=401, retry_after=retry_after)


def test_a_refusal_without_a_key_says_nothing_of_other_backends() -> None:
    """Two backends without keys do not share the rest of one of them."""
    first, second = backend("first"), backend("second")
    key = first.pick_key(0.0)
    assert key is not None
    first.rest(refused(), key, 100.0)
    assert first.pick_key(101.0) is None
    assert first.obstacle(101.0) is not None
    assert second.pick_key(101.0) is not None
    assert second.obstacle(101.0) is None


def test_no_key_sends_no_header() -> None:
    """A backend without keys is asked without `authorization`; one with keys by `Bearer`."""
    bare, keyed = backend().pick_key(0.0), backend("x", "sk-1").pick_key(0.0)
    assert bare is not None
    assert keyed is not None
    assert bare.headers == ()
    assert keyed.headers == ((b"authorization", b"Bearer sk-1"),)


def test_a_key_is_never_shown() -> None:
    """Neither the backend nor its key tells the secret when printed."""
    one = backend("x", "sk-secret")
    assert "sk-secret" not in f"{one!r} {one.keys!r} {one.settings!r}"
    assert repr(one.keys[0]) == "<ApiKey x#1>"


def test_keys_take_turns() -> None:
    """Every key carries its share."""
    one = backend("x", "a", "b", "c")
    taken = [key.label for key in (one.pick_key(0.0) for _ in range(6)) if key is not None]
    assert sorted(taken) == ["x#1", "x#1", "x#2", "x#2", "x#3", "x#3"]


@pytest.mark.parametrize("kind", [Kind.AUTH, Kind.NO_QUOTA])
def test_a_refused_key_rests_and_the_others_go_on(kind: Kind) -> None:
    """The backend is in the way of nobody while one of its keys is good."""
    one = backend("x", "a", "b")
    one.rest(refused(kind), one.keys[0], 100.0)
    assert {key.label for key in (one.pick_key(101.0) for _ in range(4)) if key is not None} == {"x#2"}
    assert one.obstacle(101.0) is None
    one.rest(refused(kind), one.keys[1], 110.0)
    obstacle = one.obstacle(120.0)
    assert obstacle is not None
    assert obstacle.seconds == pytest.approx(100.0 + KEY_REST - 120.0)
    assert "no api key" in obstacle.why
    assert not obstacle.sure
    assert one.obstacle(100.0 + KEY_REST) is None


def test_a_rate_limit_rests_the_key_where_there_are_several() -> None:
    """With one key the whole backend rests, and surely answers after that."""
    limited = refused(Kind.RATE_LIMITED, 7.0)
    several = backend("x", "a", "b")
    several.rest(limited, several.keys[0], 0.0)
    assert several.obstacle(1.0) is None
    several.rest(limited, several.keys[1], 0.0)
    both = several.obstacle(1.0)
    assert both is not None
    assert both.sure
    single = backend("y", "a")
    single.rest(limited, single.keys[0], 0.0)
    alone = single.obstacle(1.0)
    assert alone is not None
    assert (alone.seconds, alone.sure) == (6.0, True)
    assert single.obstacle(7.0) is None


def test_an_open_breaker_is_an_obstacle_that_is_not_sure() -> None:
    """Nobody knows whether it will answer when its time is over."""
    one = backend()
    for _ in range(2):
        permit = one.breaker.permit(0.0)
        assert permit is not None
        one.breaker.failed(permit, 0.0)
    obstacle = one.obstacle(10.0)
    assert obstacle is not None
    assert (obstacle.seconds, obstacle.sure) == (50.0, False)
    assert one.obstacle(60.0) is None


def test_latency_rises_at_once_and_falls_slowly() -> None:
    """A peak counts from its first answer; an improvement has to last."""
    one = backend()
    one.answered(0.1, 0.0)
    one.answered(2.0, 1.0)
    assert one.latency == 2.0
    one.answered(0.1, 1.1)
    assert 1.5 < one.latency < 2.0
    one.answered(0.1, 60.0)
    assert one.latency == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("url", "host", "port", "prefix"),
    [
        ("http://127.0.0.1:11434/v1", "127.0.0.1", 11434, b"/v1"),
        ("https://api.example.com/v1/", "api.example.com", 443, b"/v1"),
        ("http://[::1]/", "::1", 80, b""),
    ],
)
def test_where_a_backend_is(url: str, host: str, port: int, prefix: bytes) -> None:
    """Host, port and path come from the base URL."""
    one = backend(url=url)
    assert (one.host, one.port, one.prefix) == (host, port, prefix)
    origin: Any = origin_of(one.settings)
    assert (origin.host, origin.port) == (host, port)


@pytest.mark.parametrize(
    ("settings", "speaks"),
    [
        ({"base_url": "https://api.openai.com/v1"}, "openai+responses"),
        ({"base_url": "https://api.openai.com/v1", "options": {"responses": "false"}}, "openai"),
        ({"base_url": "http://127.0.0.1:8000/v1"}, "openai"),
        ({"base_url": "http://127.0.0.1:8000/v1", "options": {"responses": "true"}}, "openai+responses"),
        ({"provider": "anthropic", "options": {"responses": "true"}}, "anthropic"),
    ],
)
def test_who_has_responses(settings: Any, speaks: str) -> None:
    """OpenAI itself, and who is said to; no provider that is translated."""
    made = Backend("here", BackendSettings.model_validate(settings), BreakerSettings(), Nowhere())
    assert made.speaks == speaks


def test_a_key_is_found_by_its_label() -> None:
    """Also while it rests: what is kept under it is nowhere else."""
    here = backend("here", "sk-1", "sk-2")
    second = here.keys[1]
    here.rest(refused(), second, 100.0)
    assert here.key_labelled("here#2") is second
    assert here.key_labelled("here#3") is None
