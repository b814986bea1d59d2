"""`POST /v1/messages/count_tokens`: how many tokens a prompt has, routed and authorised like the prompt itself."""

from typing import cast

from gateway.counting import count
from gateway.formats.messages import CountRequest
from gateway.server.downstream import Downstream
from gateway.server.endpoints import Asked, Completions
from gateway.server.errors import JSON, send_body
from gateway.trip import Trip


class TokenCounts(Completions):
    """The endpoint. What it answers costs nothing, and no limit counts it."""

    async def _carry(self, trip: Trip, asked: Asked, downstream: Downstream) -> str:
        request = cast("CountRequest", asked.request)
        body, labels = await count(
            self._proxy, asked.runtime, asked.principal, request, headers=asked.headers, task=asked.task
        )
        trip.status = 200
        send_body(downstream, 200, [JSON, *labels], body, trip.request_id)
        return "ok"
