"""`gateway check`: a summary and 0, or every problem on stderr and 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli.check import command, warnings
from gateway.policy.loader import load

BROKEN = Path(__file__).parent.parent / "policy" / "broken"
NEW_YEAR = 1_798_761_600.0  # 2027-01-01T00:00:00Z
POLICY = """\
server: {auth: keys, timezone: Asia/Tokyo}
backends:
  ollama: {base_url: http://127.0.0.1:11434/v1, local: true}
  openai: {base_url: https://api.openai.com/v1, api_keys: ["${OPENAI_API_KEY?}"], passthrough: ["gpt-*"]}
models:
  llama: {backend: ollama, model: llama3.2}
  mini: {backend: openai, model: gpt-4o-mini}
aliases:
  fast: [{any: [mini, llama], by: latency}]
  home: {chain: [llama], data: local}
tasks:
  analysis: [mini, llama]
limits:
  - {usd: 1000, per: month, soft: true}
teams:
  research: {limits: [{usd: 200, per: month}]}
keys:
  alice:
    hash: sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
    team: research
    allow: [fast, "task:*"]
    limits: [{requests: 60, per: minute}, {concurrent: 4}]
    expires: 2027-01-01
"""


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(command, list(arguments), env={"GATEWAY_POLICIES": None, **environ})


def write(directory: Path, text: str) -> Path:
    (directory / "a.yaml").write_text(text, encoding="utf-8")
    return directory


def test_good_policies_are_summed_up(tmp_path: Path) -> None:
    """Files, backends with the reason they are off, models, chains, keys and limits, on stdout."""
    result = run("--policies", str(write(tmp_path, POLICY)), OPENAI_API_KEY="")
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[:2] == [f"policies are valid: {tmp_path}/a.yaml", "server: auth keys, time zone Asia/Tokyo"]
    for line in [
        "backends (1 of 2 on):",
        "ollama  on, http://127.0.0.1:11434/v1, local",
        "openai  off: OPENAI_API_KEY is not set",
        "mini   gpt-4o-mini at openai",
        "fast  (mini | llama by latency)",
        "home  llama [data stays local]",
        "analysis  mini -> llama",
        "research  $200 per month",
        "alice  team research; may use fast, task:*; 60 requests per minute, 4 concurrent; until 2027-01-01",
        "limits for everything: $1000 per month (soft)",
    ]:
        assert line in lines


def test_the_environment_names_the_directory(tmp_path: Path) -> None:
    """GATEWAY_POLICIES stands in for --policies, and the flag wins."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    bad.mkdir()
    write(good, POLICY)
    assert run(GATEWAY_POLICIES=str(good)).exit_code == 0
    assert run(GATEWAY_POLICIES=str(bad)).exit_code == 2
    assert run("--policies", str(good), GATEWAY_POLICIES=str(bad)).exit_code == 0


def test_without_a_directory_the_nearest_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`./policies` first, else the shipped ones."""
    monkeypatch.chdir(tmp_path)
    assert "backends.yaml" in run().stdout
    (tmp_path / "policies").mkdir()
    write(tmp_path / "policies", POLICY)
    assert f"policies are valid: {tmp_path}/policies/a.yaml" in run().stdout


def test_no_secret_is_in_the_summary(tmp_path: Path) -> None:
    """Neither an api key nor a hash."""
    result = run("--policies", str(write(tmp_path, POLICY)), OPENAI_API_KEY="sk-secret")
    assert "backends (2 of 2 on):" in result.output
    assert "sk-secret" not in result.output
    assert "aaaa" not in result.output


@pytest.mark.parametrize("name", sorted(path.name for path in BROKEN.iterdir()))
def test_a_broken_directory_ends_the_process_with_2(name: str) -> None:
    """A real process: nothing on stdout, every expected problem on stderr, one a line."""
    environ = {"EMPTY_KEY": " ", "SET_KEY": "sk-set", "PORT": "99999999", "SECRET_WORD": "hunter2", "TWO_WORDS": "a b"}
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "check", "--policies", "."],
        cwd=BROKEN / name,
        env={**os.environ, **environ, "PYTHONPATH": str(BROKEN.parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (BROKEN / name / "expected.txt").read_text(encoding="utf-8")


def test_what_is_probably_not_meant_is_a_warning(tmp_path: Path) -> None:
    """An expired key, a route with nobody to answer, an allow-list that leads nowhere, keys behind an open door."""
    text = POLICY.replace("auth: keys", "auth: none").replace(
        '"task:*"', "fsat, gpt-4o, openai/gpt-5, 'zz*', 'task:sql'"
    )
    text = text.replace("chain: [llama], data: local", "chain: [mini], data: local")
    text = text.replace("analysis: [mini, llama]", "analysis: [mini]")
    policy = load(write(tmp_path, text), {})
    found = list(warnings(policy, NEW_YEAR))
    assert [line.split(",")[0] for line in found] == [
        "alias home has `data: local` and no model at a local backend",
        "task analysis cannot answer",
        "key alice has expired (2027-01-01); remove it",
        "key alice allows 'fsat'",
        "key alice allows 'zz*'",
        "key alice allows 'task:sql'",
        "server.auth is `none`",
    ]
    assert "(openai: OPENAI_API_KEY is not set)" in found[1]
    assert list(warnings(load(write(tmp_path, "limits: []"), {}), 0)) == [
        "there is no backend; declare one under `backends:`"
    ]


def test_an_alias_hides_a_model_of_its_name(tmp_path: Path) -> None:
    """The alias is looked up first: a warning, unless the model stands in its chain and so still answers."""
    policy = load(write(tmp_path, POLICY.replace("home: {chain: [llama]", "llama: {chain: [llama]")), {})
    assert not any("also a model" in line for line in warnings(policy, 0))
    policy = load(write(tmp_path, POLICY.replace("home: {chain: [llama]", "mini: {chain: [llama]")), {})
    found = [line for line in warnings(policy, 0) if "also a model" in line]
    assert [line.split(",")[0] for line in found] == ["alias mini is also a model"]


def test_a_key_expires_when_its_day_begins_in_the_server_s_time_zone(tmp_path: Path) -> None:
    """Tokyo's new year comes nine hours before UTC's."""
    policy = load(write(tmp_path, POLICY), {"OPENAI_API_KEY": "k"})
    tokyo = NEW_YEAR - 9 * 3600
    assert list(warnings(policy, tokyo - 1)) == []
    assert len(list(warnings(policy, tokyo))) == 1
