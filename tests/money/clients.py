"""Clients that behave as an SDK does: they stream, come back when they are told to, and some of them leave."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request came to; `seconds` until its last byte, or until the client left."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0
    left: bool = False
    whole: bool = True

    @property
    def code(self) -> str:
        """The error's code; empty for an answer that is none."""
        if self.status < 400:
            return ""
        return str(json.loads(self.body)["error"]["code"])

    @property
    def retry_after(self) -> float | None:
        """Seconds, as the SDKs read it: `retry-after-ms` first."""
        if "retry-after-ms" in self.headers:
            return float(self.headers["retry-after-ms"]) / 1000
        return float(self.headers["retry-after"]) if "retry-after" in self.headers else None

    @property
    def should_retry(self) -> bool:
        """What OpenAI's SDKs do with this answer."""
        told = self.headers.get("x-should-retry")
        return told == "true" if told else self.status in (408, 409, 429) or self.status >= 500


async def post(
    port: int, body: Mapping[str, Any], *, key: str, leave_after: int | None = None, path: str = "/v1/chat/completions"
) -> Answer:
    """One chat request on a connection of its own; with `leave_after`, the client is gone after so many events.

    A connection that breaks gives status 0, or the status that came with `whole` false.
    """
    began = time.monotonic()
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    status, headers, got = 0, dict[str, str](), b""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return Answer(0, whole=False)
    try:
        writer.write(head.encode() + data)
        status, headers = await _head(reader)
        if leave_after is not None and status == 200:
            while got.count(b"data: ") < leave_after:
                more = await reader.read(65536)
                if not more:
                    break
                got += more
            _reset(writer)
            return Answer(status, headers, got, time.monotonic() - began, left=True)
        got = await _body(reader, headers)
    except (OSError, asyncio.IncompleteReadError):
        return Answer(status, headers, got, time.monotonic() - began, whole=False)
    finally:
        writer.close()
    return Answer(status, headers, got, time.monotonic() - began)


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.split(": ", 1) for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name.lower(): value for name, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    pieces = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        pieces.append(await reader.readexactly(size))
        await reader.readexactly(2)
    return b"".join(pieces)


def _reset(writer: asyncio.StreamWriter) -> None:
    found: socket.socket = writer.get_extra_info("socket")
    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
