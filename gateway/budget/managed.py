"""What a managed key may do: the store's records read against the policies, as credentials for the keyring."""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from gateway.budget.store import ManagedKey
from gateway.identity.keyring import Credential, Keyring
from gateway.identity.principal import Principal, principal_of
from gateway.policy.schema import Key, Limit, Policy


def keyring_of(policy: Policy, keys: Sequence[ManagedKey], *, complete: bool = True) -> Keyring:
    """The keyring of the policies' keys and these; not `complete` while these could not be read."""
    return Keyring.from_policy(policy).with_managed(credentials_of(keys, policy), complete=complete)


def credentials_of(keys: Iterable[ManagedKey], policy: Policy) -> Iterator[Credential]:
    """A credential for every secret of these keys, the revoked and the replaced included.

    A key is refused when its name is meanwhile one of the policies, since both would draw on one limit, or when its
    team is gone, since the team's limits would no longer hold.
    """
    zone = ZoneInfo(policy.server.timezone)
    for key in keys:
        try:
            principal, refusal = _principal_of(key, policy, zone), _refusal_of(key, policy)
        except (ValueError, TypeError):  # written by another version of the gateway
            principal, refusal = Principal(key.name, key.team), "has limits that this version cannot read"
        yield Credential(key.hash, principal, refusal=refusal)
        if key.previous is not None:
            yield Credential(key.previous, principal, until=key.grace_until or 0.0, refusal=refusal)


def limits_text(limits: Iterable[Limit]) -> str:
    """Limits as `ManagedKey.limits` keeps them: a JSON list in the shape of the policies', amounts of money exact."""
    return json.dumps([limit.model_dump(mode="json", exclude_defaults=True) for limit in limits])


def limits_from(text: str) -> tuple[Limit, ...]:
    """The limits in a `ManagedKey.limits`. Raises ValueError."""
    return tuple(Limit.model_validate(fields) for fields in json.loads(text))


def _refusal_of(key: ManagedKey, policy: Policy) -> str:
    if key.revoked_at is not None:
        return "was revoked"
    if key.name in policy.keys:
        return "gave way to a key of the same name in the policies"
    if key.team is not None and key.team not in policy.teams:
        return f"belongs to the team {key.team!r}, which the policies do not have"
    return ""


def _principal_of(key: ManagedKey, policy: Policy, zone: ZoneInfo) -> Principal:
    team = policy.teams.get(key.team) if key.team is not None else None
    settings = Key(
        hash=key.hash,
        team=key.team,
        allow=key.allow,
        limits=limits_from(key.limits),
        expires=None if key.expires is None else datetime.fromtimestamp(key.expires, UTC),
    )
    return principal_of(key.name, settings, team_allow=team.allow if team else None, zone=zone)
