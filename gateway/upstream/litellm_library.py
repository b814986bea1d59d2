"""The one place that imports litellm: its transformations of requests, used as pure functions of one provider.

It is imported when a policy needs it, never in a request: that takes about 4 seconds and 200 MB. Its own network calls
are off: price list, headers, `.env`, images. What it would do with a credential or destination is never left to it.
"""

import logging
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import orjson

from gateway.formats.completion import Misread

_SETTINGS = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_MODE": "PRODUCTION",  # else it reads a .env file of the directory it is started in
    "MAX_IMAGE_URL_DOWNLOAD_SIZE_MB": "0",  # it fetches no images
}
_LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy")
_KEPT = 256  # models whose config is kept; clients may name any that `passthrough` lets through
_NO_KEY = "no-key"  # without any, litellm looks for one in the environment
_CREDENTIALS = frozenset(("authorization", "x-api-key", "api-key", "x-goog-api-key"))
_NOT_PARAMETERS = frozenset(("stream", "stream_options", "extra_headers", "max_retries"))


class Untranslatable(Exception):
    """A request that litellm cannot put into the provider's words; the message is for the client."""


@dataclass(frozen=True, slots=True)
class Translated:
    """A request in the provider's words. `json_tool` and `names` tell how to read the answer; `fake_stream` that the
    model cannot stream."""

    body: dict[str, Any]
    headers: Mapping[str, str]
    json_tool: str | None = None
    names: Mapping[str, str] | None = None
    fake_stream: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """litellm's config for one model, the parameters that it knows, and whether `stream_options` is one of them."""

    config: Any
    parameters: frozenset[str]
    stream_options: bool


class Library:
    """litellm, seen from one provider. Making one imports it."""

    def __init__(self, provider: str) -> None:
        self.provider = provider
        _import()
        self._utils = import_module("litellm.utils")
        self._types = import_module("litellm.types.utils")
        self._config = self._finder()
        self._names_key = import_module(
            "litellm.llms.anthropic.chat.transformation"
        ).ANTHROPIC_TOOL_NAME_REVERSE_MAP_KEY
        self._json_tool = import_module("litellm.constants").RESPONSE_FORMAT_TOOL_NAME
        self._gemini_body = import_module("litellm.llms.vertex_ai.gemini.transformation").transform_request_body
        self._known: OrderedDict[str, Known] = OrderedDict()

    def known(self, model: str) -> Known:
        """What litellm knows of a model."""
        found = self._known.get(model)
        if found is None:
            config = self._config(model)
            if config is None:
                raise Untranslatable(f"litellm has no chat format for the model {model!r} of {self.provider}.")
            listed = frozenset(config.get_supported_openai_params(model) or ())
            found = self._known[model] = Known(config, listed - _NOT_PARAMETERS, "stream_options" in listed)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return found

    def base_url(self, given: str | None = None) -> str | None:
        """Where the provider is, as far as litellm knows; what is `given`, as it completes it."""
        library = import_module("litellm")
        found = library.get_llm_provider(model="any", custom_llm_provider=self.provider, api_base=given)[3]
        return str(found) if found else None

    def translate(
        self,
        model: str,
        messages: list[Any],
        given: dict[str, Any],
        *,
        own: Mapping[str, Any],
        key: str | None,
        base: str,
        drop: bool,
        stream: bool,
        more: Mapping[str, Any] | None = None,
        ready: Mapping[str, str] | None = None,
    ) -> Translated:
        """The request that says the same. `own` are the provider's own parameters, `more` are settings of litellm's.

        `ready` are the headers, where litellm must not make them. Raises Untranslatable.
        """
        known = self.known(model)
        config = known.config
        settings: dict[str, Any] = {"drop_params": drop, **(more or {})}
        try:
            asked = {**given, "stream": True} if stream else given
            optional = config.map_openai_params(asked, {}, model, drop)
            json_mode = optional.pop("json_mode", False)
            fake = bool(optional.pop("fake_stream", False))
            extra = optional.pop("extra_body", None) or {}
            optional |= own
            headers = (
                self._headers(config, model, messages, optional, settings, key, base) if ready is None else dict(ready)
            )
            if self._is_gemini(config):
                optional.pop("stream", None)
                body = self._gemini_body(messages, model, optional, self.provider, settings, None)
            else:
                body = config.transform_request(model, messages, optional, settings, headers)
            fake = fake or (
                stream and config.should_fake_stream(model=model, stream=True, custom_llm_provider=self.provider)
            )
        except Exception as error:  # noqa: BLE001 - litellm raises what it likes at a request that it was not made for
            raise _untranslatable(error, self.provider) from None
        return Translated(
            {**body, **extra},
            {name.lower(): value for name, value in headers.items()},
            json_tool=self._json_tool if json_mode else None,
            names=settings.get(self._names_key),
            fake_stream=fake,
        )

    def url(self, model: str, base: str, *, stream: bool = False, **settings: str) -> str:
        """The provider's URL for chat. Raises Untranslatable."""
        try:
            return str(self.known(model).config.get_complete_url(base, _NO_KEY, model, {}, settings, stream))
        except Exception as error:  # noqa: BLE001 - as above
            raise _untranslatable(error, self.provider) from None

    def signed(self, model: str, said: Translated, url: str, own: Mapping[str, Any]) -> tuple[Mapping[str, str], bytes]:
        """The headers with the signature, and the body that it is of. Raises Untranslatable."""
        try:
            headers, body = self.known(model).config.sign_request(dict(said.headers), dict(own), said.body, url)
        except Exception as error:  # noqa: BLE001 - as above
            raise _untranslatable(error, self.provider) from None
        return {name.lower(): value for name, value in headers.items()}, body

    def reads_answers(self) -> None:
        """Make ready, before serving, what litellm makes when it first reads an answer; pydantic warns of its types."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._types.ModelResponse().model_dump()
            self._types.Delta(content="")
            self._types.ModelResponseStream(choices=[]).model_dump()

    def answer(self, model: str, doc: Mapping[str, Any], said: Translated, messages: list[Any]) -> dict[str, Any]:
        """A whole answer as a chat completion. Raises Misread."""
        response = import_module("httpx").Response(200, content=orjson.dumps(doc))
        with _reading():
            found: dict[str, Any] = (
                self.known(model)
                .config.transform_response(
                    model=model,
                    raw_response=response,
                    model_response=self._types.ModelResponse(),
                    logging_obj=_Silent(),
                    request_data=said.body,
                    messages=messages,
                    optional_params={},
                    litellm_params={},
                    encoding=None,
                )
                .model_dump(warnings=False, exclude_unset=False)
            )
        return found

    def chunks(self, module: str, function: str) -> Callable[..., dict[str, Any]]:
        """A reader of litellm's for one streamed event, as one that gives the chunk. It raises as `answer` does."""
        read = getattr(import_module(module), function)

        def chunk(doc: Mapping[str, Any], **seen: bool) -> dict[str, Any]:
            with _reading():
                found: dict[str, Any] = read(doc, **seen).model_dump(warnings=False, exclude_unset=False)
            return found

        return chunk

    def _finder(self) -> Callable[[str], Any]:
        try:
            member = self._types.LlmProviders(self.provider)
        except ValueError:  # one that stands in a list only
            entry = import_module("litellm.llms.openai_like.json_loader").JSONProviderRegistry.get(self.provider)
            if entry is None:
                raise ValueError(
                    f"the installed litellm does not know {self.provider!r}; install a newer one"
                ) from None
            listed = import_module("litellm.llms.openai_like.dynamic_config").create_config_class(entry)()
            return lambda _: listed
        return lambda model: self._utils.ProviderConfigManager.get_provider_chat_config(model, member)

    def _headers(
        self,
        config: Any,
        model: str,
        messages: list[Any],
        optional: dict[str, Any],
        settings: dict[str, Any],
        key: str | None,
        base: str,
    ) -> dict[str, str]:
        try:
            found = config.validate_environment({}, model, messages, optional, settings, key or _NO_KEY, base)
        except NotImplementedError:  # Azure's
            return {}
        if key is None:
            return {name: value for name, value in found.items() if name.lower() not in _CREDENTIALS}
        return dict(found)

    def _is_gemini(self, config: Any) -> bool:
        return hasattr(config, "get_model_for_vertex_ai_url")


class _Silent:
    """What litellm tells its log of answers goes nowhere."""

    def post_call(self, *_: Any, **__: Any) -> None:
        """Nothing."""


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - what it says may hold the answer
        raise Misread(f"an answer that litellm cannot read ({type(error).__name__})") from None


def _import() -> None:
    os.environ.update(_SETTINGS)
    for name in _LOGGERS:  # they tell of contents
        logging.getLogger(name).disabled = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        litellm: Any = import_module("litellm")
    litellm.suppress_debug_info = True
    for name in _LOGGERS:
        logging.getLogger(name).disabled = True


def _untranslatable(error: Exception, provider: str) -> Untranslatable:
    # of other errors the message may hold the request itself
    message = getattr(error, "message", None)
    if type(error).__name__ == "UnsupportedParamsError" and isinstance(message, str):
        told = message.removeprefix("litellm.").removeprefix("UnsupportedParamsError:").partition("To drop it")[0]
        told = told.partition("litellm.drop_params")[0].strip()
        return Untranslatable(f"This request cannot be translated for {provider}: {told[:500]}")
    return Untranslatable(
        f"This request cannot be translated for {provider} ({type(error).__name__}); "
        "check that its messages, tools and formats are as OpenAI's reference has them."
    )
