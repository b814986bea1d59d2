"""What stands behind the gateway in a benchmark: nginx as an instant mock and as the proxy that is the limit."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

EVENTS = 100
KEYS = 200
SECRET = "sk-bench-100"
PROMPT = "Say in one sentence why a proxy in front of language models should add as little time as it can, please. " * 2
_HEAD = {"id": "chatcmpl-bench", "created": 1_750_000_000, "model": "mock-1", "system_fingerprint": "fp_bench"}
_USAGE = {"prompt_tokens": 42, "completion_tokens": EVENTS - 3, "total_tokens": 42 + EVENTS - 3}
CLAUDE = "claude-haiku-4-5"
CLAUDE_TOKENS = EVENTS - 6
TEXT = "Because time spent in between helps nobody."
_CLAUDE_USAGE = {
    "input_tokens": 42,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
    "output_tokens": CLAUDE_TOKENS,
    "service_tier": "standard",
}
_CLAUDE_HEAD = {"id": "msg_bench", "type": "message", "role": "assistant", "model": CLAUDE}
# where each kind of traffic goes: a prefix at the mock and at the proxy, a backend and an alias at the gateway
KINDS = ("plain", "blob", "stream")


def plain_answer() -> bytes:
    """A chat completion of about 300 bytes."""
    message = {"role": "assistant", "content": TEXT}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return _dump({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE})


def stream_events() -> list[bytes]:
    """100 events: role, tokens, finish_reason, usage; then [DONE]."""
    deltas: list[tuple[Mapping[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": f" token{place}"}, None) for place in range(EVENTS - 3)]
    deltas.append(({}, "stop"))
    shape = {**_HEAD, "object": "chat.completion.chunk"}
    bodies: list[Mapping[str, object]] = [
        {**shape, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}], "usage": None}
        for delta, finish in deltas
    ]
    bodies.append({**shape, "choices": [], "usage": _USAGE})
    return [b"data: " + _dump(body) + b"\n\n" for body in bodies] + [b"data: [DONE]\n\n"]


def claude_answer() -> bytes:
    """The same answer in Anthropic's format."""
    ending = {"stop_reason": "end_turn", "stop_sequence": None}
    return _dump({**_CLAUDE_HEAD, "content": [{"type": "text", "text": TEXT}], **ending, "usage": _CLAUDE_USAGE})


def claude_events() -> list[bytes]:
    """100 events of Anthropic's: a message's start, its text a token at a time, its end."""
    start: dict[str, object] = {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**_CLAUDE_USAGE, "output_tokens": 1},
    }
    tokens = [{"type": "text_delta", "text": f" token{place}"} for place in range(CLAUDE_TOKENS)]
    ending = {"stop_reason": "end_turn", "stop_sequence": None}
    bodies: list[Mapping[str, object]] = [
        {"type": "message_start", "message": {**_CLAUDE_HEAD, **start}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in tokens),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": ending, "usage": _CLAUDE_USAGE},
        {"type": "message_stop"},
    ]
    return [b"event: %b\ndata: %b\n\n" % (str(body["type"]).encode(), _dump(body)) for body in bodies]


def request_body(kind: str, *, through_gateway: bool) -> bytes:
    """What the load sends; the client asks for usage in a stream, so that every subject carries the same bytes."""
    model = f"bench-{kind}" if through_gateway else "mock-1"
    body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": PROMPT}]}
    if kind not in ("plain", "claude"):
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return _dump(body)


def write_mock(folder: Path, port: int) -> Path:
    """nginx that answers at once: /plain from memory, /blob from a file, for any path below; and takes what OTLP sends."""
    folder.mkdir()
    (folder / "events.sse").write_bytes(b"".join(stream_events()))
    plain = plain_answer().decode()
    return _write(
        folder,
        f"""
        server {{
            listen 127.0.0.1:{port} backlog=1024;
            location /plain/ {{ default_type application/json; return 200 '{plain}'; }}
            location /claude/ {{ default_type application/json; return 200 '{claude_answer().decode()}'; }}
            location /blob/ {{ error_page 405 =200 /events.sse; return 405; }}
            location /v1/traces {{ client_max_body_size 0; return 200; }}
            location /v1/metrics {{ client_max_body_size 0; return 200; }}
            location = /events.sse {{ types {{ text/event-stream sse; }} root {folder}; }}
            location / {{ default_type application/json; return 200 '{{"object":"list","data":[]}}'; }}
        }}
        """,
    )


def write_proxy(folder: Path, port: int, mock: int, events: int) -> Path:
    """nginx in front of both mocks, with connections kept alive and, for streams, nothing held back."""
    folder.mkdir()
    return _write(
        folder,
        f"""
        upstream mock {{ server 127.0.0.1:{mock}; keepalive 128; keepalive_requests 1000000000; }}
        upstream events {{ server 127.0.0.1:{events}; keepalive 128; keepalive_requests 1000000000; }}
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        server {{
            listen 127.0.0.1:{port} backlog=1024;
            location /plain/ {{ proxy_pass http://mock; }}
            location /claude/ {{ default_type application/json; return 200 '{claude_answer().decode()}'; }}
            location /blob/ {{ proxy_pass http://mock; proxy_buffering off; }}
            location /stream/ {{ proxy_pass http://events; proxy_buffering off; }}
        }}
        """,
    )


def write_policies(folder: Path, mock: int, events: int, *, limits: bool, claude: bool = False) -> Path:
    """200 keys, each with four meters if `limits`, and an alias per kind whose model is rewritten.

    `claude` adds a backend in Anthropic's format, for which the gateway imports litellm.
    """
    meters = [
        {"usd": 1_000_000, "per": "day"},
        {"requests": 1_000_000_000, "per": "minute"},
        {"tokens": 1_000_000_000_000, "per": "minute"},
        {"concurrent": 10_000},
    ]
    ports = {"plain": mock, "blob": mock, "stream": events}
    kinds = (*KINDS, "claude") if claude else KINDS
    price = {"input": 0.15, "output": 0.6}
    backends: dict[str, object] = {kind: {"base_url": f"http://127.0.0.1:{ports[kind]}/{kind}/v1"} for kind in KINDS}
    if claude:
        key = {"api_keys": ["sk-ant-bench"]}
        backends["claude"] = {"provider": "anthropic", "base_url": f"http://127.0.0.1:{mock}/claude", **key}
    policies = {
        "version": 1,
        "backends": backends,
        "models": {
            f"model-{kind}": {
                "backend": kind,
                "model": CLAUDE if kind == "claude" else "mock-1",
                "context": 128_000,
                "max_output": 4096,
                "price": price,
            }
            for kind in kinds
        },
        "aliases": {f"bench-{kind}": [f"model-{kind}"] for kind in kinds},
        "keys": {
            f"key{number}": {"hash": f"sha256:{_sha256(f'sk-bench-{number}')}", "limits": meters if limits else []}
            for number in range(KEYS)
        },
    }
    folder.mkdir()
    (folder / "bench.yaml").write_text(json.dumps(policies, indent=1))  # JSON is YAML
    return folder


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _dump(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _write(folder: Path, servers: str) -> Path:
    # One process without a master, so that its memory and its time are one number.
    path = folder / "nginx.conf"
    path.write_text(
        f"""
        daemon off;
        master_process off;
        pid {folder}/nginx.pid;
        error_log {folder}/error.log;
        events {{ worker_connections 4096; }}
        http {{
            access_log off;
            keepalive_requests 1000000000;
            client_body_temp_path {folder}/body;
            proxy_temp_path {folder}/proxy;
            fastcgi_temp_path {folder}/fastcgi;
            uwsgi_temp_path {folder}/uwsgi;
            scgi_temp_path {folder}/scgi;
            open_file_cache max=16;
            tcp_nodelay on;
            {servers}
        }}
        """
    )
    return path
