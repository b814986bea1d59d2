"""Marked secrets, prompts, answers and error bodies, in every field on every path: what the gateway tells holds none of them."""

import contextlib
import http.client
import json
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.raw import CUT, HEAD, chunk, framed, playing
from tests.conformance.stage import Part, Stage, policies_of
from tests.faults import FaultUpstream
from tests.money.valkey_server import valkey
from tests.observability.scene import QUICKLY, chat_bytes
from tests.support import Reply, events_of, key_policy, serve, spawn, write_policies
from tests.telemetry import collector

MARK = "cnry"
PROMPT, SECRET = f"{MARK}-prompt", f"{MARK}-secret"
CLIENT_KEY, BACKEND_KEY = f"sk-{MARK}-client", f"sk-{MARK}-backend"
# What the fault upstream says: its tokens, its tool's arguments, its errors.
SAID = re.compile(
    rf"{MARK}|tok\d|celsius|Incorrect API key|exceeded your current|engine died|had an error|safety system|captive",
    re.IGNORECASE,
)
ERROR = json.dumps(
    {"error": {"message": f"{MARK}-error", "type": f"{MARK}-type", "param": f"{MARK}-param", "code": f"{MARK}-code"}}
).encode()


def answer(status: str, body: bytes, kind: str = "application/json", more: str = "") -> bytes:
    """An HTTP answer of a backend that writes it by hand."""
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{more}content-length: {len(body)}\r\n\r\n".encode() + body


BROKEN = b"data: {%s\n\n" % PROMPT.encode()
PLAYS: dict[str, Sequence[bytes]] = {
    "plain": [
        answer(
            "200 OK",
            json.dumps({"id": "1", "model": "m", "choices": [{"message": {"content": PROMPT}}], "x": PROMPT}).encode(),
        )
    ],
    "error-400": [answer("400 Bad", ERROR)],
    "error-404": [answer("404 Bad", ERROR)],
    "error-401": [answer("401 Bad", ERROR)],
    "error-429": [answer("429 Bad", ERROR, more=f"retry-after: {MARK}\r\n")],
    "error-500": [answer(f"500 {MARK}", ERROR, more=f"x-{MARK}: {MARK}\r\n")],
    "error-503": [answer("503 Bad", f"<html>{MARK}</html>".encode(), "text/html")],
    "error-in-200": [answer("200 OK", ERROR)],
    "not-json": [answer("200 OK", PROMPT.encode(), f"text/{MARK}")],
    "not-an-object": [answer("200 OK", json.dumps([PROMPT]).encode())],
    "no-choices": [answer("200 OK", json.dumps({PROMPT: PROMPT}).encode())],
    "odd-choices": [
        answer(
            "200 OK",
            json.dumps({"choices": [PROMPT, {"message": PROMPT}, {"message": {"content": [PROMPT]}}]}).encode(),
        )
    ],
    "not-http": [f"{MARK} {MARK}\r\n".encode(), CUT],
    "bad-header": [f"HTTP/1.1 200 OK\r\n{MARK}\r\nx y: {MARK}\r\n\r\n".encode(), CUT],
    "bad-length": [f"HTTP/1.1 200 OK\r\ncontent-length: {MARK}\r\n\r\n".encode(), CUT],
    "bad-coding": [f"HTTP/1.1 200 OK\r\ntransfer-encoding: {MARK}\r\n\r\n".encode(), CUT],
    "bad-chunk": [HEAD, chunk({"content": PROMPT}), f"{MARK}\r\n".encode(), CUT],
    "early-error": [HEAD, framed(b"data: " + ERROR + b"\n\n"), CUT],
    "cut": [HEAD, chunk({"content": PROMPT}), CUT],
    "error-event": [HEAD, chunk({"content": PROMPT}), framed(b"data: " + ERROR + b"\n\n"), framed(b"")],
    "broken-event": [
        HEAD,
        chunk({"content": PROMPT}),
        framed(BROKEN),
        chunk({}, "stop"),
        framed(b"data: [DONE]\n\n"),
        framed(b""),
    ],
    "broken-end": [HEAD, chunk({"content": PROMPT}), framed(BROKEN), framed(b"")],
    "calls-a-tool": [
        HEAD,
        chunk({"tool_calls": [{"index": 0, "function": {"name": PROMPT, "arguments": PROMPT}}]}),
        CUT,
    ],
    "thinks": [HEAD, chunk({"reasoning_content": PROMPT}), chunk({}, "stop"), framed(b"")],
}
GOES_ON = Part("ok", model={"prefill": True})
FAULTS: dict[str, Sequence[Part | str]] = {
    name: (fault, GOES_ON)
    for name, fault in {
        "ok": "ok",
        "slowly": "ok:gap=0.02",
        "tools": "tools",
        "quota": "insufficient_quota",
        "refused": "status_401",
        "policy": "content_policy",
        "too-long": "context_length_exceeded",
        "reset": "reset",
        "cut": "cut_fin:3",
        "stall": "stall:3",
        "vllm": "vllm_error:3",
        "stream-error": "stream_error:3",
        "portal": "not_json",
        "malformed": "malformed:3",
        "silent": "silence",
    }.items()
} | {"cut-for-good": ["cut_fin:3"], "stalled": ["stall:3"], "down": ["status_500", "html_502"]}

BODY: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": PROMPT, "name": PROMPT},
        {
            "role": "user",
            "content": [{"type": "text", "text": PROMPT}, {"type": "image_url", "image_url": {"url": PROMPT}}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": PROMPT, "type": "function", "function": {"name": PROMPT, "arguments": PROMPT}}],
        },
        {"role": "tool", "tool_call_id": PROMPT, "content": PROMPT},
    ],
    "tools": [
        {"type": "function", "function": {"name": PROMPT, "description": PROMPT, "parameters": {PROMPT: PROMPT}}}
    ],
    "user": PROMPT,
    "metadata": {PROMPT: PROMPT},
    "stop": [PROMPT],
    "logit_bias": {PROMPT: 1},
    "response_format": {"type": PROMPT},
    PROMPT: PROMPT,
}
OTHERS: dict[str, dict[str, Any]] = {
    "/v1/messages": {
        "max_tokens": 10,
        "system": PROMPT,
        "messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}],
        "metadata": {"user_id": PROMPT},
    },
    "/v1/responses": {"input": PROMPT, "instructions": PROMPT, "user": PROMPT},
    "/v1/completions": {"prompt": PROMPT, "suffix": PROMPT, "user": PROMPT},
    "/v1/embeddings": {"input": [PROMPT], "user": PROMPT},
    "/v1/moderations": {"input": PROMPT},
    "/v1/audio/speech": {"input": PROMPT, "voice": PROMPT},
    "/v1/images/generations": {"prompt": PROMPT},
}
WRONG: Sequence[bytes] = [
    PROMPT.encode(),
    b'{"model": "ok", "messages": [' + PROMPT.encode(),
    b'"' + PROMPT.encode() + b'"',
    *(
        json.dumps({"model": "ok", **BODY, **wrong}).encode()
        for wrong in (
            {"model": [PROMPT]},
            {"model": PROMPT * 100},
            {"messages": PROMPT},
            {"messages": [PROMPT]},
            {"messages": [{"role": [PROMPT]}]},
            {"stream": PROMPT},
            {"stream_options": PROMPT},
            {"stream_options": {"include_usage": PROMPT}},
            {"max_tokens": PROMPT},
            {"n": PROMPT},
            {"temperature": PROMPT},
            {"top_p": {PROMPT: PROMPT}},
        )
    ),
    b'{"model": "ok", "messages": ' + b"[" * 300 + b'"' + PROMPT.encode() + b'"' + b"]" * 300 + b"}",
    b'{"model": "ok", "messages": [{"role": "user", "content": "' + PROMPT.encode() + b"x" * 300_000 + b'"}]}',
]
# Runs in the gateway: faults of its own that hold what it was sent, and libraries that tell all they know.
SABOTAGE = f"""
import asyncio, logging
logging.WARNING = 1
import gateway.exchange, gateway.proxy
handle, read = gateway.proxy.Proxy.handle, gateway.exchange.Exchange.read

async def handle_or_fail(self, trip, runtime, principal, request, **more):
    if request.model == "explodes":
        async def beside():
            raise ValueError(request.raw)
        asyncio.get_running_loop().create_task(beside())
        asyncio.get_running_loop().call_soon(lambda said: 1 / 0, request.raw)
        raise ValueError(request.raw, "{SECRET}")
    return await handle(self, trip, runtime, principal, request, **more)

async def read_or_fail(self):
    data = await read(self)
    if b"tok3" in data and self._trip.request.doc.get("fails_midway"):
        raise RuntimeError(data)
    return data

gateway.proxy.Proxy.handle, gateway.exchange.Exchange.read = handle_or_fail, read_or_fail
"""


@dataclass
class Told:
    """Everything that the gateway has told, by where it was found."""

    found: dict[str, str] = field(default_factory=dict)

    def add(self, where: str, what: str | bytes) -> None:
        """Keep it."""
        text = what if isinstance(what, str) else what.decode("utf-8", "backslashreplace")
        self.found[where] = self.found.get(where, "") + text + "\n"

    def leaks(self) -> list[str]:
        """What was found where it should not be, with what stands around it."""
        return [
            f"{where}: …{text[max(0, hit.start() - 150) : hit.end() + 80]}…"
            for where, text in self.found.items()
            for hit in list(SAID.finditer(text))[:3]
        ]


def policies(upstream: FaultUpstream, plays: dict[str, str]) -> dict[str, Any]:
    """Every fault and every play as a route, each backend with a marked key in a variable."""
    found = policies_of(
        upstream.url,
        FAULTS,
        defaults={
            "timeouts": {"connect": "2s", "first_token": "300ms", "idle": "300ms", "total": "20s"},
            "retry": {"attempts": 0},
            "breaker": {"failures": 3, "open": "10ms"},
        },
        keys={"alice": key_policy(CLIENT_KEY, limits=[{"usd": 1000, "per": "day"}])},
    )
    for name, url in plays.items():
        found["backends"][f"play-{name}"] = {"base_url": url}
        found["models"][f"play-{name}"] = {"backend": f"play-{name}", "model": "m"}
    for backend in found["backends"].values():
        backend["api_keys"] = ["${BACKEND_KEY}"]
        backend["slots"] = 50
    for model in found["models"].values():
        model["price"] = {"input": 1, "output": 1}
    found["models"]["explodes"] = {"backend": "ok-0", "model": "m", "price": "free"}
    return found | {"server": {"auth": "keys", "max_body": "256KiB"}}


@contextlib.contextmanager
def played() -> Iterator[dict[str, str]]:
    """The URL of each play."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(playing(play)) for name, play in PLAYS.items()}


def asked_everything(stage: Stage, told: Told) -> None:
    """Every kind of request; of the answers, those that are the gateway's own errors are kept."""
    gateway = stage.gateway

    def keep(reply: Reply) -> None:
        told.add("headers", str(reply.headers))
        if reply.status >= 400:
            told.add("an error body", reply.body)

    headers = {"cookie": PROMPT, "user_agent": PROMPT, "referer": PROMPT, "x_other": PROMPT, "openai_beta": PROMPT}
    own = {"policy", "too-long", "play-error-400", "play-error-404"}  # answered with the backend's own body
    for name in (*FAULTS, *(f"play-{name}" for name in PLAYS)):
        for stream in (False, True):
            reply = gateway.chat({"model": name, "stream": stream, **BODY}, key=CLIENT_KEY, **headers)
            if name not in own:
                keep(reply)
    for path, other in OTHERS.items():
        for name in ("ok", "quota", "cut-for-good", "down", "explodes", "play-error-500", "play-cut", "play-not-json"):
            for stream in (False, True):
                with contextlib.suppress(http.client.IncompleteRead):  # a format without room for an error is cut
                    keep(gateway.request("POST", path, {"model": name, "stream": stream, **other}, key=CLIENT_KEY))
    for body in WRONG:
        keep(gateway.chat(body, key=CLIENT_KEY))
        keep(gateway.request("POST", "/v1/messages", body, key=CLIENT_KEY))
        keep(gateway.request("POST", "/v1/embeddings", body, key=CLIENT_KEY))
    for key in (f"sk-{SECRET}", f"{SECRET} {SECRET}", ""):
        for path in ("/v1/chat/completions", "/v1/key", "/v1/models"):
            keep(gateway.request("POST" if "chat" in path else "GET", path, {"model": "ok", **BODY}, key=key))
    keep(gateway.request("GET", "/v1/models", authorization=f"Basic {SECRET}", x_api_key=SECRET))
    keep(gateway.speak(f"GET / HTTP/1.1\r\n{SECRET}\r\n\r\n".encode()))
    for stream in (False, True):
        keep(gateway.chat({"model": "explodes", "stream": stream, **BODY}, key=CLIENT_KEY))
    reply = gateway.chat({"model": "slowly", "stream": True, "fails_midway": True, **BODY}, key=CLIENT_KEY)
    *_, last = events_of(reply.body)
    assert last["error"]["code"] == "stream_interrupted"
    told.add("an error event", str(last))
    for reading in (0, 1):
        with gateway.connect() as connection:
            connection.sendall(
                chat_bytes({"model": "silent" if not reading else "stalled", "stream": True, **BODY}, CLIENT_KEY)
            )
            if reading:
                connection.recv(1)
    for path in ("/metrics", "/readyz", "/v1/key", "/v1/models", "/livez"):
        told.add(path, gateway.request("GET", path, key=CLIENT_KEY).body)


def files_of(folder: Path, told: Told) -> None:
    """All that was written to disk."""
    for path in folder.rglob("*"):
        if path.is_file() and "site" not in path.parts:
            told.add(path.name, path.read_bytes())


def environ(receiver: collector.Collector, folder: Path) -> dict[str, str]:
    """Secrets in every variable that takes one, faults of the gateway's own, and everything that can be told told."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SABOTAGE)
    return receiver.environ(
        **QUICKLY,
        OTEL_EXPORTER_OTLP_HEADERS=f"authorization=Bearer {SECRET}",
        GATEWAY_ADMIN_KEY=SECRET,
        BACKEND_KEY=BACKEND_KEY,
        PYTHONPATH=str(folder / "site"),
        PYTHONASYNCIODEBUG="1",
    )


def test_nothing_is_told_of_what_was_said(tmp_path: Path) -> None:
    """Log, spans, metrics, errors, pages, files and tracebacks, after success and failure of every kind."""
    told = Told()
    with collector.over_http() as receiver, FaultUpstream.in_thread() as upstream, played() as plays:
        with serving(tmp_path, policies(upstream, plays), env=environ(receiver, tmp_path)) as gateway:
            stage = Stage(gateway, upstream)
            asked_everything(stage, told)
            stage.until_logged("internal_error")
            stage.until_logged("malformed_event")
            stage.until_logged("library")
        told.add("stdout", gateway.output)
        told.add("stderr", gateway.errors)
        files_of(tmp_path, told)
        assert len(receiver.spans()) > 200
        assert receiver.metrics
        for sent in [each.SerializeToString() for each in receiver.traces + receiver.metrics]:
            told.add("otlp", sent)
    keys = {seen.headers.get("authorization") for seen in upstream.log if seen.method == "POST"}
    assert f"Bearer {BACKEND_KEY}" in keys, "the marks were not where they should be"
    assert any(PROMPT.encode() in seen.body for seen in upstream.log)
    assert told.leaks() == []
    outcomes = {line["outcome"] for line in gateway.log if line["event"] == "request"}
    assert outcomes == {"ok", "error", "interrupted", "client_gone"}


@contextlib.contextmanager
def serving(folder: Path, found: dict[str, Any], *arguments: str, env: dict[str, str]) -> Iterator[Any]:
    """As `serve`, for a gateway that fails as it was made to: that it says so is what is looked at."""
    served = spawn(
        "serve", "--policies", str(write_policies(folder, found)), "--port", "0", *arguments, folder=folder, env=env
    )
    try:
        served.until_ready()
        yield served
    finally:
        if served.process.poll() is None:
            served.end()
        served.wait()


def test_nothing_of_it_is_in_redis_nor_is_its_password_told(tmp_path: Path) -> None:
    """A store behind a password: all that it holds; and what is told when it goes, and when the password is wrong."""
    import redis

    told = Told()
    with valkey(tmp_path, keeps=False) as server, FaultUpstream.in_thread() as upstream, played() as plays:
        client = redis.Redis.from_url(server.url)
        client.config_set("requirepass", SECRET)
        url = server.url.replace("://", f"://:{SECRET}@")
        env = {"BACKEND_KEY": BACKEND_KEY}
        with serve(tmp_path, policies(upstream, plays), "--store", url, env=env) as gateway:
            for name in ("ok", "quota", "cut-for-good", "play-error-500", "play-cut"):
                gateway.chat({"model": name, "stream": True, **BODY}, key=CLIENT_KEY)
        client = redis.Redis.from_url(url)
        held = [(key, client.dump(key)) for key in client.scan_iter()]
        assert len(held) > 3
        for key, value in held:
            assert value is not None
            told.add("redis", b"%b=%b" % (key, value))
        client.close()
        told.add("stdout", gateway.output + gateway.errors)
        for wrong in (url.replace(SECRET, f"{SECRET}2"), f"redis://:{SECRET}@127.0.0.1:1/0"):
            with serve(tmp_path, policies(upstream, plays), "--store", wrong, env=env) as gateway:
                Stage(gateway, upstream).until_logged("store_trouble")
                told.add("an error body", gateway.chat({"model": "ok", **BODY}, key=CLIENT_KEY).body)
            told.add("stdout", gateway.output + gateway.errors)
    assert told.leaks() == []


@pytest.mark.parametrize(
    "broken",
    [
        {"backends": {"b": {"base_url": f"http://u:{SECRET}@[h/v1", "api_keys": [SECRET]}}},
        {"backends": {"b": {"base_url": f"ftp://{SECRET}", "api_keys": SECRET}}},
        {"backends": {"b": {"base_url": "http://h/v1", "api_keys": {"a": SECRET}, "proxy": f"{SECRET}:1"}}},
        {"backends": {"b": {"base_url": "http://h/v1", "api_key": SECRET, "options": {"x": [SECRET]}}}},
        {
            "backends": {"b": {"base_url": "http://h/v1", "api_keys": [SECRET, SECRET]}},
            "models": {"m": {"backend": "c", "model": "x"}},
        },
        {"backends": {"b": {"base_url": "${WRONG_URL}", "slots": "${BACKEND_KEY}", "local": "${BACKEND_KEY}"}}},
        {"backends": SECRET},
        {"keys": {"a": {"hash": SECRET}, "b": {"hash": f"sha256:{SECRET}"}, "c": SECRET}},
        f"backends:\n  b: {{base_url: http://h/v1, api_keys: ['{SECRET}]}}\n",
        f"backends:\n  b:\n    api_keys: [{SECRET}\n    base_url: x\n",
        f"backends:\n  b:\n\tapi_keys: [{SECRET}]\n",
    ],
    ids=range(11),
)
def test_policies_that_are_wrong_are_reported_without_their_secrets(tmp_path: Path, broken: Any) -> None:
    """At the start, by `check`, and in the log when a running gateway is told of them."""
    env = {"BACKEND_KEY": BACKEND_KEY, "WRONG_URL": f"http://u:{SECRET}@/v1"}
    good = {"backends": {"b": {"base_url": "http://127.0.0.1:1/v1"}}, "server": {"auth": "none"}}
    told = Told()
    with serve(tmp_path, good, env=env) as gateway:
        if isinstance(broken, str):
            (tmp_path / "policies" / "all.yaml").write_text(broken)
        else:
            write_policies(tmp_path, broken)
        with contextlib.suppress(ProcessLookupError):
            gateway.process.send_signal(signal.SIGHUP)
        gateway.until('"reload_failed"')
    told.add("log", gateway.output + gateway.errors)
    checked = spawn("check", "--policies", str(tmp_path / "policies"), folder=tmp_path, env=env)
    assert checked.wait() == 2
    told.add("check", checked.output + checked.errors)
    assert told.leaks() == []


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_headers_for_the_collector_that_cannot_be_sent_are_not_told(tmp_path: Path, protocol: str) -> None:
    """Whoever mistypes a token learns at the start which variable it stands in."""
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{SECRET}%0A",
    }
    good = {"backends": {"b": {"base_url": "http://127.0.0.1:1/v1"}}, "server": {"auth": "none"}}
    served = spawn("serve", "--policies", str(write_policies(tmp_path, good)), "--port", "0", folder=tmp_path, env=env)
    assert served.wait() == 2
    assert "OTEL_EXPORTER_OTLP_HEADERS" in served.errors
    assert SECRET not in served.output + served.errors
