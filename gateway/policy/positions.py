"""YAML read into values that know where they stand, within bounds that no file can exceed."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAX_DEPTH = 32
_MAX_NODES = 100_000  # aliases counted as what they expand to

_WORDS: Mapping[str, object] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_INTEGER = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*")
_DECIMAL = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
_MAX_DIGITS = 40  # what is longer stays text, and is refused where a number is expected
_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake in the policies. Line and column count from 1; the message ends with what to write instead."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something stands. Line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def problem(self, message: str) -> Problem:
        """A problem that stands here."""
        return Problem(self.file, self.line, self.column, message)


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value. `text` is what the file says; `filled` tells that `value` is from the environment."""

    place: Place
    text: str
    value: object
    filled: bool = False


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    place: Place
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A field of a mapping: where its name stands, and its value."""

    place: Place
    node: "Node"


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping."""

    place: Place
    entries: Mapping[str, Entry]


Node: TypeAlias = Scalar | Items | Fields


def plain(node: Node) -> Any:
    """The bare data: dicts, lists, str, int, Decimal, bool and None."""
    match node:
        case Fields(entries=entries):
            return {name: plain(entry.node) for name, entry in entries.items()}
        case Items(items=items):
            return [plain(item) for item in items]
        case Scalar(value=value):
            return value


def scalars(node: Node) -> Iterator[Scalar]:
    """Every single value in a node, in order."""
    match node:
        case Fields(entries=entries):
            for entry in entries.values():
                yield from scalars(entry.node)
        case Items(items=items):
            for item in items:
                yield from scalars(item)
        case Scalar():
            yield node


def read(file: str, text: str) -> tuple[Fields | None, list[Problem]]:
    """The mapping that a file holds and what is wrong with it; no mapping when it cannot be read at all."""
    top = Place(file, 1, 1)
    found = _UNPRINTABLE.search(text)
    if found:
        return None, [_place_of(file, text, found.start()).problem("a control character; remove it")]
    builder = _Builder(file, text)
    try:
        node = builder.build()
    except _Refused as refused:
        return None, [*builder.problems, refused.problem]
    except yaml.YAMLError as error:
        return None, [*builder.problems, _syntax(file, text, error)]
    if isinstance(node, Scalar) and node.value is None:
        node = Fields(top, {})
    if not isinstance(node, Fields):
        message = "a policy file is a mapping; write sections such as `backends:`, `models:` and `aliases:`"
        return None, [*builder.problems, node.place.problem(message)]
    return node, builder.problems


class _Refused(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


class _Builder:
    """Events in, nodes out. Composing by hand is what bounds depth and aliases, and what sees a name written twice."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=_LOADER)
        self._anchors: dict[str, tuple[Node, int, int]] = {}  # with how many values, and how many levels, it has
        self._nodes = 0
        self._deepest = 0

    def build(self) -> Node:
        node: Node = Scalar(Place(self.file, 1, 1), "", None)
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._refuse(event, "a second document; a file holds one: remove `---` or split the file")
                node = self._node(next(self._events), 0)
        return node

    def _node(self, event: yaml.Event, depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        nodes, deepest = self._nodes, self._deepest
        self._deepest = depth
        self._count(event, 1, depth)
        if getattr(event, "tag", None) not in (None, "!"):
            self.problems.append(self._at(event).problem("a tag (`!…`); remove it: policies need none"))
        node: Node
        if isinstance(event, yaml.MappingStartEvent):
            node = self._fields(event, depth)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._items(event, depth)
        else:
            assert isinstance(event, yaml.ScalarEvent)
            value = _resolve(event.value) if event.implicit[0] else event.value
            node = Scalar(self._at(event), event.value, value)
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            self._anchors[anchor] = (node, self._nodes - nodes, self._deepest - depth)
        self._deepest = max(self._deepest, deepest)
        return node

    def _alias(self, event: yaml.AliasEvent, depth: int) -> Node:
        if event.anchor not in self._anchors:
            raise self._refuse(event, "an alias (`*…`) without an anchor before it; write `&name` there, or quote it")
        node, nodes, levels = self._anchors[event.anchor]
        self._count(event, nodes, depth + levels)
        self._deepest = max(self._deepest, depth + levels)
        return node

    def _items(self, start: yaml.Event, depth: int) -> Items:
        items = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        return Items(self._at(start), tuple(items))

    def _fields(self, start: yaml.Event, depth: int) -> Fields:
        entries: dict[str, Entry] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._refuse(event, "a list, a mapping or an alias stands where a name is expected; write a name")
            name, place = event.value, self._at(event)
            node = self._node(next(self._events), depth + 1)
            if name == "<<" and event.implicit[0]:
                self.problems.append(place.problem("merge keys (`<<`) are not supported; write the fields out"))
            elif name in entries:
                first = entries[name].place.line
                self.problems.append(place.problem(f"`{name}` is written twice, first on line {first}; keep one"))
            else:
                entries[name] = Entry(place, node)
        return Fields(self._at(start), entries)

    def _count(self, event: yaml.Event, nodes: int, depth: int) -> None:
        self._nodes += nodes
        if depth > _MAX_DEPTH:
            raise self._refuse(event, f"nested deeper than {_MAX_DEPTH} levels; write it flat")
        if self._nodes > _MAX_NODES:
            raise self._refuse(event, f"more than {_MAX_NODES} values, aliases expanded; use fewer aliases")

    def _at(self, event: yaml.Event) -> Place:
        mark = event.start_mark
        assert mark is not None
        return Place(self.file, mark.line + 1, mark.column + 1)

    def _refuse(self, event: yaml.Event, message: str) -> _Refused:
        return _Refused(self._at(event).problem(message))


def _resolve(text: str) -> object:
    # YAML 1.2's core schema: `no`, `1:30` and `2027-01-01` stay text, and 0.1 stays exact.
    if text in _WORDS:
        return _WORDS[text]
    if len(text) <= _MAX_DIGITS:
        if _INTEGER.fullmatch(text):
            return int(text)
        if _DECIMAL.fullmatch(text):
            return Decimal(text)
    return text


def _place_of(file: str, text: str, offset: int) -> Place:
    before = text[:offset]
    return Place(file, before.count("\n") + 1, offset - before.rfind("\n"))


def _syntax(file: str, text: str, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return Place(file, 1, 1).problem("not YAML; check the file's encoding: it must be UTF-8")
    place = Place(file, mark.line + 1, mark.column + 1)
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    what = getattr(error, "problem", None) or "not YAML"
    start = getattr(error, "context_mark", None)
    if start is not None and mark.line >= len(lines):
        opened = Place(file, start.line + 1, start.column + 1)
        return opened.problem("what begins here never ends; write the missing bracket or quote")
    if line[: mark.column + 1].endswith("\t") or line[mark.column : mark.column + 1] == "\t":
        return place.problem("a tab stands where YAML wants spaces; indent with spaces")
    if line[mark.column : mark.column + 1] in ("@", "`", "%"):
        return place.problem("a value cannot begin with this character; put the value in quotes")
    if "mapping values are not allowed" in what:
        return place.problem(f"{what}; check the indentation, or put a text that contains `: ` in quotes")
    if start is not None and (start.line, start.column) != (mark.line, mark.column):
        since = f"line {start.line + 1}, column {start.column + 1}"
        return place.problem(f"{what}; check brackets, quotes and indentation from {since} on")
    return place.problem(f"{what}; check brackets, quotes and indentation here")
