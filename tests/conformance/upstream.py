"""A strict OpenAI-compatible upstream whose answers are rich and always the same, and which keeps what it was sent."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

KEY = "upstream-key"
MODEL = "up-model"
TEXT = 'Grüße, 世界! 👩‍👩‍👧‍👦 שלום \u2028 tab\t "quoted" \\ back\nslash \x7f \u0000 end'
# What a reader that parses and writes anew would change, or that a strict one would not take.
NUMBERS = b'{"big":123456789012345678901234567890,"one":1.0,"exponent":1E5,"tiny":1e-320,"zero":-0.0,"u":"\\u00e9\\/",'
NUMBERS += b'"half":"\\ud83d"}'
_CREATED = 1_750_000_000
_SPLIT = 61  # bytes: cuts events and characters in the middle


@dataclass(frozen=True, slots=True)
class Got:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes


class Recorder(ThreadingHTTPServer):
    """A server on a port of its own; `got` is every request so far."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.got: list[Got] = []

    @property
    def url(self) -> str:
        """The `base_url` to give to a client or a policy."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Upstream(Recorder):
    """The server."""

    def __init__(self) -> None:
        super().__init__(_Handler)


R = TypeVar("R", bound=Recorder)


@contextlib.contextmanager
def in_thread(server: R) -> Iterator[R]:
    """Let a server run in a thread of its own."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def running() -> contextlib.AbstractContextManager[Upstream]:
    """An upstream in a thread of its own."""
    return in_thread(Upstream())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Upstream

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.got.append(Got(self.path, headers, body))
        problem = _problem(self.path, headers, body)
        if problem is not None:
            self._whole(400, json.dumps({"error": {"message": problem, "type": "strict", "param": None, "code": None}}))
            return
        request = json.loads(body)
        if not request.get("stream"):
            self._whole(200, plain(request))
            return
        self._head(200, "text/event-stream; charset=utf-8", "transfer-encoding", "chunked")
        data = stream(request)
        for place in range(0, len(data), _SPLIT):
            piece = data[place : place + _SPLIT]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def _head(self, status: int, kind: str, name: str, value: str) -> None:
        self.send_response(status)
        for field, said in (("content-type", kind), ("openai-processing-ms", "7"), ("x-request-id", "up_1")):
            self.send_header(field, said)
        self.send_header(name, value)
        self.end_headers()

    def _whole(self, status: int, text: str) -> None:
        data = text.encode()
        self._head(status, "application/json", "content-length", str(len(data)))
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def _problem(path: str, headers: Mapping[str, str], body: bytes) -> str | None:
    if path != "/v1/chat/completions":
        return f"wrong path {path}"
    if headers.get("authorization") != f"Bearer {KEY}":
        return "wrong key"
    if headers.get("content-type") != "application/json":
        return f"wrong content-type {headers.get('content-type')}"
    if json.loads(body).get("model") != MODEL:
        return "wrong model"
    return None


def plain(request: Mapping[str, Any]) -> str:
    """The whole answer, spaced and escaped as no other writer does it."""
    said, calls = _said(request), _calls(request)
    message: dict[str, Any] = {"role": "assistant", "content": None if calls else said, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    choices = [
        {
            "index": index,
            "message": {**message, "annotations": []},
            "logprobs": _logprobs(request, said),
            "finish_reason": "tool_calls" if calls else "stop",
        }
        for index in range(request.get("n") or 1)
    ]
    shown = json.dumps({**_shape(""), "choices": choices, "usage": USAGE}, ensure_ascii=True, indent=1)
    return shown[:-2] + f',\n "x_vendor" : {NUMBERS.decode()}\n}}'


def stream(request: Mapping[str, Any]) -> bytes:
    """The whole stream: comments, roles, deltas of every choice in turn, finish reasons, usage when it was asked for."""
    counts = (request.get("stream_options") or {}).get("include_usage")
    events = [b": welcome\n\n"]

    def add(choices: list[dict[str, Any]], usage: Any = None) -> None:
        tail = b"" if not counts else b',"usage":' + json.dumps(usage).encode()
        turn = len(events)
        head = json.dumps({**_shape(".chunk"), "choices": choices}, ensure_ascii=turn % 2 == 0).encode()[:-1]
        lines = head.replace(b", ", b",\ndata: ", 1) if turn % 5 == 0 else head  # several lines are one event
        events.append(b"data: " + lines + tail + b',"x_vendor":' + NUMBERS + b"}\n\n")

    indexes = range(request.get("n") or 1)
    said, calls = _said(request), _calls(request)
    for index in indexes:
        add([_chunk(index, {"role": "assistant", "content": None if calls else "", "refusal": None})])
    for delta in _call_deltas(calls) if calls else [{"content": said[n : n + 5]} for n in range(0, len(said), 5)]:
        for index in indexes:
            add([_chunk(index, delta, logprobs=_logprobs(request, delta.get("content") or ""))])
    for index in indexes:
        add([_chunk(index, {}, finish="tool_calls" if calls else "stop")])
    if counts:
        add([], USAGE)
    return b"".join([*events, b"data: [DONE]\n\n"])


USAGE = {
    "prompt_tokens": 21,
    "completion_tokens": 13,
    "total_tokens": 34,
    "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 0, "accepted_prediction_tokens": 0},
}


def _shape(suffix: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-fixed",
        "object": f"chat.completion{suffix}",
        "created": _CREATED,
        "model": "up-model-2025-06-15",
        "system_fingerprint": "fp_fixed",
        "service_tier": "default",
    }


def _chunk(index: int, delta: dict[str, Any], *, finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _said(request: Mapping[str, Any]) -> str:
    if (request.get("response_format") or {}).get("type") == "json_schema":
        return '{"city": "Zürich", "degrees": 1.0}'
    content = request["messages"][-1]["content"]
    if isinstance(content, list):
        seen = [f"{part['type']} of {len(json.dumps(part))}" for part in content]
        return f"I was shown {' and '.join(seen)} characters"
    return TEXT


def _calls(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not request.get("tools"):
        return []
    return [
        {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, (name, arguments) in enumerate(
            (("get_weather", '{"city":"Zürich","at":1.0}'), ("get_time", '{"zone":"Asia/東京"}'))
        )
    ]


def _call_deltas(calls: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for n, call in enumerate(calls):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        first = {"index": n, "id": call["id"], "type": "function", "function": {"name": name, "arguments": ""}}
        yield {"tool_calls": [first]}
        for place in range(0, len(arguments), 4):
            yield {"tool_calls": [{"index": n, "function": {"arguments": arguments[place : place + 4]}}]}


def _logprobs(request: Mapping[str, Any], said: str) -> dict[str, Any] | None:
    if not request.get("logprobs"):
        return None
    tops = [{"token": "x", "logprob": -2.25, "bytes": [120]}] * (request.get("top_logprobs") or 0)
    tokens = [{"token": one, "logprob": -0.125, "bytes": list(one.encode()), "top_logprobs": tops} for one in said]
    return {"content": tokens, "refusal": None}
