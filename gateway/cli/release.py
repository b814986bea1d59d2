"""`gateway release`: gives back what a worker that died had drawn of a limit, and which counts as spent since."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click

from gateway.budget.managed import limits_from
from gateway.budget.meter import MeterLimit, Scope, amount_text, limit_text, limits_of, span_of
from gateway.budget.store import Store, account_of
from gateway.cli.store import Refused, in_store, policies_option, read_policies, store_option
from gateway.policy.schema import Policy


@click.command("release")
@click.argument("scope", type=click.Choice(get_args(Scope)))
@click.argument("name", required=False)
@policies_option
@store_option
def command(*, scope: Scope, name: str | None, policies: Path | None, store: str) -> None:
    """Give back what is in doubt on the limits of a key, team, model or backend, or on those for everything (all).

    What a worker held when it was killed counts as spent, since nobody knows whether it was. Whoever does know, from
    the provider's bill for example, may release it.
    """
    _, policy = read_policies(policies)
    if (scope == "all") != (name is None):
        raise click.BadParameter("`all` has no name, and every other scope needs one", param_hint="NAME")

    async def release(opened: Store) -> list[tuple[MeterLimit, int]]:
        limits = await _limits(policy, scope, name, opened)
        now = time.time()
        return [
            (limit, await opened.release(account_of(limit.meter, span_of(limit.meter.window, now)))) for limit in limits
        ]

    for limit, freed in in_store(store, release):
        click.echo(f"{limit_text(limit)}: {amount_text(limit.meter.unit, freed)} released")


async def _limits(policy: Policy, scope: Scope, name: str | None, store: Store) -> Sequence[MeterLimit]:
    """The limits of this name alone."""
    names = {other: name if other == scope else None for other in get_args(Scope)}
    own = None
    if scope == "key" and name not in policy.keys:
        managed = next((key for key in await store.keys() if key.name == name), None)
        own = None if managed is None else limits_from(managed.limits)
    found = [
        limit
        for limit in limits_of(policy, names["key"], names["team"], names["backend"], names["model"], own)
        if limit.meter.scope == scope
    ]
    if not found:
        what = "everything together" if scope == "all" else f"the {scope} {name!r}"
        raise Refused(f"there is no limit on {what}; `gateway check` shows the limits that the policies have")
    return found
