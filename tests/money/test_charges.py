"""What a request costs on every way it can end: reported, counted, cut, left, continued, or never begun."""

import contextlib
import json
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiktoken

from gateway.formats.tokens import upper_bound
from tests.faults import FaultUpstream, prompt_tokens, refused
from tests.formats.samples import SAMPLES
from tests.money.books import Books
from tests.money.speaker import Speaker
from tests.support import Served, ask, events_of, key_policy, serve

PRICE = {"input": 1, "output": 10}  # dollars per million tokens: nano-dollars a token, times a thousand
LIMITS = [{"usd": 100, "per": "total"}, {"tokens": 10_000_000, "per": "total"}]
KEYS = (
    "cut",
    "failed",
    "fallen",
    "in-flight",
    "early",
    "left",
    "continued",
    "reported",
    "plain",
    "unread",
    "odd-stream",
    "odd-plain",
    "overrun",
)


@pytest.fixture(scope="module")
def upstream() -> Iterator[FaultUpstream]:
    """The backend that fails as it is told."""
    with FaultUpstream.in_thread() as running:
        yield running


@pytest.fixture(scope="module")
def speaker() -> Iterator[Speaker]:
    """The backend that says what it is told."""
    with Speaker.running() as running:
        yield running


@pytest.fixture(scope="module")
def o200k() -> Iterator[tiktoken.Encoding]:
    """OpenAI's tokenizer, from the file that litellm carries."""
    spec = find_spec("litellm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    with pytest.MonkeyPatch.context() as patch:
        folder = Path(spec.submodule_search_locations[0]) / "litellm_core_utils" / "tokenizers"
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        yield tiktoken.get_encoding("o200k_base")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the gateway and its store are."""
    return tmp_path_factory.mktemp("charges")


@pytest.fixture(scope="module")
def books(folder: Path) -> Books:
    """What the gateway has written."""
    return Books(f"sqlite:///{folder}/charges.db")


@pytest.fixture(scope="module")
def gateway(upstream: FaultUpstream, speaker: Speaker, folder: Path, books: Books) -> Iterator[Served]:
    """One key for each question, so that its records are the answer."""
    with refused() as nobody:
        model = {"context": 8192, "max_output": 1000, "price": PRICE}
        policies = {
            "defaults": {"retry": {"attempts": 1, "backoff": "1ms"}, "breaker": {"failures": 1000}},
            "backends": {
                "up": {"base_url": upstream.url},
                "down": {"base_url": nobody},
                "next": {"base_url": upstream.url},
                "speaker": {"base_url": speaker.url},
            },
            "models": {
                "paid": {"backend": "up", "model": "paid", **model},
                "dead": {"backend": "down", "model": "dead", **model},
                "heir": {"backend": "next", "model": "heir", **model, "prefill": True},
                "says": {"backend": "speaker", "model": "says", **model},
                "broken": {"backend": "up", "model": "fault:status_500", **model},
                "torn": {"backend": "up", "model": "fault:cut_rst:3", **model},
            },
            "aliases": {"falls": ["dead", "broken", "paid"], "fails": ["dead", "broken"], "goes-on": ["torn", "heir"]},
            "tasks": {"sums": ["paid"]},
            "teams": {"research": {}},
            "keys": {
                **{name: key_policy(f"sk-{name}", limits=LIMITS) for name in KEYS},
                "retried": key_policy("sk-retried", team="research"),
                "soft": key_policy("sk-soft", limits=[{"usd": 1, "per": "day", "soft": True}]),
                **{f"text {name}": key_policy(f"sk-text {name}", limits=LIMITS) for name in SAMPLES},
            },
        }
        with serve(folder, policies, "--store", books.url) as served:
            yield served


def cost(input_tokens: int, output_tokens: int) -> int:
    """Nano-dollars."""
    return 1000 * (input_tokens * PRICE["input"] + output_tokens * PRICE["output"])


def begin(gateway: Served, upstream: FaultUpstream, key: str, body: dict[str, Any]) -> socket.socket:
    """Send a request, and wait until it has reached the backend."""
    before = len(upstream.log)
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n"
    connection = gateway.connect()
    connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    upstream.wait(lambda: len(upstream.log) > before)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_reported_usage_is_charged_to_the_nano_dollar(
    gateway: Served, upstream: FaultUpstream, books: Books, *, stream: bool
) -> None:
    """The answer says what it cost, the record says the same, and nothing of the hold is left."""
    key = "reported" if stream else "plain"
    body = ask("paid", "one two three", stream=stream, fault="ok:17")
    reply = gateway.chat(body, key=f"sk-{key}")
    assert reply.status == 200
    (record,) = books.records(key)
    assert (record.input_tokens, record.output_tokens) == (prompt_tokens(body), 17)
    assert record.cost == cost(prompt_tokens(body), 17)
    assert record.price == "input=1 output=10"
    assert not record.estimated
    assert record.request_id == reply.headers["x-request-id"]
    assert (record.outcome, record.retries, record.model, record.backend) == ("ok", 0, "paid", "up")
    assert record.time_to_first_token is not None
    assert reply.headers.get("x-gateway-cost-usd") == (None if stream else f"{record.cost / 1e9:.9f}".rstrip("0"))


def pieces_of(text: str, o200k: tiktoken.Encoding, tokens: int) -> list[str]:
    """The text as a model streams it: so many tokens in a piece, and never half a character."""
    data = o200k.decode_tokens_bytes(o200k.encode(text))
    pieces, held = [], b""
    for number, each in enumerate(data, 1):
        held += each
        if number % tokens == 0 or number == len(data):
            with contextlib.suppress(UnicodeDecodeError):
                pieces.append(held.decode())
                held = b""
    assert "".join(pieces) == text
    return pieces


def test_a_record_says_whose_it_is_and_how_it_went(gateway: Served, books: Books) -> None:
    """Key, team, task, route, model, backend, and the one retry that it took."""
    reply = gateway.chat(ask("task:sums", fault="flapping:1"), key="sk-retried")
    assert reply.status == 200
    (record,) = books.records("retried")
    assert (record.team, record.task, record.route) == ("research", "sums", "task:sums")
    assert (record.model, record.backend, record.retries) == ("paid", "up", 1)
    assert record.duration > 0


@pytest.mark.parametrize("name", SAMPLES)
def test_a_stream_without_usage_is_charged_as_a_tokenizer_counts(
    gateway: Served, books: Books, o200k: tiktoken.Encoding, name: str
) -> None:
    """Within 10 %, in every language, token by token or several at a time, whole or cut, and as a plain answer."""
    key = f"text {name}"
    text = SAMPLES[name]
    for tokens, stream, cut in ((1, True, False), (8, True, False), (1, True, True), (1, False, False)):
        say = {"pieces": pieces_of(text, o200k, tokens), "cut": cut}
        events = events_of(gateway.chat(ask("says", stream=stream, say=say), key=f"sk-{key}").body)
        assert not stream or (events[-1] == "[DONE]") != cut
    real = len(o200k.encode(text))
    records = books.records(key, 4)
    for record in records:
        assert record.estimated
        assert abs(record.output_tokens - real) <= 0.1 * real, record
        assert record.cost == cost(record.input_tokens, record.output_tokens)
    assert [record.outcome for record in records] == ["ok", "ok", "interrupted", "ok"]


def test_a_cut_stream_is_charged_for_what_was_delivered(gateway: Served, upstream: FaultUpstream, books: Books) -> None:
    """Nobody can go on with it, so the client has three tokens and an error, and pays for three tokens."""
    body = ask("paid", "one two", stream=True, fault="cut_rst:3", max_tokens=900)
    events = events_of(gateway.chat(body, key="sk-cut").body)
    assert events[-1]["error"]["code"] == "stream_interrupted"
    (record,) = books.records("cut")
    assert record.estimated
    assert record.outcome == "interrupted"
    assert 3 <= record.output_tokens <= 10
    assert record.cost == cost(record.input_tokens, record.output_tokens)


def test_a_failed_attempt_costs_nothing(gateway: Served, books: Books) -> None:
    """Two candidates fail, each tried twice, and the third answers: one record, of the third alone."""
    assert gateway.chat(ask("fails"), key="sk-failed").status == 502
    reply = gateway.chat(ask("falls"), key="sk-fallen")
    assert reply.status == 200
    assert reply.headers["x-gateway-attempts"] == "3"
    (record,) = books.records("fallen")
    assert (record.model, record.output_tokens) == ("paid", 10)
    assert record.retries == 0, "the other model at this backend was another attempt's"
    assert books.records("failed", 0) == []


def test_a_plain_request_left_in_flight_costs_what_it_was_permitted(
    gateway: Served, upstream: FaultUpstream, books: Books
) -> None:
    """What its backend made of it nobody can know, so it is the most it may have made: all of the hold."""
    body = ask("paid", "one two three", fault="silence", max_tokens=50)
    begin(gateway, upstream, "sk-in-flight", body).close()
    (record,) = books.records("in-flight")
    assert record.outcome == "client_gone"
    assert record.estimated
    assert record.output_tokens == 50
    assert record.input_tokens == upper_bound(body, len(json.dumps(body)), "paid")
    assert record.cost == cost(record.input_tokens, 50)


def test_a_stream_left_before_its_first_token_costs_its_prompt(
    gateway: Served, upstream: FaultUpstream, books: Books
) -> None:
    """The backend has read the prompt; one token may have been on its way."""
    body = ask("paid", "one two three", stream=True, fault="headers_silence", max_tokens=50)
    begin(gateway, upstream, "sk-early", body).close()
    (record,) = books.records("early")
    assert (record.outcome, record.estimated, record.output_tokens) == ("client_gone", True, 1)
    assert prompt_tokens(body) - 1 <= record.input_tokens <= prompt_tokens(body) + 5
    assert record.cost == cost(record.input_tokens, 1)


def test_a_stream_left_in_the_middle_costs_what_was_made(
    gateway: Served, upstream: FaultUpstream, books: Books
) -> None:
    """The prompt and every token that came, and the one that may have been on its way."""
    body = ask("paid", stream=True, fault="stall:7", max_tokens=50)
    connection = begin(gateway, upstream, "sk-left", body)
    got = b""
    while got.count(b"tok") < 7:
        got += connection.recv(65536)
    connection.close()
    (record,) = books.records("left")
    assert (record.outcome, record.estimated) == ("client_gone", True)
    assert record.output_tokens >= 8
    assert record.cost == cost(record.input_tokens, record.output_tokens)


def test_a_continued_stream_costs_both_attempts(gateway: Served, upstream: FaultUpstream, books: Books) -> None:
    """Two records of one request: what the first made before it was cut, and what the second made of all that."""
    reply = gateway.chat(ask("goes-on", stream=True), key="sk-continued")
    assert events_of(reply.body)[-1] == "[DONE]"
    first, second = books.records("continued", 2)
    assert first.request_id == second.request_id
    assert (first.model, second.model) == ("torn", "heir")
    assert (first.outcome, second.outcome) == ("interrupted", "ok")
    assert first.estimated
    assert not second.estimated
    heir = upstream.ledger["heir"]
    assert (second.input_tokens, second.output_tokens) == (heir.prompt_tokens, heir.completion_tokens)
    assert first.output_tokens >= upstream.ledger["fault:cut_rst:3"].completion_tokens


def test_what_a_client_did_not_read_is_charged(gateway: Served, speaker: Speaker, books: Books) -> None:
    """The backend has answered to the end, and most of that lies between it and the client, which leaves unread."""
    usage = {"prompt_tokens": 7, "completion_tokens": 777, "total_tokens": 784}
    say = {"pieces": ["x" * 100_000], "times": 42, "usage": usage}  # 4 MB: the sockets on the way keep 5 between them
    while speaker.has_said.acquire(blocking=False):
        pass
    data = json.dumps(ask("says", stream=True, say=say)).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", gateway.port))
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer sk-unread\r\n"
        connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        assert speaker.has_said.acquire(timeout=30)
    (record,) = books.records("unread")
    assert (record.input_tokens, record.output_tokens, record.estimated) == (7, 777, False)


@pytest.mark.parametrize("stream", [True, False])
def test_an_estimate_is_never_more_than_was_permitted(gateway: Served, books: Books, *, stream: bool) -> None:
    """The backend was told its limit: where a count of the text comes to more, it is the count that is wrong."""
    key = f"odd-{'stream' if stream else 'plain'}"
    say = {"pieces": ["zqxj-%$#@!"] * 10}
    assert gateway.chat(ask("says", stream=stream, max_tokens=12, say=say), key=f"sk-{key}").status == 200
    (record,) = books.records(key)
    assert record.estimated
    assert record.output_tokens == 12


def test_a_backend_that_ignores_its_limit_is_charged_for_what_it_made(gateway: Served, books: Books) -> None:
    """More pieces than tokens were permitted cannot be an error of counting; an operator hears of the overrun."""
    say = {"pieces": ["word "], "times": 100}
    assert gateway.chat(ask("says", stream=True, max_tokens=12, say=say), key="sk-overrun").status == 200
    (record,) = books.records("overrun")
    assert 100 <= record.output_tokens <= 110
    gateway.until('"budget_overrun"')
    assert gateway.chat(ask("paid"), key="sk-soft").status == 200
    books.records("soft")
    told = [line["name"] for line in gateway.log if line["event"] == "budget_overrun"]
    assert set(told) == {"overrun"}, "a soft limit is never overrun"


def test_what_is_spent_is_the_sum_of_the_records(gateway: Served, books: Books) -> None:
    """Whatever became of the requests above: nothing is held, and each account says what its records say."""
    assert gateway.request("GET", "/livez").status == 200
    for key in (*KEYS, *(f"text {name}" for name in SAMPLES)):
        records = [record for record in books.everything() if record.key == key]
        standing = books.settled("key", key)
        assert standing.in_doubt == 0
        assert standing.spent == sum(record.cost for record in records), key
        tokens = sum(record.input_tokens + record.output_tokens for record in records)
        assert books.settled("key", key, "tokens").spent == tokens, key
