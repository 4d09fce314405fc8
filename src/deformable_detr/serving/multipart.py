"""A `multipart/form-data` body → its parts, piece by piece and in memory: the rules of RFC 7578, with a bound on the parts."""

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header


class BrokenFormError(ValueError):
    """The body is not a form, or ends before its last part does."""


class TooManyPartsError(ValueError):
    """There are more parts than allowed."""


@dataclass
class Part:
    """One field of a form."""

    headers: dict[str, str] = field(default_factory=dict)
    """By lower-case name."""

    content: bytearray = field(default_factory=bytearray)
    """Its bytes."""

    @property
    def name(self) -> str:
        """Of the field; empty if it has none."""
        return self._option("name") or ""

    @property
    def filename(self) -> str | None:
        """As the client calls the file; None for a field that is no file."""
        return self._option("filename")

    def _option(self, name: str) -> str | None:
        _, options = parse_options_header(self.headers.get("content-disposition", ""))
        value = options.get(name.encode())
        return None if value is None else value.decode("utf-8", "replace")


class FormReader:
    """Takes the chunks of a body as they come.

    Args:
        content_type: the request's header, with the boundary.
        max_parts: how many parts there may be.

    Raises:
        BrokenFormError: the header names no usable boundary.
    """

    def __init__(self, content_type: str, max_parts: int) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise BrokenFormError("the Content-Type header names no boundary")
        self._parts: list[Part] = []
        self._max_parts = max_parts
        self._complete = False
        self._header = (bytearray(), bytearray())
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_part_data": lambda data, start, end: self._parts[-1].content.extend(data[start:end]),
                    "on_header_begin": self._begin_header,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise BrokenFormError(str(error)) from None

    def feed(self, chunk: bytes) -> None:
        """Take in the next bytes.

        Raises:
            BrokenFormError: they are against the rules.
            TooManyPartsError: they begin one part too many.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BrokenFormError(str(error)) from None

    def parts(self) -> list[Part]:
        """All parts, after the last chunk.

        Raises:
            BrokenFormError: the closing boundary has not come.
        """
        if not self._complete:
            raise BrokenFormError("it ends before its closing boundary")
        return self._parts

    def _begin_part(self) -> None:
        if len(self._parts) == self._max_parts:
            raise TooManyPartsError
        self._parts.append(Part())

    def _begin_header(self) -> None:
        self._header = (bytearray(), bytearray())

    def _end_header(self) -> None:
        name, value = (text.decode("latin-1") for text in self._header)
        self._parts[-1].headers[name.lower()] = value

    def _end(self) -> None:
        self._complete = True
