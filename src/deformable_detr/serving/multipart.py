"""A `multipart/form-data` body → its parts: RFC 7578 on the grammar of RFC 2046, as clients really write it."""

import re
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from email.utils import collapse_rfc2231_value


class BrokenFormError(ValueError):
    """The body is not a form, or ends before its last part does."""


@dataclass(frozen=True)
class Part:
    """One field of a form."""

    headers: Message
    content: bytes

    @property
    def name(self) -> str:
        """Of the field; empty if it has none."""
        return self._option("name") or ""

    @property
    def filename(self) -> str | None:
        """As the client calls the file; None for a field that is no file."""
        return self._option("filename")

    @property
    def type(self) -> str:
        """The media type, empty where none is given."""
        return str(self.headers.get("content-type", "")).partition(";")[0].strip().lower()

    @property
    def encoding(self) -> str:
        """How the content is encoded: `binary`, or what mail programs do."""
        return str(self.headers.get("content-transfer-encoding", "binary")).strip().lower()

    def _option(self, name: str) -> str | None:
        """An option of Content-Disposition: quoted or not, in raw UTF-8 (browsers, curl) or in RFC 2231's form (urllib3 1)."""
        value = self.headers.get_param(name, header="content-disposition")
        if value is None:
            return None
        return collapse_rfc2231_value(value, errors="replace")


def read_form(content_type: str, body: bytes, max_parts: int) -> list[Part]:
    """Parse a form. What precedes its first boundary or follows its last one is ignored.

    Args:
        content_type: the request's header, with the boundary.
        body: all of it.
        max_parts: largest number of parts; at most one more is read.

    Raises:
        BrokenFormError: no boundary is named, or the body does not keep to it.
    """
    outer = Message()
    outer["content-type"] = content_type.replace("\n", " ")
    boundary = outer.get_boundary()
    if not boundary or len(boundary) > 200:
        raise BrokenFormError("the Content-Type header names no usable boundary")
    delimiter = re.compile(rb"(?:\A|\r\n)--%s(--)?[ \t]*(?:\r\n|\Z)" % re.escape(boundary.encode("utf-8", "surrogateescape")))
    parts: list[Part] = []
    begin = delimiter.search(body)
    if begin is None:
        raise BrokenFormError("its boundary does not occur in the body")
    while not begin[1]:
        end = delimiter.search(body, begin.end() - 2)  # the line break before a boundary may be that of the one before
        if end is None:
            raise BrokenFormError("it ends before its closing boundary")
        parts.append(_part(body[begin.end() : max(begin.end(), end.start())]))
        if len(parts) > max_parts:
            break
        begin = end
    return parts


def _part(text: bytes) -> Part:
    head, blank, content = text.partition(b"\r\n\r\n")
    if text.startswith(b"\r\n"):
        head, content = b"", text[2:]
    elif not blank:
        raise BrokenFormError("a part has no blank line after its headers")
    return Part(HeaderParser().parsestr(head.decode("utf-8", "replace")), content)
