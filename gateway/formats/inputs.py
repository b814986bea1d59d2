"""The four shapes of an input that is answered by itself: a text, several, a list of token ids, or several of those."""

from collections.abc import Mapping
from typing import Any

from gateway.errors import InvalidRequest
from gateway.formats.chat import kind_of


def count_inputs(doc: Mapping[str, Any], name: str) -> int:
    """How many inputs the field `name` has. Raises InvalidRequest when it has none of the four shapes."""
    value = doc.get(name)
    if value is None:
        raise InvalidRequest(
            f"`{name}` is missing; send a text, a list of texts, or token ids.", code="missing_field", param=name
        )
    if isinstance(value, str):
        return 1
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else kind_of(value)
        raise InvalidRequest(f"`{name}` must be a text, a list of texts, or token ids, not {what}.", param=name)
    if _are_ids(value):
        return 1
    texts = isinstance(value[0], str)
    for place, each in enumerate(value):
        if not (isinstance(each, str) if texts else isinstance(each, list) and each and _are_ids(each)):
            wanted = "a text like the first" if texts else "a list of token ids, or every item a text or a token id"
            raise InvalidRequest(f"`{name}[{place}]` must be {wanted}.", param=f"{name}[{place}]")
    return len(value)


def text_of_inputs(value: Any) -> str:
    """All the text of the four shapes, for counting; a token id stands as a word of one letter, which is a token."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        return ""
    if isinstance(value[0], str):
        return "\n".join(value)
    return " a" * (len(value) if isinstance(value[0], int) else sum(map(len, value)))


def _are_ids(value: list[Any]) -> bool:
    return set(map(type, value)) == {int} and min(value) >= 0
