"""How each provider is spoken to: which URL, which headers, which body, and how to read what comes back."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, urlsplit

import orjson

from gateway.errors import InvalidRequest
from gateway.formats import anthropic_stream, cohere, compatible, converse, gemini, ollama
from gateway.formats.completion import Label, Reader, Said
from gateway.formats.foreign import AwsEvents, Framing, JsonLines, Sse, StreamAnswer, Translation, WholeAnswer
from gateway.formats.mistral import MendedAnswer, MendedStream, to_mistral
from gateway.formats.plain_messages import plain, told_apart, unmarked
from gateway.policy.providers import LISTED
from gateway.policy.schema import Backend
from gateway.upstream.aws_signature import Credentials, sign
from gateway.upstream.google_token import ServiceAccount, read_account
from gateway.upstream.litellm_library import Library, Translated
from gateway.upstream.parameters import Sorted, sort
from gateway.upstream.wire import Header

Reading = Callable[[Label], Translation]
# Where those are of which litellm does not say it in its list.
_BASES = {
    "ai21": "https://api.ai21.com/studio/v1",
    "amazon_nova": "https://api.nova.amazon.com/v1",
    "huggingface": "https://router.huggingface.co/v1",
    "maritalk": "https://chat.maritaca.ai/api",
}
_LEAST_THINKING = 1024  # tokens
_IN_PATH = "/%:@!$&'()*+,;="
# Where only `max_tokens` is told of: the newer name would be passed over, and the answer not bounded.
_OLD_LIMIT = frozenset(
    ("dashscope", "deepseek", "huggingface", "llamafile", "lm_studio", "oobabooga", "perplexity", "together_ai")
)
_TOOLS = frozenset(("tools", "tool_choice", "parallel_tool_calls"))
_TEXTS = frozenset(("text", "refusal", "thinking", "redacted_thinking"))


@dataclass(frozen=True, slots=True)
class Ask:
    """One chat request to be spoken: what the client sent, and the credential to use."""

    doc: dict[str, Any]
    key: str | None
    headers: Sequence[Header] = ()

    @property
    def model(self) -> str:
        """The backend's own name of the model."""
        return str(self.doc["model"])

    @property
    def stream(self) -> bool:
        """Whether a stream was asked for."""
        return self.doc.get("stream") is True


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What goes over the wire. `read` makes the translation of the answer; None when it comes as the client wants it.

    `raw` means that errors do too. `model` is what an answer is of that does not say so itself.
    """

    target: bytes
    headers: Sequence[Header] = field(repr=False)
    body: bytes = field(repr=False)
    read: Reading | None
    model: str = ""
    raw: bool = False


class Dialect(ABC):
    """One provider's way, for one backend; `base` is where it is. Making one raises ValueError for wrong settings."""

    provider = ""  # as litellm calls it
    own_parameters: frozenset[str] = frozenset()  # what it takes beyond litellm's list, by its own names
    lacking: frozenset[str] = frozenset()  # what litellm's list has, and the provider has not
    options: frozenset[str] = frozenset()
    default_base: str | None = None
    open = False  # whether unknown fields go on unchanged, as to any OpenAI-compatible server
    labels = False  # whether `user` does
    developer = False  # whether it knows this role
    https_images = False
    account: ServiceAccount | None = None
    exchanges_keys = False  # whether IBM Cloud gives tokens for the backend's keys
    library_settings: Mapping[str, str] = MappingProxyType({})  # what litellm wants to be told beside the request

    def __init__(self, name: str, settings: Backend) -> None:
        self._backend = name
        self._drop = settings.drop_params
        self._options = settings.options
        unknown = [option for option in settings.options if option not in self.options]
        if unknown:
            known = f"write only {', '.join(sorted(self.options))}" if self.options else "remove it"
            raise ValueError(f"backends.{name}.options: {settings.provider} has no option `{unknown[0]}`; {known}")
        self.library = Library(self.provider)
        self.base = (settings.base_url or self._default_base(settings)).rstrip("/")
        self.path = urlsplit(self.base).path

    @abstractmethod
    def speak(self, ask: Ask) -> Outgoing:
        """The request. Raises InvalidRequest, or the library's Untranslatable."""

    def _default_base(self, settings: Backend) -> str:
        found = self.default_base or self.library.base_url()
        if found is None:
            raise ValueError(
                f"backends.{self._backend}: `base_url` is missing, and {settings.provider} has none; write where it is"
            )
        return found

    def _sorted(self, ask: Ask) -> Sorted:
        known = self.library.known(self._known_as(ask.model)).parameters
        return sort(
            ask.doc,
            known=known - self.lacking,
            own=self.own_parameters,
            rest_goes_on=self.open,
            labels=self.labels,
            drop=self._drop,
            backend=self._backend,
            provider=self.provider,
        )

    def _known_as(self, model: str) -> str:
        """The name by which litellm knows what a model can do."""
        return model

    def _translated(self, ask: Ask, sorted_: Sorted, **own: Any) -> Translated:
        return self.library.translate(
            self._known_as(ask.model),
            plain(ask.doc["messages"], developer=self.developer),
            sorted_.given,
            own={**sorted_.own, **own},
            key=ask.key,
            base=self.base,
            drop=self._drop,
            stream=ask.stream,
            more=self.library_settings,
            ready=self._ready(ask),
        )

    def _told_apart(self, ask: Ask) -> Translated:
        """The request to a Gemini, with every call that was made, also those that say the same."""
        ask.doc["messages"] = told_apart(ask.doc["messages"])
        said = self._translated(ask, self._sorted(ask))
        for content in said.body.get("contents") or ():
            unmarked(content.get("parts") or [])
        return said

    def _ready(self, ask: Ask) -> Mapping[str, str] | None:
        """The headers, where litellm must not make them."""
        return None


def reading(
    ask: Ask,
    said: Translated,
    read: Callable[[dict[str, Any], Label], Said],
    stream: Callable[[], tuple[Framing, Reader]],
) -> Reading:
    """How to read the answer: as a stream, or in one piece."""

    def make(label: Label) -> Translation:
        if ask.stream and not said.fake_stream:
            framing, reader = stream()
            return StreamAnswer(framing, reader, label)
        return WholeAnswer(lambda doc: read(doc, label), label, as_stream=ask.stream)

    return make


def under(path: str, version: str, rest: str) -> str:
    """The path of an endpoint below a base that may or may not have the version, or the endpoint itself, already."""
    if path.endswith(rest):
        return path
    return f"{path}{rest}" if path.endswith(version) else f"{path}{version}{rest}"


def target_of(url: str) -> bytes:
    """What is asked for at a host: path and query, whatever stands in the name of a model."""
    parts = urlsplit(url)
    path = quote(parts.path, safe=_IN_PATH) or "/"
    return (f"{path}?{quote(parts.query, safe=_IN_PATH)}" if parts.query else path).encode()


def headers_of(headers: Mapping[str, str]) -> list[Header]:
    """Header bytes; what the wire adds itself is left out."""
    left_out = ("accept", "host", "content-length")
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items() if name not in left_out]


class Anthropic(Dialect):
    """The Messages API, at Anthropic or whoever else speaks it."""

    provider = "anthropic"
    own_parameters = frozenset(("top_k",))
    default_base = "https://api.anthropic.com"
    https_images = True

    def speak(self, ask: Ask) -> Outgoing:
        """The request."""
        said = self._translated(ask, self._sorted(ask))
        _think_less(said.body, said.body.get("max_tokens"))
        if ask.stream:
            said.body["stream"] = True
        return Outgoing(
            under(self.path, "/v1", "/messages").encode(),
            headers_of(_with_betas(said.headers, ask.headers)),
            orjson.dumps(said.body),
            claude(ask, said),
            ask.model,
        )


def claude(ask: Ask, said: Translated) -> Reading:
    """How to read an answer in Anthropic's format."""
    names = said.names or {}
    return reading(
        ask,
        said,
        lambda doc, _: anthropic_stream.read_answer(doc, names=names, json_tool=said.json_tool),
        lambda: (Sse(), anthropic_stream.Events(names=names, json_tool=said.json_tool)),
    )


def _think_less(fields: dict[str, Any], limit: object) -> None:
    """Claude's thinking must be less than its whole output, and at least 1024 tokens, where that may be little."""
    thinking = fields.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if not isinstance(budget, int) or not isinstance(limit, int) or budget < limit:
        return
    if limit <= _LEAST_THINKING:
        del fields["thinking"]
    else:
        fields["thinking"] = {**fields["thinking"], "budget_tokens": limit - 1}


def _with_betas(headers: Mapping[str, str], client: Sequence[Header]) -> Mapping[str, str]:
    """The client's own `anthropic-beta` beside those that the request needs."""
    asked = next((value.decode("latin-1") for name, value in client if name == b"anthropic-beta"), "")
    if not asked:
        return headers
    needed = headers.get("anthropic-beta", "")
    both = dict.fromkeys(beta.strip() for beta in f"{needed},{asked}".split(",") if beta.strip())
    return {**headers, "anthropic-beta": ",".join(both)}


class Gemini(Dialect):
    """Google AI Studio."""

    provider = "gemini"
    own_parameters = frozenset(("top_k", "safety_settings"))
    default_base = "https://generativelanguage.googleapis.com"

    def speak(self, ask: Ask) -> Outgoing:
        """The request."""
        said = self._told_apart(ask)
        verb = "streamGenerateContent?alt=sse" if ask.stream else "generateContent"
        target = under(self.path, _google_version(self.path, "/v1beta"), f"/models/{quote(ask.model, safe='')}:{verb}")
        headers = [(b"content-type", b"application/json")]
        if ask.key:
            headers.append((b"x-goog-api-key", ask.key.encode()))
        return Outgoing(target.encode(), headers, orjson.dumps(said.body), google(ask, said), ask.model)


def _google_version(path: str, usual: str) -> str:
    return next((version for version in ("/v1", "/v1beta", "/v1alpha", "/v1beta1") if path.endswith(version)), usual)


def google(ask: Ask, said: Translated) -> Reading:
    """How to read an answer in Gemini's format."""
    return reading(ask, said, gemini.read_answer, lambda: (Sse(), gemini.Events()))


class VertexAi(Dialect):
    """Vertex AI: Gemini, Claude, and whatever its OpenAI-compatible endpoint has."""

    provider = "vertex_ai"
    own_parameters = frozenset(("top_k", "safety_settings"))
    options = frozenset(("project", "location", "region", "credentials"))

    def __init__(self, name: str, settings: Backend) -> None:
        options = settings.options
        if not settings.api_keys and "credentials" not in options:
            raise ValueError(
                f"backends.{name}: Vertex AI needs a service account; write `options: {{credentials: …}}` with the "
                "path of its key file, or an access token in `api_keys`"
            )
        if not settings.api_keys:
            self.account = read_account(options["credentials"])
        project = options.get("project") or (self.account.project if self.account else None)
        if not project:
            raise ValueError(f"backends.{name}.options: `project` is missing; write the id of the Google Cloud project")
        self._location = options.get("location") or options.get("region") or "global"
        self._place = f"/projects/{quote(project, safe='')}/locations/{quote(self._location, safe='')}"
        super().__init__(name, settings)

    def _default_base(self, settings: Backend) -> str:
        host = "aiplatform.googleapis.com"
        return f"https://{host}" if self._location == "global" else f"https://{self._location}-{host}"

    def speak(self, ask: Ask) -> Outgoing:
        """The request."""
        model = quote(ask.model, safe="@")
        if "claude" in ask.model:
            said = self._translated(ask, self._sorted(ask), anthropic_version="vertex-2023-10-16")
            _think_less(said.body, said.body.get("max_tokens"))
            if ask.stream:
                said.body["stream"] = True
            verb = "streamRawPredict" if ask.stream else "rawPredict"
            target, read = f"/publishers/anthropic/models/{model}:{verb}", claude(ask, said)
        elif "gemini" in ask.model:
            said = self._told_apart(ask)
            verb = "streamGenerateContent?alt=sse" if ask.stream else "generateContent"
            target, read = f"/publishers/google/models/{model}:{verb}", google(ask, said)
        else:
            raise InvalidRequest(
                f"The model {ask.model!r} of backend {self._backend!r} is neither a Gemini nor a Claude; for others "
                "use Vertex AI's OpenAI-compatible endpoint, as a backend without `provider`.",
                param="model",
            )
        headers = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {ask.key}".encode())]
        if "anthropic-beta" in said.headers:
            headers.append((b"anthropic-beta", said.headers["anthropic-beta"].encode()))
        path = under(self.path, _google_version(self.path, "/v1"), self._place + target)
        return Outgoing(path.encode(), headers, orjson.dumps(said.body), read, ask.model)


class Bedrock(Dialect):
    """Amazon Bedrock's Converse API, by access key or by Bedrock's own API key."""

    provider = "bedrock"
    own_parameters = frozenset(("top_k",))
    options = frozenset(
        ("region", "aws_region_name", "aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    )

    def __init__(self, name: str, settings: Backend) -> None:
        options = settings.options
        self._region = options.get("region") or options.get("aws_region_name") or ""
        if not self._region:
            raise ValueError(f"backends.{name}.options: `region` is missing; write for example region: us-east-1")
        identity, secret = options.get("aws_access_key_id"), options.get("aws_secret_access_key")
        if not settings.api_keys and not (identity and secret):
            raise ValueError(
                f"backends.{name}: Bedrock needs `options: {{aws_access_key_id: …, aws_secret_access_key: …}}`, or a "
                "Bedrock API key in `api_keys`"
            )
        self._credentials = Credentials(identity or "", secret or "", options.get("aws_session_token"))
        super().__init__(name, settings)
        parts = urlsplit(self.base)
        self._authority = parts.netloc.removesuffix(":443" if parts.scheme == "https" else ":80")

    def _default_base(self, settings: Backend) -> str:
        return f"https://bedrock-runtime.{self._region}.amazonaws.com"

    def _known_as(self, model: str) -> str:
        # Without this word litellm chooses for some models an older API, whose answers differ for each of them.
        return f"converse/{model}"

    def speak(self, ask: Ask) -> Outgoing:
        """The request."""
        wanted = _tool_names(ask.doc)
        said = self._translated(ask, self._sorted(ask))
        said.body.pop("stream", None)
        limit = (said.body.get("inferenceConfig") or {}).get("maxTokens")
        _think_less(said.body.get("additionalModelRequestFields") or {}, limit)
        # `:` goes encoded, as AWS's own clients send it
        model = quote(ask.model.removeprefix("converse/"), safe="")
        path = f"{self.path}/model/{model}/{'converse-stream' if ask.stream and not said.fake_stream else 'converse'}"
        body = orjson.dumps(said.body)
        headers: Sequence[Header]
        if ask.key:
            headers = ((b"content-type", b"application/json"), (b"authorization", f"Bearer {ask.key}".encode()))
        else:
            headers = sign(
                self._credentials,
                region=self._region,
                service="bedrock",
                authority=self._authority,
                path=path,
                body=body,
                now=time.time(),
            )
        sent = [
            tool["toolSpec"]["name"]
            for tool in (said.body.get("toolConfig") or {}).get("tools", ())
            if "toolSpec" in tool
        ]
        names = {here: there for here, there in zip(sent, wanted, strict=False) if here != there}
        return Outgoing(
            path.encode(),
            headers,
            body,
            reading(
                ask,
                said,
                lambda doc, _: converse.read_answer(doc, names=names, json_tool=said.json_tool),
                lambda: (AwsEvents(), converse.Events(names=names, json_tool=said.json_tool)),
            ),
            ask.model,
        )


def _tool_names(doc: Mapping[str, Any]) -> list[str]:
    tools = doc.get("tools") or ()
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)]
    return [str(function.get("name")) for function in functions if isinstance(function, dict)]


class Cohere(Dialect):
    """Cohere's Chat API v2."""

    provider = "cohere"
    own_parameters = frozenset(("k", "documents", "citation_options", "safety_mode", "thinking", "strict_tools"))
    lacking = frozenset(("n",))
    default_base = "https://api.cohere.com"
    https_images = True  # they go on as they are

    def speak(self, ask: Ask) -> Outgoing:
        """The request. What litellm's list lacks, and Cohere has, is put in Cohere's words here."""
        extra: dict[str, Any] = {}
        choice, format_ = ask.doc.pop("tool_choice", None), ask.doc.pop("response_format", None)
        if choice in ("required", "none"):
            extra["tool_choice"] = choice.upper()
        elif choice not in (None, "auto") and not self._drop:
            raise InvalidRequest(
                "Cohere cannot be made to call one tool; send `required`, `none` or `auto` as `tool_choice`.",
                param="tool_choice",
            )
        if isinstance(format_, dict) and format_.get("type") in ("json_object", "json_schema"):
            schema = (format_.get("json_schema") or {}).get("schema")
            extra["response_format"] = {"type": "json_object", **({"json_schema": schema} if schema else {})}
        said = self._translated(ask, self._sorted(ask), **extra)
        said.body["stream"] = ask.stream
        for tool in said.body.get("tools") or ():
            if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
                tool["function"].pop("strict", None)
        target = under(self.path, "/v2", "/chat").encode()
        read = reading(ask, said, lambda doc, _: cohere.read_answer(doc), lambda: (Sse(), cohere.Events()))
        return Outgoing(target, headers_of(said.headers), orjson.dumps(said.body), read, ask.model)


class Ollama(Dialect):
    """Ollama's own API; its OpenAI-compatible one needs no translation."""

    provider = "ollama_chat"
    own_parameters = frozenset(
        (
            *("keep_alive", "think", "num_ctx", "num_predict", "top_k", "min_p", "repeat_penalty", "repeat_last_n"),
            *("frequency_penalty", "presence_penalty"),
        )
    )
    lacking = frozenset(("tool_choice", "functions"))
    default_base = "http://localhost:11434"

    def speak(self, ask: Ask) -> Outgoing:
        """The request."""
        if ask.doc.get("tool_choice") == "none":
            ask = replace(ask, doc={name: value for name, value in ask.doc.items() if name not in _TOOLS})
        said = self._translated(ask, self._sorted(ask))
        said.body["stream"] = ask.stream
        path = self.path.removesuffix("/v1")
        read = reading(ask, said, ollama.read_answer, lambda: (JsonLines(), ollama.Events()))
        headers = {"content-type": "application/json", **said.headers}
        return Outgoing(
            under(path, "/api", "/chat").encode(), headers_of(headers), orjson.dumps(said.body), read, ask.model
        )


class Azure(Dialect):
    """Azure OpenAI: OpenAI's format at a URL of its own. A deployment bears the model's name, or `deployment`'s."""

    provider = "azure"
    options = frozenset(("api_version", "deployment", "base_model"))
    open = True
    developer = True
    https_images = True

    def speak(self, ask: Ask) -> Outgoing:
        """The request."""
        sorted_ = self._sorted(ask)
        said = self._translated(ask, sorted_)
        body = _openai_body(ask, said, sorted_, usage=True)
        body["model"] = ask.model
        deployment = quote(self._options.get("deployment") or ask.model, safe="")
        path = self.path.removesuffix("/v1").removesuffix("/openai")
        version = quote(self._version)
        target = f"{path}/openai/deployments/{deployment}/chat/completions?api-version={version}"
        headers = [(b"content-type", b"application/json")]
        if ask.key:
            headers.append((b"api-key", ask.key.encode()))
        return Outgoing(target.encode(), headers, orjson.dumps(body), _told_again(ask, said), ask.model)

    def _known_as(self, model: str) -> str:
        return self._options.get("base_model") or model

    @property
    def _version(self) -> str:
        return self._options.get("api_version") or "2024-10-21"


class Compatible(Dialect):
    """A provider whose answers are OpenAI's, and whose requests differ here and there."""

    open = True
    labels = True
    https_images = True
    options = frozenset(("api_version",))

    def __init__(self, name: str, settings: Backend, provider: str) -> None:
        self.provider = provider
        self.default_base = _BASES.get(provider)
        if provider in LISTED:
            self.own_parameters = _TOOLS
        super().__init__(name, settings)

    def speak(self, ask: Ask) -> Outgoing:
        """The request."""
        media = _media(ask.doc["messages"])
        if self.provider in _OLD_LIMIT and (limit := ask.doc.pop("max_completion_tokens", None)) is not None:
            ask.doc["max_tokens"] = min(limit, ask.doc.get("max_tokens") or limit)
        sorted_ = self._sorted(ask)
        said = self._translated(ask, sorted_)
        usage = self.library.known(self._known_as(ask.model)).stream_options
        body = _openai_body(ask, said, sorted_, usage=usage)
        if _media(body["messages"]) < media:
            raise InvalidRequest(
                f"The model {ask.model!r} of backend {self._backend!r} takes text only; leave what is not text out.",
                code="unsupported_value",
                param="messages",
            )
        return self._outgoing(ask, said, body)

    def _outgoing(self, ask: Ask, said: Translated, body: dict[str, Any]) -> Outgoing:
        stream = ask.stream and not said.fake_stream
        url = self.library.url(self._known_as(ask.model), self.base, stream=stream, **self._options)
        headers, read = headers_of(said.headers), self._reading(ask, said)
        return Outgoing(target_of(url), headers, orjson.dumps(body), read, ask.model)

    def _reading(self, ask: Ask, said: Translated) -> Reading | None:
        return _told_again(ask, said)


class Mistral(Compatible):
    """Mistral, whose thinking models answer in parts, and which is particular about calls and beginnings."""

    labels = False
    own_parameters = frozenset(
        ("frequency_penalty", "metadata", "n", "prediction", "presence_penalty", "prompt_mode", "tool_choice")
    )

    def speak(self, ask: Ask) -> Outgoing:
        """The request."""
        ask.doc["messages"] = to_mistral(ask.doc["messages"])
        return super().speak(ask)

    def _reading(self, ask: Ask, said: Translated) -> Reading | None:
        return lambda _: MendedStream() if ask.stream else MendedAnswer()


def _comes_whole(said: Translated) -> bool:
    """Whether the answer must be there before it can be told: a tool in it stands for a schema, or it has no stream."""
    return said.fake_stream or said.json_tool is not None


def _told_again(ask: Ask, said: Translated) -> Reading | None:
    if not _comes_whole(said) or not (ask.stream or said.json_tool):
        return None
    return lambda label: WholeAnswer(
        lambda doc: compatible.read_answer(doc, json_tool=said.json_tool), label, as_stream=ask.stream
    )


def _media(messages: Any) -> int:
    """How many parts of messages are not text; what cannot be read as such is for the provider to refuse."""
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return sum(isinstance(part, dict) and part.get("type") not in _TEXTS for part in parts)


def _openai_body(ask: Ask, said: Translated, sorted_: Sorted, *, usage: bool) -> dict[str, Any]:
    body = {**said.body, **sorted_.rest}
    body.pop("stream", None)
    if ask.stream and not _comes_whole(said):
        body["stream"] = True
        if usage and ask.doc.get("stream_options"):
            body["stream_options"] = ask.doc["stream_options"]
    return body
