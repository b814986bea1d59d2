"""An upstream that plays bytes as they are given, for what no correct server would send and no fault has a name for."""

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any

_RESET = struct.pack("ii", 1, 0)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
# Stage directions: wait until the peer leaves, reset the connection, wait 100 ms.
HOLD, CUT, PAUSE = b"hold", b"cut", b"pause"


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    """One event of a chat stream, as a chunk of HTTP."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"id": "chatcmpl-raw", "object": "chat.completion.chunk", "created": 1, "model": "raw", "choices": [choice]}
    return framed(b"data: " + json.dumps(body | more).encode() + b"\n\n")


def framed(data: bytes) -> bytes:
    """A chunk of HTTP."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextlib.contextmanager
def playing(play: Sequence[bytes]) -> Iterator[str]:
    """A `base_url` where every connection's request is answered with this play."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=_answer, args=(connection, play), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def _answer(connection: socket.socket, play: Sequence[bytes]) -> None:
    with connection, contextlib.suppress(OSError):
        connection.settimeout(30)
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        for part in play:
            if part == HOLD:
                while connection.recv(65536):
                    pass
            elif part == PAUSE:
                threading.Event().wait(0.1)
            elif part == CUT:
                threading.Event().wait(0.05)  # what was written before is read before the reset discards it
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            else:
                connection.sendall(part)
