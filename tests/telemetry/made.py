"""Records made by hand, for every test of telemetry."""

from dataclasses import replace
from typing import Any

from gateway.formats.usage import Usage
from gateway.telemetry.records import AttemptRecord, RequestRecord

ATTEMPT = AttemptRecord(
    backend="openai",
    model="gpt-4o-mini",
    started=100.001,
    ended=100.5,
    outcome="ok",
    status=200,
    first_token=100.2,
    reason="first of the chain",
    server_address="127.0.0.1",
    server_port=9999,
)

RECORD = RequestRecord(
    request_id="req-1",
    method="POST",
    path="/v1/chat/completions",
    operation="chat",
    at=1_750_000_000.25,
    started=100.0,
    ended=100.5,
    status=200,
    outcome="ok",
    key="alice",
    team="research",
    task="analysis",
    route="task:analysis",
    route_label="analysis",
    model="gpt-4o-mini",
    model_label="gpt-mini",
    backend="openai",
    provider="openai",
    stream=True,
    usage=Usage(input_tokens=1000, output_tokens=50, cached_input=600, reasoning=20),
    cost=1_234_567,
    first_token=100.2,
    overhead=0.0004,
    finish_reasons=("stop",),
    response_id="chatcmpl-1",
    response_model="gpt-4o-mini-2024",
    max_tokens=100,
    temperature=0.5,
    top_p=0.9,
    held_at=100.0005,
    hold=2_000_000,
    attempts=(ATTEMPT,),
)


def record(**changes: Any) -> RequestRecord:
    """The usual record with these fields changed."""
    return replace(RECORD, **changes)


def attempt(**changes: Any) -> AttemptRecord:
    """The usual attempt with these fields changed."""
    return replace(ATTEMPT, **changes)
