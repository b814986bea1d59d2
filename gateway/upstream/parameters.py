"""Sorts the fields of a chat request for a provider: what it knows, what it does not, and what no client may choose."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import InvalidRequest
from gateway.formats.steering import steers

_TAKEN_APART = frozenset(("model", "messages", "stream", "stream_options"))
# OpenAI's own parameters; a provider that does not have one cannot just be sent it.
_OPENAI = """
audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens metadata
modalities n parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_retention
reasoning_effort response_format safety_identifier seed service_tier stop store temperature tool_choice tools
top_logprobs top_p user verbosity web_search_options
"""
OPENAI = frozenset(_OPENAI.split())
# It names the client's own user, and no answer depends on it: who does not take it is not sent it. Anthropic's SDKs and
# the tools built on them always say it.
_LABELS = frozenset(("user",))
# What means the same as leaving it out; clients send it without meaning anything.
_NOTHING: Mapping[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "functions": [],
    "logit_bias": {},
    "logprobs": False,
    "modalities": ["text"],
    "n": 1,
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "service_tier": "auto",
    "store": False,
    "tools": [],
    "tool_choice": "auto",
    "metadata": {},
}


@dataclass(frozen=True, slots=True)
class Sorted:
    """`given` are OpenAI's parameters, to be mapped; `own` the provider's; `rest` goes on as it came."""

    given: dict[str, Any]
    own: Mapping[str, Any] = field(default_factory=dict)
    rest: Mapping[str, Any] = field(default_factory=dict)


def sort(
    doc: Mapping[str, Any],
    *,
    known: AbstractSet[str],
    own: AbstractSet[str],
    rest_goes_on: bool,
    labels: bool,
    drop: bool,
    backend: str,
    provider: str,
) -> Sorted:
    """The fields that mean something. Raises InvalidRequest that names all that the provider does not know.

    With `drop` those are left out instead. With `rest_goes_on` only OpenAI's own parameters can be unknown, and with
    `labels` the provider takes `user` although litellm does not know of it. What would choose a destination or a
    credential is always refused.
    """
    steering = [name for name in doc if steers(name)]
    if steering:
        raise InvalidRequest(
            f"{_listed(steering)} cannot be chosen by a client; leave {_them(steering)} out.",
            code="unsupported_parameter",
            param=steering[0],
        )
    given: dict[str, Any] = {}
    special: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    unknown = []
    for name, value in doc.items():
        if name in _TAKEN_APART or value is None:
            continue
        if name in own:
            special[name] = value
            continue
        if name in _NOTHING and value == _NOTHING[name] and (name not in known or not rest_goes_on):
            continue
        if name in known:
            given[name] = value
        elif rest_goes_on and name not in OPENAI:
            rest[name] = value
        elif name in _LABELS:
            if labels:
                rest[name] = value
        else:
            unknown.append(name)
    if unknown and not drop:
        raise InvalidRequest(
            f"Backend {backend!r} ({provider}) does not support {_listed(unknown)} for this model; leave "
            f"{_them(unknown)} out, or set `drop_params: true` at the backend to have {_them(unknown)} dropped.",
            code="unsupported_parameter",
            param=unknown[0],
        )
    return Sorted(given, special, rest)


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name[:64]}`" for name in names[:20])


def _them(names: list[str]) -> str:
    return "it" if len(names) == 1 else "them"
