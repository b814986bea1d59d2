"""A stream of chat's chunks whose client sees another format: what all such formats have in common."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from gateway.formats.chat_stream import ChatStream
from gateway.formats.continuation import Continuation
from gateway.formats.request import NotAnAnswer
from gateway.formats.tokens import estimate
from gateway.formats.usage import Usage, parse_usage


class Rewritten(ChatStream):
    """Reads chunks; a format says in `_begin`, `_choice` and `_end` what is written for them.

    `asked` counts the request's tokens, for a backend that does not. `_begun` says that the head is written: that of a
    stream which goes on was written by the one before it.
    """

    __slots__ = ("_asked", "_begun")

    def __init__(self, asked: Callable[[], int], continues: Continuation | None) -> None:
        super().__init__(hide_usage=False, continues=continues)
        self._asked = asked
        self._begun = continues is not None

    def closing(self) -> bytes:
        """What ends a whole answer, with all that it consumed."""
        used = self.usage or Usage(self._asked(), estimate(self.all_text), estimated=True)
        if self.continues is not None:
            used = self.continues.used + used
        return self._head() + self._end(used)

    def _show(self, doc: dict[str, Any], data: bytes, out: list[bytes]) -> None:
        usage = doc.get("usage")
        if type(usage) is dict:
            self.usage = parse_usage(usage) or self.usage
        if self.continues is not None:
            joined = self.continues.rewrite(doc)
            if joined is None:
                return
            doc = joined
        choices = doc.get("choices")
        if not choices or type(choices) is not list:
            return
        self._choices_of(doc, choices)
        out.append(self._head())
        choice = choices[0]
        if type(choice) is dict and not choice.get("index"):
            delta = choice.get("delta")
            self._choice(choice, delta if type(delta) is dict else {}, out)

    def _head(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return self._begin()

    def _begin(self) -> bytes:
        """The head of the answer."""
        raise NotImplementedError

    def _choice(self, choice: Mapping[str, Any], delta: Mapping[str, Any], out: list[bytes]) -> None:
        """What the first choice of a chunk adds."""
        raise NotImplementedError

    def _end(self, used: Usage) -> bytes:
        """The end of the answer."""
        raise NotImplementedError


def first_choice(doc: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one choice of a whole answer that another format can show. Raises NotAnAnswer."""
    choices = doc.get("choices")
    if type(choices) is not list or not choices or type(choices[0]) is not dict:
        raise NotAnAnswer("an answer without `choices`")
    return choices[0]


def calls_in(delta: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The pieces of tool calls in a delta, each with the number of its call."""
    calls = delta.get("tool_calls")
    for place, call in enumerate(calls if type(calls) is list else ()):
        if type(call) is dict:
            number = call.get("index")
            yield number if type(number) is int else place, call


def name_of(call: Mapping[str, Any]) -> str:
    """The function that a tool call is of."""
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def chat_body(
    chat: dict[str, Any], model: str, *, provider: str, limit: int | None, output_field: str, stream: bool
) -> bytes:
    """The chat request, as bytes, that another format's request has become; `limit` are its output tokens."""
    if not provider.startswith("openai"):
        chat.pop("user", None)  # some know no such field, and would refuse a request that never had it
    if limit is not None:
        chat[output_field] = limit
    if stream:
        chat["stream"], chat["stream_options"] = True, {"include_usage": True}
    return orjson.dumps({"model": model, **chat})
