"""Open an image of any source: a file, its content, an address, a PIL image, an array, a tensor. First stage of the data path."""

import io
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from deformable_detr.data.pixels import (
    COLOUR_MODES,
    ImageError,
    ImageTooLargeError,
    left_to_turn,
    of_array,
    of_pil,
    of_tensor,
    without_text,
)

logger = logging.getLogger(__name__)

ImageSource = str | Path | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | Tensor
"""A path or an address (`http://`, `https://`), the content of a file, an open file, or decoded pixels."""

Openable = str | Path | bytes | Image.Image
"""What Pillow opens directly."""

UPLOAD_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""Formats accepted from untrusted sources: Pillow's formats for images, without those that run other programs (EPS) or are rare."""

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in "jpg jpeg jpe jfif mpo png apng bmp dib webp tif tiff gif ppm pgm pbm pnm avif jp2 j2k jpx tga".split()  # noqa: SIM905
)
"""Which files of a folder are images. A file that is named itself is read whatever its suffix."""

UNREADABLE_SUFFIXES = frozenset(
    (".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".svg", ".exr", ".hdr", ".dcm", ".nii", ".npy")
)
"""Files of a folder that are images, too, but of formats that are not read."""

MOST_BYTES = 64 * 2**20
"""Largest file that is fetched from an address."""

TIMEOUT = 20.0
"""Seconds without a byte after which an address is given up."""


def read_image(
    source: ImageSource,
    *,
    name: str | None = None,
    upright: bool = True,
    bit_depth: int = 16,
    formats: tuple[str, ...] | None = None,
    max_pixels: int | None = None,
) -> Tensor:
    """Read an image as the detector wants it.

    Greyscale and palette images become RGB, CMYK is converted, 16-bit values keep their high byte (65535 → 255), and an
    alpha channel is dropped without compositing, as the official COCO code (and OpenCV) does: hidden colours show.

    Args:
        source: a path of any format that Pillow reads, or another source. Arrays are `[H, W, 3]` RGB or `[H, W]` grey, tensors
            `[3, H, W]` RGB, both uint8 or uint16.
        name: of the image in messages; None takes the path or address.
        upright: turn files and PIL images as their EXIF orientation says; False gives the pixels as they are stored.
        bit_depth: how many bits of 16-bit values are used, 8 … 16: with 12, as many cameras have, 4095 becomes 255. Files that
            say their range (PGM and PPM) keep it. Of a PIL image of 16-bit colour that is loaded already, 8 bits are left.
        formats: Pillow's names of the formats that are accepted; None accepts all.
        max_pixels: images of more pixels (height x width) are refused before they are decoded.

    Returns:
        `[3, H, W]` uint8, RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: no image, damaged or truncated, not to be fetched, or of a pixel type without a natural 8-bit form. The only
            error of damaged data, whatever the format.
        ImageTooLargeError: more than `max_pixels`, or more than Pillow or the memory allow.
    """
    name = name or _name_of(source)
    if isinstance(source, np.ndarray):
        return of_array(source, name, bit_depth=bit_depth)
    if isinstance(source, Tensor):
        return of_tensor(source, name, bit_depth=bit_depth)
    content = _openable(source, name)
    with open_image(content, name, formats) as image:
        if max_pixels is not None and image.width * image.height > max_pixels:
            size = f"{image.width} x {image.height} pixels"
            raise ImageTooLargeError(f"{name}: {size} are more than the {max_pixels} allowed; shrink the image first")
        if bit_depth < 16 and isinstance(content, (str, Path)):
            content = Path(content).read_bytes()
        loaded = not getattr(image, "tile", None)
        if image is not source:  # a PIL image is at the page that its owner chose
            _say_pages(image, name)
        elif bit_depth < 16 and loaded and image.format in ("PNG", "PPM", "TIFF") and image.mode in COLOUR_MODES:
            _say_once("PIL", "%s: PIL has loaded it with 8 bits per channel; if its file has 16, give the path instead", name)
        encoded = content if isinstance(content, bytes) else None
        return of_pil(image, name, upright=upright, bit_depth=bit_depth, content=encoded)


def read_size(path: str | Path, *, upright: bool = True) -> tuple[int, int]:
    """The (height, width) of an image file, from its header alone.

    Args:
        path: any format that Pillow reads.
        upright: the size after turning the image as its EXIF orientation says; False gives that of the stored pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file is not an image.
    """
    with open_image(path, str(path)) as image:
        turned = upright and left_to_turn(image) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def is_address(source: object) -> bool:
    """Whether a string is an address on the web (and not a path)."""
    return isinstance(source, str) and re.match(r"https?://", source, re.IGNORECASE) is not None


@contextmanager
def open_image(
    source: str | Path | bytes | Image.Image, name: str, formats: tuple[str, ...] | None = None
) -> Iterator[Image.Image]:
    """Open a file, its content or a PIL image; whatever is raised while it is open comes out as one kind of error.

    Args:
        source: what to open. A PIL image stays open afterwards.
        name: of the image, in messages.
        formats: see :func:`read_image`.

    Yields:
        The image, its header read.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: the file must not be read.
        ImageError: see :func:`read_image`.
    """
    try:
        if isinstance(source, Image.Image):
            yield source
            return
        with _opened(source, formats) as image:
            yield image
    except ImageError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such image; check the image folder and the file names") from None
    except IsADirectoryError:
        raise ImageError(f"{name}: this is a folder, not an image") from None
    except PermissionError:
        raise PermissionError(f"{name}: no permission to read this image") from None
    except UnidentifiedImageError:
        size = len(source) if isinstance(source, bytes) else Path(str(source)).stat().st_size
        raise ImageError(
            f"{name}: not an image that can be read ({size} bytes); replace the file or remove it from the data"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(f"{name}: {error}; cut or shrink the image first, or predict by tiles (--tiles)") from None
    except MemoryError:
        raise ImageTooLargeError(f"{name}: the pixels do not fit into the memory; cut or shrink the image first") from None
    except Exception as error:  # on damaged files Pillow's decoders raise nearly anything: KeyError, zlib.error, RuntimeError …
        reason = str(error) or type(error).__name__
        raise ImageError(
            f"{name}: the image is damaged or truncated ({reason}); copy it again or remove it from the data"
        ) from error


def _opened(source: str | Path | bytes, formats: tuple[str, ...] | None) -> Image.Image:
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        return Image.open(stream, formats=formats)
    except ValueError as error:
        if "text" not in str(error).lower() and "Decompressed data" not in str(error):
            raise
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        return Image.open(io.BytesIO(without_text(content)), formats=formats)


_SAID: set[str] = set()
"""What warnings told of: names of TIFFs of several images, and `PIL`."""


def _say_once(what: str, message: str, *arguments: object) -> None:
    if what not in _SAID:
        _SAID.add(what)
        logger.warning(message, *arguments)


def _say_pages(image: Image.Image, name: str) -> None:
    """Of a TIFF of several images, the first is read: said once for each file."""
    if image.format != "TIFF" or name in _SAID:
        return
    pages = 1
    with suppress(Exception):  # damaged after the first
        pages = getattr(image, "n_frames", 1)  # reads the heads of all
    if pages > 1:
        _say_once(name, "%s: the first of %d images (pages, channels or smaller copies) in this file is read", name, pages)


def _name_of(source: ImageSource) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    return str(getattr(source, "filename", None) or getattr(source, "name", None) or "the image")


def _openable(source: str | Path | bytes | bytearray | memoryview | BinaryIO | Image.Image, name: str) -> Openable:
    if isinstance(source, str) and is_address(source):
        return _download(source, name)
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    return source if isinstance(source, Openable) else source.read()


def _download(address: str, name: str) -> bytes:
    request = urllib.request.Request(address, headers={"User-Agent": "deformable-detr"})  # some hosts refuse urllib's own
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            content = answer.read(MOST_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:
        reason, code = getattr(error, "reason", None) or error, ""
        if isinstance(error, urllib.error.HTTPError):  # an answer, too
            error.close()
            code = f"status {error.code}: "
        raise ImageError(f"{name}: cannot be fetched ({code}{reason})") from None
    if len(content) > MOST_BYTES:
        raise ImageTooLargeError(f"{name}: more than {MOST_BYTES // 2**20} MiB; download the file and give its path")
    return content
