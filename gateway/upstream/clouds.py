"""Providers whose answers are OpenAI's, more or less, and whose URLs, credentials or framing are their own."""

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import orjson

from gateway.formats.mistral import MendedAnswer, MendedStream
from gateway.formats.payload_parts import PayloadParts
from gateway.policy.schema import Backend
from gateway.upstream.aws_signature import Credentials, sign
from gateway.upstream.dialects import Ask, Compatible, Outgoing, Reading, claude, target_of
from gateway.upstream.litellm_library import Translated
from gateway.upstream.wire import Header

_JSON = "application/json"


class HuggingFace(Compatible):
    """Hugging Face's router, and its dedicated endpoints. `base_url` keeps litellm from looking models up."""

    def __init__(self, name: str, settings: Backend, provider: str) -> None:
        super().__init__(name, settings, provider)
        self.library_settings = {"api_base": self.base}


class DataRobot(Compatible):
    """DataRobot's gateway at its host, or one deployment at its whole URL."""

    def __init__(self, name: str, settings: Backend, provider: str) -> None:
        super().__init__(name, settings, provider)
        self.base = self.library.base_url(self.base) or self.base


class RagFlow(Compatible):
    """RAGFlow, whose models are `chat/{id}/{model}` and `agent/{id}/{model}`."""

    def _default_base(self, settings: Backend) -> str:
        raise ValueError(
            f"backends.{self._backend}: `base_url` is missing, and RAGFlow runs where you put it; write where"
        )

    def _known_as(self, model: str) -> str:
        return model if model.startswith("ragflow/") else f"ragflow/{model}"


class Snowflake(Compatible):
    """Snowflake's Cortex: Claude in Anthropic's format, everything else in OpenAI's. A key may begin with `pat/`."""

    labels = False
    options = frozenset(("account_id",))

    def _default_base(self, settings: Backend) -> str:
        account = settings.options.get("account_id")
        if not account:
            raise ValueError(f"backends.{self._backend}.options: `account_id` is missing; write it, or a `base_url`")
        return f"https://{quote(account, safe='')}.snowflakecomputing.com"

    def _reading(self, ask: Ask, said: Translated) -> Reading | None:
        is_claude = ask.model.lower().startswith(("claude-", "claude_"))
        return claude(ask, said) if is_claude else super()._reading(ask, said)


class Watsonx(Compatible):
    """watsonx.ai's chat, by IBM Cloud's api key, which is exchanged for a token, or by Cloud Pak's own key."""

    labels = False
    options = frozenset(("region", "project_id", "space_id", "api_version", "auth"))

    def __init__(self, name: str, settings: Backend, provider: str) -> None:
        options = settings.options
        self._auth = options.get("auth", "iam")
        if self._auth not in ("iam", "token", "zen"):
            raise ValueError(f"backends.{name}.options.auth: {self._auth!r} is none; write iam, token or zen")
        self._place = {key: options[key] for key in ("project_id", "space_id") if key in options}
        super().__init__(name, settings, provider)
        self.exchanges_keys = self._auth == "iam"

    def _default_base(self, settings: Backend) -> str:
        region = settings.options.get("region")
        if not region:
            raise ValueError(f"backends.{self._backend}.options: `region` is missing; write for example us-south")
        return f"https://{quote(region, safe='')}.ml.cloud.ibm.com"

    def _ready(self, ask: Ask) -> Mapping[str, str]:
        scheme = "ZenApiKey" if self._auth == "zen" else "Bearer"
        return {"content-type": _JSON, **({"authorization": f"{scheme} {ask.key}"} if ask.key else {})}

    def _outgoing(self, ask: Ask, said: Translated, body: dict[str, Any]) -> Outgoing:
        body = {name: value for name, value in body.items() if name not in ("model", "stream")}
        if not ask.model.startswith("deployment/"):
            body |= {"model_id": ask.model, **self._place}
        found = super()._outgoing(ask, said, body)
        version = self._options.get("api_version")
        target = found.target.partition(b"?")[0] + f"?version={quote(version)}".encode() if version else found.target
        return Outgoing(target, found.headers, found.body, found.read, found.model)

    def _reading(self, ask: Ask, said: Translated) -> Reading | None:
        # its events have ids and names, which are nobody's business here
        return lambda _: MendedStream() if ask.stream else MendedAnswer()


class SageMaker(Compatible):
    """An endpoint of SageMaker that takes messages; its name is the model's."""

    labels = False
    options = frozenset(
        (
            *("region", "aws_region_name", "aws_access_key_id", "aws_secret_access_key", "aws_session_token"),
            *("hf_model_name", "model_id"),
        )
    )

    def __init__(self, name: str, settings: Backend, provider: str) -> None:
        options = settings.options
        self._region = options.get("region") or options.get("aws_region_name") or ""
        identity, secret = options.get("aws_access_key_id"), options.get("aws_secret_access_key")
        if not self._region:
            raise ValueError(f"backends.{name}.options: `region` is missing; write for example region: us-east-1")
        if not (identity and secret):
            raise ValueError(
                f"backends.{name}: SageMaker needs `options: {{aws_access_key_id: …, aws_secret_access_key: …}}`"
            )
        self._credentials = Credentials(identity, secret, options.get("aws_session_token"))
        self.library_settings = {name: options[name] for name in ("hf_model_name",) if name in options}
        super().__init__(name, settings, provider)
        parts = urlsplit(self.base)
        self._authority = parts.netloc.removesuffix(":443" if parts.scheme == "https" else ":80")

    def _default_base(self, settings: Backend) -> str:
        suffix = "amazonaws.com.cn" if self._region.startswith("cn-") else "amazonaws.com"
        return f"https://runtime.sagemaker.{quote(self._region, safe='')}.{suffix}"

    def _outgoing(self, ask: Ask, said: Translated, body: dict[str, Any]) -> Outgoing:
        verb = "invocations-response-stream" if ask.stream else "invocations"
        path = f"{self.path}/endpoints/{quote(ask.model, safe='')}/{verb}"
        raw = orjson.dumps(body)
        headers: list[Header] = [
            *sign(
                self._credentials,
                region=self._region,
                service="sagemaker",
                authority=self._authority,
                path=path,
                body=raw,
                now=time.time(),
            )
        ]
        if "model_id" in self._options:
            headers.append((b"x-amzn-sagemaker-inference-component", self._options["model_id"].encode()))
        return Outgoing(target_of(path), headers, raw, self._reading(ask, said), ask.model)

    def _reading(self, ask: Ask, said: Translated) -> Reading | None:
        return (lambda _: PayloadParts()) if ask.stream else super()._reading(ask, said)
