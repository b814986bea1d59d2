"""What the tests of telemetry share: a collector, once for each protocol."""

from collections.abc import Iterator

import pytest

from tests.telemetry import collector


@pytest.fixture(params=["grpc", "http"])
def otlp(request: pytest.FixtureRequest) -> Iterator[collector.Collector]:
    """A real collector, over gRPC and over HTTP."""
    opened = collector.over_grpc() if request.param == "grpc" else collector.over_http()
    with opened as found:
        yield found
