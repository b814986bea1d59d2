"""A directory of YAML files read into one checked policy, or into the list of everything that is wrong with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from gateway.policy import references
from gateway.policy.messages import near, problems_of
from gateway.policy.positions import Entry, Fields, Items, Place, Problem, Scalar, plain, read
from gateway.policy.schema import Defaults, Document, Policy, Route, Strict
from gateway.policy.variables import Filled, fill

__all__ = ["PolicyError", "Problem", "default_directory", "load", "shipped"]

_MAX_FILE = 2**20  # bytes
_SUFFIXES = (".yaml", ".yml")
_SECTIONS = tuple(Document.model_fields)
_BY_FIELD = ("server", "defaults")
_Part = TypeVar("_Part", bound=Strict)


class PolicyError(ValueError):
    """The policies cannot be used. `problems` holds every mistake in every file, in order of place."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def load(directory: Path, environ: Mapping[str, str]) -> Policy:
    """The policy of every `*.yaml` and `*.yml` in a directory, by name. Raises PolicyError with all problems at once.

    Routes come out whole: `timeouts`, `retry`, `breaker` and `on_budget` hold the route's own fields over `defaults`.
    """
    documents, sources, problems = _read_all(directory)
    broken = len(documents) < len(sources)
    merged = _merge(documents, problems)
    filled = fill(merged, environ)
    problems += filled.problems
    document, invalid = _validate(filled)
    wrong = references.check(filled.root, whole=not broken) + invalid
    unset = {_place(problem) for problem in filled.problems}  # whatever else is wrong there follows from that
    problems += [problem for problem in wrong if _place(problem) not in unset]
    if problems or document is None:
        raise PolicyError(problems)
    return complete(document, filled.disabled, sources)


def shipped() -> Path:
    """The policies that come with the gateway: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "shipped"
    return inside if inside.is_dir() else package.parent / "policies"


def default_directory(here: Path) -> Path:
    """`policies` under the working directory `here`, else the shipped ones."""
    local = here / "policies"
    return local if local.is_dir() else shipped()


def _read_all(directory: Path) -> tuple[list[Fields], list[str], list[Problem]]:
    top = Place(str(directory), 1, 1)
    remedy = "write --policies DIR (or GATEWAY_POLICIES) with a directory of *.yaml files"
    if not directory.is_dir():
        what = "a file, not a directory" if directory.exists() else "no such directory"
        return [], [], [top.problem(f"{what}; {remedy}")]
    try:
        paths = sorted(path for path in directory.iterdir() if _is_policy(path))
    except OSError as error:
        return [], [], [top.problem(f"cannot be listed ({error.strerror}); make it readable, or {remedy}")]
    if not paths:
        return [], [], [top.problem(f"no *.yaml file in this directory; {remedy}")]
    documents: list[Fields] = []
    problems: list[Problem] = []
    for path in paths:
        document = _read_one(path, problems)
        if document is not None:
            documents.append(document)
    return documents, [str(path) for path in paths], problems


def _is_policy(path: Path) -> bool:
    return path.suffix in _SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _read_one(path: Path, problems: list[Problem]) -> Fields | None:
    file = str(path)
    top = Place(file, 1, 1)
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_FILE + 1)
    except OSError as error:
        problems.append(top.problem(f"cannot be read ({error.strerror}); make it readable, or remove it"))
        return None
    if len(raw) > _MAX_FILE:
        problems.append(top.problem("larger than 1 MiB; split it into several files"))
        return None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8", "replace")
        place = Place(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        problems.append(place.problem("not UTF-8; save the file as UTF-8"))
        return None
    document, found = read(file, text)
    problems += found
    return document


def _merge(documents: Sequence[Fields], problems: list[Problem]) -> Fields:
    entries: dict[str, Entry] = {}
    for document in documents:
        for name, entry in document.entries.items():
            if name not in _SECTIONS:
                problems.append(entry.place.problem(f"{name}: unknown section{near(name, _SECTIONS)}"))
            elif name == "version":
                _check_version(entry, problems)
            elif not (isinstance(entry.node, Scalar) and entry.node.value is None) and _fits(name, entry, problems):
                entries[name] = _join(name, entries[name], entry, problems) if name in entries else entry
    return Fields(Place("", 1, 1), entries)


def _check_version(entry: Entry, problems: list[Problem]) -> None:
    node = entry.node
    if not isinstance(node, Scalar) or isinstance(node.value, bool) or node.value != 1:
        problems.append(node.place.problem("version: not a version that this gateway reads; write version: 1"))


def _fits(name: str, entry: Entry, problems: list[Problem]) -> bool:
    if name == "limits":
        if not isinstance(entry.node, Items):
            problems.append(entry.place.problem("limits: not a list; write [{usd: 1000, per: month}]"))
        return isinstance(entry.node, Items)
    if not isinstance(entry.node, Fields):
        problems.append(entry.place.problem(f"{name}: not a mapping; write names under it, each with its fields"))
    return isinstance(entry.node, Fields)


def _join(where: str, first: Entry, second: Entry, problems: list[Problem]) -> Entry:
    one, two = first.node, second.node
    if isinstance(one, Items) and isinstance(two, Items):
        return Entry(first.place, Items(one.place, one.items + two.items))
    assert isinstance(one, Fields)
    assert isinstance(two, Fields)
    entries = dict(one.entries)
    for name, entry in two.entries.items():
        here = f"{where}.{name}"
        if name not in entries:
            entries[name] = entry
        elif where in _BY_FIELD and isinstance(entries[name].node, Fields) and isinstance(entry.node, Fields):
            entries[name] = _join(here, entries[name], entry, problems)
        else:
            problems.append(entry.place.problem(f"{here}: defined before, at {entries[name].place}; keep one of them"))
    return Entry(first.place, Fields(one.place, entries))


def _validate(filled: Filled) -> tuple[Document | None, list[Problem]]:
    try:
        return Document.model_validate(plain(filled.root)), []
    except ValidationError as error:
        return None, problems_of(error, filled.root)


def _place(problem: Problem) -> tuple[str, int, int]:
    return problem.file, problem.line, problem.column


def complete(document: Document, disabled: Mapping[str, str], sources: Sequence[str]) -> Policy:
    """The policy that a validated document stands for: every route has its full settings."""
    fields = {name: getattr(document, name) for name in _SECTIONS}
    fields["aliases"] = {name: _with_defaults(route, document.defaults) for name, route in document.aliases.items()}
    fields["tasks"] = {name: _with_defaults(route, document.defaults) for name, route in document.tasks.items()}
    return Policy(**fields, disabled=disabled, sources=tuple(sources))


def _with_defaults(route: Route, defaults: Defaults) -> Route:
    return route.model_copy(
        update={
            "timeouts": _over(defaults.timeouts, route.timeouts),
            "retry": _over(defaults.retry, route.retry),
            "breaker": _over(defaults.breaker, route.breaker),
            "on_budget": route.on_budget or "reject",
        }
    )


def _over(base: _Part, own: _Part | None) -> _Part:
    if own is None:
        return base
    return base.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})
