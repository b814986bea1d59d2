"""Whatever is wrong with a request, the answer has OpenAI's shape, says what to do, and the SDK raises what it should."""

import select
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest

from tests.faults import FaultUpstream
from tests.support import Reply, Served, ask, key_policy, serve

ALICE, BOB, OLD = "sk-alice", "sk-bob", "sk-old"
MAX_BODY = 100_000
GOOD = ask("fast")


@pytest.fixture(scope="module")
def upstream() -> Iterator[FaultUpstream]:
    """A backend that nobody should reach."""
    with FaultUpstream.in_thread() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(upstream: FaultUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway with a key that may use all, one that may use a little, and one that has expired."""
    policies = {
        "server": {"max_body": f"{MAX_BODY}B"},
        "backends": {"up": {"base_url": upstream.url}},
        "models": {"small": {"backend": "up", "model": "up-small"}, "large": {"backend": "up", "model": "up-large"}},
        "aliases": {"fast": ["small"], "smart": ["large", "small"]},
        "tasks": {"analysis": ["large"]},
        "keys": {
            "alice": key_policy(ALICE),
            "bob": key_policy(BOB, allow=["fast"]),
            "old": key_policy(OLD, expires="2020-01-01"),
        },
    }
    with serve(tmp_path_factory.mktemp("errors"), policies) as served:
        yield served
    assert not upstream.log, "a request that should have been refused reached the backend"


@dataclass(frozen=True)
class Case:
    """A wrong request, and what is answered: `says` are words that the message must have."""

    status: int
    kind: str
    code: str
    param: str | None
    says: tuple[str, ...]
    body: Any = field(default_factory=lambda: GOOD)
    key: str | None = ALICE
    method: str = "POST"
    path: str = "/v1/chat/completions"
    headers: Mapping[str, str] = field(default_factory=dict)
    raises: type[openai.APIStatusError] | None = None


def invalid(param: str | None, *says: str, body: Any, code: str = "invalid_value", **more: Any) -> Case:
    """A 400; the SDK raises BadRequestError when it can send such a thing at all."""
    raises = openai.BadRequestError if isinstance(body, dict) else None
    return Case(400, "invalid_request_error", code, param, says, body=body, raises=raises, **more)


AUTH = "authentication_error"
HOW = "Authorization: Bearer"
CASES: Mapping[str, Case] = {
    "no body": invalid(None, "JSON", body=b"", code="invalid_json"),
    "not json": invalid(None, "JSON", body=b'{"model": "fast", ', code="invalid_json"),
    "not utf-8": invalid(None, "JSON", body=b'{"model": "\xff"}', code="invalid_json"),
    "not a number in json": invalid(None, "JSON", body=b'{"model": "fast", "temperature": NaN}', code="invalid_json"),
    "json that is no object": invalid(None, "object", "list", body=[1, 2], code="invalid_json"),
    "deep nesting": invalid(None, "JSON", body=b"[" * 5000 + b"]" * 5000, code="invalid_json"),
    "no model": invalid("model", "/v1/models", body={"messages": GOOD["messages"]}, code="missing_field"),
    "model is a number": invalid("model", "string", "number", body={**GOOD, "model": 5}),
    "model is null": invalid("model", "model", body={**GOOD, "model": None}, code="missing_field"),
    "model is empty": invalid("model", "model", body={**GOOD, "model": ""}, code="missing_field"),
    "model is too long": invalid("model", "256", body={**GOOD, "model": "m" * 5000}),
    "model has a line break": invalid("model", "printable", body={**GOOD, "model": "fast\r\nx-a: b"}),
    "no messages": invalid("messages", "messages", body={"model": "fast"}, code="missing_field"),
    "messages is a string": invalid("messages", "list", body={**GOOD, "messages": "Hello"}),
    "no message at all": invalid("messages", "at least one", body={**GOOD, "messages": []}),
    "a message is a string": invalid("messages[1]", "object", body={**GOOD, "messages": [*GOOD["messages"], "Hi"]}),
    "a message without role": invalid(
        "messages[0].role", "user", body={**GOOD, "messages": [{"content": "Hi"}]}, code="missing_field"
    ),
    "a role that is a number": invalid("messages[0].role", "string", body={**GOOD, "messages": [{"role": 1}]}),
    "stream is a string": invalid("stream", "true or false", body={**GOOD, "stream": "yes"}),
    "stream_options is a list": invalid("stream_options", "object", body={**GOOD, "stream_options": []}),
    "include_usage is a number": invalid(
        "stream_options.include_usage", "true or false", body={**GOOD, "stream_options": {"include_usage": 1}}
    ),
    "max_tokens is a string": invalid("max_tokens", "whole number", body={**GOOD, "max_tokens": "10"}),
    "max_tokens is zero": invalid("max_tokens", "at least 1", body={**GOOD, "max_tokens": 0}),
    "max_completion_tokens is a fraction": invalid(
        "max_completion_tokens", "whole number", body={**GOOD, "max_completion_tokens": 1.5}
    ),
    "n is true": invalid("n", "whole number", body={**GOOD, "n": True}),
    "unknown task": invalid(
        "x-gateway-task", "sorting", "analysis", body=ask("auto"), headers={"x-gateway-task": "sorting"}
    ),
    "compressed body": invalid(
        "content-encoding", "without", body=b"\x1f\x8b", headers={"content-encoding": "gzip"}, code="invalid_value"
    ),
    "no key": Case(
        401, AUTH, "invalid_api_key", None, ("No API key", HOW), key=None, raises=openai.AuthenticationError
    ),
    "wrong key": Case(
        401, AUTH, "invalid_api_key", None, ("not known", HOW), key="sk-else", raises=openai.AuthenticationError
    ),
    "expired key": Case(
        401, AUTH, "expired_api_key", None, ("expired", "ask"), key=OLD, raises=openai.AuthenticationError
    ),
    "model not allowed": Case(
        403,
        "permission_error",
        "model_not_allowed",
        "model",
        ("'bob'", "'smart'", "fast"),
        body=ask("smart"),
        key=BOB,
        raises=openai.PermissionDeniedError,
    ),
    "unknown model": Case(
        404,
        "invalid_request_error",
        "model_not_found",
        "model",
        ("'fastt'", "did you mean 'fast'"),
        body=ask("fastt"),
        raises=openai.NotFoundError,
    ),
    "unknown model, and nothing near": Case(
        404,
        "invalid_request_error",
        "model_not_found",
        "model",
        ("'zzz'", "fast, smart, task:analysis, small, large"),
        body=ask("zzz"),
        raises=openai.NotFoundError,
    ),
    "unknown model for a key that may use little": Case(
        404,
        "invalid_request_error",
        "model_not_found",
        "model",
        ("may use fast.",),
        body=ask("smarter"),
        key=BOB,
        raises=openai.NotFoundError,
    ),
    "auto without a general task": Case(
        404,
        "invalid_request_error",
        "model_not_found",
        "model",
        ("x-gateway-task", "analysis"),
        body=ask("auto"),
        raises=openai.NotFoundError,
    ),
    "body too large": Case(
        413,
        "invalid_request_error",
        "request_too_large",
        None,
        (str(MAX_BODY), "server.max_body"),
        body=ask("fast", "x" * MAX_BODY),
        raises=openai.APIStatusError,
    ),
    "wrong method": Case(
        405,
        "invalid_request_error",
        "method_not_allowed",
        None,
        ("GET", "use POST"),
        method="GET",
        raises=openai.APIStatusError,
    ),
    "wrong path": Case(
        404,
        "invalid_request_error",
        "not_found",
        None,
        ("/v1/chat/completion'", "/v1/chat/completions"),
        path="/v1/chat/completion",
        raises=openai.NotFoundError,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_request_is_told_what_is_wrong(gateway: Served, name: str) -> None:
    """Status, type, code, param and words, over a raw socket."""
    case = CASES[name]
    headers = {name.replace("-", "_"): value for name, value in case.headers.items()}
    reply = gateway.request(case.method, case.path, case.body, key=case.key, **headers)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    error = reply.error
    assert (reply.status, error["type"], error["code"], error["param"]) == (
        case.status,
        case.kind,
        case.code,
        case.param,
    ), error
    for words in case.says:
        assert words in error["message"]
    for secret in (ALICE, BOB, OLD, "sk-else"):
        assert secret not in error["message"]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.raises is not None])
def test_the_sdk_raises_what_belongs_to_it(gateway: Served, name: str) -> None:
    """Once and without retrying; with the code, the param, the message and the request's id."""
    case = CASES[name]
    assert case.raises is not None
    key = case.key or "none"
    headers = {**case.headers, **({} if case.key else {"Authorization": openai.Omit()})}
    client: Any = openai.OpenAI(base_url=gateway.base_url, api_key=key)
    with client:
        path = case.path.removeprefix("/v1")
        call: Callable[[], object] = (
            (lambda: client.get(path, cast_to=object, options={"headers": headers}))
            if case.method == "GET"
            else (lambda: client.post(path, cast_to=object, body=case.body, options={"headers": headers}))
        )
        with pytest.raises(case.raises) as caught:
            call()
    error = caught.value
    assert type(error) is case.raises
    assert (error.status_code, error.code, error.param, error.type) == (case.status, case.code, case.param, case.kind)
    assert all(words in error.message for words in case.says)
    assert error.request_id


def test_a_good_request_with_the_same_keys_would_pass(gateway: Served) -> None:
    """The keys themselves are in order: what was refused was refused for its own sake."""
    for key in (ALICE, BOB):
        assert gateway.request("GET", "/v1/models/fast", key=key).status == 200


NOT_HTTP = {
    "noise": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n",
    "a wrong version": b"GET / HTTP/9.9\r\nhost: a\r\n\r\n",
    "a header without name": b"GET / HTTP/1.1\r\n: b\r\n\r\n",
    "a wrong length": b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: many\r\n\r\n",
    "two lengths": b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "length and chunks": b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", NOT_HTTP)
def test_what_is_not_http_is_answered_and_closed(gateway: Served, name: str) -> None:
    """A 400 of the usual shape, then the end of the connection."""
    with gateway.connect() as connection:
        connection.sendall(NOT_HTTP[name])
        reply = Reply.read(connection)
        assert connection.recv(1) == b""
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["code"] == "invalid_http"
    assert reply.headers["x-request-id"]
    assert "HTTP/1.1" in reply.error["message"]


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "GET", "BREW"])
def test_another_method_is_told_which_one_to_use(gateway: Served, method: str) -> None:
    """405 with `allow`; to HEAD without a body, and the connection can be used again."""
    if method == "BREW":
        reply = gateway.request(method, "/v1/chat/completions", key=ALICE)
        assert reply.status == 400
        assert reply.error["code"] == "invalid_http"
        return
    with gateway.connect() as connection:
        for _ in range(2):
            head = f"{method} /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {ALICE}\r\n\r\n"
            connection.sendall(head.encode())
            reply = Reply.read(connection, method)
            assert reply.status == 405
            assert reply.headers["allow"] == "POST"
            assert reply.headers["x-request-id"]
            if method == "HEAD":
                assert reply.body == b""
            else:
                assert reply.error["code"] == "method_not_allowed"
                assert "use POST" in reply.error["message"]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/v1/models", "/v1/models/fast"])
def test_pages_are_for_get_and_head(gateway: Served, path: str) -> None:
    """HEAD gives the headers of GET alone; POST is a 405 of the usual shape."""
    whole, head = (gateway.request(method, path, key=ALICE) for method in ("GET", "HEAD"))
    assert (whole.status, head.status) == (200, 200)
    assert head.body == b""
    assert whole.body
    assert head.headers["content-type"] == whole.headers["content-type"]
    wrong = gateway.request("POST", path, {}, key=ALICE)
    assert (wrong.status, wrong.error["code"]) == (405, "method_not_allowed")
    assert "GET" in wrong.headers["allow"]


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/v1/chat", "/v1/chat/completions/", "//v1/models", "/%00", "/é"])
def test_a_path_that_is_not_there_is_a_404(gateway: Served, path: str) -> None:
    """No redirect and no page of HTML, whatever the path."""
    reply = gateway.speak(f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
    assert (reply.status, reply.error["code"]) in ((404, "not_found"), (400, "invalid_http"))
    assert reply.headers["x-request-id"]


def test_the_key_is_asked_for_before_the_body_is_read(gateway: Served) -> None:
    """Nobody without a key can make the gateway hold his bytes."""
    with gateway.connect() as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {MAX_BODY}\r\n\r\n"
        connection.sendall(head.encode())
        assert Reply.read(connection, "POST").status == 401


def test_a_body_that_says_it_is_too_large_is_refused_unread(gateway: Served) -> None:
    """By its content-length alone."""
    with gateway.connect() as connection:
        connection.sendall(_head(f"content-length: {MAX_BODY + 1}"))
        assert Reply.read(connection, "POST").status == 413


def test_a_body_of_the_largest_size_passes(gateway: Served) -> None:
    """The limit itself is allowed: the answer is about the model, not about the size."""
    body = b'{"model":"zzz","messages":[{"role":"user","content":"%s"}]}'
    assert gateway.chat(body % (b"x" * (MAX_BODY - len(body) + 2)), key=ALICE).status == 404
    assert gateway.chat(body % (b"x" * (MAX_BODY - len(body) + 3)), key=ALICE).status == 413


def test_a_chunked_body_is_bounded_while_it_comes(gateway: Served) -> None:
    """A client that never stops sending gets its 413 all the same."""
    with gateway.connect() as connection:
        connection.sendall(_head("transfer-encoding: chunked"))
        sent = _send_until_answered(connection, b"1000\r\n" + b"x" * 4096 + b"\r\n", at_most=200 * MAX_BODY)
        reply = Reply.read(connection, "POST")
    assert reply.status == 413
    assert reply.error["code"] == "request_too_large"
    assert sent < 200 * MAX_BODY


def test_the_sdk_sees_the_413_of_a_large_upload(gateway: Served) -> None:
    """Though it sends all of its megabytes before it reads."""
    client = openai.OpenAI(base_url=gateway.base_url, api_key=ALICE, max_retries=0)
    with client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="fast", messages=[{"role": "user", "content": "x" * 8_000_000}])
    assert caught.value.status_code == 413


def test_an_error_before_routing_names_no_route(gateway: Served) -> None:
    """The x-gateway headers say where a request went; this one went nowhere."""
    reply = gateway.chat(ask("zzz"), key=ALICE)
    assert not [name for name in reply.headers if name.startswith("x-gateway")]


def test_a_connection_outlives_an_error(gateway: Served) -> None:
    """After a refusal with an unread body the next request on it is read right."""
    wrong = b"x" * (MAX_BODY + 1)
    with gateway.connect() as connection:
        connection.sendall(_head(f"content-length: {len(wrong)}") + wrong)
        assert Reply.read(connection, "POST").status == 413
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
        assert Reply.read(connection).json == {"status": "ok"}


def _head(framing: str) -> bytes:
    lines = ("POST /v1/chat/completions HTTP/1.1", "host: a", f"authorization: Bearer {ALICE}", framing)
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def _send_until_answered(connection: socket.socket, piece: bytes, *, at_most: int) -> int:
    sent = 0
    while sent < at_most:
        readable, writable, _ = select.select([connection], [connection], [], 10)
        if readable:
            break
        assert writable
        connection.sendall(piece)
        sent += len(piece)
    return sent
