"""What is known of a request once it is over: the value that metrics, traces, logs and usage are made from."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Protocol

from gateway.formats.usage import Usage
from gateway.values import value


@value
class AttemptRecord:
    """One try at one backend.

    Times are seconds of the monotonic clock. `outcome` is a word of telemetry.names.OUTCOMES; `reason` says why the
    plan came here, `detail` what went wrong (no content, no secret). `resend` counts earlier tries on the same backend.
    `queued` is how long, before `started`, it waited for a slot. `parent_context` is the `traceparent` that the
    attempt's span handed out to be sent to the backend, so that the finished record finds its span again.
    """

    backend: str
    model: str
    started: float
    ended: float
    outcome: str
    status: int | None = None
    first_token: float | None = None
    resend: int = 0
    reason: str = ""
    detail: str = ""
    queued: float = 0.0
    server_address: str = ""
    server_port: int = 0
    parent_context: bytes | None = None


@value
class RequestRecord:
    """One request of a client, from its head to the last byte of the answer.

    Times are seconds of the monotonic clock, `at` is seconds since the epoch, `cost` is in nano-dollars. `overhead` is
    the time that was not spent waiting for a backend. `outcome` is `ok`, `error`, `interrupted` or `client_gone`.
    `route_label` and `model_label` come from the policies only, so that a client cannot create labels; `path` is the
    gateway's own route, not the client's bytes. `held_at` is when the budget was held and `hold` how much, in
    nano-dollars. `input_messages` (OpenAI's shape) and `output_text` are filled only when content capture is on.
    """

    request_id: str
    method: str
    path: str
    operation: str
    at: float
    started: float
    ended: float
    status: int
    outcome: str
    code: str = ""
    key: str = ""
    team: str = ""
    task: str = ""
    route: str = ""
    route_label: str = ""
    model: str = ""
    model_label: str = ""
    backend: str = ""
    provider: str = ""
    stream: bool = False
    usage: Usage | None = None
    cost: int | None = None
    first_token: float | None = None
    overhead: float = 0.0
    finish_reasons: tuple[str, ...] = ()
    response_id: str = ""
    response_model: str = ""
    malformed_events: int = 0
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    held_at: float | None = None
    hold: int = 0
    trace_id: str = ""
    input_messages: tuple[Mapping[str, Any], ...] | None = None
    output_text: str | None = None
    attempts: tuple[AttemptRecord, ...] = field(default_factory=tuple)

    @property
    def telling(self) -> AttemptRecord:
        """The attempt that the client's answer is from, else the last. There must be one."""
        answered = [one for one in self.attempts if one.first_token is not None and one.outcome != "lost_hedge"]
        return (answered or self.attempts)[-1]


class Observer(Protocol):
    """Whoever wants to know: told once per request, on the request's own task, so it must be quick and never raise."""

    def finished(self, record: RequestRecord) -> None:
        """A request is over."""
        ...
