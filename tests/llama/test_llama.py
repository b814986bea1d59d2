"""A real llama.cpp server behind the real gateway, asked by the real SDK; the first run compiles it (minutes)."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.llama.program import Program

pytestmark = [pytest.mark.llama, pytest.mark.timeout(1800)]

QUESTION: list[Any] = [{"role": "user", "content": "hello the gateway"}]
LONG = 4000  # tokens: seconds of work
DONE = r"eval time .* (\d{4}) runs"  # what the server prints when a long answer is finished

POLICIES = """
version: 1
server: {auth: none}
backends:
  llama: {base_url: "%s", local: true, passthrough: ["*"]}
models:
  tiny: {backend: llama, model: tiny}
aliases:
  local: {chain: [tiny], data: local}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A llama.cpp server with a tiny model, in an environment of its own."""
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv is not None, "uv is not on the PATH; run these tests with `uv run pytest -m llama`"
    packages = ["--with", "llama-cpp-python[server]", "--with", "gguf"]
    python = [uv, "run", "--no-project", "--python", sys.executable, *packages, "python"]
    folder = tmp_path_factory.mktemp("llama")
    script = Path(__file__).with_name("tiny_gguf.py")
    with Program([*python, str(script), "tiny.gguf"], folder) as writing:
        writing.wait_for("(written)", 1700)
    serve = ["-m", "llama_cpp.server", "--model", "tiny.gguf", "--host", "127.0.0.1", "--port", "0"]
    with Program([*python, *serve, "--n_ctx", "4096", "--interrupt_requests", "false"], folder) as program:
        program.wait_for("(Uvicorn running)", 120)
        yield program


@pytest.fixture(scope="module")
def upstream(server: Program) -> str:
    """The server's base URL."""
    return server.wait_for(r"running on (http://127\.0\.0\.1:\d+)", 1) + "/v1"


@pytest.fixture(scope="module")
def gateway(upstream: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a gateway with that server as its only backend."""
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "policies").mkdir()
    (folder / "policies" / "local.yaml").write_text(POLICIES % upstream)
    with Program([sys.executable, "-m", "gateway", "serve", "--port", "0"], folder) as program:
        yield program.wait_for(r"gateway serves (\S+)", 60)


@pytest.fixture
def direct(upstream: str) -> Iterator[openai.OpenAI]:
    """The SDK, asking the server itself."""
    with openai.OpenAI(base_url=upstream, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def client(gateway: str) -> Iterator[openai.OpenAI]:
    """The same SDK, asking the gateway."""
    with openai.OpenAI(base_url=gateway, api_key="none", max_retries=0) as client:
        yield client


def _without_chance(answer: Any) -> dict[str, Any]:
    fields: dict[str, Any] = answer.model_dump()
    return {name: value for name, value in fields.items() if name not in ("id", "created")}


def test_answered(client: openai.OpenAI, direct: openai.OpenAI) -> None:
    """A plain answer through the gateway is the server's own, field for field, with its usage."""
    got = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0, max_tokens=50)
    own = direct.chat.completions.create(model="tiny", messages=QUESTION, temperature=0, max_tokens=50)
    assert _without_chance(got) == _without_chance(own)
    assert got.usage is not None
    assert got.usage.completion_tokens == 50


def test_streamed(client: openai.OpenAI, direct: openai.OpenAI) -> None:
    """A stream through the gateway has the server's own chunks, one by one."""
    streams = [
        [
            _without_chance(chunk)
            for chunk in asked.chat.completions.create(
                model="tiny", messages=QUESTION, temperature=0, max_tokens=200, stream=True
            )
        ]
        for asked in (client, direct)
    ]
    assert streams[0] == streams[1]
    assert len(streams[0]) > 200


def test_stays_local(client: openai.OpenAI) -> None:
    """An alias with `data: local` reaches it, and the answer costs nothing."""
    raw = client.chat.completions.with_raw_response.create(model="local", messages=QUESTION, max_tokens=5)
    assert raw.headers["x-gateway-route"] == "local"
    assert raw.headers["x-gateway-backend"] == "llama"
    assert float(raw.headers["x-gateway-cost-usd"]) == 0


def test_left_by_the_client(server: Program, client: openai.OpenAI, direct: openai.OpenAI) -> None:
    """The server stops working when the client of the gateway leaves, and is free for the next request."""
    began = time.monotonic()
    stream = direct.chat.completions.create(
        model="tiny", messages=QUESTION, temperature=0, max_tokens=LONG, stream=True
    )
    assert sum(1 for _ in stream) > LONG
    whole = time.monotonic() - began
    server.wait_for(DONE, 10)
    finished = server.count(DONE)

    stream = client.chat.completions.create(
        model="tiny", messages=QUESTION, temperature=0, max_tokens=LONG, stream=True
    )
    for _, _chunk in zip(range(20), stream, strict=False):
        pass
    stream.close()
    began = time.monotonic()
    client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0, max_tokens=5)
    waited = time.monotonic() - began

    server.wait_for("(Disconnected) from client", 10)
    assert server.count(DONE) == finished
    assert waited < whole / 3


def test_errors_are_its_own(gateway: str, upstream: str) -> None:
    """The server's refusal of a prompt beyond its context passes with its own status and body."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "calm harbour " * 3000}]}
    got = httpx.post(f"{gateway}/chat/completions", json=body, timeout=60)
    own = httpx.post(f"{upstream}/chat/completions", json=body, timeout=60)
    assert got.status_code == own.status_code == 400
    assert got.json() == own.json()
    assert got.json()["error"]["code"] == "context_length_exceeded"


def test_models_pass_through(client: openai.OpenAI) -> None:
    """A name that no policy declares is served by the backend whose `passthrough` has it."""
    raw = client.chat.completions.with_raw_response.create(model="llama/any-name", messages=QUESTION, max_tokens=5)
    assert raw.parse().model == "any-name"
