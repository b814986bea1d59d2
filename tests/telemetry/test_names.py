"""The registry of names: no name twice, every label described, the document up to date."""

from pathlib import Path

from gateway.telemetry import names

DOCUMENT = Path(__file__).parents[2] / "docs" / "telemetry.md"


def test_no_name_is_registered_twice() -> None:
    """Metrics, attributes, span events and log events each have their own name, and a description."""
    for registered in (
        [(metric.name, metric.description) for metric in names.METRICS],
        [(attribute.key, attribute.description) for attribute in names.ATTRIBUTES],
        [(event.name, event.description) for event in names.SPAN_EVENTS],
        [(event.name, event.description) for event in names.LOG_EVENTS],
    ):
        assert len({name for name, _ in registered}) == len(registered)
        assert all(description for _, description in registered)


def test_labels_are_described_and_all_are_used() -> None:
    """The labels that metrics have are those that are described."""
    assert {label for metric in names.METRICS for label in metric.labels} == set(names.LABELS)


def test_the_metrics_of_the_contract_are_there() -> None:
    """The names and labels that outsiders rely on."""
    labels = {metric.name: metric.labels for metric in names.METRICS}
    assert labels["gateway_requests_total"] == ("route", "model", "backend", "key", "status", "code")
    assert labels["gateway_attempts_total"] == ("backend", "outcome")
    assert labels["gateway_tokens_total"][0] == "direction"
    assert labels["gateway_budget_remaining_usd"] == ("scope", "name", "window")
    assert labels["gateway_rejected_total"] == ("code",)
    for name in ("gateway_breaker_state", "gateway_inflight", "gateway_queue_depth"):
        assert labels[name] == ("backend",)
    for name in ("request_duration", "time_to_first_token", "overhead"):
        assert f"gateway_{name}_seconds" in labels
    assert "gateway_cost_usd_total" in labels


def test_the_genai_buckets_are_those_of_the_conventions() -> None:
    """Powers of four for tokens, doubling from 10 ms for seconds."""
    for genai in (names.GENAI_141, names.GENAI_LATEST):
        for metric in genai.metrics():
            first, last = (1, 67108864) if metric.unit == "{token}" else (0.01, 81.92)
            assert (metric.buckets[0], metric.buckets[-1]) == (first, last)


def test_the_newest_conventions_are_chosen_on_opt_in_only() -> None:
    """Version 1.41 unless the list of opt-ins holds the word."""
    assert names.genai(None) is names.genai("http") is names.GENAI_141
    assert names.genai("http, gen_ai_latest_experimental") is names.GENAI_LATEST


def test_the_document_is_up_to_date() -> None:
    """docs/telemetry.md is what the registry says; else run `python -m gateway.telemetry.names > docs/telemetry.md`."""
    assert DOCUMENT.read_text() == names.document()
