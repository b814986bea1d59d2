"""What the standard OTEL_* variables say about exporting: to whom, how, and whether at all. Pure.

Source: the OpenTelemetry specification, "OTLP Exporter Configuration" and "Environment Variable Specification".
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

GRPC, HTTP = "grpc", "http/protobuf"
_NAME = re.compile(r"[0-9A-Za-z_.-]+")
_COMPRESSIONS = ("gzip", "none")
_CAPTURE = frozenset(("true", "span_only", "span_and_event"))


class TelemetryMisconfigured(Exception):
    """A variable has a value that cannot be obeyed; the message names it and what is allowed."""


@dataclass(frozen=True, slots=True)
class Exporting:
    """Where one signal (`traces`, `metrics`) goes. `timeout` in seconds; files are paths in PEM."""

    protocol: str
    endpoint: str
    headers: tuple[tuple[str, str], ...] = ()
    timeout: float = 10.0
    gzip: bool = False
    insecure: bool = False
    certificate: str | None = None
    client_key: str | None = None
    client_certificate: str | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which requests are traced: those whose trace id's low 64 bits are below `bound`, or as the parent says."""

    bound: int
    follow_parent: bool


def exporting(environ: Mapping[str, str], signal: str) -> Exporting | None:
    """The exporter of a signal; None when none is configured, which is when nobody named an endpoint or exporter."""
    if _is_true(environ.get("OTEL_SDK_DISABLED")):
        return None
    chosen = environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip()
    specific = _get(environ, f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    general = _get(environ, "OTEL_EXPORTER_OTLP_ENDPOINT")
    if not (chosen or specific or general) or chosen == "none":
        return None
    if chosen and "otlp" not in (word.strip() for word in chosen.split(",")):
        raise TelemetryMisconfigured(f"OTEL_{signal.upper()}_EXPORTER is {chosen!r}; write otlp or none")

    def option(name: str) -> str | None:
        return _get(environ, f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}") or _get(
            environ, f"OTEL_EXPORTER_OTLP_{name}"
        )

    given = specific or general or ""
    address = _address(given)
    protocol = option("PROTOCOL") or (GRPC if address is not None and address.port == 4317 else HTTP)
    if protocol not in (GRPC, HTTP):
        raise TelemetryMisconfigured(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; write {GRPC} or {HTTP}")
    compression = option("COMPRESSION") or "none"
    if compression not in _COMPRESSIONS:
        raise TelemetryMisconfigured(f"OTEL_EXPORTER_OTLP_COMPRESSION is {compression!r}; write gzip or none")
    usual = "http://localhost:4317" if protocol == GRPC else "http://localhost:4318"
    if given and (address is None or (protocol == HTTP and not address.scheme)):
        name = f"OTEL_EXPORTER_OTLP_{f'{signal.upper()}_' if specific else ''}ENDPOINT"
        raise TelemetryMisconfigured(f"{name} is {without_secrets(given)!r}; write an address such as {usual}")
    endpoint = given or usual
    if protocol == HTTP and not specific:
        endpoint = f"{endpoint.rstrip('/')}/v1/{signal}"
    return Exporting(
        protocol=protocol,
        endpoint=endpoint,
        headers=_headers(option("HEADERS") or ""),
        timeout=_positive("OTEL_EXPORTER_OTLP_TIMEOUT", option("TIMEOUT") or "10000") / 1000,  # given in milliseconds
        gzip=compression == "gzip",
        insecure=endpoint.startswith("http://") or ("://" not in endpoint and _is_true(option("INSECURE"))),
        certificate=option("CERTIFICATE"),
        client_key=option("CLIENT_KEY"),
        client_certificate=option("CLIENT_CERTIFICATE"),
    )


def sampling(environ: Mapping[str, str]) -> Sampling:
    """What `OTEL_TRACES_SAMPLER` and its argument choose; everything that no parent decides otherwise by default."""
    name = _get(environ, "OTEL_TRACES_SAMPLER") or "parentbased_always_on"
    kind = name.removeprefix("parentbased_")
    if kind == "always_on":
        share = 1.0
    elif kind == "always_off":
        share = 0.0
    elif kind == "traceidratio":
        share = _number("OTEL_TRACES_SAMPLER_ARG", _get(environ, "OTEL_TRACES_SAMPLER_ARG") or "1.0")
    else:
        raise TelemetryMisconfigured(
            f"OTEL_TRACES_SAMPLER is {name!r}; write always_on, always_off or traceidratio, or parentbased_ before one"
        )
    if not 0.0 <= share <= 1.0:
        raise TelemetryMisconfigured(f"OTEL_TRACES_SAMPLER_ARG is {share}; write a share from 0 to 1")
    return Sampling(round(share * 2**64), name != kind)


def resource(environ: Mapping[str, str], instance: str) -> dict[str, str]:
    """The attributes of this service: `OTEL_RESOURCE_ATTRIBUTES`, with `OTEL_SERVICE_NAME` or `gateway` as its name.

    `instance` tells this worker from the others: their cumulative metrics would else be taken for one.
    """
    found = {"service.name": "gateway", "service.instance.id": instance}
    found |= dict(_pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", "")))
    if name := _get(environ, "OTEL_SERVICE_NAME"):
        found["service.name"] = name
    return found


def number(environ: Mapping[str, str], name: str, default: float) -> float:
    """A positive number from a variable, or the default."""
    return _positive(name, _get(environ, name) or str(default))


def check(environ: Mapping[str, str]) -> None:
    """Raise TelemetryMisconfigured for every value that would be found wrong only when it is used."""
    if exporting(environ, "traces") is not None:
        sampling(environ)
        for name in ("OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_SCHEDULE_DELAY"):
            number(environ, name, 1)
    if exporting(environ, "metrics") is not None:
        number(environ, "OTEL_METRIC_EXPORT_INTERVAL", 1)


def captures_content(environ: Mapping[str, str]) -> bool:
    """Whether `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT` asks for prompts and answers on spans."""
    return environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "").strip().lower() in _CAPTURE


def _get(environ: Mapping[str, str], name: str) -> str | None:
    return environ.get(name, "").strip() or None


def _is_true(value: str | None) -> bool:
    return value is not None and value.strip().lower() == "true"


def without_secrets(endpoint: str) -> str:
    """The endpoint without what may be a password or a token in it."""
    return endpoint.rpartition("@")[2].partition("?")[0]


def _address(endpoint: str) -> SplitResult | None:
    """Its parts; None when it names no host that can be asked."""
    try:
        url = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
        can_be_asked = bool(url.hostname) and url.port != 0 and url.scheme in ("", "http", "https")
    except ValueError:
        return None
    return url if can_be_asked else None


def _positive(name: str, value: str) -> float:
    found = _number(name, value)
    if found <= 0:
        raise TelemetryMisconfigured(f"{name} is {found:g}; write a number above 0")
    return found


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise TelemetryMisconfigured(f"{name} is {value!r}; write a number") from None


def _headers(listed: str) -> tuple[tuple[str, str], ...]:
    """What both protocols can send; the message does not quote what may be a token."""
    found = tuple(_pairs(listed))
    if all(_NAME.fullmatch(name) and value.isascii() and value.isprintable() for name, value in found):
        return found
    raise TelemetryMisconfigured(
        "OTEL_EXPORTER_OTLP_HEADERS holds a header that cannot be sent; write name=value,name=value, each value "
        "percent-encoded and of printable ASCII"
    )


def _pairs(listed: str) -> list[tuple[str, str]]:
    found = []
    for entry in listed.split(","):
        key, separator, value = entry.partition("=")
        if separator and key.strip():
            found.append((unquote(key.strip()), unquote(value.strip())))
    return found
