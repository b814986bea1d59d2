"""Through every endpoint but chat the real OpenAI SDK gets exactly what it gets from the backend itself."""

import asyncio
import contextlib
import hashlib
import inspect
import io
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conformance import media_upstream as up
from tests.conformance.media_upstream import form, wav
from tests.conformance.upstream import Got
from tests.support import Served, key_policy, serve, spawn
from tests.telemetry.collector import over_http

KEY, NARROW = "sk-media", "sk-narrow"
MODEL, ALIAS = "up-model", "a-rather-long-alias"
Call = Callable[[Any, str], Any]


WAV = wav(160)  # 5 MB
SHORT = ("short.wav", wav(3), "audio/wav")
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CASES: Mapping[str, Call] = {
    "embeddings of a text": lambda c, m: c.embeddings.create(model=m, input="Grüße, 世界 👩‍👩‍👧"),
    "embeddings of texts": lambda c, m: c.embeddings.create(model=m, input=["one", "two", ""]),
    "embeddings of ids": lambda c, m: c.embeddings.create(model=m, input=[1, 2, 50_256]),
    "embeddings of lists of ids": lambda c, m: c.embeddings.create(model=m, input=[[1, 2], [3]]),
    "embeddings as floats": lambda c, m: c.embeddings.create(model=m, input="x", encoding_format="float"),
    "embeddings as base64": lambda c, m: c.embeddings.create(model=m, input="x", encoding_format="base64"),
    "large embeddings": lambda c, m: c.embeddings.create(
        model=m, input=["x"] * 20, dimensions=3072, encoding_format="float", extra_body={"x_big": 2**70, "x_f": 1.0}
    ),
    "a completion": lambda c, m: c.completions.create(model=m, prompt="Once", max_tokens=9, temperature=1.0),
    "completions": lambda c, m: c.completions.create(model=m, prompt=["a", "b"], n=2, best_of=3, echo=True),
    "completions of ids": lambda c, m: c.completions.create(model=m, prompt=[[1, 2], [3, 4]], logprobs=0),
    "a streamed completion": lambda c, m: c.completions.create(model=m, prompt="Once", stream=True),
    "streamed completions": lambda c, m: c.completions.create(
        model=m, prompt=["a", "b"], n=2, stream=True, stream_options={"include_usage": True}
    ),
    "a moderation": lambda c, m: c.moderations.create(model=m, input="Hello"),
    "moderations": lambda c, m: c.moderations.create(model=m, input=["a", "b"]),
    "a moderation of parts": lambda c, m: c.moderations.create(
        model=m, input=[{"type": "text", "text": "model"}, PICTURE]
    ),
    "pictures": lambda c, m: c.images.generate(model=m, prompt="A fox", n=2, size="1024x1024", quality="low"),
    "a streamed picture": lambda c, m: c.images.generate(model=m, prompt="A fox", stream=True, partial_images=1),
    "speech": lambda c, m: c.audio.speech.create(model=m, input="Hello", voice="alloy", response_format="mp3"),
    "speech in events": lambda c, m: c.audio.speech.create(model=m, input="a", voice="alloy", stream_format="sse"),
    "a transcription": lambda c, m: c.audio.transcriptions.create(model=m, file=SHORT, temperature=0.0),
    "a transcription with settings": lambda c, m: c.audio.transcriptions.create(
        model=m,
        file=("model", SHORT[1]),
        prompt='name="model"\r\n\r\nmodel',
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    ),
    "a transcription as text": lambda c, m: c.audio.transcriptions.create(model=m, file=SHORT, response_format="text"),
    "a transcription as captions": lambda c, m: c.audio.transcriptions.create(
        model=m, file=SHORT, response_format="srt"
    ),
    "a streamed transcription": lambda c, m: c.audio.transcriptions.create(model=m, file=SHORT, stream=True),
    "a long transcription": lambda c, m: c.audio.transcriptions.create(model=m, file=("a.wav", WAV, "audio/wav")),
    "a translation": lambda c, m: c.audio.translations.create(model=m, file=SHORT),
    "a translation as text": lambda c, m: c.audio.translations.create(model=m, file=SHORT, response_format="text"),
}
HIDDEN = b'"stream_options":{"include_usage":true},'


def shown(answer: Any) -> Any:
    """What the SDK made of an answer, as values."""
    if hasattr(answer, "model_dump"):
        return answer.model_dump(exclude_unset=True, warnings=False)
    return answer.content if hasattr(answer, "content") else answer


def ask_sync(base_url: str, key: str, model: str, call: Call) -> Any:
    """The synchronous SDK's answer, or all its events."""
    with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        answer = call(client, model)
        return [shown(each) for each in answer] if isinstance(answer, openai.Stream) else shown(answer)


def ask_async(base_url: str, key: str, model: str, call: Call) -> Any:
    """The same with the asynchronous SDK."""

    async def go() -> Any:
        async with openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
            answer = call(client, model)
            answer = await answer if inspect.isawaitable(answer) else answer
            return [shown(each) async for each in answer] if isinstance(answer, openai.AsyncStream) else shown(answer)

    return asyncio.run(go())


@pytest.fixture(scope="module")
def upstream() -> Iterator[up.MediaUpstream]:
    """The backend."""
    with up.running() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(upstream: up.MediaUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The gateway in front of it, where faulty models stand before good ones."""
    backend = {"base_url": upstream.url, "api_keys": [up.KEY]}
    policies = {
        "defaults": {"retry": {"attempts": 0}, "breaker": {"failures": 3}},
        "backends": {
            "up": {**backend, "passthrough": [MODEL, "waits", "refuses", "whisper-1", "omni-moderation-latest"]},
            **dict.fromkeys(("failing", "weak", "cutting"), backend),
        },
        "models": {
            "m": {"backend": "up", "model": MODEL},
            "fails": {"backend": "failing", "model": "fails"},
            "weak": {"backend": "weak", "model": "fails"},
            "cuts": {"backend": "cutting", "model": "cuts"},
            "talks": {"backend": "up", "model": MODEL, "mode": "chat"},
            "embeds": {"backend": "up", "model": MODEL, "mode": "embedding"},
        },
        "aliases": {ALIAS: ["m"], "falls": ["fails", "m"], "weakening": ["weak", "m"]},
        "tasks": {"general": ["m"]},
        "keys": {"tester": key_policy(KEY), "narrow": key_policy(NARROW, allow=["m"])},
    }
    with serve(tmp_path_factory.mktemp("media"), policies) as served:
        yield served


@pytest.mark.parametrize("ask", [ask_sync, ask_async])
@pytest.mark.parametrize("case", CASES)
def test_the_sdk_gets_what_the_backend_says(
    upstream: up.MediaUpstream, gateway: Served, case: str, ask: Callable[[str, str, str, Call], Any]
) -> None:
    """The same objects, texts and bytes; and the backend reads the same bytes, but for the fields that may change."""
    direct = ask(upstream.url, up.KEY, MODEL, CASES[case])
    sent = upstream.got[-1]
    through = ask(gateway.base_url, KEY, ALIAS, CASES[case])
    arrived = upstream.got[-1]
    assert through == direct
    assert through
    assert arrived is not sent
    assert arrived.path == sent.path
    body = arrived.body.replace(HIDDEN, b"", 1 if case == "a streamed completion" else 0)
    assert len(body) < len(arrived.body) or case != "a streamed completion"
    assert body.replace(boundary(arrived), boundary(sent)) == sent.body


def boundary(got: Got) -> bytes:
    """The boundary of a form, which each request draws anew; of anything else what stands in no body."""
    found = re.search(r"boundary=(.+)", got.headers["content-type"])
    return found[1].encode() if found else b"no boundary at all"


def test_base64_becomes_the_numbers_that_were_packed(gateway: Served) -> None:
    """The SDK asks for base64 on its own, and decodes it."""
    packed = ask_sync(gateway.base_url, KEY, "m", CASES["embeddings of a text"])
    floats = ask_sync(
        gateway.base_url,
        KEY,
        "m",
        lambda c, m: c.embeddings.create(model=m, input="Grüße, 世界 👩‍👩‍👧", encoding_format="float"),
    )
    assert packed["data"][0]["embedding"] == floats["data"][0]["embedding"]
    assert len(packed["data"][0]["embedding"]) == 64


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embeddings", {"input": "a"}),
        ("/completions", {"prompt": "a"}),
        ("/completions", {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}),
        ("/moderations", {"input": "a"}),
        ("/images/generations", {"prompt": "a"}),
        ("/images/generations", {"prompt": "a", "stream": True}),
        ("/audio/speech", {"input": "a", "voice": "alloy", "stream_format": "sse"}),
    ],
)
def test_answers_pass_byte_for_byte(gateway: Served, path: str, body: Mapping[str, Any]) -> None:
    """Spaces, escapes, numbers and the names of events come as the backend wrote them."""
    reply = gateway.request("POST", f"/v1{path}", {"model": "m", **body}, key=KEY)
    kind, pieces = up._ANSWERS[path]({"model": MODEL, **body})
    assert reply.status == 200
    assert reply.headers["content-type"] == kind
    assert reply.body == (pieces if isinstance(pieces, bytes) else b"".join(pieces))
    assert reply.headers["x-gateway-model"] == "m"


def test_a_completion_that_streams_hides_the_usage_that_was_not_asked_for(gateway: Served) -> None:
    """As chat does."""
    reply = gateway.request("POST", "/v1/completions", {"model": "m", "prompt": "a", "stream": True}, key=KEY)
    assert b'"usage"' not in reply.body
    assert reply.body.endswith(b"data: [DONE]\n\n")


def test_a_moderation_needs_no_model(upstream: up.MediaUpstream, gateway: Served) -> None:
    """OpenAI has a default, and its SDK relies on it."""
    answer = ask_sync(gateway.base_url, KEY, "", lambda c, _: c.moderations.create(input="Hello"))
    assert answer["results"][0]["flagged"] is False
    assert json.loads(upstream.got[-1].body) == {"input": "Hello"}


def test_a_model_that_cannot_stream_answers_whole(gateway: Served) -> None:
    """OpenAI's whisper-1 ignores `stream`; the answer passes as it is."""
    reply = gateway.request("POST", "/v1/audio/transcriptions", **form(model="whisper-1", stream="true"), key=KEY)
    assert reply.json["text"] == up.TRANSCRIPT
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/embeddings", {"model": "m"}, "missing_field", "input"),
        ("/embeddings", {"model": "m", "input": []}, "invalid_value", "input"),
        ("/embeddings", {"model": "m", "input": ["a", 1]}, "invalid_value", "input[1]"),
        ("/embeddings", {"input": "a"}, "missing_field", "model"),
        ("/embeddings", b"{", "invalid_json", None),
        ("/completions", {"model": "m"}, "missing_field", "prompt"),
        ("/completions", {"model": "m", "prompt": "a", "n": 0}, "invalid_value", "n"),
        ("/moderations", {"model": "m"}, "missing_field", "input"),
        ("/images/generations", {"model": "m"}, "missing_field", "prompt"),
        ("/images/generations", {"model": "m", "prompt": 1}, "invalid_value", "prompt"),
        ("/audio/speech", {"model": "m", "voice": "alloy"}, "missing_field", "input"),
        ("/audio/speech", {"model": "m", "input": "a"}, "missing_field", "voice"),
        ("/audio/transcriptions", {"model": "m"}, "invalid_value", "content-type"),
    ],
)
def test_what_is_wrong_is_named(
    upstream: up.MediaUpstream, gateway: Served, path: str, body: Any, code: str, param: str | None
) -> None:
    """400 before any backend is asked."""
    before = len(upstream.got)
    reply = gateway.request("POST", f"/v1{path}", body, key=KEY, content_type="application/json")
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert (reply.error["code"], reply.error["param"]) == (code, param)
    assert len(upstream.got) == before


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"model": "m", "file": None}, "missing_field", "file"),
        ({"response_format": "json"}, "missing_field", "model"),
        ({"model": "m", "response_format": "mp3"}, "invalid_value", "response_format"),
        ({"raw": form(model="m")["body"].replace(b"--edge--", b"--edge")}, "invalid_value", None),
    ],
)
def test_what_is_wrong_with_a_form_is_named(gateway: Served, fields: Any, code: str, param: str | None) -> None:
    """The same for forms."""
    reply = gateway.request("POST", "/v1/audio/transcriptions", **form(**fields), key=KEY)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, code, param)


PATHS = {
    "/embeddings": {"input": "a"},
    "/completions": {"prompt": "a"},
    "/moderations": {"input": "a"},
    "/images/generations": {"prompt": "a"},
    "/audio/speech": {"input": "a", "voice": "alloy"},
}


def send(gateway: Served, path: str, model: str, key: str | None = KEY) -> Any:
    """A good request to any of the endpoints."""
    if path in PATHS:
        return gateway.request("POST", f"/v1{path}", {"model": model, **PATHS[path]}, key=key)
    return gateway.request("POST", f"/v1{path}", **form(model=model), key=key)


EVERY = [*PATHS, "/audio/transcriptions", "/audio/translations"]


@pytest.mark.parametrize("path", EVERY)
def test_every_endpoint_is_guarded_and_routed(gateway: Served, path: str) -> None:
    """Keys, allow-lists, unknown names and methods as for chat; aliases, tasks, models and passthrough too."""
    assert send(gateway, path, "m", key="sk-wrong").status == 401
    assert send(gateway, path, "m", key=NARROW).status == 200
    assert send(gateway, path, ALIAS, key=NARROW).error["code"] == "model_not_allowed"
    assert send(gateway, path, "nobody").error["code"] == "model_not_found"
    assert gateway.request("GET", f"/v1{path}", key=KEY).error["code"] == "method_not_allowed"
    for name, model in (
        (ALIAS, "m"),
        ("task:general", "m"),
        ("auto", "m"),
        (MODEL, MODEL),
        (f"up/{MODEL}", f"up/{MODEL}"),
    ):
        reply = send(gateway, path, name)
        assert (reply.status, reply.headers["x-gateway-model"]) == (200, model)


@pytest.mark.parametrize("path", EVERY)
def test_a_backend_that_fails_is_followed_by_the_next(gateway: Served, path: str) -> None:
    """Before the first byte, also where the answer is a stream of sound."""
    reply = send(gateway, path, "falls")
    assert (reply.status, reply.headers["x-gateway-attempts"], reply.headers["x-gateway-model"]) in (
        (200, "2", "m"),
        (200, "1", "m"),  # once its breaker is open
    )
    assert "up_refused" in send(gateway, path, "refuses").body.decode()
    assert send(gateway, path, "refuses").status == 400


def test_the_breaker_counts_every_endpoint(gateway: Served) -> None:
    """Three failures of three kinds of request open it."""
    for path in ("/embeddings", "/audio/speech", "/audio/transcriptions"):
        assert send(gateway, path, "weakening").headers["x-gateway-attempts"] == "2"
    assert send(gateway, "/images/generations", "weakening").headers["x-gateway-attempts"] == "1"


@pytest.mark.parametrize("path", EVERY)
def test_a_model_of_another_kind_is_left_out(gateway: Served, path: str) -> None:
    """With the reason; where nothing else is in the chain, asking again would not help, and the status says so."""
    reply = send(gateway, path, "talks")
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "invalid_value", "model")
    assert "it is a model for chat, not for" in reply.error["message"]
    assert send(gateway, path, "embeds").status == (200 if path == "/embeddings" else 400)


def test_sound_that_is_cut_does_not_look_whole(gateway: Served) -> None:
    """There is no event for it: the connection ends before the message does."""
    with (
        openai.OpenAI(base_url=gateway.base_url, api_key=KEY, max_retries=0) as client,
        pytest.raises(Exception) as caught,
    ):
        client.audio.speech.create(model="cuts", input="a", voice="alloy")
    assert "incomplete" in str(caught.value) or "Connection" in str(caught.value)


def test_events_that_are_cut_end_with_an_error(gateway: Served) -> None:
    """The event of CONTRACT section 3, after whole events only."""
    body = {"model": "cuts", "input": "a", "voice": "alloy", "stream_format": "sse"}
    events = gateway.request("POST", "/v1/audio/speech", body, key=KEY).body.split(b"\n\n")
    if len(events) > 1:  # else it was cut before its first event, and is an error before the answer begins
        parsed = [json.loads(event.removeprefix(b"data: ")) for event in events if event]
        assert parsed[-1]["error"]["code"] == "stream_interrupted"
    else:
        assert json.loads(events[0])["error"]["code"] == "upstream_error"


def test_a_hundred_megabytes_pass_at_the_pace_of_the_reader(upstream: up.MediaUpstream, gateway: Served) -> None:
    """While the client does not read, the backend is not read either, and nothing piles up in between."""
    size = 100 * 2**20
    before = upstream.sent
    body = json.dumps({"model": "m", "input": "a", "voice": "alloy", "x_bytes": size}).encode()
    head = f"POST /v1/audio/speech HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n"
    memory = resident(gateway)
    with gateway.connect() as connection:
        connection.sendall(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        start = connection.recv(4096)
        assert b" 200 " in start
        assert until_quiet(lambda: upstream.sent - before) < size // 2
        with connection.makefile("rb") as file:
            sound = unchunked(io.BufferedReader(Joined(start.split(b"\r\n\r\n", 1)[1], file)))
    assert sound == (size, hashed(up.sound(size)))
    assert resident(gateway) - memory < 48 * 2**20


class Joined(io.RawIOBase):
    """What was read already, and what comes after it."""

    def __init__(self, begun: bytes, file: Any) -> None:
        self._begun = begun
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data, self._begun = self._begun[: len(buffer)], self._begun[len(buffer) :]
        data = data or self._file.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def unchunked(file: Any) -> tuple[int, str]:
    """The length and the digest of a chunked body that has its end."""
    digest, size = hashlib.sha256(), 0
    while length := int(file.readline(), 16):
        data = file.read(length + 2)
        assert len(data) == length + 2
        digest.update(data[:-2])
        size += length
    return size, digest.hexdigest()


def hashed(pieces: Iterator[bytes]) -> str:
    """The digest of all pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def until_quiet(count: Callable[[], int]) -> int:
    """What a counter stands at once it has not moved for a second."""
    seen = -1
    while seen != count():
        seen = count()
        threading.Event().wait(1.0)
    return seen


def resident(gateway: Served) -> int:
    """Bytes of memory that the gateway has."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize("path", EVERY)
def test_when_the_client_leaves_its_backend_is_told(upstream: up.MediaUpstream, gateway: Served, path: str) -> None:
    """Whatever it is working on."""
    if path in PATHS:
        body, kind = json.dumps({"model": "waits", **PATHS[path]}).encode(), "application/json"
    else:
        given = form(model="waits")
        body, kind = given["body"], given["content_type"]
    before = len(upstream.got)
    with gateway.connect() as connection:
        head = f"POST /v1{path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\ncontent-type: {kind}\r\n"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        upstream.until(lambda: len(upstream.got) > before)
        assert not upstream.left.acquire(blocking=False)
    assert upstream.left.acquire(timeout=5)


def test_every_endpoint_is_traced_by_its_own_name(upstream: up.MediaUpstream, tmp_path: Path) -> None:
    """One span for the operation, with its tokens; the names are the conventions' where they have one."""
    policies = {
        "server": {"auth": "none"},
        "backends": {"up": {"base_url": upstream.url, "api_keys": [up.KEY]}},
        "models": {"m": {"backend": "up", "model": MODEL}},
    }
    with over_http() as collector:
        with serve(tmp_path, policies, env=collector.environ(OTEL_METRICS_EXPORTER="none")) as gateway:
            for path in EVERY:
                assert send(gateway, path, "m", key=None).status == 200
        spans = {span.name: span for span in collector.spans() if "gen_ai.operation.name" in span.attributes}
    operations = ["embeddings", "text_completion", "moderation", "image_generation", "speech", "transcription"]
    assert list(spans) == [f"{name} {MODEL}" for name in [*operations, "translation"]]
    assert [span.attributes["gen_ai.operation.name"] for span in spans.values()] == [*operations, "translation"]
    assert spans[f"embeddings {MODEL}"].attributes["gen_ai.usage.input_tokens"] == 1
    assert spans[f"image_generation {MODEL}"].attributes["gen_ai.usage.output_tokens"] == 272


def test_the_demo_embeds_and_completes(tmp_path: Path) -> None:
    """Its simulated backends serve the older and the smaller endpoints as well."""
    with spawned_demo(tmp_path) as gateway, openai.OpenAI(base_url=gateway.base_url, api_key="demo-key") as client:
        vectors = client.embeddings.create(model="embedder", input=["one", "two"]).data
        assert [len(each.embedding) for each in vectors] == [256, 256]
        assert client.completions.create(model="cheap", prompt="Once", max_tokens=3).usage is not None
        with pytest.raises(openai.BadRequestError, match="a model for embedding, not for chat"):
            client.with_options(max_retries=0).chat.completions.create(
                model="embedder", messages=[{"role": "user", "content": "a"}]
            )


@contextlib.contextmanager
def spawned_demo(folder: Path) -> Iterator[Served]:
    """The demo, on a free port."""
    served = spawn("serve", "--demo", "--port", "0", folder=folder)
    try:
        served.until_ready()
        yield served
    finally:
        served.stop()
