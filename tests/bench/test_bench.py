"""The benchmark measures what it says: its mocks are right, its policies are valid, and errors are never counted."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.policy.schema import Document
from tests.bench import admission, backends, translation
from tests.bench.__main__ import Row, measure_translation, table
from tests.bench.processes import BenchError, cores, free_port, parse_wrk, pinned, post, require, write_script

REPORT = """Running 1s test @ http://127.0.0.1:8082/
  1 threads and 1 connections
  Latency Distribution
     50%   12.40us
     75%   13.00us
  73254 requests in 1.10s, 31.86MB read
Requests/sec:  66632.74
Transfer/sec:     28.98MB
"""

needs_taskset = pytest.mark.skipif(shutil.which("taskset") is None, reason="this machine has no taskset")


def test_a_stream_has_100_events_usage_and_an_end() -> None:
    """100 events and [DONE]; the last with choices has a finish_reason, the last of all has the usage."""
    *events, done = backends.stream_events()
    assert done == b"data: [DONE]\n\n"
    assert len(events) == 100
    bodies = [json.loads(event[6:]) for event in events]
    assert bodies[-1]["usage"]["completion_tokens"] == 97
    assert bodies[-2]["choices"][0]["finish_reason"] == "stop"
    assert 250 <= len(backends.plain_answer()) <= 350


@pytest.mark.parametrize("limits", [True, False])
def test_the_policies_are_valid_and_hold_200_keys_with_four_meters(tmp_path: Path, limits: bool) -> None:
    """What is written passes the schema."""
    folder = backends.write_policies(tmp_path / "policies", 1, 2, limits=limits)
    found = Document.model_validate(json.loads((folder / "bench.yaml").read_text()))
    assert len(found.keys) == 200
    assert {len(key.limits) for key in found.keys.values()} == {4 if limits else 0}
    assert set(found.aliases) == {"bench-plain", "bench-stream", "bench-blob"}


def test_wrks_report_is_read_and_errors_are_refused() -> None:
    """Rate, median and count; a report with errors is no measurement."""
    found = parse_wrk(REPORT)
    assert (found.per_second, found.answers) == (66632.74, 73254)
    assert found.p50 == pytest.approx(12.4e-6)
    for line in ("  Non-2xx or 3xx responses: 3", "  Socket errors: connect 0, read 5, write 0, timeout 0"):
        with pytest.raises(BenchError, match="under load"):
            parse_wrk(REPORT + line)
    with pytest.raises(BenchError, match="something else"):
        parse_wrk("")


def test_a_missing_program_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is the command that installs it."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchError, match="apt-get install -y nginx-light wrk"):
        require("nginx", "wrk")


def test_the_table_says_whether_the_aim_is_reached() -> None:
    """An aim is for the ratio or for the gateway's own figure."""
    rows = [
        Row("plain", 1000, 250, "/s", 0.20, aim_is_ratio=True),
        Row("streams", 1000, 250, "/s", 0.75, aim_is_ratio=True),
        Row("start", None, 0.5, "s", 0.8),
        Row("memory", 8, None, "MB", 80),
    ]
    lines = table(rows).splitlines()[1:]
    assert [re.findall("reached|MISSED", line) for line in lines] == [["reached"], ["MISSED"], ["reached"], []]
    assert "0.25" in lines[0]


@needs_taskset
def test_the_event_mock_answers_with_the_events(tmp_path: Path) -> None:
    """Over a socket, pinned, and measured: the same bytes as the events, and a process with memory and time."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.mock", str(port)]
    with pinned(cores()[1], command, port, None, tmp_path / "log") as mock:
        body = backends.request_body("stream", through_gateway=False)
        assert post(f"http://127.0.0.1:{port}/stream", body, "x") == b"".join(backends.stream_events())
        assert mock.rss_mb() > 5
        assert mock.cpu_seconds() >= 0
        assert mock.ready_after > 0


@needs_taskset
def test_a_process_that_fails_to_start_shows_what_it_said(tmp_path: Path) -> None:
    """Its last words are in the error."""
    command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    with pytest.raises(BenchError, match="no such thing"), pinned(0, command, free_port(), None, tmp_path / "log"):
        pass


def test_the_script_for_wrk_holds_the_body(tmp_path: Path) -> None:
    """The Lua has method, key and body as they are."""
    body = backends.request_body("plain", through_gateway=True)
    script = write_script(tmp_path / "x.lua", body, "sk").read_text()
    assert body.decode() in script
    assert "Bearer sk" in script


def test_help_can_be_asked_for_without_nginx() -> None:
    """The command line describes itself."""
    command = [sys.executable, "-m", "tests.bench", "--help"]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "--only {plain,stream,start,tracing,admission,translation}" in found.stdout


async def test_the_admission_that_is_timed_is_one() -> None:
    """Five meters, each request held and settled; the figures are in microseconds, and plausible."""
    found = await admission.timed(rounds=1)
    assert 1 < found.hold < found.request < 1000


async def test_the_translation_that_is_timed_is_one() -> None:
    """Every figure is there and plausible, and what is timed is Anthropic's format read as OpenAI's."""
    found = await translation.timed(rounds=3, requests=20, streams=2)
    assert 1 < found.request < 100_000
    assert 1 < found.agent < 100_000
    assert 0 < found.event < 10_000
    assert 0 < found.joined < 10_000


def test_the_rows_of_the_translation_have_the_aims(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.5 ms for a request, 20 µs for an event."""

    async def timed() -> translation.Timed:
        return translation.Timed(request=200.0, agent=600.0, event=3.0, joined=21.0)

    monkeypatch.setattr(translation, "timed", timed)
    lines = table(list(measure_translation())).splitlines()[1:]
    assert [re.findall("≤ .*", line) for line in lines] == [
        ["≤ 0.5 ms  reached"],
        ["≤ 0.5 ms  MISSED"],
        ["≤ 20 µs  reached"],
        ["≤ 20 µs  MISSED"],
    ]
