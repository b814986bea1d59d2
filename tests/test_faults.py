"""Each fault of the fault upstream is exactly what its name says, seen over a raw socket."""

import asyncio
import contextlib
import json
import re
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fault_answers import ARGUMENTS, Fault
from tests.fault_table import ERRORS
from tests.faults import FaultUpstream, Produced, refused, self_signed, text

PATIENCE = 0.15  # seconds after which a silent upstream is taken to be silent


def request(path: str = "/v1/chat/completions", **changes: Any) -> bytes:
    """A chat completion request as bytes."""
    fields = {"model": "m", "messages": [{"role": "user", "content": "one two three"}], **changes}
    body = json.dumps(fields).encode()
    return b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(body), body)


def is_whole(got: bytes) -> bool:
    """Whether this is a response with a length, or in chunks, to its end."""
    head, blank, body = got.partition(b"\r\n\r\n")
    length = re.findall(rb"content-length: (\d+)", head)
    if length:
        return bool(blank) and len(body) >= int(length[0])
    return b"chunked" in head and body.endswith(b"\r\n0\r\n\r\n")


async def listen(reader: asyncio.StreamReader, patience: float = 10, *, beyond: bool = False) -> tuple[bytes, str]:
    """All that comes, and how it ends: `eof`, `reset`, or `open` when the response is whole or nothing more came.

    With `beyond`, a whole response is not the end.
    """
    got = b""
    while True:
        try:
            part = await asyncio.wait_for(reader.read(65_536), patience)
        except TimeoutError:
            return got, "open"
        except ConnectionResetError:
            return got, "reset"
        if not part:
            return got, "eof"
        got += part
        if is_whole(got) and not beyond:
            return got, "open"


@contextlib.asynccontextmanager
async def dial(
    upstream: FaultUpstream, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A raw connection, closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port, ssl=tls)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


async def meet(
    upstream: FaultUpstream, patience: float = 10, *, beyond: bool = False, **changes: Any
) -> tuple[bytes, bytes, str]:
    """Head, body and ending of one request."""
    async with dial(upstream) as (reader, writer):
        writer.write(request(**changes))
        got, ending = await listen(reader, patience, beyond=beyond)
    head, _, body = got.partition(b"\r\n\r\n")
    return head, body, ending


def unchunked(body: bytes) -> tuple[bytes, bool]:
    """The content of a chunked body, and whether its last chunk came."""
    found = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return found, rest == b"\r\n"
        found, body = found + rest[:length], rest[length + 2 :]
    return found, False


def said(body: bytes) -> str:
    """The text of a stream's events."""
    return "".join(json.loads(f'"{each}"') for each in re.findall(r'"delta":\{"content":"(tok[^"]*)"', body.decode()))


async def test_plain_answer_is_correct_and_the_connection_stays() -> None:
    """The default answers two requests on one connection with usage that adds up."""
    async with FaultUpstream() as upstream, dial(upstream) as (reader, writer):
        for _ in range(2):
            writer.write(request(max_tokens=4))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.findall(rb"content-length: (\d+)", head)[0])
            answer = json.loads(await reader.readexactly(length))
            assert answer["choices"][0]["message"]["content"] == text(4)
            assert answer["choices"][0]["finish_reason"] == "length"
            assert answer["usage"]["prompt_tokens"] == 4
            assert answer["usage"]["completion_tokens"] == 4
        assert [seen.connection for seen in upstream.log] == [1, 1]
        assert [seen.reason for seen in upstream.log] == ["answered", "answered"]
        assert upstream.ledger == {"m": Produced(requests=2, prompt_tokens=8, completion_tokens=8)}


async def test_a_stream_is_whole_and_has_usage_only_when_asked() -> None:
    """Role, tokens, finish_reason, [DONE]; with include_usage a last chunk, and null before it."""
    async with FaultUpstream() as upstream:
        _, body, ending = await meet(upstream, stream=True)
        content, whole = unchunked(body)
        assert (whole, ending) == (True, "open")
        assert said(content) == text(10)
        assert content.endswith(b"data: [DONE]\n\n")
        assert b'"usage"' not in content
        _, body, _ = await meet(upstream, stream=True, stream_options={"include_usage": True})
        events = unchunked(body)[0].split(b"\n\n")[:-2]
        *before, last = [json.loads(event[6:]) for event in events]
        assert all(each["usage"] is None for each in before)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 10


@pytest.mark.parametrize("stream", [False, True])
async def test_reset_before_headers(stream: bool) -> None:
    """Not a byte, then RST."""
    async with FaultUpstream("reset") as upstream:
        assert await meet(upstream, stream=stream) == (b"", b"", "reset")
        assert upstream.log[0].reason == "faulted"
        assert upstream.produced() == 0


async def test_silence_and_headers_then_silence() -> None:
    """Nothing, or only a head, and the connection stays open; the peer's departure is noticed."""
    async with FaultUpstream() as upstream:
        upstream.script(["silence", "headers_silence", "headers_silence"])
        assert await meet(upstream, PATIENCE, stream=True) == (b"", b"", "open")
        for stream in (True, False):
            head, body, ending = await meet(upstream, PATIENCE, stream=stream)
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert (body, ending) == (b"", "open")
        await upstream.until(lambda: all(seen.closed_at for seen in upstream.log))
        assert {seen.reason for seen in upstream.log} == {"eof"}
        assert upstream.running == 0


@pytest.mark.parametrize(("fault", "how"), [("cut_rst", "reset"), ("cut_fin", "eof")])
async def test_a_cut_stream_has_so_many_tokens_and_no_last_chunk(fault: str, how: str) -> None:
    """N tokens arrive, the chunked body is incomplete, and the end is RST or FIN."""
    async with FaultUpstream(f"{fault}:4") as upstream:
        _, body, ending = await meet(upstream, stream=True)
        content, whole = unchunked(body)
        assert (said(content), whole, ending) == (text(4), False, how)
        assert b"[DONE]" not in content
        assert upstream.log[0].completion_tokens == 4
        head, body, ending = await meet(upstream)
        assert int(re.findall(rb"content-length: (\d+)", head)[0]) > len(body) > 0
        assert ending == how


async def test_a_close_delimited_cut_looks_whole() -> None:
    """Without length and chunks the end of the connection is the end of the body: nothing but the events tell."""
    async with FaultUpstream("cut_close:4") as upstream:
        head, body, ending = await meet(upstream, stream=True)
        assert b"chunked" not in head
        assert b"content-length" not in head
        assert (said(body), ending) == (text(4), "eof")
        assert b"[DONE]" not in body


async def test_stall_is_silent_after_so_many_tokens() -> None:
    """N tokens, then nothing, and no end."""
    async with FaultUpstream("stall:2") as upstream:
        _, body, ending = await meet(upstream, 0.5, stream=True)
        assert (said(unchunked(body)[0]), ending) == (text(2), "open")


@pytest.mark.parametrize(
    ("fault", "finish", "done", "tokens"),
    [
        ("malformed:3", True, True, 10),
        ("malformed_end:3", False, False, 3),
        ("no_done", True, False, 10),
        ("no_finish", False, False, 10),
        ("done_only", False, True, 10),
        ("vllm_error:3", False, True, 3),
        ("stream_error:3", False, False, 3),
    ],
)
async def test_a_stream_that_ends_in_order_but_is_not_right(fault: str, finish: bool, done: bool, tokens: int) -> None:
    """The HTTP message is whole; its events have or lack finish_reason and [DONE] as the name says."""
    async with FaultUpstream(fault) as upstream:
        _, body, ending = await meet(upstream, stream=True)
        content, whole = unchunked(body)
        assert (whole, ending) == (True, "open")
        assert (b'"finish_reason":"stop"' in content, content.endswith(b"data: [DONE]\n\n")) == (finish, done)
        assert said(content) == text(tokens)
        assert (b'data: {"id": "broken", "choices": [\n\n' in content) is fault.startswith("malformed")
        assert (b'data: {"object": "error"' in content) is (fault == "vllm_error:3")
        assert (b'data: {"error": {' in content) is (fault == "stream_error:3")


@pytest.mark.parametrize("stream", [False, True])
async def test_content_length_that_lies(stream: bool) -> None:
    """50 bytes more, or fewer, than what is sent; then FIN."""
    async with FaultUpstream() as upstream:
        upstream.script(["long_length", "short_length"])
        for more in (50, -50):
            head, body, ending = await meet(upstream, beyond=True, stream=stream)
            assert int(re.findall(rb"content-length: (\d+)", head)[0]) == len(body) + more
            assert ending == "eof"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529])
async def test_statuses_come_with_an_error_body(status: int) -> None:
    """Every status has a body in OpenAI's shape, and a plain one even when a stream was asked for."""
    async with FaultUpstream(f"status_{status}") as upstream:
        head, body, _ = await meet(upstream, stream=True)
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        assert b"retry-after" not in head


@pytest.mark.parametrize("name", ["insufficient_quota", "context_length_exceeded", "content_policy"])
async def test_named_errors_have_their_code(name: str) -> None:
    """The code says which 429 or 400 it is."""
    async with FaultUpstream(name) as upstream:
        head, body, _ = await meet(upstream)
        status, kind, _, code, _ = ERRORS[name]
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert (json.loads(body)["error"]["type"], json.loads(body)["error"]["code"]) == (kind, code)


async def test_retry_after_is_sent_as_given() -> None:
    """`status_429:2` says retry-after: 2, in any form."""
    async with FaultUpstream() as upstream:
        upstream.script(["status_429:2", Fault("status_503", retry_after="Wed, 21 Oct 2065 07:28:00 GMT")])
        assert b"\r\nretry-after: 2\r\n" in (await meet(upstream))[0] + b"\r\n"
        assert b"retry-after: Wed, 21 Oct 2065 07:28:00 GMT" in (await meet(upstream))[0]


async def test_flapping_is_bad_so_many_times_and_then_good() -> None:
    """Two 503s, then answers for good."""
    async with FaultUpstream("flapping:2") as upstream:
        heads = [(await meet(upstream))[0] for _ in range(4)]
        assert [head.split()[1] for head in heads] == [b"503", b"503", b"200", b"200"]


async def test_drip_sends_byte_by_byte() -> None:
    """The same answer, head included, in very many reads over a long time."""
    async with FaultUpstream(Fault("drip", gap=0.0005, tokens=1)) as upstream, dial(upstream) as (reader, writer):
        writer.write(request(stream=True))
        reads, got = 0, b""
        while not got.endswith(b"\r\n0\r\n\r\n"):
            got += await asyncio.wait_for(reader.read(65_536), 10)
            reads += 1
        assert reads > 100
        assert said(unchunked(got.partition(b"\r\n\r\n")[2])[0]) == text(1)


async def test_endless_header_never_ends_its_head() -> None:
    """A megabyte of header lines, and still no blank line; it stops when the peer leaves."""
    async with FaultUpstream("endless_header") as upstream, dial(upstream) as (reader, writer):
        writer.write(request())
        got = await asyncio.wait_for(reader.readexactly(1_000_000), 20)
        assert got.startswith(b"HTTP/1.1 200 OK\r\nx-filler: a")
        assert b"\r\n\r\n" not in got
        writer.close()
        await upstream.until(lambda: upstream.log[0].closed_at is not None)


async def test_slow_tokens_have_their_gap() -> None:
    """Five tokens 40 ms apart take at least 200 ms."""
    async with FaultUpstream(Fault("slow", gap=0.04, tokens=5)) as upstream:
        start = time.monotonic()
        _, body, _ = await meet(upstream, stream=True)
        assert said(unchunked(body)[0]) == text(5)
        assert time.monotonic() - start >= 0.19


async def test_big_stream_has_its_size() -> None:
    """`big` sends so many bytes of text, whole."""
    async with FaultUpstream("big:3000000") as upstream:
        _, body, _ = await meet(upstream, stream=True)
        content, whole = unchunked(body)
        assert whole
        assert content.count(b"x") > 2_900_000


async def test_a_slow_reader_holds_a_big_stream_back() -> None:
    """The upstream does not produce what the peer does not read."""
    async with FaultUpstream("big:50000000") as upstream:
        with socket.create_connection(("127.0.0.1", upstream.port)) as held:
            await asyncio.get_running_loop().run_in_executor(None, held.sendall, request(stream=True))
            await upstream.until(lambda: upstream.produced() > 10)
            await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.2)
            assert upstream.produced() < 48_000_000 // 1024
        await upstream.until(lambda: upstream.log[0].closed_at is not None)


async def test_tools_no_usage_and_inline_usage() -> None:
    """Tool-call deltas make the arguments; usage is absent, or in the chunk with the finish_reason."""
    async with FaultUpstream() as upstream:
        upstream.script(["tools", "no_usage", "no_usage", "usage_in_finish"])
        asked: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
        content = unchunked((await meet(upstream, **asked))[1])[0]
        pieces = re.findall(r'"function":\{"arguments":("(?:[^"\\]|\\.)*")', content.decode())
        assert "".join(json.loads(piece) for piece in pieces) == ARGUMENTS
        assert b'"finish_reason":"tool_calls"' in content
        assert b"usage" not in unchunked((await meet(upstream, **asked))[1])[0]
        assert b"usage" not in (await meet(upstream))[1]
        content = unchunked((await meet(upstream, **asked))[1])[0]
        last = json.loads(content.split(b"\n\n")[-3][6:])
        assert last["choices"][0]["finish_reason"] == "stop"
        assert last["usage"]["completion_tokens"] == 10


async def test_stale_connections_are_kept_and_then_are_not() -> None:
    """After a whole answer that promised to stay, the connection is closed, or the next request is reset."""
    async with FaultUpstream() as upstream:
        upstream.script(["stale_fin", "stale_reset"])
        head, _, ending = await meet(upstream, beyond=True)
        assert b"connection: close" not in head
        assert ending == "eof"
        async with dial(upstream) as (reader, writer):
            writer.write(request())
            assert (await listen(reader))[1] == "open"
            writer.write(request())
            assert await listen(reader) == (b"", "reset")


async def test_other_nonsense() -> None:
    """What is not HTTP, not JSON, empty, HTML, close-delimited, or comes after an interim response."""
    async with FaultUpstream() as upstream:
        upstream.script(["not_http", "not_json", "empty", "html_502", "close_delimited", "interim"])
        assert (await meet(upstream))[0] == b"SSH-2.0-OpenSSH_9.9\r\n"
        assert b"<html>" in (await meet(upstream))[1]
        assert b"content-length: 0" in (await meet(upstream))[0]
        assert (await meet(upstream))[0].startswith(b"HTTP/1.1 502 Bad Gateway")
        _, body, ending = await meet(upstream)
        assert (json.loads(body)["object"], ending) == ("chat.completion", "eof")
        head, body, _ = await meet(upstream, 0.5)
        assert head.startswith(b"HTTP/1.1 103")
        assert body.startswith(b"HTTP/1.1 200 OK")


async def test_the_fault_is_chosen_by_script_body_model_and_default_in_this_order() -> None:
    """The first that says something decides."""
    async with FaultUpstream("status_500") as upstream:
        upstream.script(["status_501"])
        asked: list[dict[str, Any]] = [{"fault": "status_502"}, {"fault": {"name": "status_502"}}]
        asked += [{"model": "fault:status_503"}, {}]
        found = [int((await meet(upstream, **changes))[0].split()[1]) for changes in asked]
        assert found == [501, 502, 503, 500]
        assert int((await meet(upstream, fault="nonsense"))[0].split()[1]) == 418
    with pytest.raises(ValueError, match="is no fault"):
        FaultUpstream("nonsense")


@pytest.mark.parametrize(("how", "hard"), [("eof", False), ("reset", True)])
async def test_the_peers_departure_is_noticed_at_once_and_stops_the_tokens(how: str, hard: bool) -> None:
    """FIN or RST in the middle of a stream is logged with its time, and nothing more is produced."""
    async with FaultUpstream(Fault("slow", gap=0.01, tokens=100_000)) as upstream, dial(upstream) as (_, writer):
        writer.write(request(stream=True))
        await upstream.until(lambda: upstream.produced() >= 3)
        left = time.monotonic()
        if hard:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        else:
            writer.close()
        await upstream.until(lambda: upstream.log[0].closed_at is not None and upstream.running == 0)
        seen = upstream.log[0]
        assert seen.closed_at is not None
        assert 0 <= seen.closed_at - left < 1
        assert seen.reason in (how, "reset")
        assert upstream.produced() == seen.completion_tokens < 1000


async def test_concurrent_requests_are_counted() -> None:
    """`running` and `peak` say how many were there at the same time."""
    async with FaultUpstream("silence") as upstream:
        asking = [asyncio.create_task(meet(upstream, 30)) for _ in range(5)]
        await upstream.until(lambda: upstream.running == 5)
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await upstream.until(lambda: upstream.running == 0)
        assert upstream.peak == 5


async def test_an_assistants_beginning_is_continued() -> None:
    """The answer goes on at the token where the last message ends."""
    async with FaultUpstream() as upstream:
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": text(4)}]
        _, body, _ = await meet(upstream, stream=True, messages=messages)
        assert said(unchunked(body)[0]) == text(10, 4)


def test_nobody_listens_at_a_refused_address() -> None:
    """The port is taken, and a connection to it is refused."""
    with refused() as url, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0])))


async def test_tls_can_be_verified_and_reset(tmp_path: Path) -> None:
    """The certificate is good for 127.0.0.1 with its own ca_file, and a reset is a reset there too."""
    server, ca_file = self_signed(tmp_path)
    async with FaultUpstream(tls=server) as upstream:
        upstream.script(["ok", "reset"])
        client = ssl.create_default_context(cafile=str(ca_file))
        assert upstream.url.startswith("https://127.0.0.1:")
        for expected in ("open", "reset"):
            async with dial(upstream, client) as (reader, writer):
                writer.write(request())
                got, ending = await listen(reader)
                assert ending == expected
                assert (b'"chat.completion"' in got) is (expected == "open")
                writer.transport.abort()


def test_in_a_thread_it_serves_a_synchronous_sdk() -> None:
    """The official client gets plain, streamed, embedded and listed answers, and its departure is seen."""
    with (
        FaultUpstream.in_thread() as upstream,
        openai.OpenAI(base_url=upstream.url, api_key="k", max_retries=0) as client,
    ):
        plain = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        assert plain.choices[0].message.content == text(10)
        stream = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True, n=2
        )
        assert sum(bool(chunk.choices[0].delta.content) for chunk in stream) == 20
        assert client.embeddings.create(model="e", input=["a", "b"]).data[1].embedding == pytest.approx([0.6, 0.8])
        assert client.completions.create(model="m", prompt="x").choices[0].text == text(10)
        assert [each.id for each in client.models.list()] == ["fault-model"]
        upstream.script(["stall:1"])
        with client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True
        ) as left:
            next(iter(left))
        upstream.wait(lambda: upstream.log[-1].closed_at is not None)
        assert upstream.ledger["m"].requests == 4


def test_as_a_process_it_prints_where_it_is() -> None:
    """`python -m tests.faults` is the same server on its own."""
    with subprocess.Popen([sys.executable, "-m", "tests.faults"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[1]
            with urllib.request.urlopen(f"{url}/models", timeout=10) as answer:
                assert answer.status == 200
        finally:
            process.terminate()
