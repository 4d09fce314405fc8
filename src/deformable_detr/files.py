"""Writing files: whole or not at all. Every writer of the package goes through here."""

import errno
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

LONG_NAME = 150
"""Bytes of a name to which no more can be added safely: file systems take 255, encrypted ones 143 to 200."""


def short_stem(name: str | Path) -> str:
    """The name of a file without its suffix, cut off where no more could be added to it safely."""
    stem = Path(name).stem
    while len(os.fsencode(stem)) > LONG_NAME:
        stem = stem[:-1]
    return stem


def is_there(path: str | Path) -> bool:
    """Whether there is a file or folder of a name that a user's file gives: False, too, where pathlib raises (a name too long)."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: str | Path) -> bool:
    """The same for a file."""
    return os.path.isfile(path)  # noqa: PTH113


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Write a file under another name beside it; it replaces `path` at the end, if nothing was raised.

    ```python
    with atomic_file("runs/report.png") as partial:
        figure.savefig(partial)
    ```

    The yielded name has the suffix of `path`, since many writers choose a format by it. Missing folders are made, a symbolic link
    keeps pointing where it does, and what is no regular file (`/dev/null`, a named pipe) gets the content at the end: some writers
    would put a file in its place.

    Args:
        path: the file to write.

    Yields:
        Where to write.

    Raises:
        OSError: whatever the file system says; a file that stood at `path` is then as it was, and nothing is left beside it.
    """
    path = _target(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder, path.name)
            yield partial
            with partial.open("rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        yield partial
        _flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, *, merge: bool = False) -> Iterator[Path]:
    """Fill a new folder under another name; it becomes `path` at the end, if nothing was raised.

    It lies beside, or in `path` where there is such a folder: that one stays what it is (a mounted one, or in a place that cannot
    be written), and gets the content.

    Args:
        path: the folder; without `merge` it must not exist, or be empty, when the block ends.
        merge: where `path` exists, put the new files into it, each in one go; other files in it stay.

    Yields:
        An empty folder to fill.

    Raises:
        OSError: whatever the file system says, for example that `path` has been filled by another process meanwhile; nothing of
            this one's is left.
    """
    path = _target(path)
    there = path.is_dir()
    partial = _beside(path / path.name if there else path)
    partial.mkdir(parents=True)
    try:
        yield partial
        if there:
            if not merge and any(entry != partial for entry in path.iterdir()):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
            _move_content(partial, path)
        else:
            partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_content(source: Path, target: Path) -> None:
    """Everything in a folder into another one, and into the folders in it."""
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _move_content(entry, place)
        else:
            entry.replace(place)


def check_place(path: str | Path, *, folder: bool = True) -> None:
    """Find out, before long work begins, whether its result can be written. Nothing is left at the place.

    Args:
        path: a file or folder that is to be written; missing folders above it would be made.
        folder: whether it may be a folder.

    Raises:
        OSError: it cannot; names `path`, and why.
    """
    path = _target(path)
    if path.exists() and not path.is_file() and not path.is_dir():  # /dev/null, a pipe
        return
    if path.is_dir() and not folder:
        raise IsADirectoryError(f"{path}: is a folder; name a file")
    place = path.absolute() if path.is_dir() else path.absolute().parent
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix="."):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot be written here: {error.strerror}", str(path)) from None


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file whole, as UTF-8; what that cannot hold (of file names in another encoding) as `\\udc..`. Gives `path`.

    Raises:
        OSError: see :func:`atomic_file`.
    """
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def write_json(path: str | Path, content: Any, *, indent: int | None = None) -> Path:
    """Write a JSON file whole; reading it gives back also what :func:`write_text` escapes. Gives `path`.

    Raises:
        OSError: see :func:`atomic_file`.
        TypeError: something in `content` has no form in JSON; then nothing is written.
    """
    return write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def _target(path: str | Path) -> Path:
    return Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)


def _beside(path: Path) -> Path:
    """A name that no other process or thread takes: hidden, in the same folder, with the same suffix, and not too long."""
    stem = path.stem if len(os.fsencode(path.name)) <= LONG_NAME else f"{crc32(os.fsencode(path.name)):08x}"
    return path.with_name(f".{stem}.{os.getpid()}-{threading.get_ident()}.partial{path.suffix}")


def _flush(path: Path) -> None:
    """To the disk, so that a power cut does not leave an empty file under the final name."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
