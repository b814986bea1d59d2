"""`GET /v1/key`: what the asking key may use, its limits, what is left of them, and when they reset."""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from gateway.budget.escrow import Escrow
from gateway.budget.left import described, iso_text
from gateway.budget.store import Standing, StoreDown
from gateway.errors import GatewayError
from gateway.proxy import Proxy
from gateway.server.auth import Headers, read_headers
from gateway.server.endpoints import RequestIds
from gateway.server.errors import JSON, allow_header, send_body, send_error, wrong_method
from gateway.trip import Trip


class KeyPage:
    """The page: a plain ASGI callable.

        {"object": "key", "name": "alice", "team": "research", "allow": ["fast", "task:*"],
         "expires": "2027-01-01T00:00:00Z",
         "limits": [{"scope": "key", "name": "alice", "unit": "usd", "per": "day", "limit": 5.00, "remaining": 4.25,
                     "resets_at": "2026-07-02T00:00:00Z", "soft": false}]}

    `allow` are the key's patterns; GET /v1/models lists the names. `expires`, `team`, `per` (of `concurrent`) and
    `resets_at` may be null. The limits are the key's own, its team's and those on everything together; dollars are
    numbers with their exact digits. `remaining` is what is neither spent nor held by running requests, as all workers
    knew it at most a second ago; null when the store does not answer.
    """

    def __init__(self, proxy: Proxy, ids: RequestIds, escrow: Escrow) -> None:
        self._proxy = proxy
        self._ids = ids
        self._escrow = escrow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        trip = self._proxy.begin(self._ids.next(), scope["method"], "/v1/key", "key")
        outcome = "error"
        headers = read_headers(scope)
        self._proxy.trace(trip, headers.traceparent, headers.tracestate)
        try:
            if scope["method"] not in ("GET", "HEAD"):
                raise wrong_method(scope["method"], scope["path"], ("GET",))
            doc = await self._doc(headers, trip)
            trip.status, outcome = 200, "ok"
            await send_body(send, 200, [JSON], orjson.dumps(doc), trip.request_id, head_only=scope["method"] == "HEAD")
        except GatewayError as error:
            trip.status, trip.code = error.status, error.code
            self._proxy.rejected(error.code)
            allowed = [allow_header(("GET",))] if error.status == 405 else []
            await send_error(send, error, allowed, trip.request_id)
        finally:
            trip.finish(outcome)

    async def _doc(self, headers: Headers, trip: Trip) -> Mapping[str, Any]:
        runtime = self._proxy.runtime
        principal = trip.principal = runtime.keyring.identify(headers.secret, trip.at)
        limits = runtime.terms.own(principal)
        standings: list[Standing | None] = [None] * len(limits)
        with contextlib.suppress(StoreDown):  # then `remaining` is null
            standings[:] = await self._escrow.standings(limits)
        now = time.time()
        return {
            "object": "key",
            "name": principal.name,
            "team": principal.team,
            "allow": principal.patterns,
            "expires": None if principal.expires is None else iso_text(principal.expires),
            "limits": [described(limit, one, now) for limit, one in zip(limits, standings, strict=True)],
        }
