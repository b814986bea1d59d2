"""`POST /v1/messages/count_tokens`: how many tokens a prompt has, routed and authorised like the prompt itself."""

from typing import cast

from gateway.counting import count
from gateway.formats.messages import CountRequest
from gateway.server.endpoints import Asked, Completions, Started
from gateway.server.errors import JSON, send_body
from gateway.server.watch import Watch
from gateway.trip import Trip


class TokenCounts(Completions):
    """The endpoint. What it answers costs nothing, and no limit counts it."""

    async def _carry(self, trip: Trip, asked: Asked, watch: Watch, send: Started) -> str:
        request = cast("CountRequest", asked.request)
        body, labels = await count(
            self._proxy, asked.runtime, asked.principal, request, headers=asked.headers, task=asked.task
        )
        watch.stop()
        trip.status = 200
        await send_body(send, 200, [JSON, *labels], body, trip.request_id)
        return "ok"
