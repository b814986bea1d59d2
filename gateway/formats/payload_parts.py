"""SageMaker's response stream: an AWS event stream, whose payloads are pieces of the model's own server-sent events.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_ResponseStream.html.
"""

from collections.abc import Mapping

from gateway.formats.aws_events import BadFrame, Messages
from gateway.formats.chat_stream import read_json
from gateway.formats.completion import ProviderError, error_event
from gateway.formats.foreign import Unreadable
from gateway.formats.mistral import MendedStream

_OVERLOADED = ("InternalStreamFailure", "ServiceUnavailable")


class PayloadParts:
    """The events inside, as they came; what AWS says of a failure becomes an error event, and nothing follows it."""

    __slots__ = ("_failed", "_messages", "_parts", "idle")

    def __init__(self) -> None:
        self._messages = Messages()
        self._parts = MendedStream()
        self._failed = False
        self.idle = self._parts.idle

    def feed(self, data: bytes) -> bytes:
        """The events that are whole now. Raises Unreadable."""
        try:
            messages = self._messages.feed(data)
        except BadFrame as error:
            raise Unreadable(str(error)) from None
        out = b""
        for message in messages:
            if self._failed:
                break
            if message.headers.get(":message-type") in ("exception", "error"):
                self._failed = True
                out += error_event(_failure(message.headers, message.payload))
            else:
                out += self._parts.feed(message.payload)
        return out

    def finish(self) -> bytes:
        """A last event without its blank line. Raises Unreadable when a message was cut off."""
        if not self._messages.between and not self._failed:
            raise Unreadable("a stream that ends inside a message")
        return b"" if self._failed else self._parts.finish()


def _failure(headers: Mapping[str, str], payload: bytes) -> ProviderError:
    kind = headers.get(":exception-type") or headers.get(":error-code") or ""
    try:
        doc = read_json(payload)
    except ValueError:
        doc = None
    told = next((doc[name] for name in ("Message", "message") if name in doc), "") if isinstance(doc, dict) else ""
    message = str(told or headers.get(":error-message") or "the model failed in the middle of its answer")
    return ProviderError(503 if kind in _OVERLOADED else 500, message, kind or None)
