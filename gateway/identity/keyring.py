"""The keys that are known, looked up by the SHA-256 of the whole secret."""

import hashlib
from collections.abc import Mapping
from zoneinfo import ZoneInfo

from gateway.errors import AuthenticationError
from gateway.identity.principal import ANONYMOUS, Principal, principal_of
from gateway.policy.schema import Policy

HELP = "send a key of this gateway as `Authorization: Bearer <key>` or `x-api-key: <key>`"


def hash_of(secret: bytes) -> str:
    """The form in which a key is kept: `sha256:` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(secret).hexdigest()


class Keyring:
    """Every key of the policies, by hash. With `open_door`, a caller without a known key is anonymous."""

    def __init__(self, by_digest: Mapping[bytes, Principal], *, open_door: bool) -> None:
        self._by_digest = by_digest
        self._open_door = open_door

    @classmethod
    def from_policy(cls, policy: Policy) -> "Keyring":
        """The keys that the files name."""
        zone = ZoneInfo(policy.server.timezone)
        by_digest = {}
        for name, key in policy.keys.items():
            team = policy.teams.get(key.team) if key.team else None
            principal = principal_of(name, key, team_allow=team.allow if team else None, zone=zone)
            by_digest[bytes.fromhex(key.hash.removeprefix("sha256:"))] = principal
        return cls(by_digest, open_door=policy.server.auth == "none")

    def identify(self, secret: bytes | None, now: float) -> Principal:
        """The principal of this secret at `now` (seconds since the epoch), or an AuthenticationError.

        The look-up is by a digest, so its time says nothing about the secrets that are known.
        """
        if secret:
            principal = self._by_digest.get(hashlib.sha256(secret).digest())
            if principal is not None:
                if principal.has_expired(now):
                    raise AuthenticationError(
                        f"The key of {principal.name!r} has expired; ask whoever runs this gateway for a new one.",
                        code="expired_api_key",
                    )
                return principal
        if self._open_door:
            return ANONYMOUS
        if not secret:
            raise AuthenticationError(f"No API key was sent; {HELP}.")
        raise AuthenticationError(f"This API key is not known here; {HELP}.")

    def named(self, name: str) -> Principal | None:
        """The principal with this name."""
        return next((known for known in self._by_digest.values() if known.name == name), None)

    def __len__(self) -> int:
        return len(self._by_digest)
