"""`gateway usage`: exact sums by every dimension, as a table, JSON and CSV."""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from gateway.budget.store import USAGE_BY, UsageRecord, UsageTotal
from gateway.budget.stores import open_store
from gateway.cli.store import Refused
from gateway.cli.usage import as_csv, as_json, as_table, command, start_of
from tests.budget.valkey import valkey_url

NOW = time.time()
ALICE = UsageRecord(
    at=NOW, request_id="r", key="alice", team="research", task="", route="fast", model="gpt-mini", backend="openai",
    input_tokens=1000, output_tokens=200, cost=123_456_789,
)  # fmt: skip
BOB = replace(
    ALICE, key="bob", team="", task="analysis", model="llama", backend="ollama", input_tokens=7, output_tokens=3, cost=1
)
OLD = replace(ALICE, at=NOW - 20 * 86400, cost=5_000_000_000)


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with valkey_url() as url:
        yield url


def fill(url: str, records: Sequence[UsageRecord]) -> None:
    async def write() -> None:
        store = open_store(url)
        await store.open()
        await store.write_usage("batch", records)
        await store.close()

    asyncio.run(write())


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path, valkey: str) -> str:
    """The URL of a store with three records."""
    import redis

    with redis.Redis.from_url(valkey) as client:
        client.flushall()
    url = f"sqlite:///{tmp_path}/gateway.db" if request.param == "sqlite" else valkey
    fill(url, [ALICE, BOB, replace(ALICE, request_id="s"), OLD])
    return url


def run(store: str, *arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(
        command, [*arguments, "--store", store], env={"GATEWAY_POLICIES": None, "GATEWAY_STORE": None, **environ}
    )


def found(store: str, *arguments: str) -> list[dict[str, Any]]:
    result = run(store, "--format", "json", *arguments)
    assert result.exit_code == 0, result.stderr
    rows: list[dict[str, Any]] = json.loads(result.stdout, parse_float=Decimal)
    return rows


def test_json_is_a_list_of_exact_sums(store: str) -> None:
    """The contract's five fields, in order; the cost to the nano-dollar."""
    rows = found(store)
    assert rows == [
        {"key": "alice", "requests": 2, "input_tokens": 2000, "output_tokens": 400, "cost_usd": Decimal("0.246913578")},
        {"key": "bob", "requests": 1, "input_tokens": 7, "output_tokens": 3, "cost_usd": Decimal("0.000000001")},
    ]
    assert list(rows[0]) == ["key", "requests", "input_tokens", "output_tokens", "cost_usd"]
    assert '"cost_usd": 0.000000001' in run(store, "--format", "json").stdout


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("team", [None, "research"]),
        ("model", ["gpt-mini", "llama"]),
        ("backend", ["ollama", "openai"]),
        ("task", [None, "analysis"]),
    ],
)
def test_each_dimension_is_named_in_its_rows(store: str, by: str, names: list[str | None]) -> None:
    """What has no team or no task is null."""
    assert [row[by] for row in found(store, "--by", by)] == names


def test_since_decides_what_counts(store: str) -> None:
    """A week by default; a duration or a date say otherwise."""
    assert sum(row["cost_usd"] for row in found(store, "--since", "30d")) == Decimal("5.246913579")
    day = time.strftime("%Y-%m-%d", time.gmtime(NOW - 40 * 86400))
    assert sum(row["requests"] for row in found(store, "--since", day)) == 4
    assert sum(row["requests"] for row in found(store, "--since", "12h")) == 3


def test_days_are_those_of_the_policies_time_zone(tmp_path: Path) -> None:
    """Nine in the evening of UTC is six in the morning of Tokyo's next day."""
    midnight_utc = int(NOW // 86400) * 86400
    url = f"sqlite:///{tmp_path}/gateway.db"
    fill(url, [replace(ALICE, at=midnight_utc - 3 * 3600.0 - 86400 * n) for n in range(2)])
    for zone, shift in (("Asia/Tokyo", 1), ("UTC", 0)):
        policies = tmp_path / str(shift)
        policies.mkdir()
        (policies / "a.yaml").write_text(f"server: {{timezone: {zone}}}\n", encoding="utf-8")
        rows = found(url, "--by", "day", "--policies", str(policies))
        expected = [midnight_utc - 86400 * (2 - n - shift) for n in range(2)]
        assert [row["day"] for row in rows] == [time.strftime("%Y-%m-%d", time.gmtime(at)) for at in expected]


def test_csv_has_a_header(store: str) -> None:
    """And the same numbers, without separators."""
    assert run(store, "--format", "csv", "--by", "task").stdout.splitlines() == [
        "task,requests,input_tokens,output_tokens,cost_usd",
        ",2,2000,400,0.246913578",
        "analysis,1,7,3,0.000000001",
    ]


def test_the_table_ends_with_the_sum(store: str) -> None:
    """Numbers to the right, decimal points under each other."""
    assert run(store, "--since", "30d").stdout.splitlines() == [
        "key    requests  input_tokens  output_tokens     cost_usd",
        "alice         3         3,000            600  5.246913578",
        "bob           1             7              3  0.000000001",
        "total         4         3,007            603  5.246913579",
    ]


def test_costs_of_different_lengths_share_their_point() -> None:
    """Fewer decimals are not pushed to the right."""
    table = as_table([UsageTotal("a", 1, 0, 0, 1_500_000_000), UsageTotal("", 1, 0, 0, 12_000_001_000)], "team")
    assert [line.rpartition("  ")[2] for line in table.splitlines()[1:]] == ["1.50", "12.000001", "13.500001"]
    assert len({line.index(".") for line in table.splitlines()[1:]}) == 1
    assert table.splitlines()[2].startswith("-  ")


def test_nothing_used_is_said(tmp_path: Path) -> None:
    """An empty list is valid JSON, an empty table has a zero, and stderr names the store that was asked."""
    url = f"sqlite:///{tmp_path}/gateway.db"
    assert run(url, "--format", "json").stdout == "[]\n"
    table = run(url)
    assert table.stdout.splitlines()[1].split() == ["total", "0", "0", "0", "0.00"]
    assert url in table.stderr


def test_a_mistake_ends_with_2_and_a_store_that_is_down_with_1(tmp_path: Path) -> None:
    """Each with one line that says what to write."""
    url = f"sqlite:///{tmp_path}/gateway.db"
    for arguments, says in (
        (("--since", "last week"), "--since 'last week' is not a date"),
        (("--since", "2999-01-01"), "still to come"),
        (("--by", "day", "--policies", str(tmp_path / "none")), "no such directory"),
        (("--by", "planet"), "--by"),
    ):
        result = run(url, *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert says in result.stderr
    assert run("redis://127.0.0.1:1/0").exit_code == 1


def test_broken_policies_do_not_hide_what_was_spent(tmp_path: Path) -> None:
    """Only days need them."""
    (tmp_path / "a.yaml").write_text("server: [", encoding="utf-8")
    url = f"sqlite:///{tmp_path}/gateway.db"
    assert run(url, "--policies", str(tmp_path)).exit_code == 0
    assert run(url, "--policies", str(tmp_path), "--by", "day").exit_code == 2


def test_a_start_is_at_most_now_and_not_before_the_epoch() -> None:
    """Ten years back is the furthest that a duration says."""
    utc = ZoneInfo("UTC")
    assert start_of("1h", 7200.0, utc) == 3600.0
    assert start_of("3650d", 7200.0, utc) == 0.0
    assert start_of("1970-01-02", 200_000.0, utc) == 86400.0
    with pytest.raises(Refused):
        start_of("1970-01-02", 86399.0, utc)


@given(st.text(), st.integers(0, 2**63), st.sampled_from(USAGE_BY))
def test_any_name_and_any_amount_can_be_printed(name: str, cost: int, by: Any) -> None:
    """JSON that parses to the exact cost, one CSV line for each name that has no line break, a table."""
    total = UsageTotal(name.encode("utf-8", "replace").decode(), 1, 2, 3, cost)
    (row,) = json.loads(as_json([total], by), parse_float=Decimal)
    assert row["cost_usd"] * 10**9 == cost
    assert row[by] == (total.name or None)
    assert as_csv([total], by).startswith(f"{by},requests,")
    assert "total" in as_table([total], by)
