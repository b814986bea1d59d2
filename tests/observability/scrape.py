"""What `/metrics` says, read as Prometheus reads it."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from tests.support import Served

Sample = tuple[str, frozenset[tuple[str, str]]]


def scrape(gateway: Served) -> Mapping[Sample, float]:
    """Every sample by its name and labels."""
    return samples_of(gateway.request("GET", "/metrics").body.decode())


def samples_of(text: str) -> Mapping[Sample, float]:
    """The samples of an exposition."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def counters_of(samples: Mapping[Sample, float]) -> Mapping[Sample, float]:
    """Those that may only grow."""
    return {
        sample: value
        for sample, value in samples.items()
        if sample[0].endswith(("_total", "_count", "_bucket", "_sum"))
    }


def total(samples: Mapping[Sample, float], metric: str, /, **labels: str) -> float:
    """The sum over every sample with this name and these labels."""
    return sum(
        value for (given, has), value in samples.items() if given == metric and labels.items() <= dict(has).items()
    )


def labels_of(samples: Mapping[Sample, float], name: str) -> set[frozenset[str]]:
    """The names of labels that a metric's samples have; histograms without `le`."""
    return {
        frozenset(label for label, _ in has) - {"le"}
        for given, has in samples
        if given.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") == name
    }
