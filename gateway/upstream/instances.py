"""A smallest JSON value that a JSON schema allows, for simulated answers."""

from collections.abc import Mapping
from typing import Any

from gateway.errors import InvalidRequest

_SCALARS = ("null", "boolean", "string", "integer", "number")
_FORMATS = {
    "date-time": "2025-01-01T00:00:00Z",
    "date": "2025-01-01",
    "time": "00:00:00Z",
    "email": "simulated@example.com",
    "uri": "https://example.com/simulated",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
}
_DEEPEST = 24


def instance_of(schema: Mapping[str, Any]) -> Any:
    """A smallest instance of a JSON schema: required properties only, first alternatives, lower bounds.

    Raises InvalidRequest for a schema without a finite instance; a string's `pattern` is not looked at.
    """
    try:
        return _instance(schema, schema, 0)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InvalidRequest(f"Invalid schema: {error}", code="invalid_value", param="schema") from error


def _instance(schema: Any, root: Mapping[str, Any], depth: int) -> Any:
    if depth > _DEEPEST:
        raise InvalidRequest("The schema has no finite instance; make the recursive property optional.", param="schema")
    if not isinstance(schema, Mapping):
        return None
    if "$ref" in schema:
        return _instance(_resolve(schema["$ref"], root), root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        plain = (each for each in options if isinstance(each, Mapping) and each.get("type") in _SCALARS)
        return _instance(next(plain, options[0]), root, depth + 1)
    if schema.get("allOf"):
        return _merged([_instance(each, root, depth + 1) for each in schema["allOf"]])
    return _typed(schema, root, depth)


def _merged(instances: list[Any]) -> Any:
    if not all(isinstance(each, dict) for each in instances):
        return instances[0]
    return {name: value for each in instances for name, value in each.items()}


def _resolve(reference: object, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for part in str(reference).removeprefix("#").strip("/").split("/"):
        if part:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    if found is None:
        raise InvalidRequest(f"{reference!r} is not in the schema; define it under $defs.", param="schema")
    return found


def _typed(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: _instance(properties.get(name, {}), root, depth + 1) for name in schema.get("required") or ()}
    if kind == "array":
        items = schema.get("items") or {}
        return [_instance(items, root, depth + 1) for _ in range(min(schema.get("minItems") or 0, 1000))]
    if kind in ("integer", "number"):
        return _least(schema, whole=kind == "integer")
    if kind == "boolean":
        return True
    return None if kind == "null" else _string(schema)


def _least(schema: Mapping[str, Any], *, whole: bool) -> float:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    step = schema.get("multipleOf") or 1
    start = low if low is not None else min(0, high if high is not None else 0)
    found = -(-start // step) * step
    if found == schema.get("exclusiveMinimum"):
        found += step
    if high is not None and (found > high or found == schema.get("exclusiveMaximum")):
        found = found - step if low is None else (low + high) / 2
    return int(found) if whole else found


def _string(schema: Mapping[str, Any]) -> str:
    text = _FORMATS.get(str(schema.get("format")), "simulated")
    least, most = schema.get("minLength") or 0, schema.get("maxLength")
    text = text.ljust(least, ".")
    return text if most is None else text[:most]
