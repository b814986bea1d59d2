"""What the requests that are no conversation have in common: their bytes pass, and what they consumed is noted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import orjson

from gateway.errors import GatewayError
from gateway.formats.chat import read_answer
from gateway.formats.chat_stream import read_json
from gateway.formats.continuation import Continuation
from gateway.formats.request import EVENTS, Extent, NotAnAnswer, Untranslatable
from gateway.formats.splice import replace_fields, replace_model
from gateway.formats.sse import RecordTooLarge, Splitter, data_of
from gateway.formats.tokens import estimate
from gateway.formats.usage import Usage, parse_usage

_COMPATIBLE = ("openai", "simulator")


@dataclass(frozen=True, slots=True)
class PassingRequest:
    """A JSON request whose `model` alone is changed on its way. `max_output` is the most tokens of each of `n` answers.

    `field` is what its answer must have.
    """

    raw: bytes
    doc: Mapping[str, Any]
    model: str
    extent: Extent
    stream: bool = False
    max_output: int | None = 0
    n: int = 1

    mode: ClassVar[str] = ""
    operation: ClassVar[str] = ""
    endpoint: ClassVar[bytes] = b""
    field: ClassVar[str] = ""

    @property
    def content_type(self) -> bytes:
        """JSON."""
        return b"application/json"

    @property
    def accept(self) -> bytes:
        """What a stream may come as."""
        return EVENTS

    def path(self, provider: str) -> bytes:
        """The path below the backend's base URL."""
        return self.endpoint

    def encode(
        self, model: str, *, provider: str = "openai", max_output: int | None = None, output_field: str = "max_tokens"
    ) -> bytes:
        """The body with `model` as the backend calls it. Raises Untranslatable for a backend of another format."""
        check_compatible(self.endpoint, provider)
        if model == self.model:
            return self.raw
        name = orjson.dumps(model)
        if "model" not in self.doc:
            return replace_fields(self.raw, self.doc, {"model": name})
        return replace_model(self.raw, self.doc, name)

    def read(self, body: bytes, content_type: bytes, provider: str) -> "PassingAnswer":
        """A whole answer from its bytes. Raises NotAnAnswer."""
        doc = read_answer(body)
        if type(doc.get(self.field)) is not list:
            raise NotAnAnswer(f"an answer without `{self.field}`")
        return PassingAnswer.of(body, doc, self.usage_of(doc) or self.expected())

    def usage_of(self, doc: Mapping[str, Any]) -> Usage | None:
        """What an answer or an event says it consumed."""
        usage = doc.get("usage")
        return parse_usage(usage) if isinstance(usage, Mapping) else None

    def expected(self) -> Usage:
        """What it is taken to consume where the backend does not say."""
        return Usage(input_tokens=estimate(self.text()), estimated=True)

    def events(self, provider: str, continues: Continuation | None) -> "Passing":
        """The observer of one upstream stream."""
        return PassingEvents(self.usage_of, self.expected(), self.n)

    def error_event(self, error: GatewayError) -> bytes:
        """The event that ends a stream which cannot be finished."""
        return b"data: " + orjson.dumps(error.to_openai()) + b"\n\n"

    def error_body(self, error: GatewayError) -> bytes:
        """The body of an error."""
        return orjson.dumps(error.to_openai())

    def text(self) -> str:
        """All the text that it sends, for counting."""
        return ""

    def go_on(self, delivered: str, delivered_tokens: int) -> Self | None:
        """Nothing of the kind can be continued."""
        return None


def check_compatible(endpoint: bytes, provider: str) -> None:
    """Raise Untranslatable unless a backend of this provider has OpenAI's endpoints."""
    if provider.partition("+")[0] not in _COMPATIBLE:
        raise Untranslatable(
            f"Requests to /v1{endpoint.decode()} go to OpenAI-compatible backends only, and this one speaks "
            f"{provider!r}; ask for a model at another backend, or declare one with `provider: openai`.",
            param="model",
        )


@dataclass(frozen=True, slots=True)
class PassingAnswer:
    """A whole answer, passed on as it came."""

    body: bytes
    usage: Usage | None
    text: str = ""
    response_id: str = ""
    response_model: str = ""
    finish_reasons: tuple[str, ...] = ()

    @classmethod
    def of(cls, body: bytes, doc: Mapping[str, Any], usage: Usage, text: str = "") -> "PassingAnswer":
        """The answer that parses to `doc`."""
        return cls(body, usage, text, str(doc.get("id") or ""), str(doc.get("model") or ""))


class Passing:
    """A stream that passes as it comes; what it may not know of its text is left empty. `usage` begins as expected."""

    __slots__ = (
        "beyond_text",
        "broken",
        "continues",
        "created",
        "done",
        "error",
        "malformed",
        "pieces",
        "response_id",
        "response_model",
        "started",
        "text",
        "unkept",
        "usage",
    )

    def __init__(self, expected: Usage) -> None:
        self.started = False
        self.done = False
        self.broken = False
        self.error: Mapping[str, Any] | None = None
        self.malformed = 0
        self.usage: Usage | None = expected
        self.text: dict[int, list[str]] = {}
        self.unkept = 0
        self.pieces = 0
        self.beyond_text = True
        self.response_id = ""
        self.response_model = ""
        self.created = 0
        self.continues: Continuation | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing is missing."""
        return self.done

    @property
    def whole(self) -> bool:
        """Whether the backend meant to end here."""
        return self.started and self.finished and self.error is None and not self.broken

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """There are none."""
        return ()

    @property
    def all_text(self) -> str:
        """Nothing that would be counted."""
        return ""

    @property
    def place(self) -> object:
        """It is never continued."""
        return None

    def feed(self, data: bytes) -> bytes:
        """The same bytes."""
        self.started = True
        return data

    def finish(self) -> bytes:
        """The upstream has ended as its framing said: the answer is whole."""
        self.done = True
        return b""

    def closing(self) -> bytes:
        """Nothing: the end of the message is the end."""
        return b""


class PassingEvents(Passing):
    """A stream of OpenAI's named events (`type`: `…delta`, `…partial_image`, … `…done` or `…completed`), usage noted.

    The events pass as they came, whole ones only. It is finished by `answers` final ones.
    """

    __slots__ = ("_left", "_splitter", "_usage_of")

    def __init__(
        self, usage_of: Callable[[Mapping[str, Any]], Usage | None], expected: Usage, answers: int = 1
    ) -> None:
        super().__init__(expected)
        self._usage_of = usage_of
        self._splitter = Splitter()
        self._left = answers

    @property
    def finished(self) -> bool:
        """Whether every final event has come."""
        return self._left <= 0

    @property
    def whole(self) -> bool:
        """Whether the backend meant to end here."""
        ended = self.finished or (self.done and not self.malformed)
        return self.started and ended and self.error is None and not self.broken

    def feed(self, data: bytes) -> bytes:
        """The events that are whole now."""
        try:
            records = self._splitter.feed(data)
        except RecordTooLarge:
            self.broken = True
            return b""
        return b"".join([record + b"\n\n" for record in records if self._passes(record)])

    def finish(self) -> bytes:
        """A last event that lacks its blank line."""
        rest = self._splitter.rest()
        return rest + b"\n\n" if self._passes(rest) else b""

    def _passes(self, record: bytes) -> bool:
        """Note what an event means; false for one that the client must not see."""
        if self.done or self.error is not None or not record:
            return False
        data = data_of(record)
        if data is None:
            return True
        if data.strip() == b"[DONE]":
            self.done = True
            return True
        try:
            doc = read_json(data)
        except ValueError:
            doc = None
        if type(doc) is not dict:
            self.malformed += 1
            return False
        if doc.get("error") or doc.get("type") == "error":
            self.error = doc
            return False
        self.started = True
        self._note(doc)
        return True

    def _note(self, doc: Mapping[str, Any]) -> None:
        if str(doc.get("type")).endswith((".done", ".completed")):
            self._left -= 1
        usage = self._usage_of(doc)
        if usage is not None:
            known = self.usage
            self.usage = usage if known is None or known.estimated else known + usage
