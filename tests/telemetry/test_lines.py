"""A line of the log: what it says, in which words, and what it never says."""

import orjson
import pytest

from gateway.formats.usage import Usage
from gateway.telemetry import lines, names
from tests.telemetry.made import attempt, record


def test_a_request_is_one_line_with_every_registered_field() -> None:
    """The fields are those of the registry, both ways, with the values of the record."""
    made = record(trace_id="0" * 31 + "1", usage=Usage(1000, 50, 600, estimated=True))
    raw = lines.request_json(made)
    assert raw.endswith(b"}\n")
    assert raw.count(b"\n") == 1
    line = orjson.loads(raw)
    assert set(line) == set(names.REQUEST_LINE)
    assert line == {
        "at": "2025-06-15T15:06:40.250000Z",
        "level": "info",
        "event": "request",
        "id": "req-1",
        "trace_id": "0" * 31 + "1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "key": "alice",
        "team": "research",
        "route": "task:analysis",
        "task": "analysis",
        "model": "gpt-4o-mini",
        "backend": "openai",
        "stream": True,
        "status": 200,
        "code": None,
        "outcome": "ok",
        "attempts": [
            {
                "backend": "openai",
                "model": "gpt-4o-mini",
                "outcome": "ok",
                "status": 200,
                "ms": 499.0,
                "reason": "first of the chain",
                "detail": "",
            }
        ],
        "input_tokens": 1000,
        "output_tokens": 50,
        "cached_tokens": 600,
        "estimated": True,
        "cost_usd": 0.001234567,
        "ms": 500.0,
        "first_token_ms": 200.0,
        "overhead_ms": 0.4,
    }


def test_what_is_not_known_is_null() -> None:
    """A request refused before it was routed has a line too."""
    made = record(status=401, code="invalid_api_key", key="", usage=None, cost=None, first_token=None, attempts=())
    line = orjson.loads(lines.request_json(made))
    assert line["key"] is line["input_tokens"] is line["cost_usd"] is line["first_token_ms"] is None
    assert line["attempts"] == []
    assert "estimated" not in line


@pytest.mark.parametrize(
    ("status", "outcome", "level"),
    [(200, "ok", "info"), (429, "error", "warning"), (502, "error", "error"), (200, "interrupted", "error")],
)
def test_the_level_says_whose_fault_it_was(status: int, outcome: str, level: str) -> None:
    """Clients' errors are warnings, those of backends and of the gateway errors, broken streams too."""
    assert lines.level_of(record(status=status, outcome=outcome)) == level


def test_long_names_and_long_chains_are_cut() -> None:
    """A line is bounded, whatever a client asked for."""
    made = record(route="x" * 10**6, model="y" * 10**6, attempts=(attempt(detail="z" * 10**6),) * 1000)
    assert len(lines.request_json(made)) < 20_000
    assert len(lines.request_text(made, colour=True)) < 20_000


def test_a_person_reads_what_happened() -> None:
    """On a terminal: the way, times, tokens, cost, key, id, and who failed before."""
    tries = (attempt(backend="ollama", model="llama", outcome="timeout"), attempt())
    text = lines.request_text(record(attempts=tries), colour=False).decode()
    for word in ("200", "task:analysis → openai/gpt-4o-mini", "500ms", "1000+50 tok", "$0.001235", "alice", "req-1"):
        assert word in text
    assert text.endswith("after ollama/llama timeout\n")
    assert "\x1b" not in text


def test_a_name_cannot_steer_the_terminal() -> None:
    """Control characters in names are shown as replacements; only our own colours are escapes."""
    text = lines.request_text(record(route="\x1b[2Jgone\n", key="a\rb"), colour=False).decode()
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.count("\n") == 1
    event = lines.event_text("api_key_rests", 0.0, {"reason": "\x1b]0;x\x07"}, colour=False)
    assert b"\x1b" not in event


def test_an_event_has_its_level_and_fields() -> None:
    """Levels come from the registry; values that are not JSON become text."""
    line = orjson.loads(
        lines.event_json("breaker_opened", 0.0, {"backend": "b", "seconds": 60.0, "reason": ValueError})
    )
    assert line == {
        "at": "1970-01-01T00:00:00Z",
        "level": "warning",
        "event": "breaker_opened",
        "backend": "b",
        "seconds": 60.0,
        "reason": "<class 'ValueError'>",
    }
    assert b"backend=b  errors=one, two" in lines.event_text(
        "x", 0.0, {"backend": "b", "errors": ["one", "two"]}, colour=True
    )


def test_a_failure_is_described_without_its_message_or_values() -> None:
    """Types, files, lines and functions only: a message may hold a prompt."""

    def fails(prompt: str) -> None:
        raise KeyError(prompt)

    with pytest.raises(KeyError) as caught:
        fails("marked prompt")
    told = lines.describe(caught.value)
    assert told["error"] == "KeyError"
    assert "test_lines.py" in told["where"]
    assert "fails" in told["where"]
    assert "marked" not in str(told)
