"""Finds the store that a URL names: one SQLite file for one machine, Redis or Valkey for several."""

import re
from urllib.parse import SplitResult, urlsplit

from gateway.budget.redis import RedisStore
from gateway.budget.sqlite import SqliteStore
from gateway.budget.store import Store

_HELP = "write sqlite:///gateway.db (a file), redis://HOST:6379/0, rediss://… (TLS) or unix:///PATH.sock (Redis)"
_SQLITE = "sqlite:///"


def open_store(url: str) -> Store:
    """The store at `url`, not opened yet. Raises ValueError that says what to write instead, without any password.

    `sqlite:///a.db` is relative to the working directory, `sqlite:////a.db` absolute. `redis://`, `rediss://` and
    `unix://` are what redis-py takes.
    """
    if url.startswith("sqlite:"):
        return SqliteStore(_file_of(url))
    try:
        parts = urlsplit(url)
        good = _is_redis(parts)
    except ValueError:  # a port that is no number, half an IPv6 address
        good = False
    if not good:
        raise ValueError(f"{shown(url)!r} is no store; {_HELP}")
    return RedisStore(url)


def shown(url: str) -> str:
    """The URL as it may be printed: without user, password and query."""
    return url if url.startswith("sqlite:") else re.sub("://.*@", "://", url).partition("?")[0]


def _file_of(url: str) -> str:
    path = url.removeprefix(_SQLITE)
    if not url.startswith(_SQLITE) or not path or path.endswith("/"):
        raise ValueError(f"{url!r} names no file; write sqlite:///gateway.db, or sqlite:////var/lib/gateway.db")
    if path.startswith((":", "file:")) or "?" in path or "\0" in path:
        raise ValueError(
            f"{url!r} names no file that workers could share; write sqlite:///gateway.db, without `:`, `?`"
        )
    return path


def _is_redis(parts: SplitResult) -> bool:
    if parts.scheme == "unix":
        return bool(parts.path.strip("/"))
    return (
        parts.scheme in ("redis", "rediss")
        and bool(parts.hostname)
        and parts.port != 0
        and re.fullmatch(r"/?|/\d+", parts.path) is not None
    )
