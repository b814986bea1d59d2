"""One line for one request or event: JSON for machines, aligned and coloured for people. Pure."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import orjson

from gateway.telemetry import names
from gateway.telemetry.records import AttemptRecord, RequestRecord

MAX_TEXT = 200  # characters of a name or detail that did not come from the policies
MAX_ATTEMPTS = 20  # listed in one line
_LEVELS = {event.name: event.level for event in names.LOG_EVENTS}
_FRAME = re.compile(r'^ +File "([^"]*)", line (\d+), in (\S+)$', re.MULTILINE)
_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS
_COLOURS = {"info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def level_of(record: RequestRecord) -> str:
    """`error` when the gateway or a backend failed, `warning` when the client did, else `info`."""
    if record.status >= 500 or record.outcome == "interrupted":
        return "error"
    return "warning" if record.status >= 400 else "info"


def request_json(record: RequestRecord) -> bytes:
    """The line of a request, with the fields of `names.REQUEST_LINE`; what is not known is null."""
    usage, first = record.usage, record.first_token
    line = {
        "at": datetime.fromtimestamp(record.at, UTC),
        "level": level_of(record),
        "event": "request",
        "id": record.request_id,
        "trace_id": record.trace_id or None,
        "method": record.method,
        "path": record.path,
        "key": record.key or None,
        "team": record.team or None,
        "route": record.route[:MAX_TEXT] or None,
        "task": record.task[:MAX_TEXT] or None,
        "model": record.model[:MAX_TEXT] or None,
        "backend": record.backend or None,
        "stream": record.stream,
        "status": record.status,
        "code": record.code or None,
        "outcome": record.outcome,
        "attempts": [_attempt(attempt) for attempt in record.attempts[:MAX_ATTEMPTS]],
        "input_tokens": None if usage is None else usage.input_tokens,
        "output_tokens": None if usage is None else usage.output_tokens,
        "cached_tokens": None if usage is None else usage.cached_input,
        "cost_usd": None if record.cost is None else record.cost / 1e9,
        "ms": _ms(record.ended - record.started),
        "first_token_ms": None if first is None else _ms(first - record.started),
        "overhead_ms": _ms(record.overhead),
    }
    if usage is not None and usage.estimated:
        line["estimated"] = True
    return orjson.dumps(line, option=_OPTIONS)


def event_json(name: str, at: float, fields: Mapping[str, object]) -> bytes:
    """The line of an event; a value that JSON has no word for is written as text."""
    line = {"at": datetime.fromtimestamp(at, UTC), "level": _LEVELS.get(name, "info"), "event": name, **fields}
    return orjson.dumps(line, default=str, option=_OPTIONS)


def request_text(record: RequestRecord, *, colour: bool) -> bytes:
    """The line of a request for a terminal: time, status, duration, way, tokens, cost, key, id, and what went wrong."""
    usage = record.usage
    tokens = "" if usage is None else f"{usage.input_tokens}+{usage.output_tokens} tok"
    cost = "" if record.cost is None else f"${record.cost / 1e9:.6f}"
    first = "" if record.first_token is None else f"first {_ms(record.first_token - record.started):.0f}ms"
    way = f"{record.route or '-'} → {record.backend}/{record.model}" if record.backend else record.route or record.path
    failed = [f"{_backend(one)} {one.outcome}" for one in record.attempts[:MAX_ATTEMPTS] if one.outcome != "ok"]
    columns = (
        f"{_printable(way):<44} {_ms(record.ended - record.started):>8.0f}ms {first:<13} {tokens:<16} {cost:<11}",
        _printable(f"{record.key or '-':<12} {record.request_id}"),
        record.code or (record.outcome if record.outcome != "ok" else ""),
        _printable(f"after {', '.join(failed)}") if failed else "",
    )
    return _coloured(record.at, level_of(record), f"{record.status:>3}", "  ".join(columns).rstrip(), colour=colour)


def event_text(name: str, at: float, fields: Mapping[str, object], *, colour: bool) -> bytes:
    """The line of an event for a terminal."""
    told = "  ".join(f"{key}={_printable(_flat(value))}" for key, value in fields.items())
    return _coloured(at, _LEVELS.get(name, "info"), name, told, colour=colour)


def describe(error: BaseException) -> dict[str, str]:
    """The fields `error` and `where` of a failure: types, files, lines and functions.

    Never its message and never a value, for these may hold what a client sent.
    """
    return {"error": type(error).__name__, "where": " < ".join(reversed(_frames(error.__traceback__)[-12:]))}


def describe_text(traceback: str) -> dict[str, str]:
    """The same of a failure that is told as text, as far as it is one: whatever stands after a `:` may be a message."""
    frames = [f"{path.rpartition('/')[2]}:{line} {name}" for path, line, name in _FRAME.findall(traceback)]
    ending = next((line for line in traceback.splitlines() if line and not line[0].isspace()), "")
    kind = ending.partition(":")[0].rpartition(".")[2]
    if not frames or not kind.isidentifier():
        return {}
    return {"error": kind, "where": " < ".join(reversed(frames[-12:]))}


def _frames(found: TracebackType | None) -> list[str]:
    frames = []
    while found is not None:
        code = found.tb_frame.f_code
        frames.append(f"{code.co_filename.rpartition('/')[2]}:{found.tb_lineno} {code.co_name}")
        found = found.tb_next
    return frames


def _attempt(attempt: AttemptRecord) -> dict[str, Any]:
    return {
        "backend": attempt.backend,
        "model": attempt.model[:MAX_TEXT],
        "outcome": attempt.outcome,
        "status": attempt.status,
        "ms": _ms(attempt.ended - attempt.started),
        "reason": attempt.reason[:MAX_TEXT],
        "detail": attempt.detail[:MAX_TEXT],
    }


def _backend(attempt: AttemptRecord) -> str:
    return f"{attempt.backend}/{attempt.model}"


def _ms(seconds: float) -> float:
    return int(seconds * 1e6 + 0.5) / 1000  # three decimals, at a third of the time that round() takes


def _flat(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple, set, frozenset)) else str(value)


def _printable(text: str) -> str:
    """Without the control characters by which a name could steer the terminal."""
    return "".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in text[: 4 * MAX_TEXT])


def _coloured(at: float, level: str, head: str, rest: str, *, colour: bool) -> bytes:
    time = datetime.fromtimestamp(at, UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
    if colour:
        return f"{_DIM}{time}{_PLAIN} {_COLOURS[level]}{head}{_PLAIN}  {rest}\n".encode(errors="replace")
    return f"{time} {head}  {rest}\n".encode(errors="replace")
