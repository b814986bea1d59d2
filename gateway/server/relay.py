"""Writes an answer to the client as it comes, and says so where it cannot be finished."""

from gateway.errors import StreamBroken
from gateway.exchange import Exchange
from gateway.formats.request import Request
from gateway.server.downstream import Downstream
from gateway.server.errors import send_body

_UNBUFFERED = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))  # nginx would hold a stream back


async def relay(exchange: Exchange, request: Request, downstream: Downstream, request_id: str) -> str:
    """Relay the whole exchange; `ok`, or `interrupted` when a stream that had begun could not be finished."""
    if exchange.body is not None:
        send_body(downstream, exchange.status, exchange.headers, exchange.body, request_id)
        return "ok"
    data = await exchange.read()
    named = {name for name, _ in exchange.headers}
    unbuffered = [pair for pair in _UNBUFFERED if pair[0] not in named]
    headers = [*exchange.headers, *unbuffered, (b"x-request-id", request_id.encode())]
    downstream.start(exchange.status, headers)
    try:
        while not exchange.ended:
            downstream.write(data)
            await downstream.drained()
            data = await exchange.read()
    except StreamBroken as error:
        break_off(downstream, request, error)
        return "interrupted"
    downstream.end(data)
    return "ok"


def break_off(downstream: Downstream, request: Request, error: StreamBroken) -> None:
    """End what cannot be finished with its error; what has no room for one stays without its end, and is cut."""
    last = request.error_event(error)
    if last:
        downstream.end(last)
