"""What every endpoint's request, answer and stream have in common, so that one way carries them all."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from gateway.errors import GatewayError, InvalidRequest
from gateway.formats.continuation import Continuation
from gateway.formats.usage import Usage

RESPONSES = "+responses"  # what a backend's `speaks` ends with where it has `/responses` as OpenAI defines it


class NotAnAnswer(ValueError):
    """What came with a good status is no answer of this endpoint; `error` is the error object that came instead."""

    def __init__(self, reason: str, error: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.error = error


class Untranslatable(InvalidRequest):
    """What this backend's format cannot say, while another candidate's may."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much a request can consume, as far as the request alone tells.

    `prompts` are its inputs that are answered each by itself: a model's context bounds every one of them. `writes` says
    that its output is text, which a limit in tokens shortens; else `max_output` is the most that each of `n` answers
    can have, and is never lowered. `input_bound` are the most input tokens where the body's length does not tell
    (sound). `beside` is what comes beside tokens of text at most: pictures, characters, milliseconds; and how many of
    the tokens are of pictures or sound.
    """

    prompts: int = 1
    writes: bool = True
    input_bound: int | None = None
    beside: Usage = field(default_factory=Usage)

    def most(self, input_tokens: int, output_tokens: int) -> Usage:
        """All of it, with these tokens."""
        return replace(self.beside, input_tokens=input_tokens, output_tokens=output_tokens, estimated=True)


TEXT = Extent()  # of a conversation: one prompt, and text for an answer
EVENTS = b"text/event-stream"
ANYTHING = b"*/*"


class Answer(Protocol):
    """A whole answer, as the client will get it in `body`. `usage` is None where the backend did not report it."""

    @property
    def body(self) -> bytes:
        """What the client gets."""
        ...

    @property
    def usage(self) -> Usage | None:
        """What the backend says it consumed."""
        ...

    @property
    def text(self) -> str:
        """All that it says, for counting."""
        ...

    @property
    def response_id(self) -> str:
        """The backend's id of it."""
        ...

    @property
    def response_model(self) -> str:
        """The model that the backend says has answered."""
        ...

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Why each choice ended."""
        ...


class Events(Protocol):
    """One upstream stream seen from the side; `ChatStream` says what its names mean.

    `feed` and `finish` give bytes in the client's own format, `closing` what ends a whole stream in that format.
    """

    started: bool
    done: bool
    broken: bool
    error: Mapping[str, Any] | None
    malformed: int
    usage: Usage | None
    text: dict[int, list[str]]
    unkept: int
    pieces: int
    beyond_text: bool
    response_id: str
    response_model: str
    created: int
    continues: Continuation | None

    @property
    def finished(self) -> bool:
        """Whether every choice has said why it stopped."""
        ...

    @property
    def whole(self) -> bool:
        """Whether the backend meant to end here."""
        ...

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Why each choice ended."""
        ...

    @property
    def all_text(self) -> str:
        """Everything that was delivered, for counting; without the characters that `unkept` counts."""
        ...

    @property
    def place(self) -> object:
        """Where the stream stands in the client's format, for `Continuation.place`; None where that has no meaning."""
        ...

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on for these bytes."""
        ...

    def finish(self) -> bytes:
        """The bytes to pass on when the upstream has ended."""
        ...

    def closing(self) -> bytes:
        """What ends a whole stream."""
        ...


class Request(Protocol):
    """A client's request to any endpoint.

    `mode` is the kind of model that can answer it (as `models: mode` and the bundled list say), `operation` its name in
    the GenAI conventions. `max_output` is the client's own limit in tokens for each of `n` answers. `provider` is what
    the backend speaks, its provider's name or `openai+responses`, since some speak the client's format themselves.
    """

    @property
    def raw(self) -> bytes:
        """The body as it came."""
        ...

    @property
    def doc(self) -> Mapping[str, Any]:
        """What the body means."""
        ...

    @property
    def model(self) -> str:
        """The name that the client asked for."""
        ...

    @property
    def stream(self) -> bool:
        """Whether the answer is to be streamed."""
        ...

    @property
    def max_output(self) -> int | None:
        """The client's own limit."""
        ...

    @property
    def n(self) -> int:
        """How many answers."""
        ...

    @property
    def mode(self) -> str:
        """The kind of model."""
        ...

    @property
    def operation(self) -> str:
        """The GenAI operation."""
        ...

    @property
    def content_type(self) -> bytes:
        """Of the body that `encode` makes."""
        ...

    @property
    def extent(self) -> Extent:
        """How much it can consume; `TEXT` for a conversation."""
        ...

    @property
    def accept(self) -> bytes:
        """What a streamed answer may come as: EVENTS, or ANYTHING for sound and for what may come whole after all."""
        ...

    def path(self, provider: str) -> bytes:
        """The path below the backend's base URL."""
        ...

    def encode(
        self, model: str, *, provider: str = "openai", max_output: int | None = None, output_field: str = "max_tokens"
    ) -> bytes:
        """The body for a backend: `model` as it calls it, the output limit lowered where `max_output` says so.

        Raises Untranslatable for what the backend's format cannot say.
        """
        ...

    def read(self, body: bytes, content_type: bytes, provider: str) -> Answer:
        """A whole answer from its bytes. Raises NotAnAnswer."""
        ...

    def events(self, provider: str, continues: Continuation | None) -> Events:
        """The observer of one upstream stream."""
        ...

    def error_event(self, error: GatewayError) -> bytes:
        """The event that ends a stream which cannot be finished."""
        ...

    def error_body(self, error: GatewayError) -> bytes:
        """The body of an error, in the client's format."""
        ...

    def text(self) -> str:
        """All the text that it sends, for counting."""
        ...

    def go_on(self, delivered: str, delivered_tokens: int) -> "Request | None":
        """The request for the rest of an answer that was cut after `delivered`; None where that cannot be asked."""
        ...
