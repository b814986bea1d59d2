"""What the fakes' request shapes have in common: nothing unknown, nothing converted, and problems by their place."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError


class Shape(BaseModel):
    """A JSON object of which every field is known."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Loose(BaseModel):
    """A JSON object whose unknown fields are ignored, as most servers written in Go or Rust do."""

    model_config = ConfigDict(extra="ignore", strict=True)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a request. `kind` is pydantic's, such as `missing` or `extra_forbidden`."""

    kind: str
    place: Sequence[str | int]
    says: str
    found: Any

    @property
    def dotted(self) -> str:
        """`messages.0.content`."""
        return ".".join(map(str, self.place))


_Model = TypeVar("_Model", bound=BaseModel)


class Wrong(Exception):
    """A request that has not the shape; `problem` is the first."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.dotted)
        self.problem = problem


def read_as(shape: type[_Model], body: bytes) -> _Model:
    """The body in this shape. Raises Wrong."""
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        raise Wrong(next(_problems(error))) from error


def _problems(error: ValidationError) -> Iterator[Problem]:
    for each in error.errors(include_url=False):
        yield Problem(each["type"], each["loc"], each["msg"].removeprefix("Value error, "), each["input"])


def flat(content: Any, join: str = "") -> str:
    """The text of a message, given as a string or in parts."""
    if isinstance(content, str) or content is None:
        return content or ""
    return join.join(
        part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)
    )
