"""IBM Cloud's access tokens for api keys: asked for once, kept nearly until they end.

https://cloud.ibm.com/docs/account?topic=account-iamtoken_from_apikey.
"""

import asyncio
import time
from collections.abc import Callable
from urllib.parse import urlencode

from gateway.upstream.google_token import EARLY, TokenRefused, answer_of
from gateway.upstream.wire import Origin, Wire

_ORIGIN = Origin("https", "iam.cloud.ibm.com", 443)
_PATH = b"/identity/token"
_GRANT = "urn:ibm:params:oauth:grant-type:apikey"
_HEADERS = ((b"content-type", b"application/x-www-form-urlencoded"), (b"accept", b"application/json"))


class KeyRefused(TokenRefused):
    """IBM gives this api key no token; `status` is what it answered."""

    def __init__(self, status: int) -> None:
        Exception.__init__(self, f"IBM Cloud gives the api key no token (status {status})")
        self.status = status


class IbmTokens:
    """The tokens of a backend's api keys. Whoever comes while one is asked for waits for the same answer."""

    def __init__(self, open_wire: Callable[[Origin], Wire]) -> None:
        self._wire = open_wire(_ORIGIN)
        self._lock = asyncio.Lock()
        self._kept: dict[str, tuple[str, float]] = {}  # one for each of the backend's keys

    async def get(self, key: str, *, connect_timeout: float, timeout: float) -> str:
        """A token that lives for some minutes more. Raises WireError, or TokenRefused; times are in seconds."""
        token, until = self._kept.get(key, ("", 0.0))
        if time.time() < until - EARLY:
            return token
        async with self._lock:
            token, until = self._kept.get(key, ("", 0.0))
            now = time.time()
            if now >= until - EARLY:
                token, life = await self._ask(key, connect_timeout, timeout)
                self._kept[key] = token, now + life
        return token

    def forget(self, key: str) -> None:
        """The token was refused: the next request asks for a new one."""
        self._kept.pop(key, None)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._wire.aclose()

    async def _ask(self, key: str, connect_timeout: float, timeout: float) -> tuple[str, float]:
        form = urlencode({"grant_type": _GRANT, "apikey": key}).encode()
        reply = await self._wire.send(b"POST", _PATH, _HEADERS, form, connect_timeout=connect_timeout, timeout=timeout)
        try:
            doc = await answer_of(reply, timeout)
        finally:
            await reply.aclose()
        token, life = doc.get("access_token"), doc.get("expires_in")
        if reply.status != 200 or not isinstance(token, str) or not token.isascii():
            raise KeyRefused(reply.status)
        return token, float(life) if isinstance(life, (int, float)) else EARLY
