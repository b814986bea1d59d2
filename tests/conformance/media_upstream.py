"""A strict OpenAI-compatible upstream for every endpoint but chat: its answers are always the same, and odd to write.

What the model is called decides what is wrong with it: `fails`, `refuses`, `cuts`, `waits`; any other answers.
"""

import base64
import contextlib
import email.parser
import email.policy
import hashlib
import io
import json
import struct
import threading
import time
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.conformance.upstream import NUMBERS, Got, Recorder, in_thread

KEY = "upstream-key"
_SPLIT = 61  # bytes: cuts events and characters in the middle
_WHOLE = 65_536
TRANSCRIPT = 'Grüße, "世界" 👩‍👩‍👧 \u2028.'
CAPTIONS = f"1\n00:00:00,000 --> 00:00:02,500\n{TRANSCRIPT}\n\n2\n00:00:02,500 --> 00:00:04,250\nDone.\n"


class MediaUpstream(Recorder):
    """The server; `sent` is how many bytes of answers it sent, `left` how many peers went away."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.sent = 0
        self.left = threading.Semaphore(0)

    def until(self, predicate: Callable[[], bool], timeout: float = 30.0) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + timeout
        while not predicate():
            assert time.monotonic() < deadline, f"it did not come true within {timeout:g} s"
            time.sleep(0.01)

    def handle_error(self, *args: Any) -> None:
        """A peer that goes away is part of the play."""


def running() -> contextlib.AbstractContextManager[MediaUpstream]:
    """An upstream in a thread of its own."""
    return in_thread(MediaUpstream())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: MediaUpstream

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.got.append(Got(self.path, headers, body))
        request, problem = read(self.path, headers, body)
        model = request.get("model", "")
        if model == "waits":
            self._wait_for_departure()
        elif model == "fails":
            self._answer(500, "application/json", b'{"error": {"message": "broken"}}')
        elif problem is not None or model == "refuses":
            error = {"message": problem or "not that", "type": "strict", "param": "input", "code": "up_refused"}
            self._answer(400, "application/json", json.dumps({"error": error}).encode())
        else:
            kind, pieces = _ANSWERS[self.path.removeprefix("/v1")](request)
            self._answer(200, kind, pieces, cut=model == "cuts")

    def _answer(self, status: int, kind: str, pieces: "bytes | Iterator[bytes]", *, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("openai-processing-ms", "7")
        if isinstance(pieces, bytes):
            self.send_header("content-length", str(len(pieces)))
            self.end_headers()
            self.wfile.write(pieces[: len(pieces) // 2] if cut else pieces)
            self.close_connection = cut
            return
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number, piece in enumerate(pieces):
            if cut and number == 2:
                self.close_connection = True
                return
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.server.sent += len(piece)
        self.wfile.write(b"0\r\n\r\n")

    def _wait_for_departure(self) -> None:
        self.connection.settimeout(60)
        with contextlib.suppress(OSError):
            while self.connection.recv(1024):
                pass
        self.server.left.release()
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def read(path: str, headers: Mapping[str, str], body: bytes) -> tuple[dict[str, Any], str | None]:
    """The request, and what is wrong with it."""
    if headers.get("authorization") != f"Bearer {KEY}":
        return {}, "wrong key"
    if not headers["content-type"].startswith("multipart/form-data"):
        if headers["content-type"] != "application/json" or path.removeprefix("/v1") not in _ANSWERS:
            return {}, f"wrong content-type {headers['content-type']} or path {path}"
        request: dict[str, Any] = json.loads(body)
        return request, None if "model" in request or path.endswith("moderations") else "no model"
    head = f"content-type: {headers['content-type']}\r\nmime-version: 1.0\r\n\r\n".encode()
    form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    fields: dict[str, Any] = {}
    parts: Any = form.get_payload()
    for part in parts:
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if name in fields and not name.endswith("[]"):
            return {}, f"{name} twice"
        fields[name] = content if part.get_filename() is not None else content.decode()
    if not isinstance(fields.get("file"), bytes) or "model" not in fields:
        return {}, "no file or no model"
    return fields, None


def _written(doc: Mapping[str, Any]) -> bytes:
    """JSON as no other writer writes it."""
    return json.dumps(doc, indent=1).encode()[:-2] + b',\n "x_vendor" : ' + NUMBERS + b"\n}"


def _events(events: Sequence[Mapping[str, Any]], *, named: bool, done: bool) -> Iterator[bytes]:
    data = b""
    for event in events:
        data += f"event: {event['type']}\n".encode() if named else b""
        data += b"data: " + json.dumps(event).encode()[:-1] + b', "x_vendor":' + NUMBERS + b"}\n\n"
    data += b"data: [DONE]\n\n" if done else b""
    return (data[place : place + _SPLIT] for place in range(0, len(data), _SPLIT))


def inputs_of(given: Any) -> list[Any]:
    """The inputs, one by one."""
    return [given] if isinstance(given, str) or isinstance(given[0], int) else given


def tokens_of(given: Any) -> int:
    """What this upstream counts: a token a character, or the ids."""
    return sum(map(len, inputs_of(given)))


def _embeddings(request: Mapping[str, Any]) -> "tuple[str, bytes | Iterator[bytes]]":
    data = []
    for index, each in enumerate(inputs_of(request["input"])):
        digest = hashlib.sha256(json.dumps(each).encode()).digest()
        vector = [(digest[place % 32] - 127.5) / 128 for place in range(request.get("dimensions") or 64)]
        packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        shown = packed if request.get("encoding_format") == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": shown})
    count = tokens_of(request["input"])
    usage = {"prompt_tokens": count, "total_tokens": count}
    return "application/json", _written({"object": "list", "data": data, "model": "emb-2025", "usage": usage})


def _completions(request: Mapping[str, Any]) -> "tuple[str, bytes | Iterator[bytes]]":
    prompts, n = inputs_of(request["prompt"]), request.get("n") or 1
    shape = {"id": "cmpl-fixed", "object": "text_completion", "created": 1_750_000_000, "model": "up-2025"}
    said = [f"{prompt if request.get('echo') else ''} {TRANSCRIPT}" for prompt in prompts for _ in range(n)]
    made = 5 * len(prompts) * (request.get("best_of") or n)
    usage = {"prompt_tokens": tokens_of(request["prompt"]), "completion_tokens": made}
    usage["total_tokens"] = sum(usage.values())
    blank = {"logprobs": None}
    if not request.get("stream"):
        choices = [{"text": text, "index": n, **blank, "finish_reason": "stop"} for n, text in enumerate(said)]
        return "application/json", _written({**shape, "choices": choices, "usage": usage})
    counts = (request.get("stream_options") or {}).get("include_usage")
    tail: dict[str, Any] = {"usage": None} if counts else {}
    events: list[dict[str, Any]] = []
    for index, text in enumerate(said):
        for place in range(0, len(text), 4):
            choice = {"text": text[place : place + 4], "index": index, **blank, "finish_reason": None}
            events.append({**shape, "choices": [choice], **tail})
        events.append({**shape, "choices": [{"text": "", "index": index, **blank, "finish_reason": "stop"}], **tail})
    if counts:
        events.append({**shape, "choices": [], "usage": usage})
    return "text/event-stream", _events(events, named=False, done=True)


def _moderations(request: Mapping[str, Any]) -> "tuple[str, bytes | Iterator[bytes]]":
    verdict = {"flagged": False, "categories": {"violence": False}, "category_scores": {"violence": 1e-07}}
    results = [verdict] * len(inputs_of(request["input"]))
    return "application/json", _written({"id": "modr-1", "model": "mod-2025", "results": results})


def _images(request: Mapping[str, Any]) -> "tuple[str, bytes | Iterator[bytes]]":
    picture = base64.b64encode(bytes(range(256)) * 4).decode()
    usage = {"input_tokens": 50, "output_tokens": 272, "total_tokens": 322}
    usage |= {"input_tokens_details": {"text_tokens": 50, "image_tokens": 0}}  # type: ignore[dict-item]
    if request.get("stream"):
        head = {"b64_json": picture, "created_at": 1, "size": "1024x1024", "quality": "low"}
        head |= {"background": "opaque", "output_format": "png"}
        events: list[dict[str, Any]] = [
            {"type": "image_generation.partial_image", **head, "partial_image_index": 0},
            {"type": "image_generation.completed", **head, "usage": usage},
        ]
        return "text/event-stream", _events(events, named=True, done=False)
    told = {} if request["model"].startswith("silent") else {"usage": usage}
    pictures = [{"b64_json": picture}] * (request.get("n") or 1)
    return "application/json", _written({"created": 1, "data": pictures, **told})


def sound(size: int) -> Iterator[bytes]:
    """So many bytes of sound, in pieces; the same every time."""
    block = bytes(range(256)) * (_WHOLE // 256)
    for place in range(0, size, _WHOLE):
        yield block[: size - place]


def _speech(request: Mapping[str, Any]) -> "tuple[str, bytes | Iterator[bytes]]":
    if request.get("stream_format") == "sse":
        events: list[dict[str, Any]] = [{"type": "speech.audio.delta", "audio": "AAEC"}] * 3
        usage = {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}
        return "text/event-stream", _events(
            [*events, {"type": "speech.audio.done", "usage": usage}], named=False, done=False
        )
    return "audio/mpeg", sound(request.get("x_bytes") or 300_000)


def _transcriptions(request: Mapping[str, Any]) -> "tuple[str, bytes | Iterator[bytes]]":
    wanted = request.get("response_format", "json")
    heard = {"type": "duration", "seconds": 3}
    tokens = {"type": "tokens", "input_tokens": 40, "output_tokens": 12, "total_tokens": 52}
    tokens |= {"input_token_details": {"audio_tokens": 30, "text_tokens": 10}}
    usage = tokens if request["model"].startswith("gpt-4o") else heard
    if request.get("stream") == "true" and request["model"] != "whisper-1":
        deltas = [{"type": "transcript.text.delta", "delta": TRANSCRIPT[n : n + 3]} for n in range(0, 21, 3)]
        done: dict[str, Any] = {"type": "transcript.text.done", "text": TRANSCRIPT, "usage": usage}
        return "text/event-stream", _events([*deltas, done], named=False, done=True)
    if wanted == "text":
        return "text/plain; charset=utf-8", f"{TRANSCRIPT}\n".encode()
    if wanted == "srt":
        return "text/plain; charset=utf-8", CAPTIONS.encode()
    more: dict[str, Any] = {"usage": usage}
    if wanted == "verbose_json":
        more = {"task": "transcribe", "language": "german", "duration": 4.25, "segments": [], "usage": usage}
    return "application/json", _written({"text": TRANSCRIPT, **more})


_ANSWERS: Mapping[str, Callable[[Mapping[str, Any]], "tuple[str, bytes | Iterator[bytes]]"]] = {
    "/embeddings": _embeddings,
    "/completions": _completions,
    "/moderations": _moderations,
    "/images/generations": _images,
    "/audio/speech": _speech,
    "/audio/transcriptions": _transcriptions,
    "/audio/translations": _transcriptions,
}


def wav(seconds: float) -> bytes:
    """A sound of 32,000 bytes a second."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(struct.pack("<h", 1000) * int(16_000 * seconds))
    return file.getvalue()


def form(*, file: bytes | None = b"no sound", raw: bytes | None = None, **fields: str) -> dict[str, Any]:
    """A form's body and header for `Served.request`."""
    parts = [f'content-disposition: form-data; name="{name}"\r\n\r\n{text}'.encode() for name, text in fields.items()]
    if file is not None:
        parts.append(b'content-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + file)
    body = b"".join(b"--edge\r\n" + part + b"\r\n" for part in parts) + b"--edge--\r\n"
    return {"body": body if raw is None else raw, "content_type": "multipart/form-data; boundary=edge"}
