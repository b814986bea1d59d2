"""What is sold by the token, the picture, the character or the second is charged so, and limits hold for all of it."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import media_upstream as up
from tests.conformance.media_upstream import form, wav
from tests.money.books import Books
from tests.support import Reply, Served, gateway_command, key_policy, serve

RICH = [{"usd": 100, "per": "total"}]
KEYS = {
    "rich": RICH,
    "poor": [{"usd": "0.01", "per": "total"}],
    "few-tokens": [{"tokens": 1000, "per": "total"}],
    "two-requests": [{"requests": 2, "per": "total"}],
}
LISTED = ["text-embedding-3-small", "gpt-3.5-turbo-instruct", "omni-moderation-latest", "gpt-image-1", "tts-1"]
LISTED += ["gpt-4o-mini-tts", "whisper-1", "gpt-4o-transcribe"]  # with their prices, in the bundled list
WAV = wav(3)


@pytest.fixture(scope="module")
def upstream() -> Iterator[up.MediaUpstream]:
    """The backend."""
    with up.running() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the gateway and its store are."""
    return tmp_path_factory.mktemp("measures")


@pytest.fixture(scope="module")
def books(folder: Path) -> Books:
    """What the gateway has written."""
    return Books(f"sqlite:///{folder}/measures.db")


@pytest.fixture(scope="module")
def gateway(upstream: up.MediaUpstream, folder: Path, books: Books) -> Iterator[Served]:
    """A gateway that knows its models from the bundled list; `silent…` do not report usage, `left` never answers."""
    policies = {
        "backends": {
            "up": {"base_url": upstream.url, "api_keys": [up.KEY], "passthrough": [*LISTED, "unlisted"]},
        },
        "models": {
            "silent-image": {"backend": "up", "model": "silent-image", "price": {"request": "0.04"}},
            "flat": {"backend": "up", "model": "flat", "price": {"request": "0.5", "input": 1}},
            "left": {"backend": "up", "model": "waits", "price": {"request": "0.25"}},
        },
        "keys": {
            **{name: key_policy(f"sk-{name}", limits=limits) for name, limits in KEYS.items()},
            **{f"pays {number}": key_policy(f"sk-pays {number}", limits=RICH) for number in range(len(COSTS))},
            "leaver": key_policy("sk-leaver", limits=RICH),
        },
    }
    with serve(folder, policies, "--store", books.url) as served:
        yield served


def post(gateway: Served, path: str, key: str, body: Any) -> Reply:
    """One request; a body with `form` in it is sent as a form."""
    if "form" in body:
        return gateway.request("POST", path, **form(file=body.get("file", WAV), **body["form"]), key=f"sk-{key}")
    return gateway.request("POST", path, body, key=f"sk-{key}")


EMBED, COMPLETE, MODERATE = "/v1/embeddings", "/v1/completions", "/v1/moderations"
IMAGE, SPEAK, HEAR = "/v1/images/generations", "/v1/audio/speech", "/v1/audio/transcriptions"
DRAW = {"model": "gpt-image-1", "prompt": "A fox", "quality": "low"}
SAY = {"input": "Hello, world", "voice": "alloy"}
# A request, what it costs in nano-dollars, and its tokens in and out.
COSTS: list[tuple[str, dict[str, Any], int, tuple[int, int]]] = [
    (EMBED, {"model": "text-embedding-3-small", "input": ["abcde", "fgh"]}, 8 * 20, (8, 0)),
    (EMBED, {"model": "text-embedding-3-small", "input": [[1, 2], [3]]}, 3 * 20, (3, 0)),
    (COMPLETE, {"model": "gpt-3.5-turbo-instruct", "prompt": "abcd", "n": 2}, 4 * 1500 + 10 * 2000, (4, 10)),
    (COMPLETE, {"model": "gpt-3.5-turbo-instruct", "prompt": "ab", "stream": True}, 2 * 1500 + 5 * 2000, (2, 5)),
    (MODERATE, {"model": "omni-moderation-latest", "input": "abc"}, 0, (2, 0)),
    (IMAGE, DRAW, 50 * 5000 + 272 * 40_000, (50, 272)),
    (IMAGE, {**DRAW, "stream": True}, 50 * 5000 + 272 * 40_000, (50, 272)),
    (IMAGE, {"model": "silent-image", "prompt": "fox", "n": 2, "quality": "low"}, 40_000_000, (2, 2 * 408)),
    (SPEAK, {"model": "tts-1", **SAY}, 12 * 15_000, (4, 17)),
    (SPEAK, {"model": "gpt-4o-mini-tts", **SAY, "stream_format": "sse"}, 14 * 600 + 101 * 12_000, (14, 101)),
    (HEAR, {"form": {"model": "whisper-1"}}, 3 * 100_000, (0, 0)),
    (HEAR, {"form": {"model": "whisper-1", "response_format": "verbose_json"}}, 3 * 100_000, (0, 0)),
    (HEAR, {"form": {"model": "whisper-1", "response_format": "srt"}}, 425_000, (43, 55)),
    (HEAR, {"form": {"model": "whisper-1", "response_format": "text"}}, 300_000, (30, 14)),
    (HEAR, {"form": {"model": "gpt-4o-transcribe"}}, 40 * 2500 + 12 * 10_000, (40, 12)),
    (HEAR, {"form": {"model": "gpt-4o-transcribe", "stream": "true"}}, 40 * 2500 + 12 * 10_000, (40, 12)),
    (EMBED, {"model": "flat", "input": "abc"}, 500_000_000 + 3 * 1000, (3, 0)),
]


@pytest.mark.parametrize("number", range(len(COSTS)))
def test_a_request_costs_what_its_model_is_sold_for(gateway: Served, books: Books, number: int) -> None:
    """To the nano-dollar; and nothing of its hold is left."""
    path, body, cost, tokens = COSTS[number]
    key = f"pays {number}"
    reply = post(gateway, path, key, body)
    assert reply.status == 200
    (record,) = books.records(key)
    assert (record.cost, record.outcome) == (cost, "ok")
    assert (record.input_tokens, record.output_tokens) == tokens
    if "x-gateway-cost-usd" in reply.headers:
        assert round(float(reply.headers["x-gateway-cost-usd"]) * 10**9) == cost
    assert books.settled("key", key).spent == cost


def test_gateway_usage_shows_it(gateway: Served, folder: Path, books: Books) -> None:
    """By model, like everything."""
    assert post(gateway, EMBED, "rich", {"model": "text-embedding-3-small", "input": "abc"}).status == 200
    books.records("rich")
    command = gateway_command("usage", "--by", "model", "--format", "json", "--store", books.url)
    shown = json.loads(subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=60).stdout)
    (row,) = [row for row in shown if row["model"] == "text-embedding-3-small"]
    assert row["requests"] >= 1
    assert row["output_tokens"] == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (EMBED, {"model": "text-embedding-3-small", "input": [[7] * 8000] * 100}),
        (COMPLETE, {"model": "gpt-3.5-turbo-instruct", "prompt": ["x"] * 100, "max_tokens": 4000}),
        (IMAGE, {**DRAW, "quality": "high"}),
        (IMAGE, {**DRAW, "n": 2}),
        (SPEAK, {"model": "tts-1", "input": "x" * 1000, "voice": "alloy"}),
        (SPEAK, {"model": "gpt-4o-mini-tts", "input": "x" * 1000, "voice": "alloy"}),
        (HEAR, {"form": {"model": "whisper-1"}, "file": wav(101)}),
        (HEAR, {"form": {"model": "whisper-1"}, "file": b"ID3" + bytes(200_000)}),
    ],
)
def test_what_the_budget_does_not_pay_for_is_not_begun(
    upstream: up.MediaUpstream, gateway: Served, path: str, body: Any
) -> None:
    """The most that it may cost is more than a cent, whichever way it is sold; what costs less is served."""
    before = len(upstream.got)
    reply = post(gateway, path, "poor", body)
    clamped = path == COMPLETE and reply.status == 200
    assert clamped or (reply.status, reply.error["code"]) == (429, "budget_exceeded")
    assert len(upstream.got) == before + clamped


def test_an_unknown_price_is_named_with_the_line_to_add(gateway: Served) -> None:
    """For a key with a limit in dollars; what is not sold by the token can be priced by the request."""
    reply = post(gateway, SPEAK, "rich", {"model": "unlisted", **SAY})
    assert (reply.status, reply.error["param"]) == (403, "model")
    assert "under models: unlisted: `price: {request: 0.00}`" in reply.error["message"]
    reply = post(gateway, EMBED, "rich", {"model": "unlisted", "input": "a"})
    assert "`price: {input: 0.00, output: 0.00}`" in reply.error["message"]


def test_limits_in_tokens_and_requests(gateway: Served) -> None:
    """They hold here too: an embedding has no output to hold for, and every kind of request counts as one."""
    assert post(gateway, EMBED, "few-tokens", {"model": "text-embedding-3-small", "input": "abc"}).status == 200
    reply = post(gateway, EMBED, "few-tokens", {"model": "text-embedding-3-small", "input": "x" * 2000})
    assert (reply.status, reply.error["code"]) == (429, "budget_exceeded")
    assert post(gateway, HEAR, "two-requests", {"form": {"model": "whisper-1"}}).status == 200
    assert post(gateway, SPEAK, "two-requests", {"model": "tts-1", **SAY}).status == 200
    assert post(gateway, MODERATE, "two-requests", {"model": "omni-moderation-latest", "input": "a"}).status == 429


def test_a_client_that_leaves_pays_for_what_was_begun(
    upstream: up.MediaUpstream, gateway: Served, books: Books
) -> None:
    """Nobody knows how far the backend came, so the request costs what it was permitted to."""
    given = form(model="left")
    head = f"POST {HEAR} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer sk-leaver\r\n"
    head += f"content-type: {given['content_type']}\r\ncontent-length: {len(given['body'])}\r\n\r\n"
    before = len(upstream.got)
    with gateway.connect() as connection:
        connection.sendall(head.encode() + given["body"])
        upstream.until(lambda: len(upstream.got) > before)
    (record,) = books.records("leaver")
    assert (record.cost, record.outcome, record.estimated) == (250_000_000, "client_gone", True)
