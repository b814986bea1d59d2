"""An error of any provider as an OpenAI-compatible server would have told it: its status, and `{"error": {…}}`."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.formats.chat_stream import read_json

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
_TOO_LONG = (
    *("prompt is too long", "input is too long", "context window", "context length", "context limit"),
    *("exceeds the maximum number of tokens", "too many tokens", "input token count"),
)
_NO_MONEY = ("insufficient_quota", "insufficient balance", "credit balance")
_BAD_KEY = ("api_key_invalid", "api key not valid", "api key expired")
_LONGEST = 2000  # characters
_NO_CAPACITY = 498  # Groq's own, for a tier that has no room now


def openai_error(status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> tuple[int, bytes]:
    """The status that OpenAI would give, and the body.

    Google answers 400 to a bad key, and AWS names an exception in a header. What a message says is kept, so that
    quotas, rates and lengths can be told from it.
    """
    try:
        doc = read_json(body)
    except ValueError:
        doc = None
    if isinstance(doc, list) and doc:
        doc = doc[0]
    message, code = _told(doc) if isinstance(doc, Mapping) else ("", "")
    named = next((value.decode("latin-1") for name, value in headers if name == b"x-amzn-errortype"), "")
    code = code or named.partition(":")[0]
    lower = message.lower()
    if status == _NO_CAPACITY:
        status = 503
    if status == 400 and any(words in lower or words in body.lower().decode("latin-1") for words in _BAD_KEY):
        status = 401
    if status in (400, 413, 422) and any(words in lower for words in _TOO_LONG):
        code = "context_length_exceeded"
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    if status == 429 and any(words in lower or words in _kind(doc) for words in _NO_MONEY):
        kind = "insufficient_quota"
    fields = {
        "message": message[:_LONGEST] or f"The provider answered with status {status}.",
        "type": kind,
        "param": _param(doc),
        "code": code or None,
    }
    return status, orjson.dumps({"error": fields})


def _param(doc: Any) -> str | None:
    """The field that the error names, where the provider does as OpenAI does."""
    return _named(doc, "param")


def _kind(doc: Any) -> str:
    """The error's type, likewise."""
    return _named(doc, "type") or ""


def _named(doc: Any, name: str) -> str | None:
    error = doc.get("error") if isinstance(doc, Mapping) else None
    found = error.get(name) if isinstance(error, Mapping) else None
    return found if isinstance(found, str) else None


def _told(doc: Mapping[str, Any]) -> tuple[str, str]:
    """The message and what the error calls itself, in the shapes of all providers.

    `{"error": {"message", "type" or "code" or "status"}}` Anthropic, Google, OpenAI; `{"message"}` Cohere, AWS;
    `{"error": "…"}` Ollama; `{"detail": …}` Mistral and whoever is built on FastAPI.
    """
    error = doc.get("error")
    if isinstance(error, Mapping):
        code = next((error[name] for name in ("code", "status", "type") if isinstance(error.get(name), str)), "")
        message = error.get("message")
        return (message if isinstance(message, str) else ""), code
    code = next((doc[name] for name in ("code", "type", "__type") if isinstance(doc.get(name), str)), "")
    for found in (error, doc.get("message"), doc.get("Message"), doc.get("detail")):
        if isinstance(found, str) and found:
            return found, code
        if isinstance(found, (list, Mapping)) and found:
            return _detail(found), code
    return "", code


def _detail(found: Any) -> str:
    """FastAPI's list of what is wrong: `body.messages: Field required`. The values that were sent are left out."""
    if isinstance(found, Mapping):
        found = found.get("detail") or [found]
    told = []
    for each in found if isinstance(found, list) else [found]:
        if isinstance(each, Mapping):
            place = ".".join(str(part) for part in each.get("loc") or ())
            told.append(": ".join(filter(None, (place, str(each.get("msg") or each.get("message") or "")))))
        else:
            told.append(str(each))
    return "; ".join(filter(None, told))
