"""What can be predicted on: files, folders, patterns, addresses, PIL images, arrays and tensors, as one stream of images.

First step of prediction: a :class:`InputImage` knows its name and gives its pixels, upright and RGB, when asked. Videos are told
apart here, too; `video.py` reads them, with libraries that images do not need.
"""

import glob
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from torch import Tensor

from deformable_detr.data.images import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES, ImageError, ImageSource, is_address, read_image

__all__ = [
    "ImageLike",
    "InputImage",
    "Source",
    "is_camera",
    "is_single",
    "is_stream",
    "is_video",
    "list_all",
    "list_images",
    "natural_key",
    "open_single",
    "open_source",
]

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".mts", ".3gp"}
)
ImageLike = str | Path | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | Tensor
Source = ImageLike | Iterable[ImageLike] | Iterable["InputImage"]


@dataclass(frozen=True, eq=False)
class InputImage:
    """One image to predict on, not yet read."""

    name: str
    """Its name in messages: the path or address, or `image 3` for the fourth of a list."""

    content: ImageSource | Exception
    """Where its pixels come from, or why they could not be had."""

    bit_depth: int = 16
    """How many bits of 16-bit values are used, see :func:`~deformable_detr.data.images.read_image`."""

    @property
    def path(self) -> Path | None:
        """The file, where there is one."""
        return self.content if isinstance(self.content, Path) else None

    def read(self) -> Tensor:
        """The pixels: `[3, H, W]` uint8, RGB, upright (turned as the EXIF orientation of a file or a PIL image says).

        Raises:
            FileNotFoundError: the file is not there (any more).
            ImageError: it cannot be fetched or decoded, or the array or tensor is not an image; the message names it.
        """
        if isinstance(self.content, Exception):
            raise self.content
        if self.path is not None and not self.path.exists():
            if re.match(r"[a-z0-9]+:/", str(self.path)):
                raise FileNotFoundError(
                    f"{self.path}: only http and https addresses, given as strings, are fetched; download the image first"
                )
            raise FileNotFoundError(f"no such image or folder: {self.path}")
        return read_image(self.content, name=self.name, bit_depth=self.bit_depth)


def is_single(source: Source) -> bool:
    """Whether `source` is one image (and not a folder, a pattern or several images)."""
    if isinstance(source, (str, Path)):
        return is_address(source) or (not Path(source).is_dir() and not _is_pattern(source))
    return _is_in_memory(source)


def open_source(source: Source, *, bit_depth: int = 16) -> Iterator[InputImage]:
    """The images of `source`, one after the other. Files are not read yet; of what is in memory, a copy is taken first.

    Args:
        source: a file, an address (`https://…`), a folder (the images directly in it, in natural order: 2 before 10), a glob
            pattern (`**` goes into subfolders), the content of a file as bytes, a file opened in binary form, a PIL image, a numpy
            array (`[H, W, 3]` RGB, or `[H, W]` grey), a torch tensor (`[3, H, W]` RGB), or any iterable of these. An iterator is
            consumed lazily, so it may be endless. An :class:`InputImage` in it is taken as it is.
        bit_depth: how many bits of 16-bit values are used.

    Raises:
        FileNotFoundError: a path or pattern leads nowhere, or a folder has no image.
        TypeError: something that is no source.
    """
    if is_address(source):
        yield InputImage(str(source), str(source), bit_depth)
    elif isinstance(source, (str, Path)):
        yield from (InputImage(str(path), path, bit_depth) for path in list_images(source))
    elif _is_in_memory(source):
        yield _own(source, "the image", bit_depth)
    elif isinstance(source, Iterable) and not isinstance(source, dict):
        for index, item in enumerate(source):
            if isinstance(item, InputImage):
                yield item
            elif _is_in_memory(item):
                yield _own(item, f"image {index}", bit_depth)
            elif isinstance(item, (str, Path)):
                yield from open_source(item, bit_depth=bit_depth)
            else:
                raise TypeError(f"item {index} of the list is a {type(item).__name__}; {_EXPECTED}")
    else:
        raise TypeError(f"cannot predict on a {type(source).__name__}; {_EXPECTED}")


def open_single(source: Source, *, bit_depth: int = 16) -> InputImage:
    """The image that `source` is; arguments and other errors as of :func:`open_source`.

    Raises:
        ValueError: none, or several.
    """
    found = list(islice(open_source(source, bit_depth=bit_depth), 2))
    if len(found) != 1:
        raise ValueError(
            "one image is wanted, not " + (f"several: {found[0].name}, {found[1].name}, …" if found else "an empty list")
        )
    return found[0]


def list_images(source: str | Path) -> list[Path]:
    """The files that a path, a folder or a glob pattern refers to, in natural order (`frame2.jpg` before `frame10.jpg`).

    A path that is neither a folder nor a pattern is returned as it is, whether the file exists or not.

    Raises:
        FileNotFoundError: the pattern matches no image, or the folder has none.
    """
    path = Path(source)
    if path.is_dir():
        files = [item for item in path.iterdir() if item.is_file() and not item.name.startswith(".")]
        found = [item for item in files if item.suffix.lower() in IMAGE_SUFFIXES]
        unreadable = [item for item in files if item.suffix.lower() in UNREADABLE_SUFFIXES]
        if unreadable:
            names = ", ".join(sorted({item.suffix.lower() for item in unreadable}))
            logger.warning("%s: left out %d images of formats that are not read (%s)", path, len(unreadable), names)
        if not found:
            raise FileNotFoundError(
                f"no images in the folder {path} (looked for {', '.join(sorted(IMAGE_SUFFIXES))}); "
                f"for images in subfolders use the pattern '{path}/**/*.jpg'"
            )
    elif _is_pattern(source):
        matches = (Path(match) for match in glob.glob(str(source), recursive=True))  # noqa: PTH207 (takes absolute patterns too)
        found = [match for match in matches if match.is_file() and match.suffix.lower() in IMAGE_SUFFIXES]
        if not found:
            raise FileNotFoundError(f"the pattern {str(source)!r} matches no image")
    else:
        found = [path]
    return sorted(found, key=natural_key)


def list_all(sources: Iterable[str]) -> list[str | Path]:
    """The images of several paths, folders, patterns and addresses, each one once, however often and in whatever form it is given.

    Raises:
        FileNotFoundError: as of :func:`list_images`.
    """
    found = [image for source in sources for image in ([source] if is_address(source) else list_images(source))]
    once: dict[str, str | Path] = {}
    for image in found:
        once.setdefault(image if isinstance(image, str) else os.path.abspath(image), image)  # noqa: PTH100 (without `..`)
    if len(once) < len(found):
        logger.warning("%d images, some given more than once: each of the %d is taken once", len(found), len(once))
    return list(once.values())


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """A sort key that compares runs of digits as numbers."""
    parts = re.split(r"(\d+)", str(path).casefold())
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


_EXPECTED = (
    "expected a file, an address, a folder, a glob pattern, the bytes of a file, a file opened in binary form, a PIL image, "
    "a numpy array [H, W, 3] (RGB), a torch tensor [3, H, W] (RGB), or a list of these"
)


def _is_in_memory(source: object) -> bool:
    """Whether it is a single image that is no path."""
    return isinstance(source, (bytes, bytearray, memoryview, Image.Image, np.ndarray, Tensor)) or hasattr(source, "read")


def _own(item: Any, name: str, bit_depth: int) -> InputImage:
    """An image in the caller's memory, who may change or close it, as one of our own."""
    try:
        if isinstance(item, np.ndarray):
            item = np.array(item, order="C")
        elif isinstance(item, Tensor):
            item = item.detach().to("cpu", copy=True)
        elif isinstance(item, Image.Image):  # in this thread: one that is decoded in another cannot be closed meanwhile
            item = read_image(item, name=name, bit_depth=bit_depth)
        elif not isinstance(item, bytes):
            item = bytes(item) if isinstance(item, (bytearray, memoryview)) else _content_of(item, name)
    except (OSError, ValueError) as error:  # raised when it is read, in its turn
        item = error
    return InputImage(name, item, bit_depth)


def _content_of(file: Any, name: str) -> bytes:
    content = file.read()
    if not isinstance(content, bytes):
        kinds = [type(item).__name__ for item in (file, content)]
        raise TypeError(f"{name} is a {kinds[0]} that reads {kinds[1]}, not bytes: open files in binary form, open(path, 'rb')")
    if not content:
        raise ImageError(f"{name}: nothing to read in this open file; was it read to its end? seek(0) goes back to its beginning")
    return content


def _is_pattern(source: str | Path) -> bool:
    return glob.has_magic(str(source)) and not Path(source).exists()


def is_video(source: str | Path) -> bool:
    """Whether this is a video, a camera or a stream, and not an image, a folder or a pattern; files by their suffix."""
    name = str(source)
    suffix = Path(re.sub(r"[?#].*", "", name) if is_stream(name) else name).suffix.lower()
    return is_camera(name) or suffix in VIDEO_SUFFIXES or (is_stream(name) and suffix not in IMAGE_SUFFIXES)


def is_camera(source: str) -> bool:
    """A number, unless there is a file of that name."""
    return source.isdecimal() and not Path(source).exists()


def is_stream(source: str) -> bool:
    """Something on the network that FFmpeg may be asked for."""
    return re.match(r"(rtsp|rtmp|https?)://", source, re.IGNORECASE) is not None
