"""Google's access tokens for a service account: asked for with a signed JWT (RFC 7523), kept nearly until they end."""

import asyncio
import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import orjson

from gateway.upstream.wire import Origin, ProtocolError, Reply, Wire

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_LIFE = 3600  # seconds that are asked for
EARLY = 300.0  # seconds before its end in which a token is replaced
_MAX_BODY = 2**16


class TokenRefused(Exception):
    """Google gives this account no token; `status` is what it answered."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"Google gives the service account no token (status {status}{reason})")
        self.status = status


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """What is needed of a service account's key file."""

    email: str
    private_key: str = field(repr=False)
    key_id: str
    token_uri: str
    project: str | None


def read_account(text: str) -> ServiceAccount:
    """From the JSON itself or the path of its file. Raises ValueError that says what to write."""
    try:
        raw = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        doc = orjson.loads(raw)
        return ServiceAccount(
            email=doc["client_email"],
            private_key=doc["private_key"],
            key_id=str(doc.get("private_key_id") or ""),
            token_uri=str(doc.get("token_uri") or "https://oauth2.googleapis.com/token"),
            project=doc.get("project_id"),
        )
    except OSError as error:
        raise ValueError(
            f"options.credentials: {error.strerror}; write the path of a service account's key file"
        ) from None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise ValueError(
            "options.credentials: not a service account's key; write the path of its JSON file, which has "
            "`client_email` and `private_key`, or that JSON itself"
        ) from None


def assertion(account: ServiceAccount, now: float) -> str:
    """The signed JWT that asks for a token; `now` is in seconds since the epoch. Raises ValueError for a bad key."""
    head = {"alg": "RS256", "typ": "JWT", **({"kid": account.key_id} if account.key_id else {})}
    issued = int(now)
    claims = {
        "iss": account.email,
        "scope": _SCOPE,
        "aud": account.token_uri,
        "iat": issued,
        "exp": issued + _LIFE,
    }
    text = _base64(orjson.dumps(head)) + b"." + _base64(orjson.dumps(claims))
    return (text + b"." + _base64(_signature(account.private_key, text))).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _signature(pem: str, text: bytes) -> bytes:
    try:
        from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415 - only Vertex AI needs it
        from cryptography.hazmat.primitives.asymmetric import padding, rsa  # noqa: PLC0415
    except ImportError:
        raise ValueError("Vertex AI by service account needs the package cryptography; install it") from None
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError("options.credentials: `private_key` is not an RSA key; write a service account's key file")  # noqa: TRY004
    return key.sign(text, padding.PKCS1v15(), hashes.SHA256())


class GoogleToken:
    """The token of one account. Whoever comes while it is asked for waits for the same answer."""

    def __init__(self, account: ServiceAccount, open_wire: Callable[[Origin], Wire]) -> None:
        parts = urlsplit(account.token_uri)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("options.credentials: `token_uri` is not a URL; write the key file as Google gave it")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self._account = account
        self._wire = open_wire(Origin(parts.scheme, parts.hostname, port))
        self._path = parts.path.encode() or b"/"
        self._lock = asyncio.Lock()
        self._token = ""
        self._until = 0.0
        assertion(account, 0.0)  # a key that cannot sign is told at the start

    async def get(self, *, connect_timeout: float, timeout: float) -> str:
        """A token that lives for some minutes more. Raises WireError, or TokenRefused; times are in seconds."""
        if time.time() < self._until - EARLY:
            return self._token
        async with self._lock:
            now = time.time()
            if now >= self._until - EARLY:
                self._token, life = await self._ask(now, connect_timeout, timeout)
                self._until = now + life
        return self._token

    def forget(self) -> None:
        """The token was refused: the next request asks for a new one."""
        self._until = 0.0

    async def aclose(self) -> None:
        """Close the connections."""
        await self._wire.aclose()

    async def _ask(self, now: float, connect_timeout: float, timeout: float) -> tuple[str, float]:
        form = urlencode({"grant_type": _GRANT, "assertion": assertion(self._account, now)}).encode()
        headers = ((b"content-type", b"application/x-www-form-urlencoded"), (b"accept", b"application/json"))
        reply = await self._wire.send(
            b"POST", self._path, headers, form, connect_timeout=connect_timeout, timeout=timeout
        )
        try:
            doc = await answer_of(reply, timeout)
        finally:
            await reply.aclose()
        token, life = doc.get("access_token"), doc.get("expires_in")
        if reply.status != 200 or not isinstance(token, str) or not token.isascii():
            error = doc.get("error")
            raise TokenRefused(reply.status, f": {error}" if isinstance(error, str) and error.isidentifier() else "")
        return token, float(life) if isinstance(life, (int, float)) else EARLY


async def answer_of(reply: Reply, timeout: float) -> Mapping[str, Any]:
    """What a token's endpoint says; empty when that is no JSON object. Raises WireError."""
    body = b""
    while data := await reply.read(timeout):
        body += data
        if len(body) > _MAX_BODY:
            raise ProtocolError("a token of more than 64 KiB")
    try:
        doc = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return doc if isinstance(doc, dict) else {}
