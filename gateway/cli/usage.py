"""`gateway usage`: what was spent, by key, team, model, backend, task or day."""

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from zoneinfo import ZoneInfo

import click
import orjson

from gateway.budget.money import format_usd
from gateway.budget.store import USAGE_BY, UsageBy, UsageTotal
from gateway.budget.stores import shown
from gateway.cli.store import (
    Refused,
    in_store,
    is_duration,
    moment_text,
    parse_moment,
    policies_option,
    read_policies,
    store_option,
    table,
)
from gateway.policy.schema import parse_duration

_COUNTS = ("requests", "input_tokens", "output_tokens", "cost_usd")


@click.command("usage")
@click.option("--by", type=click.Choice(USAGE_BY), default="key", show_default=True, help="What to sum up by.")
@click.option(
    "--since",
    default="7d",
    show_default=True,
    metavar="7d",
    help="How far back, in whole hours: 24h, 7d, or from 2026-07-01 on.",
)
@click.option("--format", "shape", type=click.Choice(("table", "json", "csv")), default="table", show_default=True)
@policies_option
@store_option
def command(*, by: UsageBy, since: str, shape: str, policies: Path | None, store: str) -> None:
    """Say what was used and what it cost. Days are those of `server.timezone` in the policies."""
    named = is_duration(since)
    # Only dates need a time zone; the rest works without policies, and with broken ones.
    zone = "UTC" if named and by != "day" else read_policies(policies)[1].server.timezone
    start = start_of(since, time.time(), ZoneInfo(zone))
    totals = in_store(store, lambda opened: opened.usage(by, start, zone))
    if shape == "json":
        click.echo(as_json(totals, by))
    elif shape == "csv":
        click.echo(as_csv(totals, by), nl=False)
    else:
        click.echo(as_table(totals, by))
        if not totals:
            click.echo(f"nothing was used since {moment_text(start)}, says {shown(store)}", err=True)


def start_of(since: str, now: float, zone: ZoneInfo) -> float:
    """The epoch second that `7d` or `2026-07-01` means."""
    try:
        start = now - parse_duration(since) if is_duration(since) else parse_moment(since, zone)
    except ValueError as error:
        raise Refused(f"--since {error}") from error
    if start > now:
        raise Refused(f"--since {since!r} is still to come; write an earlier date, or for example 7d")
    return max(start, 0.0)


def as_json(totals: Sequence[UsageTotal], by: UsageBy) -> str:
    """A list of objects; costs are JSON numbers with their exact digits, and what has no team or task is null."""
    rows = [
        {
            by: total.name or None,
            "requests": total.requests,
            "input_tokens": total.input_tokens,
            "output_tokens": total.output_tokens,
            "cost_usd": orjson.Fragment(format_usd(total.cost)),
        }
        for total in totals
    ]
    return orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode()


def as_csv(totals: Sequence[UsageTotal], by: UsageBy) -> str:
    """A header and a line for each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((by, *_COUNTS))
    writer.writerows(
        (total.name, total.requests, total.input_tokens, total.output_tokens, format_usd(total.cost))
        for total in totals
    )
    return text.getvalue()


def as_table(totals: Sequence[UsageTotal], by: UsageBy) -> str:
    """Aligned columns, decimal points under each other, and a last row with the sum."""
    whole = UsageTotal(
        "total",
        sum(total.requests for total in totals),
        sum(total.input_tokens for total in totals),
        sum(total.output_tokens for total in totals),
        sum(total.cost for total in totals),
    )
    lines = (*totals, whole)
    costs = [format_usd(total.cost) for total in lines]
    places = max(len(cost.partition(".")[2]) for cost in costs)
    rows = [
        (
            total.name or "-",
            f"{total.requests:,}",
            f"{total.input_tokens:,}",
            f"{total.output_tokens:,}",
            cost + " " * (places - len(cost.partition(".")[2])),
        )
        for total, cost in zip(lines, costs, strict=True)
    ]
    return table([(by, *_COUNTS), *rows], right=range(1, 5))
