"""The fake providers refuse what the real ones refuse, each with its own status and words."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from tests.providers.everyone import GOOD, everyone
from tests.providers.server import Fake

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CALLED = [
    {"role": "user", "content": "Hello"},
    {
        "role": "assistant",
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "1"},
]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}
# provider, what is changed, the status and a part of the body that come back
CASES: list[tuple[str, Mapping[str, Any], int, str]] = [
    ("anthropic", {"max_tokens": None}, 400, "max_tokens: Input should be a valid integer"),
    ("anthropic", {"frequency_penalty": 0}, 400, "frequency_penalty: Extra inputs are not permitted"),
    ("anthropic", {"temperature": 1.5}, 400, "temperature: Input should be less than or equal to 1"),
    ("anthropic", {"temperature": 1, "top_p": 0.5}, 400, "cannot both be specified"),
    ("anthropic", {"max_tokens": 10**6}, 400, "which is the maximum allowed number of output tokens"),
    ("anthropic", {"messages": []}, 400, "messages: List should have at least 1 item"),
    ("anthropic", {"messages": [{"role": "system", "content": "a"}]}, 400, "messages.0.role"),
    ("anthropic", {"messages": [{"role": "assistant", "content": "a"}]}, 400, "first message must use"),
    ("anthropic", {"messages": [{"role": "user", "content": " "}]}, 400, "non-whitespace text"),
    ("anthropic", {"messages": [*GOOD["azure"].body["messages"], {"role": "assistant", "content": "a "}]}, 400, "trailing"),
    ("anthropic", {"messages": [{"role": "user", "content": [PICTURE]}]}, 400, "image_url"),
    ("anthropic", {"tools": [{"name": "f", "input_schema": {}}]}, 400, "tools.0.input_schema.type: Field required"),
    ("anthropic", {"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools.0"),
    ("anthropic", {"tool_choice": {"type": "auto"}}, 400, "while providing `tools`"),
    ("anthropic", {"model": "gpt-4o"}, 404, "not_found_error"),
    ("zai", {"max_tokens": 0}, 400, '"1210"'),
    ("zai", {"model": "gpt-4o"}, 400, '"1211"'),
    ("gemini", {"messages": []}, 400, 'Unknown name \\"messages\\": Cannot find field.'),
    ("gemini", {"contents": []}, 400, "contents is not specified"),
    ("gemini", {"contents": [{"role": "assistant", "parts": [{"text": "a"}]}]}, 400, "Please use a valid role"),
    ("gemini", {"contents": [{"role": "user", "parts": []}]}, 400, "must not be empty"),
    ("gemini", {"contents": [{"role": "user", "parts": [{}]}]}, 400, "must have one initialized field"),
    ("gemini", {"generationConfig": {"max_tokens": 5}}, 400, "at 'generationConfig'"),
    ("gemini", {"generationConfig": {"temperature": 2.5}}, 400, "generationConfig.temperature"),
    ("gemini", {"generationConfig": {"responseSchema": {"type": "OBJECT"}}}, 400, "requires a JSON response mime type"),
    (
        "gemini",
        {"tools": [{"functionDeclarations": [{"name": "f", "parameters": {"type": "object", "$schema": "x"}}]}]},
        400,
        'Unknown name \\"$schema\\"',
    ),
    ("azure", {"top_k": 4}, 400, "Unrecognized request argument supplied: top_k"),
    ("azure", {"max_tokens": 0}, 400, "Invalid value for 'max_tokens'"),
    ("cohere", {"top_p": 0.5}, 400, "unknown field top_p"),
    ("cohere", {"temperature": 1.5}, 400, "temperature"),
    ("cohere", {"tool_choice": "auto"}, 400, "tool_choice"),
    ("cohere", {"messages": CALLED[:2]}, 400, "all tool calls must be answered"),
    ("cohere", {"model": "gpt-4o"}, 404, "not found"),
    ("ollama", {"messages": "Hello"}, 400, "cannot unmarshal str into Go struct field ChatRequest.messages"),
    ("ollama", {"options": {"num_predict": "5"}}, 400, 'option \\"num_predict\\" must be of type int'),
    ("ollama", {"messages": CALLED}, 400, "cannot unmarshal str into Go struct field"),
    ("ollama", {"model": "gpt-4o"}, 404, "model 'gpt-4o' not found"),
    ("mistral", {"stream": True, "stream_options": {"include_usage": True}}, 422, '"loc": ["body", "stream_options", "include_usage"]'),
    ("mistral", {"seed": 1}, 422, '"loc": ["body", "seed"]'),
    ("mistral", {"max_completion_tokens": 5}, 422, "extra_forbidden"),
    ("mistral", {"temperature": 1.6}, 422, "less_than_equal"),
    ("mistral", {"messages": CALLED}, 400, "with a length of 9"),
    ("mistral", {"messages": [*CALLED[:1], {"role": "assistant", "content": "a"}]}, 400, "Expected last role User or Tool"),
    ("deepseek", {"response_format": SCHEMA}, 400, "This response_format type is unavailable now"),
    ("deepseek", {"response_format": {"type": "json_object"}}, 400, "Prompt must contain the word 'json'"),
    ("deepseek", {"max_tokens": 10_000}, 400, "the valid range of max_tokens is [1, 8192]"),
    ("deepseek", {"messages": [{"role": "user", "content": [PICTURE]}]}, 422, "unknown variant `image_url`"),
    ("deepseek", {"messages": CALLED[:2]}, 400, "must be followed by tool messages"),
    ("groq", {"logprobs": True}, 400, "property 'logprobs' is unsupported"),
    ("groq", {"n": 2}, 400, "number must be at most 1"),
    ("groq", {"messages": [{"role": "user", "content": "a", "x": 1}]}, 400, "for 'role:user' the following must be"),
    ("groq", {"stream": True, "response_format": SCHEMA}, 400, "does not support streaming"),
    ("groq", {"model": "gpt-4o"}, 404, "model_not_found"),
    ("openrouter", {"model": "gpt-4o"}, 400, "is not a valid model ID"),
    ("vllm", {"stream_options": {"include_usage": True}}, 400, "can only be defined when `stream=True`"),
    ("vllm", {"max_tokens": 9000}, 400, "maximum context length is 8192 tokens"),
    ("vllm", {"model": "gpt-4o"}, 404, '"object": "error"'),
    ("lmstudio", {"response_format": {"type": "json_object"}}, 400, "must be 'json_schema' or 'text'"),
    ("lmstudio", {"model": "gpt-4o"}, 404, "model_not_found"),
]  # fmt: skip
WRONG_KEY: Mapping[str, tuple[Mapping[str, str], int, str]] = {
    "anthropic": ({"authorization": "Bearer no", "anthropic-version": "2023-06-01"}, 401, "invalid x-api-key"),
    "zai": ({"x-api-key": "no"}, 401, '"1000"'),
    "gemini": ({"x-goog-api-key": "no"}, 400, "API_KEY_INVALID"),
    "azure": ({"authorization": "Bearer azure-fake"}, 401, "invalid subscription key"),
    "cohere": ({"authorization": "Bearer no"}, 401, "invalid api token"),
    "deepseek": ({"authorization": "Bearer no"}, 401, "Authentication Fails"),
    "groq": ({"authorization": "Bearer no"}, 401, "Invalid API Key"),
    "mistral": ({"authorization": "Bearer no"}, 401, "Unauthorized"),
    "openrouter": ({}, 401, "No auth credentials found"),
    "vllm": ({}, 401, "Unauthorized"),
}


@pytest.fixture(scope="module")
def fakes() -> Iterator[Mapping[str, Fake]]:
    """All of them."""
    with everyone() as found:
        yield found


def post(fake: Fake, target: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> httpx.Response:
    """One request."""
    data = json.dumps(body).encode()
    return httpx.post(fake.origin + target, content=data, headers={"content-type": "application/json", **headers})


@pytest.mark.parametrize("name", GOOD)
def test_a_good_request_is_answered(fakes: Mapping[str, Fake], name: str) -> None:
    """What its documentation shows, it takes, and what it says tells that it was understood."""
    answer = post(fakes[name], GOOD[name].target, GOOD[name].headers, GOOD[name].body)
    assert answer.status_code == 200, answer.text
    assert "Grüße! You said: Hello. 世界" in answer.text


@pytest.mark.parametrize(
    ("name", "change", "status", "says"), CASES, ids=[f"{name}-{' '.join(change)}-{n}" for n, (name, change, *_) in enumerate(CASES)]
)  # fmt: skip
def test_a_bad_request_is_refused(
    fakes: Mapping[str, Fake], name: str, change: Mapping[str, Any], status: int, says: str
) -> None:
    """What its documentation forbids, it refuses."""
    answer = post(fakes[name], GOOD[name].target, GOOD[name].headers, {**GOOD[name].body, **change})
    assert answer.status_code == status, answer.text
    assert says in answer.text


@pytest.mark.parametrize("name", WRONG_KEY)
def test_a_wrong_key_is_refused(fakes: Mapping[str, Fake], name: str) -> None:
    """A key that is wrong, missing or not where this provider has it."""
    headers, status, says = WRONG_KEY[name]
    answer = post(fakes[name], GOOD[name].target, headers, GOOD[name].body)
    assert answer.status_code == status, answer.text
    assert says in answer.text


def test_a_version_must_be_there_and_be_known(fakes: Mapping[str, Fake]) -> None:
    """Anthropic wants it in a header, Azure in the query."""
    anthropic, azure = GOOD["anthropic"], GOOD["azure"]
    key = {"x-api-key": anthropic.headers["x-api-key"]}
    without = post(fakes["anthropic"], anthropic.target, key, anthropic.body)
    assert without.status_code == 400
    assert "anthropic-version: header is required" in without.text
    wrong = post(fakes["anthropic"], anthropic.target, {**key, "anthropic-version": "2020-01-01"}, anthropic.body)
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (400, "invalid_request_error")
    for query in ("", "?api-version=2019-01-01"):
        assert (
            post(fakes["azure"], azure.target.partition("?")[0] + query, azure.headers, azure.body).status_code == 404
        )
    other = azure.target.replace("gpt-4o-mini", "other")
    assert post(fakes["azure"], other, azure.headers, azure.body).json()["error"]["code"] == "DeploymentNotFound"


def test_lmstudio_answers_200_to_a_url_that_it_does_not_have(fakes: Mapping[str, Fake]) -> None:
    """Only the body says that it is an error."""
    answer = post(fakes["lmstudio"], "/chat/completions", {}, GOOD["lmstudio"].body)
    assert answer.status_code == 200
    assert answer.json() == {"error": "Unexpected endpoint or method. (POST /chat/completions)"}
