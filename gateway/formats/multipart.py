"""A form with files (RFC 7578) seen in its own bytes: where each part's content stands, so that one can be replaced.

Whatever two readers could take differently is refused, so that no backend finds another `model` in it than we did.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.errors import InvalidRequest

MAX_PARTS = 256
_FORM = re.compile(rb"multipart/form-data[ \t]*;(.*)", re.IGNORECASE | re.DOTALL)
_BOUNDARY = re.compile(rb"(?:^|;)[ \t]*boundary=(?:\"([^\"]{1,70})\"|([^\s;\"]{1,70}))[ \t]*(?=;|$)", re.IGNORECASE)
_DISPOSITION = re.compile(
    rb"form-data((?:[ \t]*;[ \t]*[\w*-]+=(?:\"(?:[^\"\\]|\\.)*\"|[^\s;\"]+))*)[ \t]*", re.IGNORECASE
)
_PARAMETER = re.compile(rb"([\w*-]+)=(?:\"((?:[^\"\\]|\\.)*)\"|([^\s;\"]+))")
_PLAIN_ENCODINGS = (b"7bit", b"8bit", b"binary")


@dataclass(frozen=True, slots=True)
class Part:
    """One part: its content is `raw[start:end]`; a file has a name, which may be empty."""

    name: str
    is_file: bool
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Form:
    """A whole form. `fields` are the texts by name; those whose name ends in `[]` are lists."""

    raw: bytes
    parts: Sequence[Part]
    fields: Mapping[str, str | list[str]]

    def file(self, name: str) -> bytes | None:
        """The content of a file; None when there is none of this name."""
        found = [part for part in self.parts if part.is_file and part.name == name]
        return self.raw[found[0].start : found[0].end] if found else None

    def replaced(self, name: str, content: bytes) -> bytes:
        """The bytes with the content of this one part replaced."""
        (part,) = (part for part in self.parts if part.name == name)
        return b"".join((self.raw[: part.start], content, self.raw[part.end :]))


def parse_form(raw: bytes, content_type: bytes) -> Form:
    """Read a form, or raise InvalidRequest with what is wrong with it."""
    mark = b"--" + _boundary(content_type)
    parts: list[Part] = []
    at = len(mark)
    if not raw.startswith(mark):
        raise _bad("it does not begin with the boundary that `content-type` names")
    while not raw.startswith(b"--", at):
        if not raw.startswith(b"\r\n", at):
            raise _bad("a boundary is followed by neither a line's end nor `--`")
        if len(parts) == MAX_PARTS:
            raise _bad(f"it has more than {MAX_PARTS} parts")
        head_end = raw.find(b"\r\n\r\n", at)
        end = raw.find(b"\r\n" + mark, head_end + 4)
        if head_end < 0 or end < 0:
            raise _bad("it has no end: the last boundary is missing")
        name, is_file = _named(raw[at + 2 : head_end])
        parts.append(Part(name, is_file, head_end + 4, end))
        at = end + 2 + len(mark)
    if raw.count(mark) != len(parts) + 1:
        raise _bad("its boundary stands within a part")
    return Form(raw, tuple(parts), _fields(raw, parts))


def _boundary(content_type: bytes) -> bytes:
    found = _FORM.fullmatch(content_type.strip())
    boundaries = _BOUNDARY.findall(found[1]) if found is not None else []
    if len(boundaries) != 1:
        raise InvalidRequest(
            "Send this request as a form: `content-type: multipart/form-data; boundary=…` with its boundary.",
            param="content-type",
        )
    quoted, plain = boundaries[0]
    found_boundary: bytes = quoted or plain
    return found_boundary


def _named(head: bytes) -> tuple[str, bool]:
    """The name of a part by its header lines, and whether it is a file."""
    named: tuple[str, bool] | None = None
    encoded = False
    for line in head.split(b"\r\n"):
        field, colon, value = line.partition(b":")
        if not colon or field != field.strip() or not field or b"\n" in line or b"\r" in line:
            raise _bad("a part has a header line that is none")
        if field.lower() == b"content-disposition":
            if named is not None:
                raise _bad("a part has two `content-disposition` lines")
            named = _disposed(value.strip(b" \t"))
        elif field.lower() == b"content-transfer-encoding":
            encoded = value.strip(b" \t").lower() not in _PLAIN_ENCODINGS
    if named is None or encoded:
        raise _bad("a part has no `content-disposition`" if named is None else "a part is encoded; send it as it is")
    return named


def _disposed(value: bytes) -> tuple[str, bool]:
    found = _DISPOSITION.fullmatch(value)
    parameters = _PARAMETER.findall(found[1]) if found is not None else []
    names = [name.lower() for name, _, _ in parameters]
    if names.count(b"name") != 1 or b"name*" in names or names.count(b"filename") > 1:
        raise _bad('a part has no single name; write `content-disposition: form-data; name="…"`')
    quoted, plain = parameters[names.index(b"name")][1:]
    name = quoted or plain
    if b"\\" in name or b"%" in name:
        raise _bad("a part has a name with escapes")
    return _text(name), b"filename" in names or b"filename*" in names


def _fields(raw: bytes, parts: Sequence[Part]) -> Mapping[str, str | list[str]]:
    fields: dict[str, str | list[str]] = {}
    for part in parts:
        alone = not part.name.endswith("[]")
        if alone and [each.name for each in parts].count(part.name) > 1:
            raise InvalidRequest(f"`{part.name}` stands twice in the form; send it once.", param=part.name)
        if part.is_file:
            continue
        text = _text(raw[part.start : part.end])
        listed = fields.setdefault(part.name, text if alone else [])
        if isinstance(listed, list):
            listed.append(text)
    return fields


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _bad("a text in it is not UTF-8") from None


def _bad(reason: str) -> InvalidRequest:
    return InvalidRequest(f"The body is not a valid form: {reason}.")
