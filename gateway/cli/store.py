"""What commands that look into the store have in common: how it is named, opened, and said to be down."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from zoneinfo import ZoneInfo

import click

from gateway.budget.store import KeyExists, Store, StoreDown, UnknownKey
from gateway.budget.stores import open_store, shown
from gateway.identity.principal import expiry_of
from gateway.policy.loader import PolicyError, default_directory, load
from gateway.policy.schema import Policy, parse_duration
from gateway.settings import DEFAULT_STORE

T = TypeVar("T")

store_option = click.option(
    "--store",
    default=DEFAULT_STORE,
    envvar="GATEWAY_STORE",
    metavar="URL",
    show_default=True,
    help="Where keys and usage are kept: sqlite:///FILE or redis://…; the same as the gateway's own.",
)
policies_option = click.option(
    "--policies",
    type=click.Path(path_type=Path),
    envvar="GATEWAY_POLICIES",
    metavar="DIR",
    help="The directory of *.yaml files; ./policies by default, else the ones shipped with the gateway.",
)


class Refused(click.ClickException):
    """What was asked for cannot be; the message says what to ask for instead."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        """One line on stderr."""
        click.echo(f"gateway: {self.message}", err=True)


class Down(Refused):
    """The store does not answer."""

    exit_code = 1


def in_store(url: str, work: Callable[[Store], Awaitable[T]]) -> T:
    """Open the store, do the work, close it; what the store refuses ends the command, saying why."""
    try:
        store = open_store(url)
    except ValueError as error:
        raise Refused(f"--store: {error}") from error
    try:
        return asyncio.run(_opened(store, work))
    except (KeyExists, UnknownKey) as error:
        raise Refused(str(error)) from error
    except StoreDown as error:
        raise Down(
            f"the store {shown(url)} cannot be used: {error}; check it, or write another --store (GATEWAY_STORE)"
        ) from error


async def _opened(store: Store, work: Callable[[Store], Awaitable[T]]) -> T:
    try:
        await store.open()
    except (ValueError, TypeError) as error:  # redis-py's, about the options after `?`
        raise Refused(
            f"--store: its options are not Redis's ({error}); write for example redis://HOST:6379/0"
        ) from error
    try:
        return await work(store)
    finally:
        await store.close()


def read_policies(directory: Path | None) -> tuple[Path, Policy]:
    """The policies and where they stand; all that is wrong with them ends the command."""
    where = directory or default_directory(Path.cwd())
    try:
        return where, load(where, os.environ)
    except PolicyError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        raise SystemExit(2) from None


def parse_moment(text: str, zone: ZoneInfo) -> float:
    """Epoch seconds from `2027-01-01` (its first moment in `zone`) or `2027-01-01T12:00:00Z`. Raises ValueError."""
    try:
        moment = datetime.fromisoformat(text)
        at = expiry_of(moment, zone)
        assert at is not None
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is not a date; write 2027-01-01, 2027-01-01T12:00:00Z, or a duration such as 30d"
        ) from None
    if not 1970 <= moment.year <= 9000:
        raise ValueError(f"{text!r} is not between the years 1970 and 9000; write for example 2027-01-01")
    return at


def is_duration(text: str) -> bool:
    """Whether this is a duration such as `7d`."""
    try:
        parse_duration(text)
    except ValueError:
        return False
    return True


def moment_text(at: float) -> str:
    """An instant in UTC, to the second: `2027-01-01T00:00:00Z`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def table(rows: Sequence[Sequence[str]], *, right: Iterable[int] = ()) -> str:
    """Rows in aligned columns, those of the numbers in `right` to the right."""
    flush = frozenset(right)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number in flush else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
