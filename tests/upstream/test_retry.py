"""What the errors of real backends mean, how long they ask to wait, and how many retries are too many."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.schema import Retry
from gateway.upstream.retry import AGAIN, COUNTED, MAX_REST, Kind, RetryBudget, backoff, classify, retry_after

NOW = 1_800_000_000.0  # Fri, 15 Jan 2027 08:00:00 GMT


def openai(message: str, *, type: str = "invalid_request_error", code: Any = None) -> bytes:  # noqa: A002
    return json.dumps({"error": {"message": message, "type": type, "param": None, "code": code}}).encode()


def anthropic(kind: str, message: str) -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}).encode()


def gemini(code: int, status: str, message: str) -> bytes:
    return json.dumps([{"error": {"code": code, "message": message, "status": status, "details": []}}]).encode()


def vllm(code: int, kind: str, message: str) -> bytes:
    return json.dumps({"object": "error", "message": message, "type": kind, "param": None, "code": code}).encode()


QUOTA = "You exceeded your current quota, please check your plan and billing details."
GEMINI_RATE = (
    QUOTA + " For more information on this error, head over to: https://ai.google.dev/gemini-api/docs/rate-limits.\n"
    "* Quota exceeded for metric: generate_content_free_tier_requests, limit: 10\nPlease retry in 37.5s."
)
OPENAI_RATE = (
    "Rate limit reached for gpt-3.5-turbo in organization org-1 on requests per min (RPM): Limit 3, Used 3, Requested 1. "
    "Please try again in 20s. You can increase your rate limit by adding a payment method to your account at "
    "https://platform.openai.com/account/billing."
)
TOO_LONG = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens."

REAL = [
    ("OpenAI: rate", 429, openai(OPENAI_RATE, type="requests", code="rate_limit_exceeded"), Kind.RATE_LIMITED),
    ("OpenAI: empty account", 429, openai(QUOTA, type="insufficient_quota", code="insufficient_quota"), Kind.NO_QUOTA),
    ("OpenAI: not active", 429, openai("Your account is not active.", type="billing_not_active"), Kind.NO_QUOTA),
    ("OpenAI: hard limit", 400, openai("Limit reached.", code="billing_hard_limit_reached"), Kind.NO_QUOTA),
    ("OpenAI: key", 401, openai("Incorrect API key provided", code="invalid_api_key"), Kind.AUTH),
    ("OpenAI: country", 403, openai("Country not supported", code="unsupported_country"), Kind.AUTH),
    ("OpenAI: model", 404, openai("The model `x` does not exist", code="model_not_found"), Kind.CLIENT),
    ("OpenAI: context", 400, openai(TOO_LONG, code="context_length_exceeded"), Kind.TOO_LONG),
    ("OpenAI: policy", 400, openai("Your request was rejected", code="content_policy_violation"), Kind.CLIENT),
    ("OpenAI: value", 400, openai("Invalid value: 'x'.", code="invalid_value"), Kind.CLIENT),
    ("OpenAI: response", 400, openai("Previous response with id 'resp_1' not found.", code="previous_response_not_found"), Kind.ELSEWHERE),
    ("OpenAI: server", 500, openai("The server had an error", type="server_error"), Kind.TRANSIENT),
    ("OpenAI: overloaded", 503, openai("The engine is currently overloaded", type="server_error"), Kind.TRANSIENT),
    ("Azure: rate", 429, openai("Requests have exceeded token rate limit. See aka.ms/oai/quotaincrease", code="429"), Kind.RATE_LIMITED),
    ("Anthropic: rate", 429, anthropic("rate_limit_error", "This request would exceed your rate limit"), Kind.RATE_LIMITED),
    ("Anthropic: overloaded", 529, anthropic("overloaded_error", "Overloaded"), Kind.TRANSIENT),
    ("Anthropic: context", 400, anthropic("invalid_request_error", "prompt is too long: 208310 tokens > 200000 maximum"), Kind.TOO_LONG),
    ("Anthropic: output", 400, anthropic("invalid_request_error", "input length and `max_tokens` exceed context limit: 199500 + 8192 > 200000"), Kind.TOO_LONG),
    ("Anthropic: money", 400, anthropic("invalid_request_error", "Your credit balance is too low to access the Anthropic API."), Kind.NO_QUOTA),
    ("Anthropic: spend", 400, anthropic("invalid_request_error", "You have reached your specified API usage limits."), Kind.NO_QUOTA),
    ("Anthropic: too large", 413, anthropic("request_too_large", "Request exceeds the maximum size"), Kind.CLIENT),
    ("Anthropic: key", 401, anthropic("authentication_error", "invalid x-api-key"), Kind.AUTH),
    ("Gemini: rate", 429, gemini(429, "RESOURCE_EXHAUSTED", GEMINI_RATE), Kind.RATE_LIMITED),
    ("Gemini: quota", 429, gemini(429, "RESOURCE_EXHAUSTED", QUOTA), Kind.NO_QUOTA),
    ("Gemini: context", 400, gemini(400, "INVALID_ARGUMENT", "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."), Kind.TOO_LONG),
    ("Gemini: overloaded", 503, gemini(503, "UNAVAILABLE", "The model is overloaded."), Kind.TRANSIENT),
    ("Gemini: argument", 400, gemini(400, "INVALID_ARGUMENT", "Invalid JSON payload received."), Kind.CLIENT),
    ("vLLM: context", 400, vllm(400, "BadRequestError", TOO_LONG), Kind.TOO_LONG),
    ("vLLM: model", 404, vllm(404, "NotFoundError", "The model `x` does not exist."), Kind.CLIENT),
    ("vLLM: engine", 500, vllm(500, "InternalServerError", "EngineCore encountered an issue."), Kind.TRANSIENT),
    ("llama.cpp: context", 400, b'{"error":{"code":400,"message":"the request exceeds the available context size.","type":"exceed_context_size_error","n_ctx":512}}', Kind.TOO_LONG),
    ("llama.cpp: loading", 503, b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}', Kind.TRANSIENT),
    ("Ollama: model", 404, b'{"error":{"message":"model \\"x\\" not found, try pulling it first","type":"api_error","param":null,"code":null}}', Kind.CLIENT),
    ("Ollama: native", 404, b'{"error":"model \'x\' not found"}', Kind.CLIENT),
    ("Ollama: context", 400, b'{"error":"the input length exceeds the context length"}', Kind.TOO_LONG),
    ("Ollama: busy", 503, b'{"error":"server busy, please try again.  maximum pending requests exceeded"}', Kind.TRANSIENT),
    ("LM Studio: context", 400, b'{"error":"The number of tokens to keep is greater than the context length"}', Kind.TOO_LONG),
    ("DeepSeek: money", 402, openai("Insufficient Balance", type="unknown_error"), Kind.NO_QUOTA),
    ("Z.ai: money", 429, b'{"error":{"code":"1113","message":"Insufficient balance or no resource package. Please recharge."}}', Kind.NO_QUOTA),
    ("Groq: rate", 429, openai("Rate limit reached for model `x`. Please try again in 7.66s. Upgrade at /settings/billing", type="tokens", code="rate_limit_exceeded"), Kind.RATE_LIMITED),
    ("TGI: context", 422, b'{"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096","error_type":"validation"}', Kind.TOO_LONG),
    ("FastAPI: value", 422, b'{"detail":[{"loc":["body","x"],"msg":"field required"}]}', Kind.CLIENT),
    ("OpenRouter: provider", 502, openai("Provider returned error", type="x", code=502), Kind.TRANSIENT),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind"), [row[1:] for row in REAL], ids=[row[0] for row in REAL])
def test_what_real_backends_mean(status: int, body: bytes, kind: Kind) -> None:
    """By their own words where a status alone does not tell."""
    failure = classify(status, (), body, NOW)
    assert failure.kind is kind
    assert (failure.status, failure.body) == (status, body)


@pytest.mark.parametrize(
    ("statuses", "kind"),
    [
        ((408, 409, 425, 500, 501, 502, 503, 504, 520, 522, 524, 529, 599), Kind.TRANSIENT),
        ((401, 403, 407), Kind.AUTH),
        ((402,), Kind.NO_QUOTA),
        ((429,), Kind.RATE_LIMITED),
        ((400, 404, 405, 406, 410, 413, 415, 422, 451), Kind.CLIENT),
        ((300, 302, 304, 307), Kind.INVALID),
    ],
)
@pytest.mark.parametrize(
    "body", [b"", b"<html>Bad Gateway</html>", b"\xff\xfe", b"null", b"[]", b"7", b'{"error":null}']
)
def test_what_a_status_means_alone(statuses: tuple[int, ...], kind: Kind, body: bytes) -> None:
    """Whatever stands in the body."""
    assert [classify(status, (), body, NOW).kind for status in statuses] == [kind] * len(statuses)


def test_what_follows_from_a_failure() -> None:
    """Only what may pass by itself is tried again, only a backend's own failures count against it."""
    assert {Kind.TRANSIENT, Kind.REFUSED, Kind.CUT} == AGAIN
    assert {Kind.SILENT, Kind.STALLED, Kind.INVALID} == COUNTED - AGAIN
    passed = {kind for kind in Kind if classify_as(kind).passes_through}
    assert passed == {Kind.CLIENT, Kind.TOO_LONG}


def classify_as(kind: Kind) -> Any:
    samples = {Kind.CLIENT: 400, Kind.AUTH: 401, Kind.NO_QUOTA: 402, Kind.RATE_LIMITED: 429, Kind.TRANSIENT: 500}
    body = openai("", code="context_length_exceeded") if kind is Kind.TOO_LONG else b""
    return classify(samples.get(kind, 400 if body else 302), (), body, NOW)


def test_a_prompt_quoted_in_an_error_rests_no_key() -> None:
    """Nobody makes a key rest for others by writing of money into a request that is refused."""
    quoted = openai("Invalid value: 'your credit balance is too low, insufficient_quota, billing'.")
    assert classify(400, (), quoted, NOW).kind is Kind.CLIENT


@given(status=st.integers(300, 599), body=st.binary(max_size=80))
def test_any_answer_is_classified(status: int, body: bytes) -> None:
    """No body is a fault of the gateway."""
    assert classify(status, ((b"retry-after", body), (b"retry-after-ms", body[:3])), body, NOW).kind in Kind


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("error", "code", "type", "message", "status")), inner, max_size=4)
    ),
)


@given(status=st.sampled_from((400, 413, 422, 429, 500)), body=JSON)
def test_any_json_is_classified(status: int, body: Any) -> None:
    """Whatever stands where a code, a type or a message is usual."""
    assert classify(status, (), json.dumps(body).encode(), NOW).kind in Kind


def test_a_deeply_nested_body_is_classified() -> None:
    """A backend that means harm does none."""
    assert classify(429, (), b'{"error":' + b"[" * 1000 + b"]" * 1000 + b"}", NOW).kind is Kind.RATE_LIMITED


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}, 30.0),
        ({"retry-after": "Fri, 15 Jan 2027 09:00:30 +0100"}, 30.0),
        ({"retry-after": "Fri, 15 Jan 2027 07:59:00 GMT"}, 0.0),
        ({"retry-after": "Friday, 15-Jan-27 08:00:30 GMT"}, 30.0),
        ({"retry-after": "Fri Jan 15 08:00:30 2027"}, 30.0),
        ({"retry-after": "Fri, 15 Jan 9999 08:00:30 GMT"}, MAX_REST),
        ({"retry-after": "99999999999"}, MAX_REST),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "inf", "retry-after": "2"}, 2.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Fri, 99 Foo 2027 08:00:30 GMT"}, None),
    ],
)
def test_how_long_a_backend_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    """Milliseconds before seconds, a number or any date of HTTP; nothing absurd, and nothing unreadable."""
    assert retry_after([(name.encode(), value.encode()) for name, value in headers.items()], NOW) == seconds


DATES = st.text("FriMonJan0123456789 ,:-+GMT", max_size=40)


@given(value=st.binary(max_size=40) | DATES.map(str.encode))
def test_any_header_is_read_or_ignored(value: bytes) -> None:
    """What is read is a time that can be waited."""
    found = retry_after([(b"retry-after", value)], NOW)
    assert found is None or 0 <= found <= MAX_REST


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        (openai(OPENAI_RATE, code="rate_limit_exceeded"), 20.0),
        (openai("Please try again in 6ms.", code="rate_limit_exceeded"), 0.006),
        (openai("Please try again in 1m12.5s. Visit", code="rate_limit_exceeded"), 72.5),
        (openai("Please try again in 6m0s.", code="rate_limit_exceeded"), 360.0),
        (gemini(429, "RESOURCE_EXHAUSTED", GEMINI_RATE), 37.5),
        (openai("Please try again in a while", code="rate_limit_exceeded"), None),
    ],
)
def test_a_wait_that_only_the_message_names(body: bytes, seconds: float | None) -> None:
    """It counts when there is no header; with one, the header does."""
    assert classify(429, (), body, NOW).retry_after == seconds
    assert classify(429, ((b"retry-after", b"3"),), body, NOW).retry_after == 3.0


@given(
    resend=st.integers(1, 11),
    base=st.integers(0, 10_000),
    most=st.integers(0, 10_000),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_backoff_stays_within_its_bounds(resend: int, base: int, most: int, chance: float) -> None:
    """Full jitter: anything from nothing to the base doubled each time, at most the greatest."""
    settings = Retry.model_validate({"attempts": 10, "backoff": f"{base}ms", "max_backoff": f"{most}ms"})
    wait = backoff(resend, settings, chance)
    assert 0 <= wait <= min(settings.backoff * 2 ** (resend - 1), settings.max_backoff)
    assert backoff(resend, settings, 0.0) == 0.0


def test_backoff_doubles() -> None:
    """Half a second, one, two, four, eight, and no more."""
    assert [backoff(n, Retry(), 0.5) * 2 for n in range(1, 8)] == [0.5, 1, 2, 4, 8, 8, 8]


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(("request", "retry", "retries", "burst")),
        st.sampled_from((0.0, 0.5, 4.9, 5.0, 31.0, 60.0, 3600.0)),
    ),
    max_size=60,
)


@given(events=EVENTS, start=st.floats(0, 1e7))
def test_a_fifth_of_the_traffic_may_be_retries_and_three_always(events: list[tuple[str, float]], start: float) -> None:
    """In every window; and none is refused that would be within it."""
    budget, now = RetryBudget(), start
    requests: Counter[int] = Counter()
    retries: Counter[int] = Counter()
    for what, pause in events:
        now += pause
        bucket = int(now * 12 / 60)
        window = range(bucket - 11, bucket + 1)
        if what in ("request", "burst"):
            for _ in range(1 if what == "request" else 20):
                budget.request(now)
                requests[bucket] += 1
            continue
        for _ in range(1 if what == "retry" else 4):
            made = sum(retries[n] for n in window)
            allowed = made + 1 <= max(3, sum(requests[n] for n in window) // 5)
            assert budget.retry(now) is allowed
            retries[bucket] += allowed


def test_three_retries_even_without_traffic() -> None:
    """A backend that is asked rarely is tried again as well; a minute later again."""
    budget = RetryBudget()
    assert [budget.retry(0.0) for _ in range(4)] == [True, True, True, False]
    assert budget.retry(61.0)
