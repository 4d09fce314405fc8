"""Image files too large to be decoded at once, read window by window: by libvips where it is installed, else by Pillow."""

import logging
import math
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor

from deformable_detr.data.pixels import (
    UPRIGHT,
    ImageError,
    ImageTooLargeError,
    check_planes,
    left_to_turn,
    load,
    needs_file,
    of_pil,
)

Window = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the image

OVERVIEW_PIXELS = 16_000_000
"""Largest number of pixels with which an image that is read by windows is shown and predicted on as a whole."""

MEMORY_SHARE = 0.5
"""Of the free memory, what the pixels of one image may take."""

BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
"""Of Pillow's modes; of all others 4."""


def open_large_image(path: Path, bit_depth: int = 16) -> "VipsImage | PillowImage":
    """Open an image file of any size.

    Args:
        path: the file.
        bit_depth: how many bits of 16-bit values are used.

    Raises:
        ImageError: damaged, or of a pixel type without a natural 8-bit form.
        ImageTooLargeError: libvips is not installed, and the pixels do not fit into the memory.
    """
    try:
        import pyvips  # pyright: ignore[reportMissingImports]  (an extra)
    except (ImportError, OSError):  # OSError: the package without the library
        return PillowImage(path, bit_depth)
    logging.getLogger("pyvips").setLevel(logging.WARNING)  # below that it tells of every thread
    try:
        return VipsImage(pyvips, path, bit_depth)
    except _PillowNeededError:
        return PillowImage(path, bit_depth)


def overview(image: "VipsImage | PillowImage") -> Tensor:
    """The whole image, reduced by a whole factor: `[3, h, w]` uint8, at most about :data:`OVERVIEW_PIXELS`."""
    height, width = image.size
    factor = math.ceil(math.sqrt(height * width / OVERVIEW_PIXELS))
    rows = max(1, OVERVIEW_PIXELS // width // factor) * factor  # a strip at a time
    strips = []
    for top in range(0, height, rows):
        strip = image.read((0, top, width, min(top + rows, height))).permute(1, 2, 0).numpy()
        size = (math.ceil(width / factor), math.ceil(len(strip) / factor))
        strips.append(cv2.resize(strip, size, interpolation=cv2.INTER_AREA))
    return torch.from_numpy(np.concatenate(strips)).permute(2, 0, 1)


class _PillowNeededError(ImageError):
    """Damaged, of a format that this build of libvips does not read, or of colours that it would make others of than Pillow."""


class VipsImage:
    """An image in libvips, which keeps what it decodes on the disk, or reads tiled files in place."""

    def __init__(self, pyvips: Any, path: Path, bit_depth: int) -> None:
        self._path, self._failure = path, pyvips.Error
        try:
            self._image = self._rgb(pyvips.Image.new_from_file(str(path), access="random", fail_on="error").autorot(), bit_depth)
        except pyvips.Error as error:
            raise _PillowNeededError(str(error)) from None
        self.size = (self._image.height, self._image.width)

    def read(self, window: Window) -> Tensor:
        """The pixels of a part: `[3, h, w]` uint8 RGB, upright.

        Raises:
            ImageError: the file is damaged there.
        """
        left, top, right, bottom = window
        try:
            pixels = self._image.crop(left, top, right - left, bottom - top).numpy()
        except self._failure as error:
            reason = " ".join(str(error).split())
            raise ImageError(f"{self._path}: the image is damaged or cannot be read ({reason})") from None
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)

    def _rgb(self, image: Any, bit_depth: int) -> Any:
        """Three bands of 8 bits, as `read_image` makes them: alpha is dropped, 16 bits keep their upper ones."""
        if image.format not in ("uchar", "ushort"):
            raise ImageError(f"{self._path}: pixels of type {image.format} have no natural 8-bit form; save with 8 or 16 bits")
        if image.interpretation not in ("srgb", "rgb", "rgb16", "b-w", "grey16", "multiband"):
            raise _PillowNeededError(f"{self._path}: {image.interpretation}")  # CMYK
        if image.hasalpha():
            image = image[: image.bands - 1]
        if image.format == "ushort":
            image = (image >> (bit_depth - 8)).cast("uchar")
        return image[:3] if image.bands >= 3 else image[0].bandjoin([image[0], image[0]])


class PillowImage:
    """An image that Pillow decodes into its own form, a byte per pixel for grey; windows of it become RGB."""

    def __init__(self, path: Path, bit_depth: int) -> None:
        self._path, self._bit_depth = path, bit_depth
        try:
            with path.open("rb") as file:
                self._image = self._decoded(_open_unchecked(file, path))
        except ImageError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly anything
            raise ImageError(f"{path}: the image is damaged or cannot be read ({error})") from error
        self.size = (self._image.height, self._image.width)

    def _decoded(self, image: Image.Image) -> Image.Image:
        needed = image.width * image.height * BYTES_PER_PIXEL.get(image.mode, 4)
        if needed > MEMORY_SHARE * psutil.virtual_memory().available:
            raise ImageTooLargeError(
                f"{self._path}: {image.width} x {image.height} pixels take {needed / 1e9:.1f} GB of memory, more than half of what "
                'is free; pip install "deformable-detr[large]" reads the image by windows'
            )
        check_planes(image, str(self._path), self._bit_depth)
        if needs_file(image, self._bit_depth):  # of which windows would know nothing
            raise ImageError(f'{self._path}: 16 bits in this form are read by windows after pip install "deformable-detr[large]"')
        load(image)
        turn = UPRIGHT.get(left_to_turn(image))
        return image if turn is None else image.transpose(turn)

    def read(self, window: Window) -> Tensor:
        """The pixels of a part: `[3, h, w]` uint8 RGB, upright."""
        return of_pil(self._image.crop(window), str(self._path), upright=False, bit_depth=self._bit_depth)


def _open_unchecked(file: BinaryIO, path: Path) -> Image.Image:
    """`Image.open` without its limit on pixels, which is one setting for the whole process.

    Raises:
        OSError: no format fits.
    """
    Image.init()
    prefix = file.read(16)
    for name in Image.ID:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(prefix) is True:
            file.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, ValueError):
                return factory(file, str(path))  # type: ignore[arg-type]
    raise OSError("unknown format")
