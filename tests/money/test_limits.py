"""What limits do to a request: clamp it, send it elsewhere, refuse it with the time to come back, or only warn."""

import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.formats.tokens import upper_bound
from tests.faults import FaultUpstream
from tests.money.books import NANO, Books
from tests.support import Reply, Served, ask, key_policy, serve

DEAR = {"input": 1, "output": 10}  # dollars per million tokens: 1,000 and 10,000 nano-dollars a token
CHEAP = {"input": 0.2, "output": 2}
KEYS: Mapping[str, Mapping[str, Any]] = {
    # for the output that a budget affords
    "clamped": {"limits": [{"usd": 0.002, "per": "day"}]},
    "quarter": {"limits": [{"usd": 0.01, "per": "day"}]},
    "roomy": {"limits": [{"usd": 5, "per": "day"}]},
    # for who may answer instead
    "degrading": {"limits": [{"usd": 0.001, "per": "day"}], "on_budget": "degrade"},
    "rejecting": {"limits": [{"usd": 0.001, "per": "day"}]},
    "unpriced": {"limits": [{"usd": 1, "per": "day"}]},
    "unlimited": {},
    # for every scope
    "member": {"team": "tight"},
    "colleague": {"team": "tight"},
    "anyone": {},
    # for rates
    "rated": {"limits": [{"requests": 3, "per": "2s"}]},
    "sdk": {"limits": [{"requests": 2, "per": "2s"}]},
    "talkative": {"limits": [{"tokens": 800, "per": "2s"}]},
    "several": {
        "limits": [{"requests": 100, "per": "minute"}, {"tokens": 90000, "per": "hour"}, {"usd": 2, "per": "day"}]
    },
    "one-at-a-time": {"limits": [{"concurrent": 1}]},
    "spent": {"limits": [{"usd": 0.0009, "per": "total"}]},
    "held": {"limits": [{"usd": 0.0009, "per": "total"}]},
    # for warnings
    "soft": {"limits": [{"usd": 0.0001, "per": "day", "soft": True}]},
    "watched": {"limits": [{"usd": 0.002, "per": "day", "alert_at": [0.5]}]},
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[FaultUpstream]:
    """Every backend."""
    with FaultUpstream.in_thread() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the gateway and its store are."""
    return tmp_path_factory.mktemp("limits")


@pytest.fixture(scope="module")
def books(folder: Path) -> Books:
    """What the gateway has written."""
    return Books(f"sqlite:///{folder}/limits.db")


@pytest.fixture(scope="module")
def gateway(upstream: FaultUpstream, folder: Path, books: Books) -> Iterator[Served]:
    """A key for each question, two workers."""
    size = {"context": 8192, "max_output": 1000}
    policies = {
        "defaults": {"retry": {"attempts": 0}, "breaker": {"failures": 1000}},
        "backends": {
            "up": {"base_url": upstream.url},
            "limited": {"base_url": upstream.url, "limits": [{"requests": 2, "per": "hour"}]},
            "here": {"base_url": upstream.url, "local": True},
        },
        "models": {
            "dear": {"backend": "up", "model": "dear", **size, "price": DEAR},
            "cheap": {"backend": "up", "model": "cheap", **size, "price": CHEAP},
            "free": {"backend": "here", "model": "free", **size},
            "unknown": {"backend": "up", "model": "nobody-knows-what-it-costs"},
            "once": {"backend": "up", "model": "once", **size, "limits": [{"requests": 1, "per": "hour"}]},
            "at-limited": {"backend": "limited", "model": "at-limited", **size},
        },
        "aliases": {
            "smart": ["dear", "cheap", "free"],
            "dear-or-free": ["dear", "free"],
            "once-or-free": ["once", "free"],
        },
        "teams": {"tight": {"limits": [{"requests": 2, "per": "hour"}]}},
        "limits": [{"input_tokens": 1_000_000, "per": "month"}],
        "keys": {name: key_policy(f"sk-{name}", **settings) for name, settings in KEYS.items()},
    }
    with serve(folder, policies, "--store", books.url, "--workers", "2") as served:
        yield served


def chat(gateway: Served, key: str, model: str, text: str = "Hello", **fields: Any) -> Reply:
    """One request."""
    return gateway.chat(ask(model, text, **fields), key=f"sk-{key}")


def refused(reply: Reply, status: int, code: str) -> str:
    """The message of this refusal, which has the headers that CONTRACT promises."""
    assert (reply.status, reply.error["code"]) == (status, code), reply.body
    assert reply.headers["x-request-id"]
    return str(reply.error["message"])


def sent(upstream: FaultUpstream, model: str) -> list[dict[str, Any]]:
    """The bodies that reached a model."""
    return [seen.json for seen in upstream.log if seen.model == model]


# The output that a budget affords.


def test_a_budget_lowers_the_output(gateway: Served, upstream: FaultUpstream) -> None:
    """The client's own limit becomes what the rest pays for, under the client's own name for it, and it is told."""
    body = ask("dear", max_tokens=900, fault="ok:3")
    reply = gateway.chat(body, key="sk-clamped")
    assert reply.status == 200
    assert reply.headers["x-gateway-clamped"] == "true"
    arrived = sent(upstream, "dear")[-1]
    bound = upper_bound(body, len(json.dumps(body)), "dear")
    assert arrived["max_tokens"] == (2_000_000 - bound * 1000) // 10_000
    assert "max_completion_tokens" not in arrived
    left = 2_000_000 - 1000 * 2 - 10_000 * 3
    assert reply.headers["x-gateway-budget-remaining-usd"] == f"{left / NANO:.9f}".rstrip("0")


def test_a_request_without_a_limit_takes_a_quarter(gateway: Served, upstream: FaultUpstream) -> None:
    """So that one request does not block the rest; the limit is sent by the name that the backend takes."""
    body = ask("dear", fault="ok:3")
    reply = gateway.chat(body, key="sk-quarter")
    assert reply.headers["x-gateway-clamped"] == "true"
    bound = upper_bound(body, len(json.dumps(body)), "dear")
    assert sent(upstream, "dear")[-1]["max_tokens"] == (10_000_000 // 4 - bound * 1000) // 10_000


def test_with_room_enough_nothing_is_changed(gateway: Served, upstream: FaultUpstream) -> None:
    """Neither a limit of the client's own, nor the absence of one where the model's is what is held."""
    for body in (ask("dear", fault="ok:3", max_tokens=900), ask("dear", fault="ok:3")):
        reply = gateway.chat(body, key="sk-roomy")
        assert "x-gateway-clamped" not in reply.headers
        assert sent(upstream, "dear")[-1] == body


# Who answers instead.


def test_degrade_walks_to_what_the_budget_affords(gateway: Served) -> None:
    """The dear model first, then the cheap one, and the free one when nothing is left: nobody is turned away."""
    served = []
    for _ in range(60):
        reply = chat(gateway, "degrading", "smart", max_tokens=50, fault="ok:50")
        assert reply.status == 200, reply.body
        served.append(reply.headers["x-gateway-model"])
        if served[-1] == "free":
            break
    assert served[0] == "dear"
    assert "cheap" in served
    assert served == sorted(served, key=["dear", "cheap", "free"].index)
    assert served[-1] == "free"


def test_reject_answers_at_once(gateway: Served, upstream: FaultUpstream) -> None:
    """The same budget without `degrade`: refused, though a free model stands in the chain, and nothing was tried."""
    replies: list[Reply] = []
    while not replies or replies[-1].status == 200:
        assert len(replies) < 60
        replies.append(chat(gateway, "rejecting", "dear-or-free", max_tokens=50, fault="ok:50"))
    message = refused(replies[-1], 429, "budget_exceeded")
    assert "key rejecting" in message
    assert "resets at" in message
    assert replies[-1].headers["x-should-retry"] == "false"
    assert "retry-after" not in replies[-1].headers
    assert replies[-1].headers["x-gateway-attempts"] == "0"
    assert {reply.headers["x-gateway-model"] for reply in replies[:-1]} == {"dear"}
    assert len(replies) > 1


def test_a_price_that_nobody_knows_is_refused(gateway: Served) -> None:
    """With the line to add; a key without a limit in dollars may use that model, and this key a free one."""
    message = refused(chat(gateway, "unpriced", "unknown"), 403, "model_not_allowed")
    assert "models: unknown: `price: {input: 0.00, output: 0.00}`" in message
    assert chat(gateway, "unlimited", "unknown").status == 200
    assert chat(gateway, "unpriced", "free").status == 200


# Every scope.


def test_a_team_shares_its_limit(gateway: Served) -> None:
    """Two requests for both members together; the third is told whose limit it is."""
    assert chat(gateway, "member", "free").status == 200
    assert chat(gateway, "colleague", "free").status == 200
    for key in ("member", "colleague"):
        assert "team tight" in refused(chat(gateway, key, "free"), 429, "rate_limit_exceeded")


def test_a_limit_on_a_model_sends_the_rest_elsewhere(gateway: Served) -> None:
    """Whatever `on_budget` says, since another model is under no limit; without one, it is refused."""
    assert chat(gateway, "anyone", "once-or-free").headers["x-gateway-model"] == "once"
    assert chat(gateway, "anyone", "once-or-free").headers["x-gateway-model"] == "free"
    assert "model once" in refused(chat(gateway, "unlimited", "once"), 429, "rate_limit_exceeded")


def test_a_limit_on_a_backend_counts_for_everybody(gateway: Served) -> None:
    """Two requests, whoever sends them."""
    assert chat(gateway, "anyone", "at-limited").status == 200
    assert chat(gateway, "unlimited", "at-limited").status == 200
    assert "backend limited" in refused(chat(gateway, "anyone", "at-limited"), 429, "rate_limit_exceeded")


def test_a_limit_on_everything_counts_every_request(gateway: Served, books: Books) -> None:
    """The tokens of a key without a limit of its own count on the gateway's."""
    before = books.settled("all", "", "input_tokens", "month").spent
    assert chat(gateway, "anyone", "free", "one two three four").status == 200
    assert books.settled("all", "", "input_tokens", "month").spent == before + 5


# Rates, and when to come back.


def test_a_rate_limit_says_when_to_come_back(gateway: Served) -> None:
    """Three in two seconds; who waits as long as told is served, and the headers count down."""
    left = []
    while (reply := chat(gateway, "rated", "free")).status == 200:
        assert reply.headers["x-ratelimit-limit-requests"] == "3"
        left.append(int(reply.headers["x-ratelimit-remaining-requests"]))
    assert left == [2, 1, 0]
    assert "3 requests per 2s on key rated" in refused(reply, 429, "rate_limit_exceeded")
    assert reply.headers["x-ratelimit-remaining-requests"] == "0"
    wait = int(reply.headers["retry-after-ms"]) / 1000
    assert 0 < wait <= 2.1
    assert reply.headers["retry-after"] == str(-int(-wait // 1))
    time.sleep(wait)  # what is tested: that this is long enough
    assert chat(gateway, "rated", "free").status == 200


def test_a_limit_on_tokens_per_time(gateway: Served) -> None:
    """What a request was permitted is given back when it used less; too many are told when to come back."""
    for _ in range(40):
        reply = chat(gateway, "talkative", "free", max_tokens=200, fault="ok:200")
        if reply.status != 200:
            break
        assert reply.headers["x-ratelimit-limit-tokens"] == "800"
    assert "800 tokens per 2s on key talkative" in refused(reply, 429, "rate_limit_exceeded")
    time.sleep(int(reply.headers["retry-after-ms"]) / 1000)
    assert chat(gateway, "talkative", "free", max_tokens=200, fault="ok:200").status == 200


def test_the_headers_of_all_kinds_of_limits(gateway: Served) -> None:
    """Limit, remaining and reset of the requests and the tokens, and the dollars that are left."""
    reply = chat(gateway, "several", "dear", max_tokens=10, fault="ok:10")
    assert reply.headers["x-gateway-budget-remaining-usd"] == "1.999898"
    assert reply.headers["x-gateway-cost-usd"] == "0.000102"
    assert reply.headers["x-ratelimit-limit-requests"] == "100"
    assert reply.headers["x-ratelimit-remaining-requests"] == "99"
    assert reply.headers["x-ratelimit-limit-tokens"] == "90000"
    assert reply.headers["x-ratelimit-remaining-tokens"] == "89988"
    assert reply.headers["x-ratelimit-reset-requests"].startswith("1m")
    assert reply.headers["x-ratelimit-reset-tokens"].startswith("1h")


def test_an_sdk_waits_as_long_as_it_is_told(gateway: Served) -> None:
    """OpenAI's SDK meets the limit, comes back once, and is served: one retry, no more."""
    with openai.OpenAI(base_url=gateway.base_url, api_key="sk-sdk", max_retries=2) as client:
        retries = [
            client.chat.completions.with_raw_response.create(
                model="free", messages=[{"role": "user", "content": "Hello"}]
            ).retries_taken
            for _ in range(4)
        ]
    assert retries[:3] == [0, 0, 1]
    assert retries[3] <= 1, "the second of the first two was sent a little later"


def test_an_sdk_does_not_retry_what_is_spent(gateway: Served) -> None:
    """`budget_exceeded` is final: one request, and the SDK's own error for it."""
    while chat(gateway, "spent", "dear", max_tokens=20, fault="ok:20").status == 200:
        pass
    with (
        openai.OpenAI(base_url=gateway.base_url, api_key="sk-spent", max_retries=2) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.chat.completions.create(model="dear", max_tokens=20, messages=[{"role": "user", "content": "Hello"}])
    assert caught.value.code == "budget_exceeded"
    gateway.until(str(caught.value.request_id))
    asked = [line for line in gateway.log if line.get("key") == "spent" and line.get("code") == "budget_exceeded"]
    assert len(asked) == 2, "the SDK came back"


def test_money_that_is_held_comes_back(gateway: Served, upstream: FaultUpstream) -> None:
    """While a request runs, its hold is not spent: `budget_held`, with a second's wait, not `budget_exceeded`."""
    running = _begin(gateway, upstream, "held", ask("dear", stream=True, fault="stall:1", max_tokens=60))
    with running:
        reply = chat(gateway, "held", "dear", max_tokens=60)
        assert "is held by running requests" in refused(reply, 429, "budget_held")
        assert reply.headers["retry-after"] == "1"
        assert reply.headers.get("x-should-retry") is None
    _until_served(gateway, "held", "dear")


def test_so_many_at_once(gateway: Served, upstream: FaultUpstream) -> None:
    """The second is refused while the first runs, on whichever worker, and served when it has ended."""
    with _begin(gateway, upstream, "one-at-a-time", ask("free", stream=True, fault="stall:1")):
        for _ in range(4):
            reply = chat(gateway, "one-at-a-time", "free")
            refused(reply, 429, "concurrency_exceeded")
            assert int(reply.headers["retry-after-ms"]) > 0
    _until_served(gateway, "one-at-a-time", "free")


# Warnings.


def test_a_soft_limit_only_warns(gateway: Served) -> None:
    """Requests go on above it, and an operator hears of it once."""
    for _ in range(3):
        assert chat(gateway, "soft", "dear", max_tokens=50, fault="ok:50").status == 200
    (alert,) = _alerts(gateway, "soft")
    assert (alert["scope"], alert["unit"], alert["window"], alert["mark"]) == ("key", "usd", "day", 1.0)
    assert alert["limit"] == 0.0001
    assert chat(gateway, "soft", "dear", max_tokens=50, fault="ok:50").status == 200


def test_an_alert_is_told_once_by_one_worker(gateway: Served) -> None:
    """At half of the limit, and never again in this window."""
    for _ in range(3):
        assert chat(gateway, "watched", "dear", max_tokens=50, fault="ok:50").status == 200
    (alert,) = _alerts(gateway, "watched")
    assert alert["mark"] == 0.5
    assert alert["spent"] >= 0.001
    assert chat(gateway, "watched", "dear", max_tokens=20, fault="ok:20").status == 200


def test_no_alert_was_told_twice(gateway: Served, books: Books) -> None:
    """After all that was used above, and a round of every worker."""
    for key in ("soft", "watched"):
        books.settled("key", key, "usd", "day")
        assert len(_alerts(gateway, key)) == 1
    assert not [line for line in gateway.log if line["event"] == "budget_overrun"], "nothing was more than was held"


def _alerts(gateway: Served, key: str) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 10
    while True:
        found = [line for line in gateway.log if line["event"] == "budget_alert" and line["name"] == key]
        if found:
            return found
        assert time.monotonic() < deadline, f"no alert on {key}"
        time.sleep(0.02)


def _begin(gateway: Served, upstream: FaultUpstream, key: str, body: Mapping[str, Any]) -> socket.socket:
    """A stream whose first token has come, and that does not end by itself."""
    before = len(upstream.log)
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer sk-{key}\r\n"
    connection = gateway.connect()
    connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    upstream.wait(lambda: len(upstream.log) > before)
    assert connection.recv(65536)
    return connection


def _until_served(gateway: Served, key: str, model: str) -> None:
    """Another worker may still have to hear that the hold is over."""
    deadline = time.monotonic() + 10
    while chat(gateway, key, model, max_tokens=16).status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
