"""Whom a key stands for: what it may use, until when, and how its team narrows it."""

from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.identity.principal import ANONYMOUS, Principal, compile_globs, expiry_of, principal_of
from gateway.policy.schema import Key

BERLIN = ZoneInfo("Europe/Berlin")
HASH = "sha256:" + "0" * 64


def principal(*allow: str, team: tuple[str, ...] | None = None) -> Principal:
    return principal_of("alice", Key(hash=HASH, allow=allow), team_allow=team, zone=BERLIN)


def test_everything_is_carried_over() -> None:
    """What the policy says of a key is what its principal has."""
    key = Key.model_validate(
        {
            "hash": HASH,
            "team": "research",
            "limits": [{"requests": 60, "per": "minute"}],
            "expires": "2027-01-01",
            "priority": 3,
            "on_budget": "degrade",
        }
    )
    made = principal_of("alice", key, team_allow=None, zone=BERLIN)
    assert (made.name, made.team, made.priority, made.on_budget) == ("alice", "research", 3, "degrade")
    assert made.limits == key.limits
    assert made.expires == datetime(2026, 12, 31, 23, tzinfo=UTC).timestamp()
    assert made.allowed is None


def test_the_anonymous_may_use_everything_for_ever() -> None:
    """Where nobody is asked for a key."""
    assert ANONYMOUS.may_use("anything")
    assert not ANONYMOUS.has_expired(1e12)


@pytest.mark.parametrize(
    ("allow", "team", "good", "bad"),
    [
        (("*",), None, ["fast", "task:x", ""], []),
        (("fast", "task:*"), None, ["fast", "task:x"], ["faster", "afast", "llama", "FAST", "fast\n", "task"]),
        ((), None, [], ["fast", ""]),
        (("gpt-?",), None, ["gpt-4"], ["gpt-4o", "gpt-"]),
        (("gpt-[34]*",), None, ["gpt-4o"], ["gpt-5"]),
        (("a.b",), None, ["a.b"], ["axb"]),
        (("*",), ("fast",), ["fast"], ["llama"]),
        (("fast", "llama"), ("f*",), ["fast"], ["llama", "funny"]),
        (("fast",), ("*",), ["fast"], ["llama"]),
        (("fast",), (), [], ["fast"]),
        (("*a*b*", "x"), ("*b*c*", "x"), ["abc", "zabzcz", "x"], ["ab", "bc"]),
    ],
)
def test_what_it_may_use(allow: tuple[str, ...], team: tuple[str, ...] | None, good: list[str], bad: list[str]) -> None:
    """By whole names; a key never has more than its team."""
    made = principal(*allow, team=team)
    assert [name for name in good if not made.may_use(name)] == []
    assert [name for name in bad if made.may_use(name)] == []


GLOBS = st.lists(st.text("ab*?", max_size=5), max_size=3).map(tuple)


@given(key=GLOBS, team=st.none() | GLOBS, name=st.text("ab", max_size=5))
def test_it_may_use_what_its_own_list_and_its_teams_have(
    key: tuple[str, ...], team: tuple[str, ...] | None, name: str
) -> None:
    """Glob by glob, as a shell would match them."""

    def within(globs: tuple[str, ...]) -> bool:
        return any(fnmatchcase(name, glob) for glob in globs)

    assert principal(*key, team=team).may_use(name) is (within(key) and (team is None or within(team)))
    compiled = compile_globs(key)
    assert (compiled is None or compiled.match(name) is not None) is within(key)


@pytest.mark.parametrize(
    ("expires", "moment"),
    [
        (None, None),
        (date(2027, 1, 1), datetime(2026, 12, 31, 23, tzinfo=UTC)),
        (datetime(2027, 7, 1, 12), datetime(2027, 7, 1, 10, tzinfo=UTC)),
        (datetime(2027, 7, 1, 12, tzinfo=UTC), datetime(2027, 7, 1, 12, tzinfo=UTC)),
    ],
)
def test_until_when(expires: date | datetime | None, moment: datetime | None) -> None:
    """A date is its first moment, a time without a zone is of the server's."""
    assert expiry_of(expires, BERLIN) == (moment.timestamp() if moment else None)


def test_expired_from_its_moment_on() -> None:
    """Not a moment later, not a moment before."""
    made = Principal("alice", expires=100.0)
    assert [made.has_expired(now) for now in (99.999, 100.0, 101.0)] == [False, True, True]
