"""The keys that are known, looked up by the SHA-256 of the whole secret."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from gateway.errors import AuthenticationError, Unavailable
from gateway.identity.principal import ANONYMOUS, Principal, principal_of
from gateway.policy.schema import Policy

HELP = "send a key of this gateway as `Authorization: Bearer <key>` or `x-api-key: <key>`"


def hash_of(secret: bytes) -> str:
    """The form in which a key is kept: `sha256:` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(secret).hexdigest()


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret, as its `hash_of`, that proves a principal who does not stand in the policies.

    `until` is the epoch second from which another secret has replaced it; None: it is the one in force. `refusal` ends
    a sentence about this key and says why it proves nobody; empty: it does.
    """

    hash: str
    principal: Principal
    until: float | None = None
    refusal: str = ""

    def check(self, now: float) -> None:
        """Raise AuthenticationError when this secret proves nobody at `now`, in seconds since the epoch."""
        reason = self.refusal
        if not reason and self.until is not None and now >= self.until:
            reason = "has been replaced by a new secret"
        if reason:
            raise AuthenticationError(
                f"The key of {self.principal.name!r} {reason}; ask whoever runs this gateway for one that is valid."
            )


class Keyring:
    """Every known key, by hash. With `open_door`, a caller without a known key is anonymous.

    `conditions` are the credentials, by hash, that do not prove their principal at all times. Of a keyring that is not
    `complete` nobody can say that a key is unknown: managed ones could not be read yet.
    """

    def __init__(
        self,
        by_digest: Mapping[bytes, Principal],
        *,
        open_door: bool,
        conditions: Mapping[bytes, Credential] | None = None,
        complete: bool = True,
    ) -> None:
        self._complete = complete
        self._by_digest = by_digest
        self._open_door = open_door
        self._conditions = conditions or {}

    @classmethod
    def from_policy(cls, policy: Policy) -> "Keyring":
        """The keys that the files name."""
        zone = ZoneInfo(policy.server.timezone)
        by_digest = {}
        for name, key in policy.keys.items():
            team = policy.teams.get(key.team) if key.team else None
            principal = principal_of(name, key, team_allow=team.allow if team else None, zone=zone)
            by_digest[_digest_of(key.hash)] = principal
        return cls(by_digest, open_door=policy.server.auth == "none")

    def with_managed(self, credentials: Iterable[Credential], *, complete: bool = True) -> "Keyring":
        """This keyring and these credentials; of a hash that both know, the keyring says whose it is."""
        by_digest: dict[bytes, Principal] = {}
        conditions: dict[bytes, Credential] = {}
        for credential in credentials:
            digest = _digest_of(credential.hash)
            if digest in self._by_digest:
                continue
            by_digest[digest] = credential.principal
            if credential.refusal or credential.until is not None:
                conditions[digest] = credential
        known = {**by_digest, **self._by_digest}
        return Keyring(known, open_door=self._open_door, conditions=conditions, complete=complete)

    def identify(self, secret: bytes | None, now: float) -> Principal:
        """The principal of this secret at `now` (seconds since the epoch), or an AuthenticationError.

        The look-up is by a digest, so its time says nothing about the secrets that are known.
        """
        if secret:
            digest = hashlib.sha256(secret).digest()
            principal = self._by_digest.get(digest)
            if principal is not None:
                if principal.expires is not None or digest in self._conditions:
                    self._check(digest, principal, now)
                return principal
        if self._open_door:
            return ANONYMOUS
        if not secret:
            raise AuthenticationError(f"No API key was sent; {HELP}.")
        if not self._complete:
            raise Unavailable(
                "This key cannot be checked, since the gateway's store does not answer; try again in a moment.",
                code="store_unavailable",
            )
        raise AuthenticationError(f"This API key is not known here; {HELP}.")

    def named(self, name: str, now: float) -> Principal | None:
        """The principal with this name. Raises AuthenticationError when none of its secrets proves it at `now`."""
        refused: AuthenticationError | None = None
        for digest, principal in self._by_digest.items():
            if principal.name == name:
                try:
                    self._check(digest, principal, now)
                except AuthenticationError as error:
                    refused = error
                else:
                    return principal
        if refused is not None:
            raise refused
        return None

    def _check(self, digest: bytes, principal: Principal, now: float) -> None:
        if digest in self._conditions:
            self._conditions[digest].check(now)
        if principal.has_expired(now):
            raise AuthenticationError(
                f"The key of {principal.name!r} has expired; ask whoever runs this gateway for a new one.",
                code="expired_api_key",
            )

    def __len__(self) -> int:
        return len(self._by_digest)


def _digest_of(key_hash: str) -> bytes:
    return bytes.fromhex(key_hash.removeprefix("sha256:"))
