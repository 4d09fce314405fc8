"""Read text files of datasets: UTF-8, or the encoding of the byte order mark, and JSON; errors name the line with anything else."""

import codecs
import json
import re
from pathlib import Path
from typing import Any

Record = dict[str, Any]

SECTIONS = ("images", "annotations", "categories")
"""The lists of a COCO file."""

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
    encoding = encoding_of(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        wanted = encoding.removesuffix("-sig").upper()
        raise ValueError(
            f"{where}: not {wanted} text (byte {content[error.start]:#04x} in line {line}); open it in an editor and save it as "
            "UTF-8"
        ) from None


def read_head(path: Path, size: int = 4000) -> str:
    """The beginning of a file, to tell formats by; what is no text of its encoding is replaced."""
    with path.open("rb") as stream:
        content = stream.read(size)
    return content.decode(encoding_of(content), "replace")


def encoding_of(content: bytes) -> str:
    """What the byte order mark at the beginning says; UTF-8 where there is none."""
    return next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")


def split_lines(text: str) -> list[str]:
    """Lines as all programs count them: Python's `splitlines` breaks at form feeds, U+2028 and more, too."""
    return re.split(r"\r\n|\r|\n", text)


def read_json(path: Path) -> Record:
    """A JSON file that holds an object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or not an object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    text = read_text(path)
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "the file may be cut off or empty: write or download it again"
        ) from None
    except (RecursionError, ValueError) as error:  # nested without end, or a number of thousands of digits
        raise ValueError(f"{path}: not JSON of a dataset ({error})") from None
    if any(text.count(f'"{key}"') > most for key, most in _usual_counts(record).items()):
        json.loads(text, object_pairs_hook=lambda pairs: _no_key_twice(pairs, path))
    if not isinstance(record, dict):
        raise ValueError(f"{path}: expected a COCO object with the keys images, annotations, categories; found a {kind_of(record)}")
    return record


def _usual_counts(record: Any) -> dict[str, int]:
    """How often keys stand in a COCO file at most, unless one is twice in an object, or other things have such names, too."""
    listed = record.get("annotations") if isinstance(record, dict) else None
    boxes = len(listed) if isinstance(listed, list) else 0
    of_boxes: tuple[str, ...] = ("bbox", "category_id", "image_id") if boxes else ()
    return {**dict.fromkeys(SECTIONS, 1), **dict.fromkeys(of_boxes, boxes)}


def _no_key_twice(pairs: list[tuple[str, Any]], path: Path) -> Record:
    """An object of JSON, of which Python would take the last of two values without a word."""
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = ", ".join(sorted({repr(name) for name in names if names.count(name) > 1}))
        raise ValueError(f"{path}: {twice} stands twice in one object: join both, or remove one")
    return record


def kind_of(value: Any) -> str:
    """What a value of JSON is, in words."""
    return {list: "list", str: "string", int: "number", float: "number", dict: "object", type(None): "null"}.get(
        type(value), type(value).__name__
    )
