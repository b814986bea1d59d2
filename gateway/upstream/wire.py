"""The seam to upstreams: send a method, target, header bytes and a body; get a status, header bytes and a stream."""

from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass
from typing import Protocol

Header = tuple[bytes, bytes]


class WireError(Exception):
    """An exchange that failed below HTTP; the message is for logs and holds no header and no content."""


class ConnectError(WireError):
    """Refused, unreachable, unknown host, or a TLS handshake that failed: nothing was sent."""


class ConnectTimeout(ConnectError):
    """No connection within the `connect` time limit: nothing was sent."""


class ReadError(WireError):
    """Reset or closed before the message was whole."""


class ReadTimeout(WireError):
    """Nothing arrived within the time given."""


class ProtocolError(WireError):
    """What arrived is not HTTP/1.1, or breaks a bound on header or body size."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a wire leads: scheme (`http` or `https`), host, port, and how its certificate is verified."""

    scheme: str
    host: str
    port: int
    ca_file: str | None = None
    proxy: str | None = None
    http2: bool = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a wire may use: idle connections and for how long (seconds), the largest head, the read buffer (bytes).

    Above `high_water` unread bytes it reads no more until `low_water`; `read` gives at most about `max_read` at once.
    """

    max_idle: int = 256
    idle_expiry: float = 30.0
    max_head: int = 65_536
    high_water: int = 131_072
    low_water: int = 32_768
    max_read: int = 65_536


class Reply(Protocol):
    """One upstream response: status and headers at once, the body as it arrives. It must be closed, on every exit."""

    status: int
    headers: Sequence[Header]  # names in lower case

    @property
    def complete(self) -> bool:
        """Whether the whole message has been read."""
        ...

    async def read(self, timeout: float) -> bytes:
        """All that has arrived, joined, or what arrives next; `b""` at the end of a whole message.

        Raises ReadTimeout after `timeout` seconds without a byte, ReadError when the message was cut.
        """
        ...

    async def aclose(self) -> None:
        """Give the connection back if the message is whole, else abort it at once. Idempotent; never waits for I/O."""
        ...


class Wire(Protocol):
    """A way to one origin, with its pool of connections."""

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Sequence[Header],
        body: bytes | AsyncIterable[bytes],
        *,
        connect_timeout: float,
        timeout: float,
    ) -> Reply:
        """Send a request and return when the response's head is there.

        `target` is the path with its query. `host`, `content-length` and `transfer-encoding` are added here.
        `timeout` bounds, in seconds, the wait for the head once connected. Cancelling aborts the connection.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection of the pool."""
        ...
