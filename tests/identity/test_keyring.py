"""Keys of the policies and managed ones: whom a secret proves, from when and until when."""

import pytest

from gateway.errors import AuthenticationError, Unavailable
from gateway.identity.keyring import Credential, Keyring, hash_of
from gateway.identity.principal import ANONYMOUS, Principal
from gateway.policy.loader import complete
from gateway.policy.schema import Document

NOW = 1_800_000_000.0
POLICY_KEY, MANAGED = b"policy-secret", b"gw-managed"


def keyring(*credentials: Credential, auth: str = "keys") -> Keyring:
    document = Document.model_validate(
        {
            "server": {"auth": auth},
            "keys": {
                "alice": {"hash": hash_of(POLICY_KEY)},
                "old": {"hash": hash_of(b"old"), "expires": "2026-01-01"},
            },
        }
    )
    return Keyring.from_policy(complete(document, {}, ())).with_managed(credentials)


def refusal(ring: Keyring, secret: bytes | None, now: float = NOW) -> AuthenticationError:
    with pytest.raises(AuthenticationError) as caught:
        ring.identify(secret, now)
    assert caught.value.status == 401
    return caught.value


def test_both_kinds_of_keys_are_known() -> None:
    """A policy's and a managed one, each its principal."""
    ci = Principal("ci", team="ops")
    ring = keyring(Credential(hash_of(MANAGED), ci))
    assert ring.identify(MANAGED, NOW) is ci
    assert ring.identify(POLICY_KEY, NOW).name == "alice"
    assert ring.named("ci", NOW) is ci
    assert ring.named("nobody", NOW) is None


def test_an_unknown_or_missing_key_is_told_how_to_send_one() -> None:
    """401 `invalid_api_key`, with both headers named."""
    for secret in (b"sk-wrong", b"", None):
        error = refusal(keyring(), secret)
        assert error.code == "invalid_api_key"
        assert "x-api-key" in error.message
        assert "sk-wrong" not in error.message


def test_while_managed_keys_cannot_be_read_nobody_is_told_that_a_key_is_unknown() -> None:
    """It may be one of them: 503, which SDKs try again; whom the policies know is served, and no key is still none."""
    document = Document.model_validate({"keys": {"alice": {"hash": hash_of(POLICY_KEY)}}})
    ring = Keyring.from_policy(complete(document, {}, ())).with_managed((), complete=False)
    with pytest.raises(Unavailable) as caught:
        ring.identify(MANAGED, NOW)
    assert (caught.value.status, caught.value.code) == (503, "store_unavailable")
    assert ring.identify(POLICY_KEY, NOW).name == "alice"
    assert refusal(ring, None).code == "invalid_api_key"


def test_a_refused_credential_is_an_invalid_key() -> None:
    """Even before it would expire, and even when callers without a key may enter."""
    gone = Credential(hash_of(MANAGED), Principal("ci", expires=NOW - 1), refusal="was revoked")
    for auth in ("keys", "none"):
        error = refusal(keyring(gone, auth=auth), MANAGED)
        assert error.code == "invalid_api_key"
        assert error.message.startswith("The key of 'ci' was revoked; ")


def test_a_replaced_secret_ends_at_its_second() -> None:
    """Valid before `until`, invalid from then on."""
    ring = keyring(Credential(hash_of(MANAGED), Principal("ci"), until=NOW))
    assert ring.identify(MANAGED, NOW - 0.001).name == "ci"
    error = refusal(ring, MANAGED, NOW)
    assert error.code == "invalid_api_key"
    assert "replaced" in error.message


def test_an_expired_key_has_a_code_of_its_own() -> None:
    """A managed one as one of the policies."""
    ring = keyring(Credential(hash_of(MANAGED), Principal("ci", expires=NOW)))
    assert ring.identify(MANAGED, NOW - 1).name == "ci"
    assert refusal(ring, MANAGED).code == "expired_api_key"
    assert refusal(ring, b"old").code == "expired_api_key"


def test_a_name_is_refused_as_its_secrets_are() -> None:
    """Expired, revoked; a name with a new secret is not held to the one that it replaced."""
    ci = Principal("ci")
    replaced = Credential(hash_of(b"gw-before"), ci, until=NOW - 1)
    with pytest.raises(AuthenticationError) as expired:
        keyring().named("old", NOW)
    assert expired.value.code == "expired_api_key"
    with pytest.raises(AuthenticationError, match="was revoked"):
        keyring(Credential(hash_of(MANAGED), ci, refusal="was revoked")).named("ci", NOW)
    assert keyring(replaced, Credential(hash_of(MANAGED), ci)).named("ci", NOW) is ci


def test_the_policies_own_a_hash_that_both_know() -> None:
    """A managed key cannot take the secret of a policy's key, nor revoke it."""
    ring = keyring(Credential(hash_of(POLICY_KEY), Principal("mallory"), refusal="was revoked"))
    assert ring.identify(POLICY_KEY, NOW).name == "alice"


def test_an_open_door_still_knows_who_has_a_key() -> None:
    """With `auth: none`, a key is not needed, and a valid one counts."""
    ring = keyring(Credential(hash_of(MANAGED), Principal("ci")), auth="none")
    assert ring.identify(None, NOW) is ANONYMOUS
    assert ring.identify(MANAGED, NOW).name == "ci"
