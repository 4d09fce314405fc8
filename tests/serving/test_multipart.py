"""Forms as clients write them, against the grammars of RFC 2046 and RFC 7578."""

import pytest

from deformable_detr.serving.multipart import BrokenFormError, read_form

TYPE = "multipart/form-data; boundary=x"
HEAD = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'


def read(body, content_type=TYPE, max_parts=9):
    return [(part.name, part.filename, part.content) for part in read_form(content_type, body, max_parts)]


@pytest.mark.parametrize(
    ("before", "content", "after"),
    [
        (b"", b"abc", b"\r\n"),
        (b"", b"abc", b""),
        (b"\r\n", b"abc", b"\r\n"),
        (b"This is a form\r\nof one part, -- and --x: \r\n", b"abc", b"\r\n"),
        (b"", b"abc", b"  \r\nan epilogue\r\n--x\r\n\r\n"),
        (b"", b"abc\r\n--xy\r\n--\r\n", b"\r\n"),
        (b"", b"abc\r\n\r\n", b"\r\n"),
        (b"", b"", b"\r\n"),
        (b"", bytes(range(256)) * 3, b"\r\n"),
    ],
)
def test_the_content_of_a_part(before, content, after):
    body = before + b"--x\r\n" + HEAD + content + b"\r\n--x--" + after
    assert read(body) == [("image", "a.png", content)]
    two = before + b"--x\r\n" + HEAD + content + b"\r\n--x \t\r\n" + HEAD + content + b"\r\n--x--" + after
    assert read(two) == 2 * [("image", "a.png", content)]


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        (b'form-data; name="image"; filename="a b.jpg"', "a b.jpg"),
        (b"form-data; name=image; filename=a.jpg", "a.jpg"),
        (b'form-data; filename="a.jpg"; name="image"', "a.jpg"),
        (b'FORM-DATA; NAME="image"; FILENAME="a.jpg"', "a.jpg"),
        (b'form-data;\r\n name="image";\r\n\tfilename="a.jpg"', "a.jpg"),
        ('form-data; name="image"; filename="ä日.jpg"'.encode(), "ä日.jpg"),
        (b"form-data; name=\"image\"; filename*=utf-8''%C3%A4%20b.jpg", "ä b.jpg"),
        (b"form-data; name*=utf-8''image; filename*=iso-8859-1''%E4.jpg", "ä.jpg"),
        (b"form-data; name=image; filename*=nonsense''%41.jpg", "A.jpg"),
        (b'form-data; name="image"; filename="a;b\\"c.jpg"', 'a;b"c.jpg'),
        (b'form-data; name="image"; filename="r\xe9sum\xe9.jpg"', "r\ufffdsum\ufffd.jpg"),
        (b'form-data; name="image"; filename=""', ""),
        (b'form-data; name="image"', None),
    ],
)
def test_names_of_files(disposition, filename):
    body = b"--x\r\ncontent-disposition: " + disposition + b"\r\nContent-Length: 3\r\n\r\nabc\r\n--x--\r\n"
    assert read(body) == [("image", filename, b"abc")]


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('Multipart/Form-Data; BOUNDARY="a b:c"', b"a b:c"),
        ("multipart/form-data; charset=UTF-8; boundary=----WebKitFormBoundaryA+B", b"----WebKitFormBoundaryA+B"),
        ("multipart/form-data;boundary=(.*)", b"(.*)"),
    ],
)
def test_boundaries(content_type, boundary):
    body = b"--" + boundary + b"\r\n" + HEAD + b"abc\r\n--" + boundary + b"--\r\n"
    assert read(body, content_type) == [("image", "a.png", b"abc")]


def test_a_part_without_headers_and_a_form_without_parts():
    assert read(b"--x\r\n\r\nabc\r\n--x--\r\n") == [("", None, b"abc")]
    assert read(b"--x--\r\n") == []


def test_parts_beyond_the_limit_are_not_read():
    assert len(read(b"--x\r\n\r\nabc\r\n" * 1000 + b"--x--", max_parts=3)) == 4


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"--x\r\n" + HEAD + b"abc", TYPE, "before its closing boundary"),
        (b"--y\r\n" + HEAD + b"abc\r\n--y--", TYPE, "does not occur"),
        (b"", TYPE, "does not occur"),
        (b"--x\r\nabc\r\n--x--", TYPE, "no blank line"),
        (b"--x\r\n--x--", TYPE, "no blank line"),
        (b"--x--", "multipart/form-data", "no usable boundary"),
        (b"--x--", "multipart/form-data; boundary=" + 999 * "x", "no usable boundary"),
    ],
)
def test_broken_forms(body, content_type, message):
    with pytest.raises(BrokenFormError, match=message):
        read(body, content_type)
