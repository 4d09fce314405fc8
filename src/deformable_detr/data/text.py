"""Read text files of datasets: UTF-8, or the encoding of the byte order mark; errors name the line with anything else."""

import codecs
from pathlib import Path

__all__ = ["decode", "read_text"]

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",  # after UTF-32, whose mark begins with it
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in what its byte order mark says.

    Raises:
        OSError: the file cannot be read.
        ValueError: another encoding; the message names the file and the line.
    """
    return decode(path.read_bytes(), path)


def decode(content: bytes, where: object) -> str:
    """:func:`read_text` of bytes; the message names `where` in place of a file."""
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        wanted = encoding.removesuffix("-sig").upper()
        raise ValueError(
            f"{where}: not {wanted} text (byte {content[error.start]:#04x} in line {line}); open it in an editor and save it as "
            "UTF-8"
        ) from None
