"""An answer on its way to the client: bytes through, usage noted on the side, settled once when it is closed."""

import asyncio
import time
from collections.abc import Callable

from gateway.admission import Admission
from gateway.errors import GatewayError, StreamBroken
from gateway.formats.continuation import Continuation
from gateway.formats.tokens import estimate
from gateway.formats.usage import Usage
from gateway.trip import Trip
from gateway.upstream.answer import CLIENT_GONE, Answer
from gateway.upstream.dispatch import PassThrough, Reporter, Walk
from gateway.upstream.openai import Failed, Plain, Stream
from gateway.upstream.retry import Failure, Kind
from gateway.upstream.wire import Header


class Exchange:
    """The answer to one request: `headers` and `body`, or a stream to be read. It must be closed, on every exit.

    `ended` says that the answer is complete: nothing more will come from `read`. A stream that is cut or falls silent
    goes on at the next candidate that can, as one stream; else `read` raises StreamBroken.
    """

    __slots__ = (
        "_admission",
        "_answer",
        "_head",
        "_report",
        "_said",
        "_trip",
        "_walk",
        "body",
        "ended",
        "headers",
        "status",
    )

    def __init__(
        self,
        trip: Trip,
        walk: Walk[Admission],
        admission: Admission,
        answer: Answer,
        headers: Callable[[Answer], list[Header]],
        report: Reporter,
    ) -> None:
        self._trip = trip
        self._walk = walk
        self._admission = admission
        self._answer: Answer | None = answer
        self._report = report
        self._said = ""
        content = answer.content
        self.status = content.status
        trip.first_token = time.monotonic()
        if isinstance(content, Plain):
            self._note_plain(answer, content)
            self.body: bytes | None = content.answer.body
            self._head = b""
        else:
            self.body = None
            self._head = content.head
        self.ended = self.body is not None
        self.headers = headers(answer)

    @property
    def origin(self) -> tuple[str, Answer] | None:
        """The backend's id of the answer, as far as it is known, and what it came from; None once it is closed."""
        answer = self._answer
        if answer is None:
            return None
        content = answer.content
        return (content.answer if isinstance(content, Plain) else content.events).response_id, answer

    async def read(self) -> bytes:
        """The next bytes of a stream; with `ended`, the last. Raises StreamBroken when it cannot be finished."""
        while True:
            answer = self._answer
            if self.ended or answer is None or isinstance(answer.content, Plain):
                return b""
            stream = answer.content
            events = stream.events
            data, self._head = self._head, b""
            failure = None
            if not data and not events.done:
                try:
                    data = await stream.read()
                except Failed as failed:
                    failure = failed.failure
            if failure is None or events.finished:  # nothing is missing but the end itself
                if data and not (events.done or events.broken or events.error is not None):
                    return data
                if events.whole:
                    self.ended = True
                    return data + events.closing()
                if data:
                    return data
                failure = _why(stream)
            try:
                await self._go_on(answer, stream, failure)
            except StreamBroken as broken:
                self._trip.code = broken.code
                raise

    async def aclose(self) -> None:
        """Give everything back, and settle what was used. Idempotent."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        try:
            if isinstance(answer.content, Stream) and not self.ended:
                if answer.whole:
                    answer.outcome = CLIENT_GONE
                await answer.content.overtake()
        finally:
            if isinstance(answer.content, Stream):
                self._note_stream(answer, answer.content)
            await answer.aclose()

    async def _go_on(self, answer: Answer, stream: Stream, failure: Failure) -> None:
        """Continue elsewhere what was cut here, or raise StreamBroken."""
        broken = self._broken(answer, stream, failure)
        self._walk.broke(answer, failure)
        await self.aclose()
        events = stream.events
        request = self._trip.request
        said = "".join(events.text.get(0, ()))
        if request is None or events.beyond_text or events.text.keys() - {0} or not (self._said + said).strip():
            raise broken
        rest = request.go_on(self._said + said, estimate(self._said + said))
        if rest is None:
            raise broken
        used = self._trip.usage or Usage()
        first = events.continues
        continuation = Continuation(
            response_id=first.response_id if first is not None else events.response_id,
            created=first.created if first is not None else events.created,
            model=first.model if first is not None else events.response_model,
            delivered=self._said + said,
            used=used,
            place=events.place,
        )
        self._admission.go_on(rest)
        try:
            self._answer = await self._walk.go_on(rest, continuation)
        except (GatewayError, PassThrough) as error:
            self._admission.release()
            raise broken from error
        except asyncio.CancelledError:
            self._admission.release()  # no token of it had come; what came before is settled
            raise
        self._said += said
        content = self._answer.content
        if isinstance(content, Stream):
            self._head = content.head

    def _broken(self, answer: Answer, stream: Stream, failure: Failure) -> StreamBroken:
        name = answer.backend.name
        if failure.kind is Kind.STALLED:
            return StreamBroken(f"Backend {name!r} fell silent in the middle of the answer.", code="stream_stalled")
        said = _error_message(stream)
        return StreamBroken(
            f"Backend {name!r} broke off in the middle of the answer." + (f" It said: {said}" if said else "")
        )

    def _note_plain(self, answer: Answer, content: Plain) -> None:
        trip = self._trip
        self._settle(answer, content.answer.usage or self._estimated(content.answer.text))
        if trip.captures_content:
            trip.output_text = content.answer.text
        trip.response_id = content.answer.response_id
        trip.response_model = content.answer.response_model
        trip.finish_reasons = content.answer.finish_reasons

    def _note_stream(self, answer: Answer, stream: Stream) -> None:
        trip, events = self._trip, stream.events
        trip.waited += stream.waited
        if events.malformed:
            trip.malformed += events.malformed
            self._report.event(
                "malformed_event", request_id=trip.request_id, backend=answer.backend.name, count=events.malformed
            )
        if trip.captures_content:
            trip.output_text = (trip.output_text or "") + events.all_text
        self._settle(answer, events.usage or self._estimated(events.all_text, events.pieces, events.unkept))
        trip.response_id = trip.response_id or events.response_id
        trip.response_model = trip.response_model or events.response_model
        trip.finish_reasons = events.finish_reasons

    def _settle(self, answer: Answer, usage: Usage) -> None:
        spent = self._trip.used(answer.candidate.target, usage)
        self._admission.settle(usage, spent)

    def _estimated(self, text: str, pieces: int = 0, unkept: int = 0) -> Usage:
        """Usage that the backend did not report, from the text that passed: a piece is a token at least.

        Of a stream that was left, one more may have been made that did not arrive. What was not kept of a very long one
        is taken to be like what was.
        """
        request = self._trip.request
        asked = estimate(request.text()) if request is not None else 0
        counted = estimate(text)
        counted += counted * unkept // max(1, len(text))
        made = max(counted, pieces + (1 if pieces and not self.ended else 0))
        return self._admission.bounded(Usage(input_tokens=asked, output_tokens=made, estimated=True), pieces)


def _why(stream: Stream) -> Failure:
    events = stream.events
    if events.error is not None:
        return Failure(Kind.TRANSIENT, "an error event in the stream")
    if events.broken:
        return Failure(Kind.INVALID, "an event without an end")
    return Failure(Kind.CUT, "a stream that ended without a finish_reason")


def _error_message(stream: Stream) -> str:
    error = stream.events.error
    if error is None:
        return ""
    inner = error.get("error")
    return str((inner if isinstance(inner, dict) else error).get("message") or inner or "")[:500]
