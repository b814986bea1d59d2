"""Writes an answer to the client as it comes, and closes it on every exit."""

from starlette.types import Send

from gateway.errors import StreamBroken
from gateway.exchange import Exchange
from gateway.formats.request import Request
from gateway.server.errors import send_body
from gateway.server.watch import Watch


async def relay(exchange: Exchange, request: Request, send: Send, watch: Watch, request_id: str) -> str:
    """Relay the whole exchange; `ok`, or `interrupted` when a stream that had begun could not be finished."""
    if exchange.body is not None:
        watch.stop()
        await send_body(send, exchange.status, exchange.headers, exchange.body, request_id)
        return "ok"
    first = await exchange.read()
    headers = [*exchange.headers, (b"cache-control", b"no-cache"), (b"x-request-id", request_id.encode())]
    await send({"type": "http.response.start", "status": exchange.status, "headers": headers})
    outcome = "ok"
    try:
        data = first
        while not exchange.ended:
            await send({"type": "http.response.body", "body": data, "more_body": True})
            data = await exchange.read()
    except StreamBroken as error:
        outcome = "interrupted"
        data = request.error_event(error)
    watch.stop()
    await send({"type": "http.response.body", "body": data})
    return outcome
