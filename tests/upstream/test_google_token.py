"""Tokens for a Google service account: asked for with a JWT that Google can verify, kept, shared and replaced."""

import asyncio
import base64
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import orjson
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from gateway.policy.schema import Backend
from gateway.upstream import google_token
from gateway.upstream.google_token import GoogleToken, TokenRefused, assertion, read_account
from gateway.upstream.litellm import open_litellm
from gateway.upstream.wire import ConnectError, ProtocolError
from tests.upstream.scripted import Script, ScriptedWire, Sent, says
from tests.upstream.translators import all_of, ask, body

KEY = rsa.generate_private_key(65537, 2048)
TOKEN = orjson.dumps({"access_token": "ya29.token", "expires_in": 3599, "token_type": "Bearer"})


def pem(key: Any) -> str:
    kind = serialization.PrivateFormat.PKCS8
    return str(key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()).decode())


def account_file(**changes: Any) -> str:
    """A key file as Google gives it, as JSON."""
    fields = {
        "type": "service_account",
        "project_id": "the-project",
        "private_key_id": "key-1",
        "private_key": pem(KEY),
        "client_email": "gateway@the-project.iam.gserviceaccount.com",
        "token_uri": "http://127.0.0.1:1/token",
    }
    return orjson.dumps(fields | changes).decode()


def token_over(wire: ScriptedWire) -> GoogleToken:
    return GoogleToken(read_account(account_file()), wire.open)


def parts(jwt: str) -> tuple[Any, Any, bytes, bytes]:
    """Head, claims, what is signed, and the signature."""
    head, claims, signature = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in jwt.split("."))
    return orjson.loads(head), orjson.loads(claims), jwt.rpartition(".")[0].encode(), signature


def test_the_assertion_is_one_that_google_takes() -> None:
    """Signed by the account's key, for its token endpoint, for an hour at most."""
    head, claims, signed, signature = parts(assertion(read_account(account_file()), 1_700_000_000.5))
    KEY.public_key().verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
    assert head == {"alg": "RS256", "typ": "JWT", "kid": "key-1"}
    assert claims == {
        "iss": "gateway@the-project.iam.gserviceaccount.com",
        "scope": "https://www.googleapis.com/auth/cloud-platform",
        "aud": "http://127.0.0.1:1/token",
        "iat": 1_700_000_000,
        "exp": 1_700_003_600,
    }


def test_an_account_is_read_from_its_file_or_its_text(tmp_path: Path) -> None:
    """And its key is shown nowhere."""
    path = tmp_path / "key.json"
    path.write_text(account_file())
    account = read_account(str(path))
    assert account == read_account(account_file())
    assert account.project == "the-project"
    assert "PRIVATE" not in repr(account)


@pytest.mark.parametrize("text", ["/nowhere/key.json", "{}", "[1]", '{"client_email": 1', "{"])
def test_what_is_no_key_file_is_told_with_what_to_write(text: str) -> None:
    """Before anything is served."""
    with pytest.raises(ValueError, match=r"options\.credentials") as caught:
        read_account(text)
    assert "write" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"private_key": pem(ec.generate_private_key(ec.SECP256R1()))}, "not an RSA key"),
        ({"token_uri": "x"}, "not a URL"),
    ],
)
def test_an_account_that_cannot_work_is_told_at_the_start(changes: dict[str, Any], told: str) -> None:
    """Not by the first request."""
    with pytest.raises(ValueError, match=told):
        GoogleToken(read_account(account_file(**changes)), says(Script()).open)


async def test_a_token_is_asked_for_once_and_kept() -> None:
    """However many want it at the same time."""
    wire = says(Script(200, [TOKEN[:9], TOKEN[9:]]))
    token = token_over(wire)
    found = await asyncio.gather(*(token.get(connect_timeout=1.0, timeout=1.0) for _ in range(5)))
    assert found == ["ya29.token"] * 5
    (sent,) = wire.sent
    form = parse_qs(sent.body.decode())
    assert (sent.target, form["grant_type"]) == (b"/token", ["urn:ietf:params:oauth:grant-type:jwt-bearer"])
    assert (wire.origins[0].host, wire.origins[0].port, wire.replies[0].closed) == ("127.0.0.1", 1, True)
    await token.aclose()
    assert wire.closed


async def test_a_token_is_replaced_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some minutes early, so that no request goes with one that ends on the way; and when it was refused."""
    now = 1_700_000_000.0
    monkeypatch.setattr("gateway.upstream.google_token.time.time", lambda: now)
    wire = says(Script(200, [TOKEN]))
    token = token_over(wire)
    for later, asked in ((0.0, 1), (3599 - google_token.EARLY - 1, 1), (3599 - google_token.EARLY + 1, 2)):
        now = 1_700_000_000.0 + later
        await token.get(connect_timeout=1.0, timeout=1.0)
        assert len(wire.sent) == asked
    token.forget()
    await token.get(connect_timeout=1.0, timeout=1.0)
    assert len(wire.sent) == 3


@pytest.mark.parametrize(
    "script",
    [
        Script(400, [b'{"error":"invalid_grant","error_description":"secret"}']),
        Script(200, [b"{}"]),
        Script(200, [b"<html>"]),
        Script(200, ['{"access_token":"ü"}'.encode()]),
    ],
)
async def test_a_refusal_is_told_without_what_was_sent(script: Script) -> None:
    """With Google's own word for it, if it is one."""
    with pytest.raises(TokenRefused, match="no token") as caught:
        await token_over(says(script)).get(connect_timeout=1.0, timeout=1.0)
    assert "secret" not in str(caught.value)


async def test_a_token_has_bounds() -> None:
    """Google's have a few hundred bytes."""
    with pytest.raises(ProtocolError):
        await token_over(says(Script(200, [b"x" * 70_000]))).get(connect_timeout=1.0, timeout=1.0)


async def test_vertex_ai_is_sent_the_token() -> None:
    """Kept for later requests; after a 401 a new one is asked for; without one the account is to blame."""
    script = {"/token": Script(200, [TOKEN])}
    wire = ScriptedWire(lambda sent: script.get(sent.path, Script(401, [b'{"error":{"message":"expired"}}'])))
    settings = Backend(provider="vertex_ai", options={"credentials": account_file(), "location": "us-east5"})
    backend = open_litellm("v", settings, wire.open)
    assert [origin.host for origin in wire.origins] == ["127.0.0.1", "us-east5-aiplatform.googleapis.com"]
    for _ in range(2):
        reply = await ask(backend, body("gemini-x", "hi"), key=None)
        assert reply.status == 401
    targets = [sent.path for sent in wire.sent]
    path = "/v1/projects/the-project/locations/us-east5/publishers/google/models/gemini-x:generateContent"
    assert targets == ["/token", path, "/token", path]
    assert wire.sent[1].header("authorization") == "Bearer ya29.token"
    script["/token"] = Script(400, [b'{"error":"invalid_grant"}'])
    reply = await ask(backend, body("gemini-x", "hi"), key=None)
    assert reply.status == 401
    assert b"invalid_grant" in await all_of(reply)
    await backend.aclose()


async def test_a_token_endpoint_that_is_down_is_a_backend_that_is_down() -> None:
    """So that the next candidate is asked."""

    def answer(_: Sent) -> ConnectError:
        return ConnectError("refused")

    with pytest.raises(ConnectError):
        await token_over(ScriptedWire(answer)).get(connect_timeout=1.0, timeout=1.0)
