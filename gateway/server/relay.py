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
    try:
        data = first
        while not exchange.ended:
            await send({"type": "http.response.body", "body": data, "more_body": True})
            data = await exchange.read()
    except StreamBroken as error:
        watch.stop()
        await break_off(send, request, error)
        return "interrupted"
    watch.stop()
    await send({"type": "http.response.body", "body": data})
    return "ok"


async def break_off(send: Send, request: Request, error: StreamBroken) -> None:
    """End what cannot be finished with its error; what has no room for one stays without its end, and is cut."""
    last = request.error_event(error)
    if last:
        await send({"type": "http.response.body", "body": last})
