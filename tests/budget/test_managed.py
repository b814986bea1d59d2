"""Managed keys become credentials: with their limits, and without those that no longer may be used."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.budget.managed import credentials_of, keyring_of, limits_from, limits_text
from gateway.budget.store import ManagedKey, revoked, rotated
from gateway.errors import AuthenticationError
from gateway.identity.keyring import hash_of
from gateway.policy.loader import complete
from gateway.policy.schema import Document, Limit, Policy

NOW = 1_800_000_000.0
SECRET, NEW = b"gw-secret", b"gw-new"
CI = ManagedKey("ci", hash_of(SECRET), created=NOW)


def policy(**sections: object) -> Policy:
    return complete(Document.model_validate(sections), {}, ())


def code_of(known: Policy, key: ManagedKey, secret: bytes, now: float = NOW) -> tuple[str, str]:
    with pytest.raises(AuthenticationError) as caught:
        keyring_of(known, [key]).identify(secret, now)
    return caught.value.code, caught.value.message


def test_a_managed_key_has_what_it_was_made_with() -> None:
    """Team, allow-list, limits, expiry."""
    limits = limits_text([Limit(usd=Decimal(5), per="day"), Limit(concurrent=4)])
    key = replace(CI, team="ops", allow=("fast", "task:*"), limits=limits, expires=NOW + 0.25)
    known = policy(teams={"ops": {"limits": [{"usd": 100, "per": "month"}], "allow": ["f*"]}})
    principal = keyring_of(known, [key]).identify(SECRET, NOW)
    assert (principal.name, principal.team, principal.expires) == ("ci", "ops", NOW + 0.25)
    assert principal.limits == (Limit(usd=Decimal(5), per="day"), Limit(concurrent=4))
    assert principal.may_use("fast")
    assert not principal.may_use("task:sql"), "the team's allow-list narrows it"
    assert code_of(known, key, SECRET, NOW + 0.25)[0] == "expired_api_key"


def test_a_rotated_key_has_two_secrets_for_a_while() -> None:
    """The old one until the grace is over, the new one always, both one principal."""
    ring = keyring_of(policy(), [rotated(CI, hash_of(NEW), NOW + 60)])
    assert ring.identify(SECRET, NOW + 59) is ring.identify(NEW, NOW + 59)
    assert ring.identify(NEW, NOW + 60).name == "ci"
    with pytest.raises(AuthenticationError, match="replaced by a new secret"):
        ring.identify(SECRET, NOW + 60)


def test_a_revoked_key_is_refused_whatever_the_clocks_say() -> None:
    """Also by a worker whose clock is behind the one that revoked it."""
    assert code_of(policy(), revoked(CI, NOW), SECRET, NOW - 3600) == (
        "invalid_api_key",
        "The key of 'ci' was revoked; ask whoever runs this gateway for one that is valid.",
    )


def test_a_revoked_key_s_old_secret_is_gone_too() -> None:
    """Revoking in the grace period ends both secrets."""
    key = revoked(rotated(CI, hash_of(NEW), NOW + 60), NOW)
    assert code_of(policy(), key, NEW)[0] == "invalid_api_key"
    assert code_of(policy(), key, SECRET)[0] == "invalid_api_key"


def test_a_name_of_the_policies_is_theirs() -> None:
    """A key of the same name in the files wins; both would draw on one limit."""
    known = policy(keys={"ci": {"hash": hash_of(b"theirs")}})
    assert keyring_of(known, [CI]).identify(b"theirs", NOW).name == "ci"
    assert "same name in the policies" in code_of(known, CI, SECRET)[1]


def test_a_key_of_a_team_that_is_gone_is_refused() -> None:
    """Rather than used without the team's limits."""
    known = policy(teams={"ops": {}})
    assert "'opps', which the policies do not have" in code_of(known, replace(CI, team="opps"), SECRET)[1]


@pytest.mark.parametrize("limits", ["", "{", "[1]", '[{"euro": 5, "per": "day"}]', "null"])
def test_limits_that_cannot_be_read_refuse_their_key_alone(limits: str) -> None:
    """The other keys are known all the same."""
    other = ManagedKey("other", hash_of(NEW), created=NOW)
    ring = keyring_of(policy(), [replace(CI, limits=limits), other])
    assert ring.identify(NEW, NOW).name == "other"
    with pytest.raises(AuthenticationError, match="limits that this version cannot read"):
        ring.identify(SECRET, NOW)


def test_every_secret_has_one_credential() -> None:
    """Two while an old one is known, else one."""
    assert len(list(credentials_of([CI, rotated(CI, hash_of(NEW), NOW)], policy()))) == 3


LIMITS = st.one_of(
    st.builds(
        Limit,
        usd=st.decimals(0, 10**9, places=9, allow_nan=False),
        per=st.sampled_from(["day", "12h", "total"]),
        soft=st.booleans(),
        alert_at=st.lists(st.floats(0, 1), max_size=3).map(tuple),
    ),
    st.builds(Limit, tokens=st.integers(0, 2**53 - 1), per=st.just("minute")),
    st.builds(Limit, concurrent=st.integers(1, 2**53 - 1)),
)


@given(st.lists(LIMITS, max_size=4))
def test_limits_come_back_exactly(limits: list[Limit]) -> None:
    """To the last nano-dollar."""
    assert limits_from(limits_text(limits)) == tuple(limits)
