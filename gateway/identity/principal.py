"""Who asks: a name, a team, and what they may use."""

import re
from dataclasses import dataclass, field
from datetime import date, datetime, time
from fnmatch import translate
from typing import Literal
from zoneinfo import ZoneInfo

from gateway.policy.schema import Key, Limit


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller that has proved who it is.

    `allowed` is None for everything, else one pattern over the names of aliases, tasks (`task:…`) and models.
    `expires` is in seconds since the epoch.
    """

    name: str
    team: str | None = None
    allowed: re.Pattern[str] | None = None
    limits: tuple[Limit, ...] = ()
    expires: float | None = None
    priority: int = 0
    on_budget: Literal["degrade", "reject"] | None = None
    patterns: tuple[str, ...] = field(default=("*",))

    def may_use(self, name: str) -> bool:
        """Whether this name is on the allow-list."""
        return self.allowed is None or self.allowed.match(name) is not None

    def has_expired(self, now: float) -> bool:
        """Whether the key's time is over at `now`, in seconds since the epoch."""
        return self.expires is not None and now >= self.expires


ANONYMOUS = Principal("anonymous")


def principal_of(name: str, key: Key, *, team_allow: tuple[str, ...] | None, zone: ZoneInfo) -> Principal:
    """The principal that a key of the policies stands for; a team's allow-list narrows its keys' own."""
    allowed = compile_globs(key.allow)
    if team_allow is not None and (narrow := compile_globs(team_allow)) is not None:
        allowed = narrow if allowed is None else re.compile(f"(?={narrow.pattern})(?:{allowed.pattern})")
    return Principal(
        name=name,
        team=key.team,
        allowed=allowed,
        limits=key.limits,
        expires=expiry_of(key.expires, zone),
        priority=key.priority,
        on_budget=key.on_budget,
        patterns=key.allow,
    )


def compile_globs(globs: tuple[str, ...]) -> re.Pattern[str] | None:
    """One pattern for several globs; None when they let everything through."""
    if "*" in globs:
        return None
    return re.compile(f"(?:{'|'.join(translate(glob) for glob in globs)})" if globs else r"(?!)")


def expiry_of(expires: datetime | date | None, zone: ZoneInfo) -> float | None:
    """Seconds since the epoch; a date without a time means its first moment in the server's time zone."""
    if expires is None:
        return None
    moment = expires if isinstance(expires, datetime) else datetime.combine(expires, time())
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()
