"""What the composition root does itself: how the end goes."""

import threading

from gateway.app import close_together


class Waiting:
    """An exporter that is closed only while another one is."""

    def __init__(self, meeting: threading.Barrier) -> None:
        self._meeting = meeting
        self.closed = False

    def close(self) -> None:
        self._meeting.wait(30)
        self.closed = True


async def test_a_collector_that_hangs_is_waited_for_once() -> None:
    """Traces and metrics are closed at the same time: one after the other would never end here."""
    meeting = threading.Barrier(2)
    exporters = [Waiting(meeting), Waiting(meeting)]
    await close_together(exporters)
    assert all(exporter.closed for exporter in exporters)
    await close_together([])
