"""`gateway explain`: the plan for a request, its limits and what is left of them, printed without calling anyone."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import orjson

from gateway.admission import Terms, most_output
from gateway.budget.left import described, left_of, resets_at
from gateway.budget.meter import MeterLimit, amount_text, limit_text, span_of, time_text
from gateway.budget.money import format_usd, worst_case
from gateway.budget.prices import PriceList
from gateway.budget.store import ManagedKey, Standing, account_of
from gateway.cli.store import Down, in_store, policies_option, read_policies, store_option
from gateway.errors import GatewayError
from gateway.identity.principal import ANONYMOUS, Principal
from gateway.policy.router import OUT, Candidate, Plan, Wish, plan


@click.command("explain")
@click.option("--model", required=True, metavar="NAME", help="What a client would send as `model`.")
@click.option("--task", metavar="T", help="What a client would send as x-gateway-task, for `--model auto`.")
@click.option("--key", metavar="NAME", help="Plan for this key: its allow-list and its limits.")
@click.option("--input-tokens", type=click.IntRange(0), default=1000, show_default=True, help="Size of the prompt.")
@click.option("--max-tokens", type=click.IntRange(1), help="The client's own output limit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@policies_option
@store_option
def command(
    *,
    model: str,
    task: str | None,
    key: str | None,
    input_tokens: int,
    max_tokens: int | None,
    as_json: bool,
    policies: Path | None,
    store: str,
) -> None:
    """Print where a request would go: each candidate in order, in or out and why, its cost, and what is left."""
    from gateway.proxy import Dice  # noqa: PLC0415
    from gateway.runtime import build_runtime  # noqa: PLC0415 - the app is heavy, and --help is not

    _, policy = read_policies(policies)
    managed = [] if key is None or key in policy.keys else _managed(store)
    try:
        runtime = build_runtime(policy, PriceList.load(), managed)
        known = None if key is None else runtime.keyring.named(key, time.time())
        principal = ANONYMOUS if key is None else _principal(key, known, [*policy.keys, *managed])
        wish = Wish(model, task, input_tokens, max_tokens)
        way = plan(runtime.catalog, principal, wish, runtime.backends, time.monotonic(), Dice(seed=0))
    except GatewayError as error:
        click.echo(f"gateway: {error.status} {error.code}: {error.message}", err=True)
        sys.exit(1)
    terms = [runtime.terms.terms(principal, candidate.target) for candidate in way.candidates]
    candidates = [_within(each, candidate) for each, candidate in zip(terms, way.candidates, strict=True)]
    rows = [_row(number, candidate, wish) for number, candidate in enumerate(candidates, 1)]
    limits = list(
        dict.fromkeys((*runtime.terms.own(principal), *(limit for each in terms for limit, _ in each.limits)))
    )
    standings = _standings(store, limits)
    if as_json:
        now = time.time()
        listed = [described(limit, one, now) for limit, one in zip(limits, standings, strict=True)]
        document = {**_document(way, principal, wish, rows), "limits": listed}
        click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo(_text(way, principal, rows))
        for limit, standing in zip(limits, standings, strict=True):
            click.echo(_limit(limit, standing))


def _principal(key: str, found: Principal | None, known: Sequence[str | ManagedKey]) -> Principal:
    if found is None:
        names = ", ".join(one if isinstance(one, str) else one.name for one in known) or "none"
        raise click.BadParameter(f"there is no key {key!r}; known are: {names}", param_hint="--key")
    return found


def _managed(store: str) -> list[ManagedKey]:
    return [] if _is_new(store) else in_store(store, lambda opened: opened.keys())


def _standings(store: str, limits: Sequence[MeterLimit]) -> Sequence[Standing | None]:
    """How the limits stand; None for each when the store does not answer, which is said on stderr."""
    if not limits or _is_new(store):
        return [Standing()] * len(limits)
    now = time.time()
    accounts = [account_of(limit.meter, span_of(limit.meter.window, now)) for limit in limits]
    try:
        return in_store(store, lambda opened: opened.standings(accounts))
    except Down as error:
        click.echo(f"gateway: {error.message}", err=True)
        return [None] * len(limits)


def _is_new(store: str) -> bool:
    """Whether this is a file that no gateway has made yet: looking into it would make it."""
    return store.startswith("sqlite:///") and not Path(store.removeprefix("sqlite:///")).exists()


def _limit(limit: MeterLimit, standing: Standing | None) -> str:
    left = "nobody knows what is" if standing is None else amount_text(limit.meter.unit, left_of(limit, standing))
    end = resets_at(limit, standing, time.time())
    when = "" if end is None else f"; resets at {time_text(end)}"
    return f"  {left} left of {limit_text(limit)}{' (soft)' if limit.soft else ''}{when}"


def _within(terms: Terms, candidate: Candidate) -> Candidate:
    """The candidate as its limits leave it: without a price, nothing can be held against dollars."""
    if candidate.verdict is OUT or terms.priced or not terms.in_dollars:
        return candidate
    name = candidate.target.name
    reason = "nobody knows what it costs, and a limit is in dollars; add to the policies, under models: "
    return replace(candidate, verdict=OUT, reason=f"{reason}{name}: `price: {{input: 0.00, output: 0.00}}`")


def _row(number: int, candidate: Candidate, wish: Wish) -> dict[str, Any]:
    target = candidate.target
    facts = target.facts
    output = most_output(wish.max_output, facts)
    cost = None if facts.rates is None else format_usd(worst_case(wish.input_tokens, output, facts.rates))
    return {
        "position": number,
        "verdict": candidate.verdict,
        "model": target.name,
        "backend": target.backend,
        "upstream_model": target.model,
        "reason": candidate.reason,
        "context": facts.context,
        "max_output": output,
        "worst_case_usd": cost,
    }


def _document(way: Plan, principal: Principal, wish: Wish, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": wish.model,
        "route": way.route.name,
        "kind": way.route.kind,
        "key": principal.name,
        "input_tokens": wish.input_tokens,
        "candidates": rows,
    }


def _text(way: Plan, principal: Principal, rows: list[dict[str, Any]]) -> str:
    lines = [f"{way.route.name} ({way.route.kind}) for {principal.name}"]
    widths = [max(len(str(row[name])) for row in rows) for name in ("model", "backend")]
    for row in rows:
        cost = "at most $" + row["worst_case_usd"] if row["worst_case_usd"] is not None else "cost unknown"
        verdict = row["verdict"].ljust(5)
        model, backend = str(row["model"]).ljust(widths[0]), str(row["backend"]).ljust(widths[1])
        lines.append(f"  {row['position']}. {verdict} {model}  at {backend}  {cost}  {row['reason']}")
    return "\n".join(lines)
