"""The standard variables: what they switch on, where it goes, and what is wrong with them."""

from collections.abc import Callable

import pytest

from gateway.telemetry import otlp_settings
from gateway.telemetry.otlp_settings import GRPC, HTTP, Exporting, Sampling, TelemetryMisconfigured


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "TRUE"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318"},
        {"OTEL_METRICS_EXPORTER": "otlp"},
    ],
)
def test_nothing_is_exported_unless_asked(environ: dict[str, str]) -> None:
    """No variable, a disabled SDK, `none`, or only the other signal: no exporter."""
    assert otlp_settings.exporting(environ, "traces") is None


@pytest.mark.parametrize(
    ("environ", "protocol", "endpoint"),
    [
        ({"OTEL_TRACES_EXPORTER": "otlp"}, HTTP, "http://localhost:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, HTTP, "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:9/x"}, HTTP, "http://c:9/x"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, GRPC, "http://c:4317"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317"}, GRPC, "c:4317"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, GRPC, "http://localhost:4317"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            },
            GRPC,
            "http://c:1",
        ),
    ],
)
def test_protocol_and_endpoint(environ: dict[str, str], protocol: str, endpoint: str) -> None:
    """The signal's own variable wins over the general one; only a general HTTP endpoint gets the signal's path."""
    found = otlp_settings.exporting(environ, "traces")
    assert found is not None
    assert (found.protocol, found.endpoint) == (protocol, endpoint)


def test_every_option_is_read() -> None:
    """Headers, time limit, compression, certificates."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://c:4318",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=1, b = x%3Dy ,broken",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "ca.pem",
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": "key.pem",
        "OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE": "own.pem",
    }
    assert otlp_settings.exporting(environ, "metrics") == Exporting(
        HTTP,
        "https://c:4318/v1/metrics",
        (("a", "1"), ("b", "x=y")),
        2.5,
        gzip=True,
        insecure=False,
        certificate="ca.pem",
        client_key="key.pem",
        client_certificate="own.pem",
    )


@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("", "", Sampling(2**64, follow_parent=True)),
        ("always_on", "", Sampling(2**64, follow_parent=False)),
        ("parentbased_always_off", "", Sampling(0, follow_parent=True)),
        ("traceidratio", "0.25", Sampling(2**62, follow_parent=False)),
        ("parentbased_traceidratio", "", Sampling(2**64, follow_parent=True)),
    ],
)
def test_samplers(name: str, argument: str, expected: Sampling) -> None:
    """The six standard samplers."""
    assert otlp_settings.sampling({"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument}) == expected


@pytest.mark.parametrize(
    ("read", "environ", "told"),
    [
        (
            lambda e: otlp_settings.exporting(e, "traces"),
            {"OTEL_TRACES_EXPORTER": "zipkin"},
            "OTEL_TRACES_EXPORTER is 'zipkin'; write otlp or none",
        ),
        (
            lambda e: otlp_settings.exporting(e, "traces"),
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "write grpc or http/protobuf",
        ),
        (
            lambda e: otlp_settings.exporting(e, "traces"),
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TIMEOUT": "soon"},
            "OTEL_EXPORTER_OTLP_TIMEOUT is 'soon'; write a number",
        ),
        (
            lambda e: otlp_settings.exporting(e, "traces"),
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TIMEOUT": "0"},
            "OTEL_EXPORTER_OTLP_TIMEOUT is 0; write a number above 0",
        ),
        (
            lambda e: otlp_settings.exporting(e, "traces"),
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"},
            "OTEL_EXPORTER_OTLP_COMPRESSION is 'zstd'; write gzip or none",
        ),
        (otlp_settings.sampling, {"OTEL_TRACES_SAMPLER": "jaeger"}, "write always_on, always_off or traceidratio"),
        (
            otlp_settings.sampling,
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
            "write a share from 0 to 1",
        ),
        (lambda e: otlp_settings.number(e, "N", 1.0), {"N": "-1"}, "N is -1; write a number above 0"),
    ],
)
def test_a_wrong_value_is_told_with_its_remedy(
    read: Callable[[dict[str, str]], object], environ: dict[str, str], told: str
) -> None:
    """The message names the variable, the value and what is allowed."""
    with pytest.raises(TelemetryMisconfigured, match=told):
        read(environ)


@pytest.mark.parametrize(
    ("endpoint", "protocol"),
    [
        ("c:4318", "http/protobuf"),
        ("http://c:port", "http/protobuf"),
        ("http://c:99999", "grpc"),
        ("ftp://c:1", "http/protobuf"),
        ("http://", "grpc"),
        ("/v1/traces", "http/protobuf"),
    ],
)
def test_an_endpoint_that_cannot_be_asked_is_told_at_the_start(endpoint: str, protocol: str) -> None:
    """Else spans would go to another port than the one that was meant, or nowhere; no password is quoted."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    with pytest.raises(TelemetryMisconfigured, match=r"OTEL_EXPORTER_OTLP_ENDPOINT is .*; write an address such as"):
        otlp_settings.exporting(environ, "traces")
    specific = {**environ, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "ftp://u:secret@c/x?token=secret"}
    with pytest.raises(TelemetryMisconfigured, match="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is 'c/x'") as caught:
        otlp_settings.exporting(specific, "traces")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"},
        {"OTEL_TRACES_SAMPLER": "x"},
        {"OTEL_BSP_MAX_QUEUE_SIZE": "0"},
        {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "x"},
        {"OTEL_BSP_SCHEDULE_DELAY": "-1"},
        {"OTEL_METRIC_EXPORT_INTERVAL": "x"},
    ],
)
def test_everything_can_be_checked_before_it_is_used(wrong: dict[str, str]) -> None:
    """With an exporter; without one nothing of it is used, and nothing is wrong."""
    otlp_settings.check(wrong)
    with pytest.raises(TelemetryMisconfigured, match=next(iter(wrong))):
        otlp_settings.check({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", **wrong})


def test_the_resource_names_the_service_and_the_worker() -> None:
    """The service's own name wins; attributes are decoded."""
    assert otlp_settings.resource({}, "w1") == {"service.name": "gateway", "service.instance.id": "w1"}
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=x,deployment.environment.name=a%20b", "OTEL_SERVICE_NAME": "y"}
    assert otlp_settings.resource(environ, "w1") == {
        "service.name": "y",
        "service.instance.id": "w1",
        "deployment.environment.name": "a b",
    }


def test_content_is_captured_on_opt_in_only() -> None:
    """Nothing but the conventions' own words switches it on."""
    name = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
    words = ("true", "True", "span_only", "SPAN_AND_EVENT")
    assert all(otlp_settings.captures_content({name: word}) for word in words)
    assert not any(otlp_settings.captures_content({name: word}) for word in ("", "false", "no_content", "event_only"))
    assert not otlp_settings.captures_content({})
