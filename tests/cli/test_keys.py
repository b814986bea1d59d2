"""`gateway keys`: secrets shown once, hashes kept, and every mistake told with its remedy."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner, Result

from gateway.budget.store import ManagedKey, Store
from gateway.budget.stores import open_store
from gateway.cli import keys
from gateway.cli.keys import command, parse_expires, parse_limit
from gateway.identity.keyring import hash_of
from gateway.policy.schema import Limit
from tests.budget.valkey import valkey_url

ROOT = Path(__file__).parents[2]
SECRET = re.compile(r"gw-[A-Za-z0-9_-]{40,}\n")
NOW = 1_800_000_000.0
POLICY = """\
server: {timezone: Asia/Tokyo}
backends: {ollama: {base_url: http://127.0.0.1:11434/v1, local: true, passthrough: ["qwen*"]}}
models: {llama: {backend: ollama, model: llama3.2}}
aliases: {fast: [llama]}
teams: {research: {}}
keys: {alice: {hash: "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}}
"""


class Shell:
    """A directory of policies and a store."""

    def __init__(self, folder: Path, store: str) -> None:
        self.store = store
        self.environ = {"GATEWAY_POLICIES": str(folder), "GATEWAY_STORE": store}
        (folder / "a.yaml").write_text(POLICY, encoding="utf-8")

    def keys(self, *arguments: str) -> Result:
        return CliRunner().invoke(command, list(arguments), env=self.environ)

    def made(self, *arguments: str) -> str:
        """The secret that a command printed, alone."""
        result = self.keys(*arguments)
        assert result.exit_code == 0, result.stderr
        assert SECRET.fullmatch(result.stdout)
        return result.stdout.strip()

    def refused(self, *arguments: str) -> str:
        """What a command said that ended with 2 and printed nothing."""
        result = self.keys(*arguments)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert len(result.stderr.splitlines()) == 1
        return result.stderr

    def kept(self) -> dict[str, ManagedKey]:
        async def read() -> list[ManagedKey]:
            store = open_store(self.store)
            await store.open()
            found = await store.keys()
            await store.close()
            return found

        return {key.name: key for key in asyncio.run(read())}


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with valkey_url() as url:
        yield url


@pytest.fixture(params=["sqlite", "redis"])
def shell(request: pytest.FixtureRequest, tmp_path: Path, valkey: str) -> Shell:
    import redis

    if request.param == "redis":
        with redis.Redis.from_url(valkey) as client:
            client.flushall()
        return Shell(tmp_path, valkey)
    return Shell(tmp_path, f"sqlite:///{tmp_path}/gateway.db")


@pytest.fixture
def one(tmp_path: Path) -> Shell:
    return Shell(tmp_path, f"sqlite:///{tmp_path}/gateway.db")


def test_a_key_s_life(shell: Shell) -> None:
    """Made, listed, rotated, revoked; only the hash of its secret is kept."""
    secret = shell.made("create", "ci", "--team", "research", "--allow", "fast,task:*", "--limit", "usd=5/day")
    key = shell.kept()["ci"]
    assert (key.hash, key.team, key.allow) == (hash_of(secret.encode()), "research", ("fast", "task:*"))
    assert secret not in repr(key)
    second = shell.made("rotate", "ci", "--grace", "1h")
    key = shell.kept()["ci"]
    assert (key.hash, key.previous) == (hash_of(second.encode()), hash_of(secret.encode()))
    assert "old secret until" in shell.keys("list").stdout
    done = shell.keys("revoke", "ci")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "key 'ci' is revoked\n")
    assert shell.kept()["ci"].revoked_at is not None
    assert shell.kept()["ci"].previous is None
    again = shell.keys("revoke", "ci")
    assert (again.exit_code, again.stderr) == (0, "key 'ci' was revoked before; nothing changed\n")


def test_the_list_is_a_table_and_json(shell: Shell) -> None:
    """What each may do and how it stands, without any hash; amounts of money exact."""
    empty = shell.keys("list")
    assert (empty.exit_code, empty.stdout) == (0, "")
    assert "gateway keys create NAME" in empty.stderr
    assert json.loads(shell.keys("list", "--json").stdout) == []
    shell.made("create", "plain")
    limits = ("--limit", "usd=0.000000001/12h,soft,alert_at=0.5,alert_at=0.8", "--limit", "concurrent=4")
    shell.made("create", "ci", *limits, "--expires", "2900-01-01")
    text = shell.keys("list", "--json").stdout
    ci, plain = json.loads(text, parse_float=Decimal)
    assert ci["limits"] == [
        {"usd": Decimal("0.000000001"), "per": "12h", "soft": True, "alert_at": [Decimal("0.5"), Decimal("0.8")]},
        {"concurrent": 4},
    ]
    assert '"usd": 0.000000001,' in text
    assert (ci["name"], ci["team"], ci["allow"], ci["state"]) == ("ci", None, ["*"], "active")
    assert (ci["expires"], plain["expires"]) == ("2899-12-31T15:00:00Z", None), "midnight in Tokyo"
    assert "sha256" not in text
    header, first, second = shell.keys("list").stdout.splitlines()
    assert header.split() == ["NAME", "TEAM", "ALLOW", "LIMITS", "EXPIRES", "CREATED", "STATE"]
    assert re.fullmatch(
        r"ci +- +\* +\$0\.000000001 per 12h \(soft\), 4 concurrent +2899-12-31T15:00:00Z +\S+Z +active", first
    )
    assert re.fullmatch(r"plain +- +\* +no limits +- +\S+Z +active", second)


def test_a_name_is_taken_once(shell: Shell) -> None:
    """By another managed key, by a revoked one, by a key of the policies."""
    shell.made("create", "ci")
    assert "'ci' exists already" in shell.refused("create", "ci")
    shell.keys("revoke", "ci")
    assert "'ci' was revoked" in shell.refused("create", "ci")
    assert "'alice' is a key of the policies" in shell.refused("create", "alice")
    assert list(shell.kept()) == ["ci"]


def test_an_unknown_name_is_told_its_neighbour(shell: Shell) -> None:
    """To rotate and to revoke."""
    assert "gateway keys create" in shell.refused("revoke", "ci")
    shell.made("create", "ci-build")
    for verb in ("rotate", "revoke"):
        assert "did you mean `ci-build`?" in shell.refused(verb, "ci-biuld")


def test_what_cannot_work_is_not_rotated(one: Shell) -> None:
    """A revoked key's new secret would be refused as well."""
    one.made("create", "ci")
    one.keys("revoke", "ci")
    assert "'ci' is revoked" in one.refused("rotate", "ci")
    assert "--grace: 'soon' is not a duration" in one.refused("rotate", "ci", "--grace", "soon")


@pytest.mark.parametrize(("slow", "quick"), [("rotate", "revoke"), ("revoke", "rotate"), ("rotate", "create")])
def test_a_change_between_reading_and_writing_is_not_lost(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, slow: str, quick: str
) -> None:
    """Whichever of rotation and revocation comes first, no secret works afterwards; other keys disturb neither."""
    shell.made("create", "ci")
    find = keys._find
    disturbed: list[str] = []
    others: list[Result] = []

    async def found_and_changed(store: Store, name: str) -> ManagedKey:
        key = await find(store, name)
        if not disturbed:
            disturbed.append(name)
            others.append(await asyncio.to_thread(shell.keys, quick, "bot" if quick == "create" else "ci"))
        return key

    monkeypatch.setattr(keys, "_find", found_and_changed)
    result = shell.keys(slow, "ci")
    is_revoked = "revoke" in (slow, quick)
    assert [other.exit_code for other in others] == [0]
    assert result.exit_code == (2 if (slow, quick) == ("rotate", "revoke") else 0)
    assert (result.stdout == "") == is_revoked
    ci = shell.kept()["ci"]
    assert (ci.revoked_at is not None, ci.previous is None) == (is_revoked, is_revoked)


def test_without_grace_the_old_secret_ends_at_once(one: Shell) -> None:
    """`--grace 0s`, for a secret that leaked."""
    one.made("create", "ci")
    result = one.keys("rotate", "ci", "--grace", "0s")
    assert "no longer works" in result.stderr
    assert json.loads(one.keys("list", "--json").stdout)[0]["state"] == "active"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("x", "--team", "reserch"), "no team 'reserch'; did you mean `research`?"),
        (("x", "--allow", "fast,,llama"), "--allow: an empty name"),
        (("x", "--expires", "2020-01-01"), "'2020-01-01' has passed"),
        (("x", "--expires", "tomorrow"), "write 2027-01-01"),
        (("x", "--expires", "9999-12-31"), "not between the years"),
        (("x", "--limit", "usd=5"), "write for example usd=5/day"),
        ((" x",), "cannot be a key's name"),
        (("x\n",), "cannot be a key's name"),
        (("",), "cannot be a key's name"),
    ],
)
def test_a_mistake_makes_no_key(one: Shell, arguments: tuple[str, ...], says: str) -> None:
    """One line on stderr, exit 2, nothing kept."""
    assert says in one.refused("create", *arguments)
    assert not Path(one.store.removeprefix("sqlite:///")).exists()


def test_an_allow_list_that_leads_nowhere_is_a_warning(one: Shell) -> None:
    """Passthrough names and globs count as somewhere."""
    result = one.keys("create", "ci", "--allow", "fast,qwen3,fsat", "--allow", "fast,ll*")
    assert result.exit_code == 0
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert warning.startswith(
        f"warning: --allow 'fsat' is no alias, task or model in {one.environ['GATEWAY_POLICIES']}"
    )
    assert one.kept()["ci"].allow == ("fast", "qwen3", "fsat", "ll*")


def test_broken_policies_stop_making_keys_but_not_revoking_them(one: Shell) -> None:
    """To revoke must always work."""
    one.made("create", "ci")
    (Path(one.environ["GATEWAY_POLICIES"]) / "a.yaml").write_text("teams: [", encoding="utf-8")
    result = one.keys("create", "x")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "a.yaml:2:1: " in result.stderr
    assert one.keys("revoke", "ci").exit_code == 0


def test_a_store_that_is_down_is_an_error_of_its_own(one: Shell) -> None:
    """Exit 1, one line, no password, and the secret that nobody knows is not printed."""
    for arguments in (("create", "ci"), ("list",), ("rotate", "ci"), ("revoke", "ci")):
        result = one.keys(*arguments, "--store", "redis://:hunter2@127.0.0.1:1/0")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("gateway: the store redis://127.0.0.1:1/0 cannot be used: ")
        assert "hunter2" not in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert one.keys("list", "--store", "sqlite:////nowhere/at/all.db").exit_code == 1


def test_a_store_that_is_none_is_told_what_to_write(one: Shell) -> None:
    """Exit 2, also for what only redis-py finds wrong."""
    assert "write sqlite:///gateway.db" in one.refused("list", "--store", "gateway.db")
    assert "write for example redis://" in one.refused("list", "--store", "redis://127.0.0.1:1/0?db=x")


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("usd=5/day", Limit(usd=Decimal(5), per="day")),
        ("usd=0.10/total", Limit(usd=Decimal("0.10"), per="total")),
        ("requests=60/minute", Limit(requests=60, per="minute")),
        ("tokens=100000/90s", Limit(tokens=100_000, per="90s")),
        ("input_tokens=1/hour", Limit(input_tokens=1, per="hour")),
        ("output_tokens=1/week", Limit(output_tokens=1, per="week")),
        ("concurrent=4", Limit(concurrent=4)),
        ("usd=5/day,soft", Limit(usd=Decimal(5), per="day", soft=True)),
        ("usd=5/day,alert_at=0.5,alert_at=0.8", Limit(usd=Decimal(5), per="day", alert_at=(0.5, 0.8))),
    ],
)
def test_a_limit_is_written_in_one_word(text: str, limit: Limit) -> None:
    """Unit, amount, period; then what else the policies' limits have."""
    assert parse_limit(text) == limit


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is not one of usd"),
        ("usd", "write for example usd=5/day"),
        ("5/day", "'5/day' is not one of usd"),
        ("euro=5/day", "'euro' is not one of usd"),
        ("usd=5", "write for example usd=5/day"),
        ("requests=60", "write for example requests=60/day"),
        ("usd=/day", "valid decimal; write"),
        ("usd=five/day", "valid decimal; write"),
        ("usd=nan/day", "write"),
        ("usd=-1/day", "greater than or equal to 0; write"),
        ("usd=1e12/day", "less than or equal to 1000000000; write"),
        ("requests=1.5/minute", "valid integer"),
        ("usd=5/", "'' is not a period; write second"),
        ("usd=5/dya", "'dya' is not a period; write second"),
        ("concurrent=4/day", "write concurrent=4"),
        ("concurrent=0", "greater than or equal to 1; write"),
        ("usd=5/day,hard", "write soft or alert_at=0.8"),
        ("usd=5/day,alert_at=80", "less than or equal to 1; write"),
        ("usd=5/day,", "'' is unknown"),
    ],
)
def test_a_limit_that_is_none_is_told_its_remedy(text: str, says: str) -> None:
    """Quoted as it was written."""
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        parse_limit(text)
    assert str(caught.value).startswith(f"--limit {text!r}: ")


def test_an_expiry_is_a_day_in_the_server_s_zone_an_instant_or_a_time_from_now() -> None:
    """Tokyo's new year comes nine hours before UTC's; an offset that is written counts."""
    tokyo = ZoneInfo("Asia/Tokyo")
    assert parse_expires("2028-01-01", NOW, tokyo) == 1_830_265_200.0
    assert parse_expires("2028-01-01T00:00:00", NOW, tokyo) == 1_830_265_200.0
    assert parse_expires("2028-01-01T00:00:00Z", NOW, tokyo) == 1_830_297_600.0
    assert parse_expires("90d", NOW, tokyo) == NOW + 90 * 86400
    for text in ("0s", "2026-01-01", "1969-01-01", "0001-01-01T00:00:00+14:00"):
        with pytest.raises(ValueError, match="write"):
            parse_expires(text, NOW, tokyo)


def test_a_shell_takes_the_secret_and_nothing_else(one: Shell) -> None:
    """`KEY=$(gateway keys create ci)` with the real program; the explanation goes to the terminal."""
    environ = {**os.environ, **one.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-c", f'KEY=$({sys.executable} -m gateway keys create ci) && printf "%s" "$KEY"'],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert hash_of(done.stdout.encode()) == one.kept()["ci"].hash
    assert "shown only now" in done.stderr
    assert done.stdout not in done.stderr
