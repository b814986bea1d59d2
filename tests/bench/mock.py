"""A mock upstream that writes a stream of 100 events one by one, as a model does, but without waiting between them."""

import asyncio
import sys
from typing import cast

from tests.bench.backends import stream_events

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Events(asyncio.Protocol):
    """Answers every request with the same events, each in a `send` of its own."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, blank, body = self._got.partition(b"\r\n\r\n")
        if not blank or len(body) < _length(head):
            return
        self._got = body[_length(head) :]
        for piece in self._pieces:
            self._transport.write(piece)


def _length(head: bytes) -> int:
    found = head.lower().partition(b"content-length:")[2]
    return int(found.partition(b"\r\n")[0] or 0)


async def serve(port: int) -> None:
    """Serve for ever. asyncio's own loop, because it sends at each write; uvloop would join them."""
    chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in stream_events()]
    pieces = [_HEAD, *chunks, b"0\r\n\r\n"]
    server = await asyncio.get_running_loop().create_server(lambda: Events(pieces), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
