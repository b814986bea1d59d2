"""What a candidate gave: an answer or the beginning of a stream, with all that must be given back once."""

from collections.abc import Callable
from dataclasses import replace

from gateway.policy.router import Candidate
from gateway.telemetry.records import AttemptRecord
from gateway.upstream.backend import ApiKey, Backend
from gateway.upstream.breaker import Permit
from gateway.upstream.openai import Plain, Stream
from gateway.upstream.slots import Slots
from gateway.values import value

CLIENT_GONE = "client_gone"
LOST_HEDGE = "lost_hedge"


@value
class Place:
    """Where an answer's try is recorded, to be told how it ended. `clock` gives the seconds that records use."""

    records: list[AttemptRecord]
    index: int
    clock: Callable[[], float]

    def end(self, outcome: str) -> None:
        """It ended now, as a word of `telemetry.names.OUTCOMES` says."""
        self.records[self.index] = replace(self.records[self.index], outcome=outcome, ended=self.clock())


class Answer:
    """What a candidate gave, and what must be given back once: the connection, the slot, the count of the busy.

    The breaker counts it as a success when it is closed, unless it broke: a stream that only begins well is none.
    `outcome` is what its try is recorded as.
    """

    __slots__ = ("_open", "_place", "api_key", "backend", "candidate", "content", "outcome", "permit", "slots", "whole")

    def __init__(
        self,
        content: Plain | Stream,
        candidate: Candidate,
        backend: Backend,
        permit: Permit,
        api_key: ApiKey,
        place: Place,
    ) -> None:
        self.content = content
        self.candidate = candidate
        self.backend = backend
        self.permit = permit
        self.api_key = api_key
        self.slots: Slots | None = None
        self.whole = True
        self.outcome = "ok"
        self._place = place
        self._open = True

    async def aclose(self) -> None:
        """Give everything back. Idempotent."""
        if not self._open:
            return
        self._open = False
        self.backend.busy -= 1
        if self.whole and not self.permit.probe:
            self.backend.breaker.succeeded(self.permit)
        if self.slots is not None:
            self.slots.release()
        if isinstance(self.content, Stream):
            self._place.end(self.outcome)
            await self.content.aclose()
        elif self.outcome != "ok":
            self._place.end(self.outcome)
