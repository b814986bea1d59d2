"""Providers whose answers litellm reads as well: they are rare, and their formats are nobody else's."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from gateway.errors import InvalidRequest
from gateway.formats import compatible
from gateway.formats.completion import Chunks, Label, ProviderError, Said
from gateway.formats.data_lines import DataLines
from gateway.formats.foreign import StreamAnswer, Translation, WholeAnswer
from gateway.policy.schema import Backend
from gateway.upstream.dialects import Ask, Dialect, Outgoing, Reading, headers_of, target_of
from gateway.upstream.litellm_library import Translated, Untranslatable

_BASES = {
    "bytez": "https://api.bytez.com/models/v2",
    "fal_ai": "https://fal.run",
    "nlp_cloud": "https://api.nlpcloud.io/v1/gpu",
}
# Those that count tokens; for the others litellm makes the counts up, and ours are as good.
_COUNT = frozenset(("fal_ai", "nlp_cloud", "oci"))
# Oracle's reasons, of which Cohere's are in capitals; litellm has a plain stop for most of them.
_FINISHES = {
    "max_tokens": "length",
    "length": "length",
    "tool_call": "tool_calls",
    "tool_calls": "tool_calls",
    "error_toxic": "content_filter",
    "content_filter": "content_filter",
    "content_filtered": "content_filter",
}
_FAILED = frozenset(("error", "error_limit", "user_cancel", "cancelled", "timeout"))
Chunk = Callable[..., dict[str, Any]]


class Borrowed(Dialect):
    """A provider that is asked for the whole answer, which is shown as a stream to whoever wants one."""

    def __init__(self, name: str, settings: Backend, provider: str) -> None:
        self.provider = provider
        self.default_base = _BASES.get(provider)
        self.https_images = provider == "fal_ai"  # it fetches them itself
        super().__init__(name, settings)
        self.library.reads_answers()

    def speak(self, ask: Ask) -> Outgoing:
        """The request."""
        whole = replace(ask, doc={**ask.doc, "stream": False})
        said = self._translated(whole, self._sorted(whole))
        target = target_of(self._url(ask.model))
        return Outgoing(target, headers_of(said.headers), orjson.dumps(said.body), self._whole(ask, said), ask.model)

    def _url(self, model: str) -> str:
        if self.provider == "nlp_cloud":
            return f"{self.base}/{quote(model, safe='')}/generation"
        return self.library.url(model, self.base)

    def _whole(self, ask: Ask, said: Translated) -> Reading:
        return lambda label: WholeAnswer(lambda doc: self._read(doc, ask, said), label, as_stream=ask.stream)

    def _read(self, doc: dict[str, Any], ask: Ask, said: Translated) -> Said:
        _raise_error(doc)
        found = self.library.answer(ask.model, doc, said, ask.doc["messages"])
        if self.provider not in _COUNT:
            found.pop("usage", None)
        return compatible.read_answer(found, json_tool=None)


def _raise_error(doc: Mapping[str, Any]) -> None:
    """LangGraph's is `{"__error__": {"message"}}`, Oracle's `{"code", "message"}`, the others' `{"error"}`."""
    error = doc.get("error") or doc.get("__error__") or (doc if "code" in doc and "message" in doc else None)
    if error:
        told = error.get("message") if isinstance(error, Mapping) else error
        raise ProviderError(500, str(told or "the provider failed"))


class Oci(Borrowed):
    """Oracle's Generative AI, signed with the key of a user."""

    _needed = ("oci_user", "oci_fingerprint", "oci_tenancy", "oci_compartment_id")
    options = frozenset((*_needed, "oci_region", "oci_key", "oci_key_file", "oci_serving_mode", "oci_endpoint_id"))

    def __init__(self, name: str, settings: Backend, provider: str) -> None:
        options = dict(settings.options)
        missing = [option for option in self._needed if not options.get(option)]
        if missing:
            raise ValueError(f"backends.{name}.options: `{missing[0]}` is missing; write it as the console shows it")
        super().__init__(name, settings, provider)
        self._own = {**options, "oci_key": _private_key(name, options)}
        self._own.pop("oci_key_file", None)
        self._generic = self.library.chunks("litellm.llms.oci.chat.generic", "handle_generic_stream_chunk")
        self._cohere = self.library.chunks("litellm.llms.oci.chat.cohere", "handle_cohere_stream_chunk")
        try:  # a key that cannot sign is told at the start
            self.library.signed("any", Translated({}, {}), self.base, self._own)
        except Untranslatable:
            raise ValueError(f"backends.{name}.options.oci_key: not an RSA key in PEM without a password") from None

    def _default_base(self, settings: Backend) -> str:
        region = settings.options.get("oci_region")
        if not region:
            raise ValueError(
                f"backends.{self._backend}.options: `oci_region` is missing; write for example us-ashburn-1"
            )
        return f"https://inference.generativeai.{quote(region, safe='')}.oci.oraclecloud.com"

    def speak(self, ask: Ask) -> Outgoing:
        """The request."""
        if ask.doc.get("n") not in (None, 1):
            raise InvalidRequest("Oracle's answers are read one at a time here; send `n: 1`.", param="n")
        said = self._translated(ask, self._sorted(ask), **self._own)
        if ask.stream and (ask.doc.get("stream_options") or {}).get("include_usage"):
            said.body["chatRequest"]["streamOptions"] = {"isIncludeUsage": True}
        url = self.library.url(ask.model, self.base)
        headers, body = self.library.signed(ask.model, said, url, self._own)
        read = self._streamed if ask.stream else self._whole(ask, said)
        return Outgoing(target_of(url), headers_of(headers), body, read, ask.model)

    def _read(self, doc: dict[str, Any], ask: Ask, said: Translated) -> Said:
        found = super()._read(doc, ask, said)
        chat = doc["chatResponse"]
        finish = _finish((chat.get("choices") or [chat])[0].get("finishReason"))
        return replace(found, choices=[replace(found.choices[0], finish=finish or "stop")])

    def _streamed(self, label: Label) -> Translation:
        return StreamAnswer(DataLines(), _OciEvents(self._generic, self._cohere), label)


def _private_key(name: str, options: Mapping[str, str]) -> str:
    if options.get("oci_key"):
        return options["oci_key"]
    path = options.get("oci_key_file")
    if not path:
        raise ValueError(f"backends.{name}.options: `oci_key` is missing; write the key, or its path as `oci_key_file`")
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"backends.{name}.options.oci_key_file: cannot be read ({type(error).__name__}); write the path of the key"
        ) from None


class _OciEvents:
    """Reads a stream. Cohere's last event tells all of it again, which litellm leaves out when it is told so."""

    __slots__ = ("_called", "_cohere", "_events", "_generic", "_told")

    def __init__(self, generic: Chunk, cohere: Chunk) -> None:
        self._generic = generic
        self._cohere = cohere
        self._events = compatible.Events()
        self._told = self._called = False

    def event(self, doc: Mapping[str, Any], kind: str, out: Chunks) -> None:
        """Take one event. Raises ProviderError."""
        _raise_error(doc)
        if doc.get("apiFormat") == "COHERE":
            chunk = self._cohere(doc, prior_tool_calls_emitted=self._called, prior_text_emitted=self._told)
        else:
            chunk = self._generic(doc)
        for choice in chunk["choices"]:
            choice["finish_reason"] = _finish(doc.get("finishReason"))
            self._told = self._told or bool(choice["delta"].get("content"))
            self._called = self._called or bool(choice["delta"].get("tool_calls"))
        self._events.event({**chunk, "usage": _usage(doc.get("usage"))}, kind, out)

    def end(self, out: Chunks) -> None:
        """The stream has ended."""
        self._events.end(out)


def _finish(raw: Any) -> str | None:
    if raw is None:
        return None
    reason = str(raw).lower()
    if reason in _FAILED:
        raise ProviderError(500, f"the provider ended the answer with {reason}", reason)
    return _FINISHES.get(reason, "stop")


def _usage(doc: Any) -> Mapping[str, Any] | None:
    if not isinstance(doc, Mapping):
        return None
    details = doc.get("completionTokensDetails") or {}
    return {
        "prompt_tokens": doc.get("promptTokens") or 0,
        "completion_tokens": doc.get("completionTokens") or 0,
        "total_tokens": doc.get("totalTokens") or 0,
        "completion_tokens_details": {"reasoning_tokens": details.get("reasoningTokens") or 0},
    }
