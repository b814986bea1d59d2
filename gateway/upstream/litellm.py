"""Providers that are not OpenAI-compatible, behind a wire that is: requests and answers are translated on the way.

litellm puts the request into the provider's words, our wire carries it, and pure readers in `formats` put the answer
into OpenAI's. Whoever sends over it cannot tell it from any other wire.
"""

import random
import time
from collections.abc import AsyncIterable, Callable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import orjson

from gateway.errors import InvalidRequest
from gateway.formats.completion import Label
from gateway.formats.steering import remote_media
from gateway.policy.providers import COMPATIBLE, TRANSLATED, why_refused
from gateway.policy.schema import Backend
from gateway.upstream.borrowed import Borrowed, Oci
from gateway.upstream.clouds import DataRobot, HuggingFace, RagFlow, SageMaker, Snowflake, Watsonx
from gateway.upstream.dialects import (
    Anthropic,
    Ask,
    Azure,
    Bedrock,
    Cohere,
    Compatible,
    Dialect,
    Gemini,
    Mistral,
    Ollama,
    Outgoing,
    VertexAi,
    under,
)
from gateway.upstream.google_token import GoogleToken, TokenRefused
from gateway.upstream.ibm_token import IbmTokens
from gateway.upstream.litellm_library import Untranslatable
from gateway.upstream.translated import MadeReply, TranslatedReply, error_reply
from gateway.upstream.wire import Header, Origin, Reply, Wire

_DIALECTS: dict[str, type[Dialect]] = {
    "anthropic": Anthropic,
    "azure": Azure,
    "bedrock": Bedrock,
    "cohere": Cohere,
    "cohere_chat": Cohere,
    "gemini": Gemini,
    "ollama": Ollama,
    "ollama_chat": Ollama,
    "vertex_ai": VertexAi,
    "vertex_ai_beta": VertexAi,
}
# Those that several providers speak; which one it is, they are told.
_SHARED: dict[str, type[Borrowed | Compatible]] = {
    "bytez": Borrowed,
    "codestral": Mistral,
    "datarobot": DataRobot,
    "fal_ai": Borrowed,
    "huggingface": HuggingFace,
    "langflow": Borrowed,
    "langgraph": Borrowed,
    "mistral": Mistral,
    "nlp_cloud": Borrowed,
    "oci": Oci,
    "ragflow": RagFlow,
    "sagemaker_chat": SageMaker,
    "sagemaker_nova": SageMaker,
    "snowflake": Snowflake,
    "watsonx": Watsonx,
}
_RENAMED = {"vllm": "hosted_vllm"}
_BEARER = b"Bearer "
_SENT_ON = frozenset((b"traceparent", b"tracestate", b"idempotency-key"))
_CHAT, _MESSAGES, _COUNT = b"/chat/completions", b"/messages", b"/messages/count_tokens"
_IDENTITY = (b"accept-encoding", b"identity")
_UNAUTHORISED = (401, 403)
_CONVERSATION = orjson.dumps(
    {
        "messages": [
            {"role": "system", "content": "warm up"},
            {"role": "user", "content": [{"type": "text", "text": "warm up"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "warm1upAB", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "warm1upAB", "content": "warm"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        "max_tokens": 16,
    }
)


def providers() -> frozenset[str]:
    """The names that `provider` may have for a backend that is translated."""
    return frozenset((*_DIALECTS, *_SHARED, *COMPATIBLE))


def open_litellm(name: str, settings: Backend, open_wire: Callable[[Origin], Wire]) -> "LitellmWire":
    """Open the wire to a backend whose provider is translated. Imports litellm; no I/O yet.

    Raises ValueError that says what is wrong in the policies.
    """
    dialect = _dialect(name, settings)
    parts = urlsplit(dialect.base)
    origin = Origin(
        scheme=parts.scheme,
        host=parts.hostname or "",
        port=parts.port or (443 if parts.scheme == "https" else 80),
        ca_file=settings.ca_file,
        proxy=settings.proxy,
        http2=settings.http2,
    )
    _warm_up(dialect)
    token = GoogleToken(dialect.account, open_wire) if dialect.account is not None else None
    inner = open_wire(origin)
    exchange = IbmTokens(open_wire) if dialect.exchanges_keys else None
    return LitellmWire(name, dialect, inner, token, exchange)


def _warm_up(dialect: Dialect) -> None:
    """Have a conversation translated, since litellm imports much only when it is first asked for it."""
    for model, stream in (("claude-sonnet-4-5", False), ("gemini-2.5-flash", True)):
        with suppress(InvalidRequest, Untranslatable):  # whether it can be said is all the same here
            dialect.speak(Ask({**orjson.loads(_CONVERSATION), "model": model, "stream": stream}, "warm-up"))
        with suppress(InvalidRequest, Untranslatable):
            dialect.speak(Ask({"model": model, "messages": [{"role": "user", "content": "warm up"}]}, "warm-up"))


def _dialect(name: str, settings: Backend) -> Dialect:
    provider = settings.provider
    if provider in _DIALECTS:
        return _DIALECTS[provider](name, settings)
    if provider in _SHARED:
        return _SHARED[provider](name, settings, provider)
    if provider in COMPATIBLE:
        return Compatible(name, settings, _RENAMED.get(provider, provider))
    reason = why_refused(provider)
    if reason:
        raise ValueError(f"backends.{name}.provider: {provider!r} cannot be translated: {reason}")
    raise ValueError(
        f"backends.{name}.provider: {provider!r} cannot be translated; write one of {', '.join(sorted(TRANSLATED))}, "
        "or no provider for a server that is OpenAI-compatible"
    )


class LitellmWire:
    """A wire to one backend. It takes OpenAI's chat requests; Anthropic's messages pass to Anthropic as they are."""

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        inner: Wire,
        token: GoogleToken | None = None,
        exchange: IbmTokens | None = None,
    ) -> None:
        self._name = name
        self._dialect = dialect
        self._inner = inner
        self._token = token
        self._exchange = exchange
        self._random = random.Random()  # noqa: S311 - it names answers, it guards nothing

    def __repr__(self) -> str:
        return f"<LitellmWire {self._name} in {self._dialect.provider} over {self._inner!r}>"

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Sequence[Header],
        body: bytes | AsyncIterable[bytes],
        *,
        connect_timeout: float,
        timeout: float,
    ) -> Reply:
        """See `gateway.upstream.wire.Wire.send`. Of `target` only its end counts: where it goes, the policies say.

        A `GET` asks whether the provider can be reached, without telling it who asks.
        """
        path = target.partition(b"?")[0]
        if method == b"GET":
            return await self._inner.send(
                b"GET", b"/", (_IDENTITY,), b"", connect_timeout=connect_timeout, timeout=timeout
            )
        given = key = _key_in(headers)
        try:
            if path.endswith(_CHAT) and isinstance(body, bytes):
                if self._token is not None:
                    key = await self._token.get(connect_timeout=connect_timeout, timeout=timeout)
                elif self._exchange is not None and given:
                    key = await self._exchange.get(given, connect_timeout=connect_timeout, timeout=timeout)
                doc = orjson.loads(body)
                outgoing = self._spoken(doc, key, headers)
                stream = doc.get("stream") is True
            elif (
                path.endswith((_MESSAGES, _COUNT)) and isinstance(body, bytes) and isinstance(self._dialect, Anthropic)
            ):
                outgoing = _as_it_is(self._dialect, path, key, headers, body)
                stream = False
            else:
                return _refused(404, f"Backend {self._name!r} ({self._dialect.provider}) answers chat requests only.")
        except InvalidRequest as error:
            return MadeReply(error.status, orjson.dumps(error.to_openai()))
        except Untranslatable as error:
            return _refused(400, str(error))
        except TokenRefused as error:
            return _refused(401, str(error))
        carried = [pair for pair in headers if pair[0] in _SENT_ON]
        reply = await self._inner.send(
            b"POST",
            outgoing.target,
            (*outgoing.headers, *carried, _IDENTITY),
            outgoing.body,
            connect_timeout=connect_timeout,
            timeout=timeout,
        )
        if reply.status in _UNAUTHORISED:
            self._forget(given)
        return await self._received(reply, outgoing, stream=stream)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()
        if self._token is not None:
            await self._token.aclose()
        if self._exchange is not None:
            await self._exchange.aclose()

    def _forget(self, key: str | None) -> None:
        if self._token is not None:
            self._token.forget()
        if self._exchange is not None and key:
            self._exchange.forget(key)

    def _spoken(self, doc: dict[str, Any], key: str | None, headers: Sequence[Header]) -> Outgoing:
        place = remote_media(doc["messages"], https_images=self._dialect.https_images)
        if place is not None:
            raise InvalidRequest(
                f"`{place}` is a URL, and nothing is fetched for a client here; send the data itself as a data URL "
                "(data:image/png;base64,…).",
                code="unsupported_value",
                param=place,
            )
        return self._dialect.speak(Ask(doc, key, headers))

    async def _received(self, reply: Reply, outgoing: Outgoing, *, stream: bool) -> Reply:
        if reply.status >= 300:
            return reply if outgoing.raw else await error_reply(reply)
        if outgoing.read is None:
            return reply
        label = Label(f"{self._random.getrandbits(96):024x}", int(time.time()), outgoing.model)
        return TranslatedReply(reply, outgoing.read(label), stream=stream)


def _key_in(headers: Sequence[Header]) -> str | None:
    """The backend's key, which whoever sends puts where OpenAI has it."""
    value = next((value for name, value in headers if name == b"authorization"), b"")
    return value[len(_BEARER) :].decode("ascii") if value.startswith(_BEARER) else None


def _refused(status: int, message: str) -> MadeReply:
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    return MadeReply(status, orjson.dumps({"error": error}))


def _as_it_is(dialect: Anthropic, path: bytes, key: str | None, headers: Sequence[Header], body: bytes) -> Outgoing:
    """Anthropic's own request to a backend that speaks it: only the credential is put where Anthropic has it."""
    found = {b"content-type": b"application/json", b"anthropic-version": b"2023-06-01"}
    found |= {name: value for name, value in headers if name in (b"anthropic-version", b"anthropic-beta")}
    if key:
        found[b"x-api-key"] = key.encode()
    end = _COUNT if path.endswith(_COUNT) else _MESSAGES
    return Outgoing(under(dialect.path, "/v1", end.decode()).encode(), list(found.items()), body, None, raw=True)
