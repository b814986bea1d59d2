"""`gateway keys`: makes, lists, rotates and revokes keys that live in the store instead of the policies."""

import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import click
import orjson

from gateway.budget.managed import limits_from, limits_text
from gateway.budget.store import ManagedKey, Store, UnknownKey, revoked, rotated
from gateway.budget.stores import shown
from gateway.cli.check import limits_line, pointless
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
from gateway.identity.keyring import hash_of
from gateway.policy.messages import near
from gateway.policy.schema import UNITS, Limit, Policy, parse_duration

_LIMIT_HELP = (
    "UNIT=AMOUNT/PERIOD, and several times for several limits: usd=5/day, requests=60/minute, tokens=100000/minute "
    "(also input_tokens, output_tokens), concurrent=4. PERIOD: second, minute, hour, day, week, month, total, or a "
    "duration such as 12h. `,soft` after it warns and never rejects; `,alert_at=0.8` reports that share."
)


@click.group("keys")
def command() -> None:
    """Managed keys: made and revoked while the gateway runs; every worker knows within a second."""


@command.command()
@click.argument("name")
@click.option("--team", metavar="T", help="A team of the policies, whose limits hold as well.")
@click.option(
    "--allow",
    multiple=True,
    metavar="A,B",
    help='Aliases, tasks and models it may use, globs too: fast,"task:*". Everything by default.',
)
@click.option("--limit", "limits", multiple=True, metavar="usd=5/day", help=_LIMIT_HELP)
@click.option("--expires", metavar="DATE", help="2027-01-01, 2027-01-01T12:00:00Z, or from now: 90d.")
@policies_option
@store_option
def create(
    *,
    name: str,
    team: str | None,
    allow: tuple[str, ...],
    limits: tuple[str, ...],
    expires: str | None,
    policies: Path | None,
    store: str,
) -> None:
    """Make a key and print its secret, alone on stdout and only this once: KEY=$(gateway keys create ci)."""
    where, policy = read_policies(policies)
    now = time.time()
    secret = _new_secret()
    try:
        key = ManagedKey(
            name=check_name(name, policy, where),
            hash=hash_of(secret.encode()),
            created=now,
            team=check_team(team, policy, where),
            allow=parse_allow(allow),
            limits=limits_text(parse_limit(text) for text in limits),
            expires=None if expires is None else parse_expires(expires, now, ZoneInfo(policy.server.timezone)),
        )
    except ValueError as error:
        raise Refused(str(error)) from error
    in_store(store, lambda opened: _create(opened, key))
    for glob in pointless(policy, key.allow):
        _say(f"warning: --allow {glob!r} is no alias, task or model in {where}, nor may a passthrough name be it")
    _say(f"key {name!r} is made ({_terms(key)}), in {shown(store)}. Its secret, which is shown only now:")
    click.echo(secret)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@store_option
def list_keys(*, as_json: bool, store: str) -> None:
    """List the managed keys, revoked ones included. No secret is known, so none is shown."""
    keys = in_store(store, lambda opened: opened.keys())
    now = time.time()
    if as_json:
        click.echo(orjson.dumps([_document(key, now) for key in keys], option=orjson.OPT_INDENT_2).decode())
    elif keys:
        header = ("NAME", "TEAM", "ALLOW", "LIMITS", "EXPIRES", "CREATED", "STATE")
        click.echo(table([header, *(_row(key, now) for key in keys)]))
    else:
        _say(f"there are no managed keys in {shown(store)}; make one with `gateway keys create NAME`")


@command.command()
@click.argument("name")
@click.option("--grace", default="24h", show_default=True, metavar="24h", help="How long the old secret works too: 0s.")
@store_option
def rotate(*, name: str, grace: str, store: str) -> None:
    """Give a key a new secret, printed alone on stdout; the old one works for a while longer."""
    now = time.time()
    secret = _new_secret()
    try:
        until = now + parse_duration(grace)
    except ValueError as error:
        raise Refused(f"--grace: {error}") from error
    in_store(store, lambda opened: _rotate(opened, name, hash_of(secret.encode()), now, until))
    old = f"works until {moment_text(until)}" if until > now else "no longer works"
    _say(f"key {name!r} has a new secret; the old one {old}. The new one, which is shown only now:")
    click.echo(secret)


@command.command()
@click.argument("name")
@store_option
def revoke(*, name: str, store: str) -> None:
    """Refuse a key from now on, everywhere within a second. Its usage is kept, and its name stays taken."""
    fresh = in_store(store, lambda opened: _revoke(opened, name, time.time()))
    _say(f"key {name!r} is revoked" if fresh else f"key {name!r} was revoked before; nothing changed")


def parse_limit(text: str) -> Limit:
    """The limit that `usd=5/day,soft` or `concurrent=4` says. Raises ValueError that says what to write."""
    measure, *extras = text.split(",")
    unit, equals, rest = measure.partition("=")
    amount, slash, period = rest.partition("/")
    remedy = "write for example usd=5/day, requests=60/minute or concurrent=4"
    if unit not in UNITS or not equals:
        raise ValueError(f"--limit {text!r}: {unit!r} is not one of {', '.join(UNITS)}; {remedy}")
    fields: dict[str, Any] = {unit: amount}
    if slash:
        fields["per"] = period
    if not slash and unit != "concurrent":
        raise ValueError(f"--limit {text!r}: the period is missing; write for example {unit}={amount or 5}/day")
    if slash and unit == "concurrent":
        raise ValueError(f"--limit {text!r}: `concurrent` counts what runs now and has no period; write concurrent=4")
    for extra in extras:
        if extra == "soft":
            fields["soft"] = True
        elif extra.startswith("alert_at="):
            fields["alert_at"] = (*fields.get("alert_at", ()), extra.removeprefix("alert_at="))
        else:
            raise ValueError(f"--limit {text!r}: {extra!r} is unknown; after a comma write soft or alert_at=0.8")
    try:
        return Limit.model_validate(fields)
    except ValueError as error:
        said = cast("Any", error).errors()[0]["msg"].removeprefix("Value error, ")  # pydantic's, from the schema
        raise ValueError(f"--limit {text!r}: {said}" + ("" if "; " in said else f"; {remedy}")) from error


def parse_allow(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns of `--allow fast,task:*`, without repetition; everything without any. Raises ValueError."""
    globs = [glob.strip() for text in texts for glob in text.split(",")]
    if not all(globs):
        raise ValueError("--allow: an empty name; write names with commas between them, for example fast,task:*")
    return tuple(dict.fromkeys(globs)) or ("*",)


def parse_expires(text: str, now: float, zone: ZoneInfo) -> float:
    """The epoch second of `2027-01-01` in `zone`, or of `90d` after `now`. Raises ValueError when it has passed."""
    try:
        at = now + parse_duration(text) if is_duration(text) else parse_moment(text, zone)
    except ValueError as error:
        raise ValueError(f"--expires {error}") from error
    if at <= now:
        raise ValueError(f"--expires {text!r} has passed, so the key would never work; write a later date")
    return at


def check_name(name: str, policy: Policy, where: Path) -> str:
    """The name, if a new managed key may have it. Raises ValueError."""
    if not name or not name.isprintable() or name != name.strip() or len(name) > 100:
        raise ValueError(f"{name!r} cannot be a key's name; write up to 100 characters without control characters")
    if name in policy.keys:
        raise ValueError(f"{name!r} is a key of the policies in {where} already; choose another name")
    return name


def check_team(team: str | None, policy: Policy, where: Path) -> str | None:
    """The team, if the policies have it. Raises ValueError."""
    if team is not None and team not in policy.teams:
        advice = near(team, policy.teams) or "; declare it there under `teams:`"
        raise ValueError(f"--team: the policies in {where} have no team {team!r}{advice}")
    return team


def state_of(key: ManagedKey, now: float) -> str:
    """`active`, `rotating` (its old secret works too), `expired` or `revoked`."""
    if key.revoked_at is not None:
        return "revoked"
    if key.expires is not None and now >= key.expires:
        return "expired"
    return "rotating" if key.grace_until is not None and now < key.grace_until else "active"


def _new_secret() -> str:
    return "gw-" + secrets.token_urlsafe(32)


async def _create(store: Store, key: ManagedKey) -> None:
    if any(known.name == key.name and known.revoked_at is not None for known in await store.keys()):
        raise Refused(f"a key {key.name!r} was revoked, and its name stays with what it used; choose another name")
    await store.create_key(key)


async def _rotate(store: Store, name: str, new_hash: str, now: float, until: float) -> None:
    def change(key: ManagedKey) -> ManagedKey:
        state = state_of(key, now)
        if state in ("revoked", "expired"):
            advice = "a new secret would not work either; create a key of another name"
            raise Refused(f"key {name!r} is {state}, and {advice}")
        return rotated(key, new_hash, until)

    await _change(store, name, change)


async def _revoke(store: Store, name: str, now: float) -> bool:
    return await _change(store, name, lambda key: None if key.revoked_at is not None else revoked(key, now))


async def _change(store: Store, name: str, change: Callable[[ManagedKey], ManagedKey | None]) -> bool:
    """Replace a key by what `change` makes of it, again as long as others change keys meanwhile; False for None."""
    while True:
        version = await store.keys_version()  # before the key is read, so that no later change goes unnoticed
        changed = change(await _find(store, name))
        if changed is None:
            return False
        if await store.replace_key(changed, version):
            return True


async def _find(store: Store, name: str) -> ManagedKey:
    known = {key.name: key for key in await store.keys()}
    if name not in known:
        advice = near(name, known) or "; make it with `gateway keys create` (keys of the policies stand in their files)"
        raise UnknownKey(f"there is no managed key {name!r}{advice}")
    return known[name]


def _terms(key: ManagedKey) -> str:
    terms = [f"team {key.team}"] if key.team is not None else []
    terms += [f"may use {', '.join(key.allow)}", limits_line(limits_from(key.limits))]
    terms += [f"until {moment_text(key.expires)}"] if key.expires is not None else []
    return "; ".join(terms)


def _row(key: ManagedKey, now: float) -> tuple[str, ...]:
    state = state_of(key, now)
    if state == "rotating" and key.grace_until is not None:
        state = f"active, old secret until {moment_text(key.grace_until)}"
    return (
        key.name,
        key.team or "-",
        ",".join(key.allow),
        limits_line(limits_from(key.limits)),
        "-" if key.expires is None else moment_text(key.expires),
        moment_text(key.created),
        state,
    )


def _document(key: ManagedKey, now: float) -> dict[str, Any]:
    return {
        "name": key.name,
        "team": key.team,
        "allow": key.allow,
        "limits": [_limit_document(limit) for limit in limits_from(key.limits)],
        "expires": None if key.expires is None else moment_text(key.expires),
        "created": moment_text(key.created),
        "revoked": None if key.revoked_at is None else moment_text(key.revoked_at),
        "old_secret_until": None if key.grace_until is None else moment_text(key.grace_until),
        "state": state_of(key, now),
    }


def _limit_document(limit: Limit) -> Mapping[str, Any]:
    fields = limit.model_dump(mode="json", exclude_defaults=True)
    if limit.usd is not None:
        fields["usd"] = orjson.Fragment(f"{limit.usd:f}")  # the exact decimal, which a float might not be
    return fields


def _say(text: str) -> None:
    click.echo(text, err=True)
