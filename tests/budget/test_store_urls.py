"""A store's URL finds its store, or says what to write, and never shows a password."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.budget.redis import RedisStore
from gateway.budget.sqlite import SqliteStore
from gateway.budget.store import ManagedKey
from gateway.budget.stores import open_store, shown
from tests.budget.valkey import valkey_url


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("sqlite:///gateway.db", SqliteStore),
        ("sqlite:////var/lib/gateway.db", SqliteStore),
        ("redis://localhost", RedisStore),
        ("redis://:secret@localhost:6380/2", RedisStore),
        ("redis://[::1]:6379/0", RedisStore),
        ("rediss://user:secret@cache.internal:6379/0?ssl_cert_reqs=required", RedisStore),
        ("unix:///run/redis.sock?db=1", RedisStore),
    ],
)
def test_a_url_names_a_store(url: str, kind: type[object]) -> None:
    """SQLite by path; Redis by host or socket, as redis-py writes it."""
    assert isinstance(open_store(url), kind)


async def test_three_slashes_are_relative_and_four_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file stands in the working directory, or where the whole path says."""
    monkeypatch.chdir(tmp_path)
    for url, path in [("sqlite:///a.db", tmp_path / "a.db"), (f"sqlite:///{tmp_path}/b.db", tmp_path / "b.db")]:
        store = open_store(url)
        assert not path.exists()
        await store.open()
        await store.close()
        assert path.exists()


async def test_a_redis_url_reaches_its_database() -> None:
    """What one opening writes, the next one reads."""
    with valkey_url() as url:
        for expected in ([], ["ci"]):
            store = open_store(url)
            await store.open()
            assert [key.name for key in await store.keys()] == expected
            if not expected:
                await store.create_key(ManagedKey("ci", "sha256:" + "0" * 64, created=0.0))
            await store.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gateway.db",
        "sqlite://gateway.db",
        "sqlite:///",
        "sqlite:////var/lib/",
        "sqlite:///:memory:",
        "sqlite:///file:a.db",
        "sqlite:///a.db?mode=ro",
        "redis:localhost",
        "redis://",
        "redis://:hunter2@localhost:port/0",
        "redis://:hun/ter2@localhost:6379/0",
        "redis://localhost/zero",
        "redis://localhost:0",
        "unix://",
        "postgres://me:hunter2@db/gateway?password=hunter2",
        "http://[::1",
    ],
)
def test_another_url_is_told_what_to_write(url: str) -> None:
    """The message has an example that works, and no password."""
    with pytest.raises(ValueError, match=r"write .*sqlite:///gateway\.db") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)
    assert "ter2" not in str(caught.value)


@given(st.text() | st.from_regex(r"(redis|sqlite|unix)://.*", fullmatch=True))
def test_no_text_does_anything_else(url: str) -> None:
    """A store or a ValueError, whatever is written."""
    with contextlib.suppress(ValueError):
        assert isinstance(open_store(url), SqliteStore | RedisStore)


def test_what_is_shown_has_no_secret() -> None:
    """Neither the user nor the password nor the options."""
    assert shown("rediss://user:p@ss/w@host:1/0?password=x") == "rediss://host:1/0"
    assert shown("unix://user@/run/redis.sock?password=x") == "unix:///run/redis.sock"
    assert shown("sqlite:///a@b.db") == "sqlite:///a@b.db"
