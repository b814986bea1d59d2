"""What every fake provider answers: one small mind behind all the formats, so that each says the same to the same request."""

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Ending = Literal["stop", "length", "tool_calls", "stop_sequence"]
SCHEMA_ANSWER = '{"city": "Zürich", "degrees": 1.5}'
ARGUMENTS: Sequence[Mapping[str, Any]] = ({"city": "Zürich", "at": 1.5}, {"city": "東京"})
CACHED, WRITTEN, BASE = 16, 4, 20  # tokens
_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,(.+)", re.DOTALL)
_TOKEN = re.compile(r"\s*\S+")


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that may be called, by its name and the properties of its arguments."""

    name: str
    properties: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, whatever its format was. `begun` is the beginning of the assistant's answer; `limit` is in tokens."""

    text: str
    system: str = ""
    images: Sequence[str] = ()
    results: Sequence[str] = ()
    tools: Sequence[Tool] = ()
    may_call: bool = True
    wants_json: bool = False
    begun: str = ""
    limit: int | None = None
    stop: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Said:
    """An answer before it has a format. `input_tokens` includes those that were cached and written."""

    tokens: Sequence[str]
    calls: Sequence[Call]
    ending: Ending
    stopped_by: str | None
    input_tokens: int
    cached: int
    written: int

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.tokens)

    @property
    def output_tokens(self) -> int:
        """Tokens of text, and ten for each call."""
        return len(self.tokens) + 10 * len(self.calls)


def sentence(asked: Asked) -> str:
    """What is said in the end when nothing cuts it short: it tells all that was understood of the request."""
    if asked.wants_json:
        return SCHEMA_ANSWER
    told = [f"Grüße! You said: {asked.text}"]
    told += [f"under: {asked.system}"] if asked.system else []
    told += [f"showing: {', '.join(asked.images)}"] if asked.images else []
    told += [f"knowing: {', '.join(asked.results)}"] if asked.results else []
    return " — ".join(told) + ". 世界 👩‍👩‍👧 end."


def say(asked: Asked) -> Said:
    """The answer. A tool that may be called is called until there is a result; `both` in the text calls it twice."""
    if asked.tools and asked.may_call and not asked.results:
        count = 2 if "both" in asked.text else 1
        tool = asked.tools[0]
        values = [json.loads(SCHEMA_ANSWER)] if "degrees" in tool.properties else ARGUMENTS[:count]
        calls = [Call(tool.name, each) for each in values]
        return _said(asked, (), calls, "tool_calls", None)
    whole = sentence(asked)
    rest = whole.removeprefix(asked.begun)
    found = min(((rest.find(one), one) for one in asked.stop if one in rest), default=None)
    tokens = _TOKEN.findall(rest if found is None else rest[: found[0]])
    if asked.limit is not None and len(tokens) > asked.limit:
        return _said(asked, tokens[: asked.limit], (), "length", None)
    return _said(asked, tokens, (), "stop" if found is None else "stop_sequence", None if found is None else found[1])


def _said(asked: Asked, tokens: Sequence[str], calls: Sequence[Call], ending: Ending, by: str | None) -> Said:
    cached, written = (CACHED, WRITTEN) if "cached" in asked.text else (0, 0)
    read = BASE + len(_TOKEN.findall(f"{asked.system} {asked.text} {asked.begun}")) + 10 * len(asked.images)
    return Said(tuple(tokens), tuple(calls), ending, by, read + cached + written, cached, written)


def picture_of(kind: str, data: str) -> str | None:
    """How an image is told of, `image/png:2560`; None when its data is not base64."""
    try:
        return f"{kind}:{len(base64.b64decode(data, validate=True))}"
    except (binascii.Error, ValueError):
        return None


def picture_of_url(url: str) -> str | None:
    """The same for a data URL; None for any other."""
    found = _DATA.fullmatch(url)
    return None if found is None else picture_of(found[1], found[2])
