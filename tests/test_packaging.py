"""What is shipped hangs together: the lock with pyproject.toml, the README's commands with .ci/run."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PIN = re.compile(r"^([a-z0-9-]+)==(\S+)(?: ; (.+))? \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$")
REMEDY = "run the command of the README's section on requirements.lock"


def _pins() -> dict[str, list[str]]:
    """Each package's pinned versions; more than one where they differ by platform."""
    pins: dict[str, list[str]] = {}
    for line in LOCK.splitlines():
        found = PIN.match(line)
        if found is not None:
            pins.setdefault(found[1], []).append(found[2])
    return pins


def _missing(requirement: Requirement, pins: dict[str, list[str]]) -> str | None:
    versions = pins.get(canonicalize_name(requirement.name))
    if versions is None:
        return f"{requirement.name} is not in requirements.lock; {REMEDY}"
    if not any(requirement.specifier.contains(version, prereleases=True) for version in versions):
        return f"requirements.lock has {requirement.name} {versions}, not {requirement.specifier}; {REMEDY}"
    return None


def _needs(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """What an installed package asks for here, with these of its extras."""
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in (*sorted(extras), "")
        ):
            yield requirement


def _declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in project["dependencies"]]


def test_lock_has_pins_and_hashes_only() -> None:
    """No index, no link and no host stand in the lock: nothing in it says where a package came from."""
    strange = [line for line in LOCK.splitlines() if not PIN.match(line) and not HASH.match(line)]
    assert strange == []


def test_lock_serves_every_dependency() -> None:
    """Every dependency of pyproject.toml is pinned to a version that its range allows."""
    pins = _pins()
    assert [problem for problem in (_missing(each, pins) for each in _declared()) if problem] == []


def test_lock_is_closed() -> None:
    """What the pinned packages need is pinned too, as far as the same versions are installed here."""
    pins = _pins()
    todo = [(canonicalize_name(each.name), frozenset(each.extras)) for each in _declared()]
    seen: set[tuple[str, frozenset[str]]] = set()
    problems = []
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen or name not in pins:
            continue
        seen.add((name, extras))
        try:
            if distribution(name).version not in pins[name]:
                continue
        except PackageNotFoundError:
            continue
        for requirement in _needs(name, extras):
            problems.append(_missing(requirement, pins))
            todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    assert len(seen) > len(_declared())
    assert [problem for problem in problems if problem] == []


def test_ci_runs_the_readme_test_command() -> None:
    """`.ci/run` has, as one of its lines, the very command that the README gives for the tests."""
    commands = re.findall(r"^```sh\n(python3 -m venv .*)\n```$", (ROOT / "README.md").read_text(), re.MULTILINE)
    serves, tests = commands
    assert serves.endswith("gateway serve --demo")
    assert tests.endswith("pytest")
    assert tests in [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]


def test_uv_trusts_whom_the_system_trusts() -> None:
    """Both commands of the README work where only the system's store knows the certificate authority."""
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["system-certs"] is True


def test_readme_names_every_command() -> None:
    """The README's table of commands has those that the program has, and no others."""
    from gateway.cli import group

    table = set(re.findall(r"^\| `gateway ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert table == set(group.list_commands(None))  # type: ignore[arg-type]


def test_wheel_carries_the_policies() -> None:
    """The wheel has the policies at the place where the program looks for shipped ones."""
    from gateway.policy.loader import shipped

    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"policies": "gateway/shipped"}
    assert shipped() == ROOT / "policies"
