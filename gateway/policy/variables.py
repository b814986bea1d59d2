"""`${NAME}` and `${NAME?}` replaced by the environment's values, whose text no message may ever show."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gateway.policy.positions import Entry, Fields, Items, Node, Place, Problem, Scalar

_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\?)?")

OFF_URL = "http://disabled.invalid"  # stands in for the base_url of a backend that is off; RFC 2606: never resolves


@dataclass(frozen=True, slots=True)
class Filled:
    """The policies with every variable in its place; `disabled` maps a backend to the reason it is off."""

    root: Fields
    disabled: Mapping[str, str]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class _Absent:
    name: str
    place: Place


@dataclass(slots=True)
class _Search:
    environ: Mapping[str, str]
    problems: list[Problem] = field(default_factory=list)
    absent: list[_Absent] = field(default_factory=list)


def fill(root: Fields, environ: Mapping[str, str]) -> Filled:
    """Replace every reference. A variable that is unset, or empty, is missing; values lose surrounding white space."""
    problems: list[Problem] = []
    disabled: dict[str, str] = {}
    entries: dict[str, Entry] = {}
    for section, entry in root.entries.items():
        node = entry.node
        if section == "backends" and isinstance(node, Fields):
            backends = {}
            for name, backend in node.entries.items():
                filled, missing = _backend(backend.node, environ, problems)
                backends[name] = Entry(backend.place, filled)
                if missing:
                    disabled[name] = f"{_and(missing)} {'is' if len(missing) == 1 else 'are'} not set"
            entries[section] = Entry(entry.place, Fields(node.place, backends))
        else:
            search = _Search(environ)
            entries[section] = Entry(entry.place, _fill(node, search))
            problems += search.problems
            problems += [
                absent.place.problem(
                    f"${{{absent.name}?}} stands outside a backend, and only a backend can be switched off; "
                    f"write ${{{absent.name}}} and export it, or write the value"
                )
                for absent in search.absent
            ]
    return Filled(Fields(root.place, entries), disabled, tuple(problems))


def _backend(node: Node, environ: Mapping[str, str], problems: list[Problem]) -> tuple[Node, list[str]]:
    if not isinstance(node, Fields):
        search = _Search(environ)
        filled = _fill(node, search)
        problems += search.problems
        return filled, [absent.name for absent in search.absent]
    missing: list[str] = []
    entries: dict[str, Entry] = {}
    for name, entry in node.entries.items():
        if name == "api_keys" and isinstance(entry.node, Items):
            keys, without = _api_keys(entry.node, environ, problems)
            entries[name] = Entry(entry.place, keys)
            missing += without
            continue
        search = _Search(environ)
        filled = _fill(entry.node, search)
        problems += search.problems
        missing += [absent.name for absent in search.absent]
        if not search.absent:
            entries[name] = Entry(entry.place, filled)
        elif name == "base_url":
            entries[name] = Entry(entry.place, Scalar(entry.place, OFF_URL, OFF_URL))
        elif name == "provider":
            entries.setdefault("base_url", Entry(entry.place, Scalar(entry.place, OFF_URL, OFF_URL)))
    return Fields(node.place, entries), list(dict.fromkeys(missing))


def _api_keys(node: Items, environ: Mapping[str, str], problems: list[Problem]) -> tuple[Items, list[str]]:
    kept: list[Node] = []
    missing: list[str] = []
    for item in node.items:
        search = _Search(environ)
        filled = _fill(item, search)
        problems += search.problems
        missing += [absent.name for absent in search.absent]
        if not search.absent:
            kept.append(filled)
    return Items(node.place, tuple(kept)), [] if kept else missing


def _fill(node: Node, search: _Search) -> Node:
    match node:
        case Fields(entries=entries):
            new = {name: Entry(entry.place, _fill(entry.node, search)) for name, entry in entries.items()}
            return replace(node, entries=new)
        case Items(items=items):
            return replace(node, items=tuple(_fill(item, search) for item in items))
        case Scalar(value=str() as text) if "${" in text:
            return _fill_text(node, text, search)
    return node


def _fill_text(node: Scalar, text: str, search: _Search) -> Scalar:
    filled = False

    def value_of(found: re.Match[str]) -> str:
        nonlocal filled
        if found[0] == "$${":
            return "${"
        name = _NAME.fullmatch(found[1] or "")
        if name is None:
            search.problems.append(
                node.place.problem(
                    "not a variable; write ${NAME}, ${NAME?} if it may be missing, or $${ for a plain ${"
                )
            )
            return ""
        filled = True
        value = search.environ.get(name[1], "").strip()
        if not value and name[2]:
            search.absent.append(_Absent(name[1], node.place))
        elif not value:
            search.problems.append(
                node.place.problem(
                    f"${{{name[1]}}} is not set; export {name[1]}, "
                    f"or write ${{{name[1]}?}} in a backend that may be off"
                )
            )
        return value

    return replace(node, value=_REFERENCE.sub(value_of, text), filled=filled)


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
