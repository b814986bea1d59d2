"""A form is read in its own bytes, and what two readers could take differently is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.formats.multipart import MAX_PARTS, parse_form

TYPE = b"multipart/form-data; boundary=edge"
MODEL = b'Content-Disposition: form-data; name="model"\r\n\r\nm'
FILE = (
    b'content-disposition: form-data; name="file"; filename="a\\"b;name=x.wav"\r\ncontent-type: audio/wav\r\n\r\n\0\xff'
)


def form(*parts: bytes, boundary: bytes = b"edge", end: bytes = b"--\r\n") -> bytes:
    """The bytes of a form."""
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + end


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=edge", b"edge"),
        (b'Multipart/Form-Data ;charset=utf-8; BOUNDARY="e d:g/e"', b"e d:g/e"),
        (b"multipart/form-data;boundary=----WebKitFormBoundaryx'()+_,-./:=?", b"----WebKitFormBoundaryx'()+_,-./:=?"),
    ],
)
def test_a_form_is_read(content_type: bytes, boundary: bytes) -> None:
    """Fields as text, files as bytes, whatever the boundary looks like."""
    many = b'content-disposition: form-data; name="kind[]"\r\n\r\n%s'
    raw = form(MODEL, FILE, many % b"word", many % b"\xc3\xa9", boundary=boundary)
    found = parse_form(raw, content_type)
    assert found.fields == {"model": "m", "kind[]": ["word", "é"]}
    assert found.file("file") == b"\0\xff"
    assert found.file("model") is None


@given(st.lists(st.binary(max_size=60), max_size=4), st.text(max_size=20), st.text(max_size=20))
def test_only_the_model_changes(others: list[bytes], before: str, after: str) -> None:
    """Every other byte stays, and the new form reads as the old one but for the model."""
    parts = [b'content-disposition: form-data; name="f%d"; filename=""\r\n\r\n' % n + o for n, o in enumerate(others)]
    model = b'content-disposition: form-data; name="model"\r\n\r\n'
    raw, wanted = (form(*parts, model + text.encode(), FILE) for text in (before, after))
    if b"--edge" in b"".join(others):
        return
    read = parse_form(raw, TYPE)
    assert read.fields["model"] == before
    changed = read.replaced("model", after.encode())
    assert changed == wanted
    assert parse_form(changed, TYPE).fields["model"] == after


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "begin with the boundary"),
        (b"preamble\r\n" + form(MODEL), "begin with the boundary"),
        (form(MODEL)[:-4], "no end|neither"),
        (form(MODEL, end=b""), "neither"),
        (form(MODEL, end=b"x--"), "neither"),
        (form(MODEL, b'content-disposition: form-data; name="model"\r\n\r\nother'), "`model` stands twice"),
        (form(MODEL, b'content-disposition: form-data; name="model"; filename="x"\r\n\r\nother'), "stands twice"),
        (form(b"content-disposition: form-data\r\n\r\nm"), "no single name"),
        (form(b'content-disposition: form-data; name="a"; name="model"\r\n\r\nm'), "no single name"),
        (form(b"content-disposition: form-data; name*=utf-8''model\r\n\r\nm"), "no single name"),
        (form(b"content-disposition: form-data; name=\"a\"; name*=utf-8''model\r\n\r\nm"), "no single name"),
        (form(b'content-disposition: form-data; name="mo\\del"\r\n\r\nm'), "escapes"),
        (form(b'content-disposition: form-data; name="mod%65l"\r\n\r\nm'), "escapes"),
        (form(b'content-disposition: attachment; name="model"\r\n\r\nm'), "no single name"),
        (form(b"content-type: text/plain\r\n\r\nm"), "no `content-disposition`"),
        (form(MODEL.replace(b"\r\n\r\n", b"\r\ncontent-transfer-encoding: base64\r\n\r\n")), "encoded"),
        (form(MODEL.replace(b"\r\n\r\n", b'\r\ncontent-disposition: form-data; name="b"\r\n\r\n')), "two"),
        (form(MODEL.replace(b"; name", b";\r\n name")), "no single name"),
        (form(MODEL.replace(b": form", b" : form")), "header line"),
        (form(b'content-disposition: form-data; name="a"\r\n\r\n\xff'), "not UTF-8"),
        (form(b'content-disposition: form-data; name="a"\r\n\r\nx\n--edge\r\n' + MODEL), "stands within|header line"),
        (form(b'content-disposition: form-data; name="a"; filename="a"\r\n\r\nx\n--edge\n' + MODEL), "stands within"),
        (form(*[b'content-disposition: form-data; name="a[]"\r\n\r\n'] * (MAX_PARTS + 1)), "more than"),
        (form(MODEL).replace(b"\r\n", b"\n"), "neither"),
    ],
)
def test_what_readers_may_disagree_about_is_refused(raw: bytes, why: str) -> None:
    """So that no backend finds another model than the one that was allowed."""
    with pytest.raises(InvalidRequest, match=why):
        parse_form(raw, TYPE)


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"application/json",
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b"multipart/mixed; boundary=edge",
        b"multipart/form-data; boundary=edge; boundary=other",
    ],
)
def test_what_is_no_form_is_told_to_be_one(content_type: bytes) -> None:
    """By the header that it must have."""
    with pytest.raises(InvalidRequest) as caught:
        parse_form(form(MODEL), content_type)
    assert caught.value.param == "content-type"
