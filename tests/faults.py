"""An upstream that answers OpenAI's chat completions correctly, or fails in exactly the way a test asks for.

    async with FaultUpstream("cut_rst:3") as upstream:      # the default for every request
        ...                                                 # ask upstream.url + "/chat/completions"
        upstream.script(["status_503", "ok"])               # the next two requests
        await upstream.until(lambda: upstream.log[0].closed_at is not None)

What a request meets is the first of: the script, `"fault"` in its body, a model named `fault:…`, the server's default.
A fault is written as `name`, `name:3` (its usual number) or `name:after=3,gap=0.05`; see FAULTS for the names.
"""

import argparse
import asyncio
import contextlib
import ipaddress
import json
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import httptools

from tests.fault_answers import CREATED, Composed, Fault, Seen, prompt_tokens, text
from tests.fault_table import Exchange, answer, check

__all__ = ["Fault", "FaultUpstream", "Produced", "Seen", "prompt_tokens", "refused", "self_signed", "text"]

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Produced:
    """What one model produced, in tokens: the truth that a bill must match."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class FaultUpstream:
    """The server; one per test, on a free port of the loopback interface."""

    def __init__(
        self, default: Fault | str = "ok", *, tls: ssl.SSLContext | None = None, port: int = 0, keep_log: bool = True
    ) -> None:
        self.default = check(Fault.parse(default))
        self.port = port
        self.log: list[Seen] = []
        self.ledger: dict[str, Produced] = {}
        self.running = 0
        self.peak = 0
        self.connections = 0
        self._tls = tls
        self._keep_log = keep_log
        self._script: deque[Fault] = deque()
        self._flaps: dict[Fault, int] = {}
        self._open: set[_Connection] = set()
        self._waiting: set[tuple[Callable[[], bool], asyncio.Future[None]]] = set()
        self._server: asyncio.Server | None = None

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The `base_url` to give to a client or a policy."""
        return f"{self.origin}/v1"

    def script(self, faults: Iterable[Fault | str]) -> None:
        """Give these faults, in order, to the next requests; then the usual choice again."""
        self._script.extend(check(Fault.parse(each)) for each in faults)

    def produced(self) -> int:
        """Output tokens produced for all models together."""
        return sum(each.completion_tokens for each in self.ledger.values())

    async def until(self, predicate: Callable[[], bool], timeout: float = 5.0) -> None:
        """Wait until something that this server does or sees makes `predicate` true. Raises TimeoutError."""
        if predicate():
            return
        entry = (predicate, asyncio.get_running_loop().create_future())
        self._waiting.add(entry)
        try:
            await asyncio.wait_for(entry[1], timeout)
        finally:
            self._waiting.discard(entry)

    def wait(self, predicate: Callable[[], bool], timeout: float = 5.0) -> None:
        """The same from another thread, for a server `in_thread`."""
        deadline = time.monotonic() + timeout
        while not predicate():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the upstream did not get there within {timeout:g} s")
            time.sleep(0.002)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self.port, ssl=self._tls, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        tasks = [each.task for each in self._open if each.task is not None]
        for connection in tuple(self._open):
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    @classmethod
    @contextlib.contextmanager
    def in_thread(cls, default: Fault | str = "ok", *, tls: ssl.SSLContext | None = None) -> Iterator["FaultUpstream"]:
        """The same server in a thread of its own, for tests without a loop."""
        upstream = cls(default, tls=tls)
        loop = asyncio.new_event_loop()
        ready, over = threading.Event(), asyncio.Event()

        async def live() -> None:
            async with upstream:
                ready.set()
                await over.wait()

        thread = threading.Thread(target=loop.run_until_complete, args=(live(),), name="fault-upstream", daemon=True)
        thread.start()
        assert ready.wait(10), "the fault upstream did not start"
        try:
            yield upstream
        finally:
            loop.call_soon_threadsafe(over.set)
            thread.join(10)
            loop.close()

    def choose(self, request: Mapping[str, Any]) -> Fault:
        """The fault for this request; flapping is resolved here, in the order in which requests arrive."""
        model = str(request.get("model", ""))
        given = self._script.popleft() if self._script else request.get("fault") or self.default
        if given is self.default and model.startswith("fault:"):
            given = model.removeprefix("fault:")
        fault = check(Fault.parse(given))
        if fault.name != "flapping":
            return fault
        turn = self._flaps[fault] = self._flaps.get(fault, 0) + 1
        return replace(fault, name="status_503" if turn <= fault.times else "ok")

    def note(self, seen: Seen) -> None:
        """Keep what was seen, and open its account."""
        if self._keep_log:
            self.log.append(seen)
        self.ledger.setdefault(seen.model, Produced()).requests += 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        self.changed()

    def count(self, seen: Seen, tokens: int) -> None:
        """Write tokens to the ledger, and with the first of them the prompt."""
        account = self.ledger[seen.model]
        if not seen.prompt_tokens:
            seen.prompt_tokens = prompt_tokens(seen.json)
            account.prompt_tokens += seen.prompt_tokens
        seen.completion_tokens += tokens
        account.completion_tokens += tokens
        self.changed()

    def changed(self) -> None:
        """Wake those who wait for what has become true."""
        for predicate, waiter in tuple(self._waiting):
            if not waiter.done() and predicate():
                waiter.set_result(None)


@contextlib.contextmanager
def refused() -> Iterator[str]:
    """A `base_url` where every connection is refused: the port is taken, and nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}/v1"


class _Connection(asyncio.Protocol):
    """One client's connection: parses requests, answers them in order, and notices at once when the peer leaves."""

    def __init__(self, upstream: FaultUpstream) -> None:
        self.upstream = upstream
        self.task: asyncio.Task[None] | None = None
        self.reset_next = False
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[tuple[Seen, Mapping[str, Any], bool]] = deque()
        self._current: Seen | None = None
        self._writable: asyncio.Future[None] | None = None
        self.on_message_begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop has a class of its own
        self.upstream.connections += 1
        self._number = self.upstream.connections
        self.upstream._open.add(self)

    def data_received(self, data: bytes) -> None:
        if self.reset_next:
            self.reset()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_message_begin(self) -> None:
        self._path, self._body = b"", b""
        self._headers: dict[str, str] = {}

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        request = _parsed(self._body)
        method = self._parser.get_method().decode()
        fault = self._fault(method, request)
        model = str(request.get("model", ""))
        path = self._path.decode("latin-1")
        now = time.monotonic()
        seen = Seen(self._number, now, method, path, self._headers, self._body, fault, model)
        self.upstream.note(seen)
        self._queue.append((seen, request, self._parser.should_keep_alive()))
        if self.task is None or self.task.done():
            self.task = asyncio.get_running_loop().create_task(self._serve())

    def _fault(self, method: str, request: Mapping[str, Any]) -> Fault:
        if method != "POST":
            return Fault()
        try:
            return self.upstream.choose(request)
        except (ValueError, TypeError, KeyError):
            return Fault("status_418")

    async def _serve(self) -> None:
        while self._queue and not self.transport.is_closing():
            seen, request, stays = self._queue.popleft()
            self._current = seen
            try:
                await self._respond(seen, request)
                if not stays:
                    self.transport.close()
                seen.reason = seen.reason or "answered"
            finally:
                self._current = None
                self.upstream.running -= 1
                if seen.reason == "answered":
                    seen.finished_at = time.monotonic()
                if not seen.reason:
                    self.transport.abort()
                self.upstream.changed()

    async def _respond(self, seen: Seen, request: Mapping[str, Any]) -> None:
        exchange = Exchange(self, seen, request, Composed(seen.path, request, seen.fault, self.upstream.port))
        if seen.method == "GET" and "/models" in seen.path:
            model = {"id": "fault-model", "object": "model", "created": CREATED, "owned_by": "tests"}
            await exchange.json({"object": "list", "data": [model]})
        elif seen.method != "POST" or not exchange.answer.kind:
            await exchange.json({"error": {"message": "no such URL", "type": "invalid_request_error"}}, 404)
        else:
            await answer(exchange)

    def eof_received(self) -> None:
        self._peer_left("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self._peer_left("reset" if exc else "eof")
        self.upstream._open.discard(self)
        self.upstream.changed()

    def _peer_left(self, how: str) -> None:
        now = time.monotonic()
        for seen in (self._current, *(each for each, *_ in self._queue)):
            if seen is not None and not seen.reason:
                seen.closed_at, seen.reason = now, how
        self.upstream.running -= len(self._queue)
        self._queue.clear()
        if self.task is not None:
            self.task.cancel()
        self.transport.abort()
        self.upstream.changed()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    async def write(self, data: bytes) -> None:
        """Write, and wait while the peer does not read."""
        if self._writable is not None:
            await self._writable
        if self.transport.is_closing():
            await asyncio.sleep(0)  # else a large answer would be written to the end before the loss is seen
        self.transport.write(data)

    async def flush(self) -> None:
        """Wait until all that was written is with the kernel."""
        self.transport.set_write_buffer_limits(0)
        if self._writable is not None and self.transport.get_write_buffer_size():
            await self._writable

    def count(self, tokens: int) -> None:
        """Note tokens as produced by the current request."""
        assert self._current is not None
        self.upstream.count(self._current, tokens)

    def close(self) -> None:
        """Close in order, as a part of the fault."""
        self._fault_ends()
        self.transport.close()

    def _fault_ends(self) -> None:
        if self._current is not None:
            self._current.reason = "faulted"

    def reset(self) -> None:
        """End the connection with a TCP RST."""
        self._fault_ends()
        found = self.transport.get_extra_info("socket")
        if found is not None and found.fileno() >= 0:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def abort(self) -> None:
        """End the connection because the server ends."""
        self._fault_ends()
        if self.task is not None:
            self.task.cancel()
        self.transport.abort()


def _parsed(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def self_signed(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context for 127.0.0.1 and localhost, and the file to verify it with (`ca_file`)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    places = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(places), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    ca_file, key_file = folder / "ca.pem", folder / "key.pem"
    ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca_file, key_file)
    return context, ca_file


async def _serve_for_ever(default: str, port: int) -> None:
    async with FaultUpstream(default, port=port, keep_log=False) as upstream:
        print(f"ready {upstream.url}", flush=True)
        await asyncio.get_running_loop().create_future()


def main() -> None:
    """Serve as a process of its own: `python -m tests.faults --port 9000 --fault slow:0.01`."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; it is printed")
    parser.add_argument("--fault", default="ok", help="what every request meets unless it says otherwise")
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve_for_ever(given.fault, given.port))


if __name__ == "__main__":
    main()
