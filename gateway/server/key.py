"""`GET /v1/key`: what the asking key may use, its limits, what is left of them, and when they reset."""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from gateway.budget.escrow import Escrow
from gateway.budget.left import described, iso_text
from gateway.budget.store import Standing, StoreDown
from gateway.proxy import Proxy
from gateway.server.downstream import Downstream, RequestIds
from gateway.server.pages import CallersPage
from gateway.trip import Trip


class KeyPage(CallersPage):
    """The page.

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
        super().__init__(proxy, ids, "/v1/key", "key")
        self._escrow = escrow

    async def _doc(self, downstream: Downstream, trip: Trip) -> Mapping[str, Any]:
        runtime, principal = self._caller(downstream, trip)
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
