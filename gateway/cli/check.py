"""`gateway check`: says what the policies mean, or everything that is wrong with them."""

import os
import time
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from zoneinfo import ZoneInfo

import click

from gateway.identity.principal import compile_globs, expiry_of
from gateway.policy.loader import PolicyError, default_directory, load
from gateway.policy.schema import Limit, Policy, Route


@click.command("check")
@click.option(
    "--policies",
    type=click.Path(path_type=Path),
    envvar="GATEWAY_POLICIES",
    metavar="DIR",
    help="The directory of *.yaml files; ./policies by default, else the ones shipped with the gateway.",
)
def command(policies: Path | None) -> None:
    """Validate the policies: print a summary, or every error as file:line:column with its remedy (exit 2)."""
    directory = policies or default_directory(Path.cwd())
    try:
        policy = load(directory, os.environ)
    except PolicyError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        raise SystemExit(2) from None
    for line in summary(policy):
        click.echo(line)
    for warning in warnings(policy, time.time()):
        click.echo(f"warning: {warning}")


def summary(policy: Policy) -> Iterator[str]:
    """The lines that tell what a policy has."""
    yield f"policies are valid: {', '.join(policy.sources)}"
    yield f"server: auth {policy.server.auth}, time zone {policy.server.timezone}"
    on = len(policy.backends) - len(policy.disabled)
    yield from _section(f"backends ({on} of {len(policy.backends)} on)", dict(_backends(policy)))
    yield from _section("models", {name: f"{model.model} at {model.backend}" for name, model in policy.models.items()})
    yield from _section("aliases", {name: _chain(route) for name, route in policy.aliases.items()})
    yield from _section("tasks", {name: _chain(route) for name, route in policy.tasks.items()})
    yield from _section("teams", {name: limits_line(team.limits) for name, team in policy.teams.items()})
    yield from _section("keys", dict(_keys(policy)))
    if policy.limits:
        yield f"limits for everything: {limits_line(policy.limits)}"


def warnings(policy: Policy, now: float) -> Iterator[str]:
    """What is allowed, and probably not meant; `now` in seconds since the epoch."""
    if not policy.backends:
        yield "there is no backend; declare one under `backends:`"
    for name, alias in policy.aliases.items():
        if name in policy.models and not any(name in step.any for step in alias.chain):
            yield f"alias {name} is also a model, which nobody can ask for now; write another name for one of them"
    for kind, routes in (("alias", policy.aliases), ("task", policy.tasks)):
        for name, route in routes.items():
            yield from _route_warnings(policy, f"{kind} {name}", route)
    zone = ZoneInfo(policy.server.timezone)
    for name, key in policy.keys.items():
        expires = expiry_of(key.expires, zone)
        if expires is not None and expires <= now:
            yield f"key {name} has expired ({key.expires}); remove it, or write a later `expires`"
        for glob in pointless(policy, key.allow):
            yield f"key {name} allows {glob!r}, which is no alias, task or model here, nor may a passthrough name be it"
    if policy.server.auth == "none" and policy.keys:
        yield "server.auth is `none`, so a caller needs no key and the limits of keys do not hold; write `auth: keys`"


def _route_warnings(policy: Policy, what: str, route: Route) -> Iterator[str]:
    backends = {policy.models[model].backend for step in route.chain for model in step.any}
    if route.data == "local":
        backends = {name for name in backends if policy.backends[name].local}
        if not backends:
            yield f"{what} has `data: local` and no model at a local backend, so it can never answer"
    if backends and all(name in policy.disabled for name in backends):
        reasons = "; ".join(f"{name}: {policy.disabled[name]}" for name in sorted(backends))
        yield f"{what} cannot answer, since all its backends are off ({reasons})"


def pointless(policy: Policy, allow: tuple[str, ...]) -> Iterator[str]:
    """The patterns of an allow-list that no name matches which anybody could ask for."""
    names = [*policy.aliases, *policy.models, *(f"task:{name}" for name in policy.tasks)]
    passed = [glob for backend in policy.backends.values() for glob in backend.passthrough]
    for glob in allow:
        pattern = compile_globs((glob,))
        if pattern is None or any(pattern.match(name) for name in names):
            continue
        prefix, _, rest = glob.partition("/")
        bare = rest if prefix in policy.backends else glob
        if not any(fnmatchcase(bare, served) or pattern.match(served) for served in passed):
            yield glob


def _section(title: str, rows: Mapping[str, str]) -> Iterator[str]:
    if not rows:
        return
    yield f"{title}:"
    width = max(len(name) for name in rows)
    for name, text in rows.items():
        yield f"  {name:<{width}}  {text}".rstrip()


def _backends(policy: Policy) -> Iterator[tuple[str, str]]:
    for name, backend in policy.backends.items():
        where = "simulated" if backend.provider == "simulator" else backend.base_url or backend.provider
        state = f"off: {policy.disabled[name]}" if name in policy.disabled else f"on, {where}"
        notes = [", local"] if backend.local else []
        notes += [f", {limits_line(backend.limits)}"] if backend.limits else []
        yield name, state + "".join(notes)


def _keys(policy: Policy) -> Iterator[tuple[str, str]]:
    for name, key in policy.keys.items():
        notes = [f"team {key.team}"] if key.team else []
        notes.append(f"may use {', '.join(key.allow) or 'nothing'}")
        notes += [limits_line(key.limits)] if key.limits else []
        notes += [f"until {key.expires}"] if key.expires else []
        yield name, "; ".join(notes)


def _chain(route: Route) -> str:
    steps = [step.any[0] if len(step.any) == 1 else f"({' | '.join(step.any)} by {step.by})" for step in route.chain]
    return " -> ".join(steps) + (" [data stays local]" if route.data == "local" else "")


def limits_line(limits: tuple[Limit, ...]) -> str:
    """Limits in one line: `$5 per day, 4 concurrent`."""
    return ", ".join(_limit(limit) for limit in limits) or "no limits"


def _limit(limit: Limit) -> str:
    amount = f"${limit.amount:f}" if limit.unit == "usd" else f"{limit.amount} {limit.unit}"
    period = f" per {limit.per}" if limit.per else ""
    return f"{amount}{period}{' (soft)' if limit.soft else ''}"
