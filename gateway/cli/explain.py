"""`gateway explain`: the plan for a request, printed without calling anyone."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import click
import orjson

from gateway.budget.money import format_usd, worst_case
from gateway.budget.prices import PriceList
from gateway.errors import GatewayError
from gateway.identity.principal import ANONYMOUS, Principal
from gateway.policy.loader import PolicyError, default_directory, load
from gateway.policy.router import Candidate, Plan, Wish, plan
from gateway.policy.schema import Policy
from gateway.settings import DEFAULT_STORE


@click.command("explain")
@click.option("--model", required=True, metavar="NAME", help="What a client would send as `model`.")
@click.option("--task", metavar="T", help="What a client would send as x-gateway-task, for `--model auto`.")
@click.option("--key", metavar="NAME", help="Plan for this key of the policies: its allow-list and limits.")
@click.option("--input-tokens", type=click.IntRange(0), default=1000, show_default=True, help="Size of the prompt.")
@click.option("--max-tokens", type=click.IntRange(1), help="The client's own output limit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--policies",
    type=click.Path(path_type=Path),
    envvar="GATEWAY_POLICIES",
    metavar="DIR",
    help="The directory of *.yaml files; ./policies by default, else the ones shipped with the gateway.",
)
@click.option("--store", default=DEFAULT_STORE, envvar="GATEWAY_STORE", metavar="URL", help="Where budgets are kept.")
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
    """Print where a request would go: each candidate in order, in or out and why, and what it may cost."""
    from gateway.proxy import Dice  # noqa: PLC0415
    from gateway.runtime import build_runtime  # noqa: PLC0415 - the app is heavy, and --help is not

    del store
    directory = policies or default_directory(Path.cwd())
    try:
        policy = load(directory, os.environ)
        runtime = build_runtime(policy, PriceList.load())
        principal = _principal(policy, key, runtime.keyring.named)
        wish = Wish(model, task, input_tokens, max_tokens)
        way = plan(runtime.catalog, principal, wish, runtime.backends, time.monotonic(), Dice(seed=0))
    except PolicyError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(2)
    except GatewayError as error:
        click.echo(f"gateway: {error.status} {error.code}: {error.message}", err=True)
        sys.exit(1)
    rows = [_row(number, candidate, wish) for number, candidate in enumerate(way.candidates, 1)]
    if as_json:
        click.echo(orjson.dumps(_document(way, principal, wish, rows), option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo(_text(way, principal, rows))


def _principal(policy: Policy, key: str | None, named: Any) -> Principal:
    if key is None:
        return ANONYMOUS
    found: Principal | None = named(key)
    if found is None:
        known = ", ".join(policy.keys) or "none"
        raise click.BadParameter(f"there is no key {key!r}; the policies know: {known}", param_hint="--key")
    return found


def _row(number: int, candidate: Candidate, wish: Wish) -> dict[str, Any]:
    target = candidate.target
    facts = target.facts
    output = wish.max_output or facts.max_output
    cost = None
    if facts.rates is not None and (output is not None or facts.rates.free):
        cost = format_usd(worst_case(wish.input_tokens, output or 0, facts.rates))
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
        "limits": [],
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
