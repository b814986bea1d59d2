"""The loader: whole policies out of good directories, every problem with its place out of bad ones."""

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.policy.loader import PolicyError, Problem, default_directory, load, shipped
from gateway.policy.schema import Policy

BROKEN = Path(__file__).parent / "broken"
SECRETS = {"SECRET_WORD": "hunter2-secret", "TWO_WORDS": "hunter3 secret", "SET_KEY": "sk-set-secret"}
ENVIRON = {**SECRETS, "EMPTY_KEY": " ", "PORT": "99999999"}

GOOD = """\
backends:
  ollama: {base_url: http://127.0.0.1:11434/v1, local: true}
models:
  llama: {backend: ollama, model: "llama3.2"}
"""


def write(directory: Path, **files: str) -> Path:
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(text, encoding="utf-8")
    return directory


def problems(directory: Path, **environ: str) -> list[str]:
    with pytest.raises(PolicyError) as raised:
        load(directory, environ)
    return [str(problem).removeprefix(f"{directory}/") for problem in raised.value.problems]


def test_there_are_at_least_ten_broken_policies() -> None:
    """The proof of issue 2 asks for ten."""
    assert len(list(BROKEN.iterdir())) >= 10


@pytest.mark.parametrize("name", sorted(path.name for path in BROKEN.iterdir()))
def test_broken_policies_give_every_problem_with_its_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each broken directory yields exactly the problems that its expected.txt lists, in order of place."""
    monkeypatch.chdir(BROKEN / name)
    with pytest.raises(PolicyError) as raised:
        load(Path(), ENVIRON)
    assert str(raised.value).splitlines() == Path("expected.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", sorted(path.name for path in BROKEN.iterdir()))
def test_every_problem_stands_at_something_and_says_what_to_write(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place is inside its file, and the message ends with a remedy."""
    monkeypatch.chdir(BROKEN / name)
    with pytest.raises(PolicyError) as raised:
        load(Path(), ENVIRON)
    for problem in raised.value.problems:
        lines = Path(problem.file).read_text(encoding="utf-8", errors="replace").splitlines()
        assert 1 <= problem.line <= len(lines) + 1
        assert 1 <= problem.column <= len([*lines, ""][problem.line - 1]) + 1
        assert "; " in problem.message


@pytest.mark.parametrize("name", sorted(path.name for path in BROKEN.iterdir()))
def test_no_value_from_the_environment_is_ever_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a problem nor the exception behind it holds what a variable holds."""
    monkeypatch.chdir(BROKEN / name)
    with pytest.raises(PolicyError) as raised:
        load(Path(), ENVIRON)
    told = f"{raised.value!s} {raised.value!r} {raised.value.__cause__!r} {raised.value.__context__!r}"
    for secret in SECRETS.values():
        assert secret not in told
    assert "sk-" not in told


@pytest.mark.parametrize(
    "text",
    [
        "server: {max_body: '${S}'}",
        "server: {auth: '${S}', drain: '${S}', timezone: '${S}', store_down: '${S}'}",
        "defaults: {timeouts: {connect: '${S}'}, retry: {attempts: '${S}'}, breaker: {open: '${S}'}}",
        "limits: [{usd: '${S}', per: '${S}'}, {tokens: 1, per: day, soft: '${S}', alert_at: ['${S}']}]",
        "keys: {a: {hash: '${S}', team: '${S}', expires: '${S}', priority: '${S}', on_budget: '${S}'}}",
        "models: {m: {backend: '${S}', model: x, context: '${S}', price: '${S}', mode: '${S}'}}",
        "aliases: {a: ['${S}', '${S}'], b: '${S}', c: {chain: [{any: [x], by: '${S}'}], hedge: {after: '${S}'}}}",
        "aliases: {a: {chain: [{any: ['${S}'], weights: {y: '${S}'}}], data: '${S}'}}",
        "backends: {b: {provider: '${S}', base_url: '${S}', api_keys: '${S}', slots: '${S}', local: '${S}'}}",
        "backends: {b: {base_url: 'http://${S}:${S}/v1', queue: '${S}', simulator: '${S}', limits: '${S}'}}",
        "backends: '${S}'",
        "version: '${S}'",
    ],
)
@pytest.mark.parametrize("secret", ["s3cr3t value-in-no-message", "quote'd \\ s3cr3t"])
def test_no_field_shows_what_its_variable_holds(text: str, secret: str, tmp_path: Path) -> None:
    """Whatever field a variable makes invalid, its text stays out of the message."""
    found = problems(write(tmp_path, a=text), S=secret)
    assert found
    assert all("s3cr3t" not in line for line in found)


def test_a_policy_does_not_show_its_api_keys(tmp_path: Path) -> None:
    """The repr of a loaded policy may end up in a log; its keys may not."""
    text = "backends: {b: {base_url: 'http://h/v1', api_keys: ['${K}'], options: {token: '${K}'}}}"
    policy = load(write(tmp_path, a=text), {"K": "sk-secret"})
    assert policy.backends["b"].api_keys == ("sk-secret",)
    assert "sk-secret" not in repr(policy)


def test_directories_that_hold_no_policy(tmp_path: Path) -> None:
    """A missing directory, a file in its place and an empty directory are each one clear problem."""
    assert "no such directory; write --policies DIR" in problems(tmp_path / "none")[0]
    assert "no *.yaml file in this directory; write --policies DIR" in problems(tmp_path)[0]
    (tmp_path / ".hidden.yaml").write_text("[", encoding="utf-8")
    assert "no *.yaml file" in problems(tmp_path)[0]
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "a file, not a directory" in problems(tmp_path / "file")[0]


def test_unreadable_and_huge_files_are_problems(tmp_path: Path) -> None:
    """A dangling link and a file beyond the bound are reported, and nothing else is guessed from what is missing."""
    (tmp_path / "link.yaml").symlink_to(tmp_path / "nowhere")
    write(tmp_path, huge="#" * (2**20 + 1), routes="aliases: {fast: [llama]}")
    assert problems(tmp_path) == [
        "huge.yaml:1:1: larger than 1 MiB; split it into several files",
        "link.yaml:1:1: cannot be read (No such file or directory); make it readable, or remove it",
    ]


CONTRACT = """\
version: 1
server: {max_body: 32MiB, drain: 30s, auth: keys}
defaults:
  timeouts: {connect: 5s, first_token: 30s, idle: 30s, total: 600s}
  retry: {attempts: 1, backoff: 500ms, max_backoff: 8s}
  breaker: {failures: 5, open: 60s, successes: 2}
backends:
  ollama: {base_url: http://127.0.0.1:11434/v1, local: true, slots: 4, queue: {size: 100, timeout: 30s}}
  openai:
    base_url: https://api.openai.com/v1
    api_keys: ["${OPENAI_API_KEY?}"]
    passthrough: ["gpt-*", "o?-*"]
  zai: {provider: anthropic, base_url: https://api.z.ai/api/anthropic, api_keys: ["${ZAI_API_KEY?}"]}
  demo:
    provider: simulator
    simulator: {latency: 50ms, tokens_per_second: 200, error_rate: 0.05, seed: 7}
models:
  llama:    {backend: ollama, model: "llama3.2", context: 8192}
  gpt-mini: {backend: openai, model: gpt-4o-mini}
  glm:      {backend: zai, model: glm-4.5, context: 128000, price: {input: 0.20, output: 0.20}}
aliases:
  fast: [gpt-mini, llama]
  smart:
    chain:
      - {any: [gpt-mini, glm], by: latency}
      - llama
    timeouts: {first_token: 10s}
    on_budget: degrade
    data: any
tasks:
  analysis: {chain: [glm, gpt-mini, llama]}
  general:  {chain: [llama, gpt-mini]}
limits:
  - {usd: 1000, per: month}
teams:
  research: {limits: [{usd: 200, per: month}]}
keys:
  alice:
    hash: sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
    team: research
    allow: [fast, "task:*"]
    limits:
      - {usd: 5, per: day, alert_at: [0.8]}
      - {requests: 60, per: minute}
      - {tokens: 100000, per: minute}
      - {concurrent: 4}
    expires: 2027-01-01
    priority: 0
    on_budget: degrade
"""


def test_the_contract_s_own_example_loads(tmp_path: Path) -> None:
    """Section 2 of the contract, as it is written there."""
    policy = load(write(tmp_path, policy=CONTRACT), {"ZAI_API_KEY": "z"})
    assert policy.disabled == {"openai": "OPENAI_API_KEY is not set"}
    assert policy.backends["zai"].provider == "anthropic"
    smart = policy.aliases["smart"]
    assert [(step.any, step.by) for step in smart.chain] == [
        (("gpt-mini", "glm"), "latency"),
        (("llama",), "round_robin"),
    ]
    assert policy.keys["alice"].limits[0].alert_at == (0.8,)


def test_files_are_merged(tmp_path: Path) -> None:
    """Names, limits and single fields of `server` and `defaults` add up over the files, in the order of their names."""
    write(
        tmp_path,
        a=GOOD + "server: {drain: 10s}\ndefaults: {timeouts: {connect: 1s}}\nlimits: [{usd: 1, per: day}]\n",
        b="version: 1\nserver: {auth: none}\ndefaults: {timeouts: {idle: 2s}}\nlimits: [{requests: 9, per: 12h}]\n",
        c="aliases: {fast: [llama]}\nkeys:\n",
        d="# nothing but a comment",
    )
    policy = load(tmp_path, {})
    assert (policy.server.drain, policy.server.auth) == (10, "none")
    assert (policy.defaults.timeouts.connect, policy.defaults.timeouts.idle, policy.defaults.timeouts.total) == (
        1,
        2,
        600,
    )
    assert [limit.unit for limit in policy.limits] == ["usd", "requests"]
    assert [Path(source).name for source in policy.sources] == ["a.yaml", "b.yaml", "c.yaml", "d.yaml"]


def test_routes_come_out_whole(tmp_path: Path) -> None:
    """A route's own fields stand over those of `defaults`, and those over the built-in ones."""
    routes = """\
defaults:
  timeouts: {connect: 1s, first_token: 2s}
  retry: {attempts: 3}
aliases:
  plain: [llama]
  own: {chain: [llama], timeouts: {first_token: 9s}, breaker: {open: 5s}, on_budget: degrade}
"""
    policy = load(write(tmp_path, a=GOOD, b=routes), {})
    own, plain = policy.aliases["own"], policy.aliases["plain"]
    assert own.timeouts is not None
    assert (own.timeouts.connect, own.timeouts.first_token, own.timeouts.idle) == (1, 9, 30)
    assert own.retry is not None
    assert (own.retry.attempts, own.retry.max_backoff) == (3, 8)
    assert own.breaker is not None
    assert (own.breaker.open, own.breaker.failures) == (5, 5)
    assert (own.on_budget, plain.on_budget) == ("degrade", "reject")
    assert (plain.timeouts, plain.breaker) == (policy.defaults.timeouts, policy.defaults.breaker)


def test_money_is_exact_and_dates_are_dates(tmp_path: Path) -> None:
    """A price is the decimal that was written, not the nearest float; text that looks like a number stays text."""
    text = GOOD + (
        "  priced: {backend: ollama, model: '4.50', price: {input: 0.1, output: 1e-7, request: 3}, tags: [on, 'no']}\n"
        "keys:\n  a: {hash: 'sha256:" + "a" * 64 + "', expires: 2027-01-01}\n"
        "limits: [{usd: 0.30000000000000000001, per: day}, {tokens: 1_000_000, per: minute}]\n"
    )
    policy = load(write(tmp_path, a=text), {})
    price = policy.models["priced"].price
    assert price is not None
    assert (price.input, price.output, price.request) == (Decimal("0.1"), Decimal("1e-7"), Decimal(3))
    assert policy.models["priced"].model == "4.50"
    assert policy.models["priced"].tags == ("on", "no")
    assert policy.limits[0].usd == Decimal("0.30000000000000000001")
    assert policy.limits[1].tokens == 1_000_000
    assert policy.keys["a"].expires == date(2027, 1, 1)


def test_an_optional_variable_switches_its_backend_off(tmp_path: Path) -> None:
    """A backend whose optional keys are all missing is off with the reason, and its models stay in their chains."""
    text = """\
backends:
  one: {base_url: "https://one/v1/", api_keys: ["${A?}"]}
  some: {base_url: "https://some/v1", api_keys: ["${A?}", "${B?}"]}
  two: {base_url: "https://two/v1", api_keys: ["${A?}", "${C?}"]}
  url: {base_url: "${URL?}", slots: "${SLOTS?}", local: true}
  any: {provider: "${PROVIDER?}", limits: [{usd: "${USD?}", per: day}]}
models:
  m: {backend: one, model: m}
aliases: {fast: [m]}
"""
    policy = load(write(tmp_path, a=text), {"B": "key-b\n", "A": " "})
    assert policy.disabled == {
        "one": "A is not set",
        "two": "A and C are not set",
        "url": "URL and SLOTS are not set",
        "any": "PROVIDER and USD are not set",
    }
    assert policy.backends["some"].api_keys == ("key-b",)
    assert policy.backends["one"].base_url == "https://one/v1"
    assert policy.backends["url"].base_url == "http://disabled.invalid"
    assert policy.backends["url"].local
    assert policy.aliases["fast"].chain[0].any == ("m",)


def test_variables_fill_any_field(tmp_path: Path) -> None:
    """A variable may be a part of a text or a number, and `$${` is a plain `${`."""
    text = """\
backends:
  b: {base_url: "http://${HOST}:${PORT}/v1", slots: "${SLOTS}", options: {template: "$${x} ${HOST}"}}
"""
    policy = load(write(tmp_path, a=text), {"HOST": "h", "PORT": "81", "SLOTS": "4"})
    backend = policy.backends["b"]
    assert (backend.base_url, backend.slots, backend.options["template"]) == ("http://h:81/v1", 4, "${x} h")


def test_one_anchor_may_serve_several_fields(tmp_path: Path) -> None:
    """YAML's anchors work, and a problem inside one stands where the anchor is written, for each that uses it."""
    text = "backends:\n  a: {base_url: http://a/v1, queue: &q {size: 7}}\n  b: {base_url: http://b/v1, queue: *q}\n"
    assert load(write(tmp_path, a=text), {}).backends["b"].queue.size == 7
    assert problems(write(tmp_path, a=text.replace("7", "x"))) == [
        "a.yaml:2:47: backends.a.queue.size: not a whole number; write for example 4",
        "a.yaml:2:47: backends.b.queue.size: not a whole number; write for example 4",
    ]


def test_a_provider_is_one_that_is_served_or_the_reason_is_told(tmp_path: Path) -> None:
    """A rare provider passes without litellm being imported; another is an error with the reason, or a near name."""
    for name in ("fireworks_ai", "modelscope", "veniceai", "watsonx", "simulator"):
        assert load(write(tmp_path, a=f"backends: {{b: {{provider: {name}}}}}"), {}).backends["b"].provider == name
    assert problems(write(tmp_path, a="backends: {b: {provider: firework}}")) == [
        "a.yaml:1:26: backends.b.provider: unknown provider `firework`; did you mean `fireworks_ai`?"
    ]
    (problem,) = problems(write(tmp_path, a="backends: {b: {provider: replicate}}"))
    assert problem.startswith("a.yaml:1:26: backends.b.provider: `replicate` is not served: it gives an id first")
    (problem,) = problems(write(tmp_path, a="backends: {b: {provider: deepgram}}"))
    assert "litellm has no chat format for it" in problem


def test_the_default_directory_is_the_nearest(tmp_path: Path) -> None:
    """`./policies` when it is there, else the shipped ones."""
    assert default_directory(tmp_path) == shipped()
    (tmp_path / "policies").mkdir()
    assert default_directory(tmp_path) == tmp_path / "policies"


def test_problems_are_sorted_and_said_once() -> None:
    """An error's problems stand in order of place, each once."""
    first, second = Problem("a", 2, 1, "x"), Problem("a", 10, 1, "y")
    error = PolicyError([second, first, second])
    assert error.problems == (first, second)
    assert str(error) == "a:2:1: x\na:10:1: y"


KEYS = st.sampled_from(
    [*Policy.model_fields, "chain", "any", "base_url", "api_keys", "model", "backend", "price", "usd"]
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["${A}", "${B?}", "30s", "free", "m"])
)
TREES = st.recursive(
    LEAVES | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=4),
    max_leaves=25,
)
SHIPPED = b"\n".join(path.read_bytes() for path in sorted(shipped().glob("*.yaml")))


def survives(directory: Path, raw: bytes) -> None:
    (directory / "a.yaml").write_bytes(raw)
    found: tuple[Problem, ...] = ()
    try:
        load(directory, {"A": "value-of-a"})
    except PolicyError as error:
        found = error.problems
        if not found:
            raise
    assert all("value-of-a" not in problem.message for problem in found)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.dictionaries(KEYS, TREES, max_size=5))
def test_any_tree_is_a_policy_or_a_policy_error(data: dict[str, object], tmp_path: Path) -> None:
    """Whatever YAML holds, loading gives a policy or says what is wrong."""
    survives(tmp_path, yaml.safe_dump(data).encode("utf-8", "surrogatepass"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at=st.integers(0, len(SHIPPED)),
    length=st.integers(0, 40),
    piece=st.binary(max_size=6)
    | st.sampled_from([b"&a ", b"*a", b"[", b"{", b"\t", b"---\n", b"!!x ", b"? ", b"<<: ", b"'"]),
)
def test_any_damage_to_a_file_is_a_policy_error_at_most(at: int, length: int, piece: bytes, tmp_path: Path) -> None:
    """A cut or an insertion anywhere in a real file never raises anything else."""
    survives(tmp_path, SHIPPED[:at] + piece + SHIPPED[at + length :])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200) | st.text(alphabet="[]{}:,-&*!|>'\"#%@` \n\tab1$?<", max_size=80).map(str.encode))
def test_any_garbage_is_a_policy_error_at_most(raw: bytes, tmp_path: Path) -> None:
    """Bytes that are no YAML at all never raise anything else."""
    survives(tmp_path, raw)
