"""One small HTTP server for the fake providers: each on a port of its own, all in one thread, every request kept."""

import asyncio
import contextlib
import json
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit


@dataclass(frozen=True, slots=True)
class Got:
    """One request as it came; `target` as it stood on the wire, `path` decoded, header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """The path, decoded."""
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> Mapping[str, str]:
        """The query, decoded."""
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: one piece whole, several as chunks of a stream; `cut` ends it before its end, as a provider that restarts does."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: Sequence[bytes] = (b"",)
    streams: bool = False
    cut: bool = False


class Refused(Exception):
    """What a provider does not take; the answer says why, in the provider's own words."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.pieces)
        self.answer = answer


def as_json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer in JSON."""
    data = json.dumps(body, ensure_ascii=False).encode()
    return Answer(status, {"content-type": "application/json", **(headers or {})}, (data,))


def as_events(
    events: Iterable[bytes], headers: Mapping[str, str] | None = None, kind: str = "text/event-stream; charset=utf-8"
) -> Answer:
    """A stream, one chunk an event."""
    return Answer(200, {"content-type": kind, **(headers or {})}, tuple(events), streams=True)


def sse(data: Any, event: str | None = None, end: bytes = b"\n\n") -> bytes:
    """One event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    name = b"" if event is None else b"event: " + event.encode() + b"\n"
    return name + b"data: " + text.encode() + end


class Fake:
    """A provider. `log` is every request it was sent, `refusals` what it answered to those it did not take.

    A mood decides how the next request fares: `rate_limited`, `overloaded`, `broken`, `out_of_money`, `cut:3` (ended
    after three events) or `error:3` (the provider's error inside the stream, after three events).
    """

    name: ClassVar[str]
    key: ClassVar[str] = "provider-key"

    def __init__(self) -> None:
        self.log: list[Got] = []
        self.refusals: list[Answer] = []
        self.port = 0
        self._moods: deque[str] = deque()

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    def next(self, *moods: str) -> None:
        """How the next requests fare, in order."""
        self._moods.extend(moods)

    @property
    def idle(self) -> bool:
        """Whether every mood has met its request."""
        return not self._moods

    def answer(self, got: Got) -> Answer:
        """The answer when all is well. Raises Refused for what the provider would not take."""
        raise NotImplementedError

    def fail(self, mood: str) -> Answer:
        """The provider's own answer in this mood."""
        raise NotImplementedError

    def broken_event(self) -> bytes:
        """The provider's error inside a stream."""
        raise NotImplementedError

    def handle(self, got: Got) -> Answer:
        """Answer a request, in the mood that is next."""
        self.log.append(got)
        mood = self._moods.popleft() if self._moods else ""
        try:
            good = self.answer(got)
        except Refused as refused:
            self.refusals.append(refused.answer)
            return refused.answer
        name, _, count = mood.partition(":")
        if name == "cut":
            return replace(good, pieces=good.pieces[: int(count)], cut=True)
        if name == "error":
            return replace(good, pieces=(*good.pieces[: int(count)], self.broken_event()))
        return self.fail(name) if name else good


@contextlib.contextmanager
def running(*fakes: Fake) -> Iterator[None]:
    """Serve them until the block ends."""
    loop = asyncio.new_event_loop()
    ready, over = threading.Event(), asyncio.Event()

    async def live() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for fake in fakes:
                server = await stack.enter_async_context(await asyncio.start_server(_talker(fake), "127.0.0.1", 0))
                fake.port = server.sockets[0].getsockname()[1]
            ready.set()
            await over.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    thread = threading.Thread(target=loop.run_until_complete, args=(live(),), name="providers", daemon=True)
    thread.start()
    assert ready.wait(10), "the fake providers did not start"
    try:
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()


def _talker(fake: Fake) -> Any:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while await _turn(fake, reader, writer):
                pass
        writer.close()

    return talk


async def _turn(fake: Fake, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")[:-4].split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    answer = fake.handle(Got(method, target, headers, body))
    head = [f"HTTP/1.1 {answer.status} Told", *(f"{name}: {value}" for name, value in answer.headers.items())]
    whole = b"".join(answer.pieces)
    head.append("transfer-encoding: chunked" if answer.streams else f"content-length: {len(whole)}")
    writer.write("\r\n".join(head).encode() + b"\r\n\r\n")
    if not answer.streams:
        writer.write(whole)
    for piece in answer.pieces if answer.streams else ():
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
        await asyncio.sleep(0)
    if answer.cut:
        await writer.drain()
        return False
    if answer.streams:
        writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True
