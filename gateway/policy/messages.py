"""What validation found, said at its place in the file, with what to write instead."""

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from gateway.policy.positions import Fields, Items, Node, Place, Problem, Scalar, scalars
from gateway.policy.schema import Document

_SECRET_FIELDS = frozenset({"api_keys", "base_url", "hash", "options", "proxy"})  # never quoted, not even from the file
_MAX_QUOTED = 60

_EXAMPLES: Mapping[str, str] = {
    "after": "after: 2s",
    "any": "any: [model-a, model-b]",
    "backend": "backend: ollama",
    "chain": "chain: [model-a, model-b]",
    "hash": "hash: sha256:… (64 hex digits)",
    "model": 'model: "llama3.2"',
}
_LISTS: Mapping[str, str] = {
    "alert_at": "[0.5, 0.8]",
    "allow": '[fast, "task:*"]',
    "any": "[model-a, model-b]",
    "api_keys": '["${NAME}"]',
    "chain": "[model-a, model-b]",
    "limits": "[{usd: 5, per: day}]",
    "passthrough": '["gpt-*"]',
    "tags": "[fast, cheap]",
}


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean `x`?`, or the names there are, or nothing when there are none."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean `{close[0]}`?"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"; write one of {shown}" if names else ""


def problems_of(error: ValidationError, root: Fields) -> list[Problem]:
    """Every error of pydantic's as a problem. No value from the environment and no secret field is ever quoted."""
    found = []
    for detail in error.errors(include_url=False, include_input=False):
        spot = _locate(root, detail["loc"])
        if detail["type"] == "too_short" and isinstance(spot.node, Items) and spot.node.items:
            continue  # what made it short is an error of its own
        message = f"{spot.name}: {_say(detail['type'], detail['msg'], detail.get('ctx', {}), detail['loc'], spot)}"
        if any(_leaks(message, scalar) for scalar in scalars(spot.node)):
            message = (
                f"{spot.name}: the value that its variable gives is not valid here; export another, or write it out"
            )
        found.append(spot.place.problem(message))
    return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class _Spot:
    name: str
    field: str
    place: Place
    node: Node


def _leaks(message: str, scalar: Scalar) -> bool:
    return scalar.filled and isinstance(scalar.value, str) and bool(scalar.value) and scalar.value in message


def _locate(root: Fields, loc: Sequence[int | str]) -> _Spot:
    node: Node = root
    place, name, field = root.place, "", ""
    for part in loc:
        if isinstance(node, Fields) and part in node.entries:
            entry = node.entries[str(part)]
            field = str(part)
            name = f"{name}.{part}" if name else field
            place, node = entry.place, entry.node
        elif isinstance(node, Items) and isinstance(part, int) and part < len(node.items):
            name, node = f"{name}[{part}]", node.items[part]
            place = node.place
        elif not isinstance(node, Items):  # a list may be short for a mapping that the path names
            break
    on_name = loc[-1:] == ("[key]",)
    return _Spot(name, field, node.place if isinstance(node, Scalar) and not on_name else place, node)


def _say(kind: str, text: str, context: Mapping[str, Any], loc: Sequence[int | str], spot: _Spot) -> str:
    last = str(loc[-1]) if loc else ""
    match kind:
        case "extra_forbidden":
            return f"unknown field{near(last, _fields_at(loc[:-1]))}"
        case "missing":
            return f"`{last}` is missing; write `{_EXAMPLES.get(last, f'{last}: …')}`"
        case "value_error":
            return _own(text.removeprefix("Value error, "), spot)
        case "literal_error" if last == "[key]":
            return f"unknown field; write {context.get('expected')}"
        case "literal_error":
            return f"{_quoted(spot)} is not allowed; write {context.get('expected')}"
        case "model_type" | "model_attributes_type" | "mapping_type" | "dict_type":
            return _mapping_wanted(loc)
        case "tuple_type" | "list_type":
            return f"not a list; write {_LISTS.get(spot.field, '[…]')}"
        case "too_short":
            return "empty; write at least one model"
        case "string_type":
            return f"not text; {_text_remedy(spot)}"
    return _number_wanted(kind, text, context)


def _own(text: str, spot: _Spot) -> str:
    # A validator quotes the value it was given; what stands in the file is shown in its place.
    if isinstance(spot.node, Scalar):
        value = repr(spot.node.value)
        if text.startswith(value):
            return _quoted(spot) + text.removeprefix(value)
    return text


def _quoted(spot: _Spot) -> str:
    if not isinstance(spot.node, Scalar) or spot.field in _SECRET_FIELDS or spot.name.split(".")[-2:-1] == ["options"]:
        return "the value"
    text = spot.node.text
    return repr(text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…")


def _text_remedy(spot: _Spot) -> str:
    if isinstance(spot.node, Scalar) and spot.node.value is not None:
        return f"put it in quotes: {_quoted(spot)}" if _quoted(spot) != "the value" else "put it in quotes"
    return "write one text here"


def _mapping_wanted(loc: Sequence[int | str]) -> str:
    if len(loc) == 2 and loc[0] in ("aliases", "tasks"):
        return "neither a list nor a mapping; write [model-a, model-b] or {chain: [model-a, model-b]}"
    if "chain" in loc[-2:-1]:
        return "neither a model's name nor a choice; write model-a or {any: [model-a, model-b], by: latency}"
    known = _fields_at(loc)
    return f"not a mapping; write its fields: {', '.join(known)}" if known else "not a mapping; write {name: value}"


def _number_wanted(kind: str, text: str, context: Mapping[str, Any]) -> str:
    bounds = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    for name, words in bounds.items():
        if kind.startswith(("greater_than", "less_than")) and name in context:
            return f"out of bounds; write a number that is {words} {context[name]}"
    if kind.startswith("int"):
        return "not a whole number; write for example 4"
    if kind.startswith(("float", "decimal", "finite", "is_instance")):
        return "not a number; write for example 0.25"
    if kind.startswith("bool"):
        return "neither true nor false; write true or false"
    return f"{text[:1].lower()}{text[1:]}; write a value of the kind that the README shows"


def _fields_at(loc: Sequence[int | str]) -> list[str]:
    kind: Any = Document
    for part in loc:
        kind = _into(_bare(kind), part)
    kind = _bare(kind)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _into(kind: Any, part: int | str) -> Any:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        known = kind.model_fields.get(str(part))
        return known.annotation if known else None
    arguments = get_args(kind)
    if get_origin(kind) is tuple:
        return arguments[0]
    return arguments[1] if len(arguments) == 2 else None


def _bare(kind: Any) -> Any:
    while get_origin(kind) in (Annotated, Union, types.UnionType):
        kind = next(argument for argument in get_args(kind) if argument is not type(None))
    return kind
