"""The way to the collector: bounded, in batches, never waiting."""

import threading
from pathlib import Path

import pytest

from gateway.telemetry.otlp import Envelope
from gateway.telemetry.otlp_export import Batcher, SendFailed, open_sender
from gateway.telemetry.otlp_settings import GRPC, HTTP, Exporting, TelemetryMisconfigured

ENVELOPE = Envelope({}, "", "")


class Gate:
    """A sender that waits until it is opened, and fails when told."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.sent: list[bytes] = []
        self.fails: list[SendFailed] = []

    def send(self, body: bytes) -> None:
        self.entered.set()
        assert self.open.wait(30)
        if self.fails:
            raise self.fails.pop(0)
        self.sent.append(body)

    def close(self) -> None:
        self.sent.append(b"closed")


def batcher(gate: Gate, told: list[tuple[str, dict[str, object]]], **changes: int) -> Batcher:
    def report(name: str, /, **fields: object) -> None:
        told.append((name, fields))

    sizes = {"max_queue": 10, "batch": 4, "delay": 3600} | changes
    return Batcher(gate, ENVELOPE, report=report, **sizes)


def test_a_full_batch_goes_at_once_and_the_rest_at_the_end() -> None:
    """The thread wakes for a whole batch without waiting for its delay; closing sends what is left, then closes."""
    gate = Gate()
    gate.open.set()
    made = batcher(gate, [])
    for number in range(5):
        made.emit(b"%d" % number, 1)
    made.close(30)
    made.close(30)
    requests = [body for body in gate.sent if body != b"closed"]
    assert gate.sent[-1] == b"closed"
    assert b"".join(requests).translate(None, bytes(set(range(256)) - set(b"01234"))) == b"01234"
    assert len(requests) == 2


def test_what_a_slow_collector_does_not_take_is_dropped_and_told() -> None:
    """The queue is bounded while a batch is on its way; the loss is told with the next trouble, and recovery too."""
    gate, told = Gate(), list[tuple[str, dict[str, object]]]()
    gate.fails = [SendFailed("no", again=False)]
    made = batcher(gate, told)
    made.emit(b"x" * 4, 4)
    assert gate.entered.wait(30)
    for _ in range(10):
        made.emit(b"y", 1)
    gate.open.set()
    made.close(30)
    assert told == [
        ("export_trouble", {"signal": "traces", "detail": "no", "dropped": 4 + 4}),
        ("export_recovered", {"signal": "traces", "dropped": 8}),
    ]
    assert sum(body.count(b"y") for body in gate.sent) == 6


def test_closing_does_not_wait_for_a_collector_that_hangs() -> None:
    """However the collector behaves, the end comes."""
    gate = Gate()
    made = batcher(gate, [])
    made.emit(b"x", 1)
    made.close(0.01)
    assert gate.sent == []
    gate.open.set()


def test_what_a_collector_takes_too_slowly_is_told_once_in_a_while() -> None:
    """Nothing failed, and yet spans are missing: that is told with what to do, not for every span."""
    gate, told = Gate(), list[tuple[str, dict[str, object]]]()
    made = batcher(gate, told)
    made.emit(b"x" * 4, 4)
    assert gate.entered.wait(30)
    for _ in range(10):
        made.emit(b"y", 1)
    gate.open.set()
    made.close(30)
    ((name, fields),) = told
    assert (name, fields["signal"], fields["dropped"]) == ("export_trouble", "traces", 4)
    assert "OTEL_BSP_MAX_QUEUE_SIZE" in str(fields["detail"])


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
@pytest.mark.parametrize("option", ["certificate", "client_key", "client_certificate"])
def test_a_certificate_that_cannot_be_read_is_named(protocol: str, option: str) -> None:
    """With the variables that it may have come from."""
    files = {option: "/nowhere/x.pem"}
    to = Exporting(
        protocol,
        "https://localhost:1",
        certificate=files.get("certificate"),
        client_key=files.get("client_key"),
        client_certificate=files.get("client_certificate"),
    )
    with pytest.raises(TelemetryMisconfigured, match=r"/nowhere/x.pem cannot be read .*OTEL_EXPORTER_OTLP_CERTIFICATE"):
        open_sender(to, "traces")


def test_a_certificate_that_is_none_is_told(tmp_path: Path) -> None:
    """Instead of OpenSSL's own words alone."""
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    to = Exporting(HTTP, "https://localhost:1", certificate=str(wrong))
    with pytest.raises(TelemetryMisconfigured, match=r"OTEL_EXPORTER_OTLP_CERTIFICATE.*is wrong"):
        open_sender(to, "traces")
