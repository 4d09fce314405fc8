"""Decoded images of any kind → upright 8-bit RGB: PIL images of every mode, arrays, tensors."""

import io
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

ORIENTATION_TAG = 0x0112
"""Of EXIF."""

STRAIGHT_ALPHA = {"La": "LA", "RGBa": "RGBA"}
"""Pillow's modes whose colours are multiplied by alpha → what they are converted to on the way to RGB, as there is no other."""

COLOUR_MODES = ("RGB", "RGBA", "RGBX", "RGBa", "LA", "La")
"""Pillow's modes of files that OpenCV reads with 16 bits in the same colours."""

BITS_TAG, PHOTOMETRIC_TAG, PLANES_TAG = 258, 262, 284
"""Of TIFF."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what makes the stored pixels upright."""


class ImageError(ValueError):
    """An image that cannot be read; the message names it."""


class ImageTooLargeError(ImageError):
    """An image with more pixels or bytes than are allowed."""


def of_pil(image: Image.Image, name: str, *, upright: bool = True, bit_depth: int = 16, content: bytes | None = None) -> Tensor:
    """Convert a PIL image.

    Args:
        image: opened, of any mode; its pixels are loaded here.
        name: of the image, in messages.
        upright: turn it as its EXIF orientation says.
        bit_depth: see :func:`scale_to_8_bits`.
        content: the file that it comes from, for 16-bit colour, of which Pillow keeps 8 bits. None: it is read again from the
            file that the image holds open; a PIL image whose pixels are loaded already has lost the others.

    Returns:
        `[3, H, W]` uint8, RGB, in memory of its own. Stored channels-last, which the 8-bit resize is fastest on.

    Raises:
        ImageError: a pixel type without a natural 8-bit form, or 16 bits in a form that is not read correctly.
        Exception: whatever Pillow's decoder raises on damaged data.
    """
    check_planes(image, name, bit_depth)
    if (_range_of_ppm(image) or 65535) < 65535:
        bit_depth = 16  # Pillow scales by what the file says
    wide = wide_pixels(image, name, content) if bit_depth < 16 or image.mode.startswith("I") else None
    if wide is None and bit_depth < 16 and has_wide_colour(image):
        raise ImageError(f"{name}: {image.mode} of 16 bits is read with bit_depth 16 alone; save the image as RGB or grey")
    if wide is not None:
        pixels = scale_to_8_bits(wide, bit_depth)
        pixels = 255 - pixels if _white_is_zero(image) else pixels
    elif image.mode == "F":
        raise ImageError(f"{name}: 32-bit float pixels have no natural 8-bit form; save the image with 8 or 16 bits per channel")
    else:
        load(image)
        straight = STRAIGHT_ALPHA.get(image.mode)
        pixels = np.array((image.convert(straight) if straight else image).convert("RGB"))
    if upright and (turn := UPRIGHT.get(left_to_turn(image))) is not None:
        pixels = np.array(Image.fromarray(pixels).transpose(turn))
    return _channels_first(pixels)


def of_array(array: np.ndarray, name: str, *, bit_depth: int = 16) -> Tensor:
    """Convert an array `[H, W, 3]` RGB or `[H, W]` grey, uint8 or uint16; as :func:`of_pil`.

    Raises:
        ImageError: another shape or type.
    """
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise ImageError(f"{name} is an array of {array.dtype}; expected uint8, 0 … 255 (not normalised), or uint16")
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or array.size == 0:
        raise ImageError(
            f"{name} is an array of shape {list(array.shape)}; expected [height, width, 3] RGB or [height, width] grey"
        )
    return _channels_first(array if array.dtype == np.uint8 else scale_to_8_bits(array, bit_depth))


def of_tensor(tensor: Tensor, name: str, *, bit_depth: int = 16) -> Tensor:
    """Convert a tensor `[3, H, W]` RGB, uint8 or uint16, on any device; as :func:`of_pil`.

    Raises:
        ImageError: another shape or type.
    """
    if tensor.dtype not in (torch.uint8, torch.uint16):
        raise ImageError(f"{name} is a tensor of {tensor.dtype}; expected torch.uint8, 0 … 255 (not normalised), or torch.uint16")
    if tensor.ndim != 3 or tensor.shape[0] != 3 or tensor.numel() == 0:
        hint = " (a batch: pass list(batch))" if tensor.ndim == 4 else ""
        raise ImageError(f"{name} is a tensor of shape {list(tensor.shape)}{hint}; expected [3, height, width] RGB")
    if tensor.dtype == torch.uint8:
        return _channels_first(tensor.cpu().permute(1, 2, 0).numpy())  # torch's resize to a width of 1 is wrong on other layouts
    return torch.from_numpy(scale_to_8_bits(tensor.cpu().numpy(), bit_depth))


def scale_to_8_bits(values: np.ndarray, bit_depth: int) -> np.ndarray:
    """Keep the upper 8 of `bit_depth` bits: 2^bit_depth − 1 becomes 255, and so does everything above."""
    return np.minimum(values >> (bit_depth - 8), 255).astype(np.uint8)


def wide_pixels(image: Image.Image, name: str, content: bytes | None = None) -> np.ndarray | None:
    """The pixels of an image of more than 8 bits per channel: `[H, W]` or `[H, W, 3]` RGB, unsigned; else None.

    They are in stored orientation, but for TIFFs, which Pillow and OpenCV turn.

    Args:
        image: opened; its pixels are loaded here.
        name: of the image, in messages.
        content: the file that it comes from. Needed for colour, of which Pillow keeps the high bytes only.

    Raises:
        ImageError: values below 0 or above 65535, as signed TIFFs and those of 32 bits have.
    """
    if image.mode.startswith("I"):  # "I;16", "I;16B", and "I": 16 bits in 32, or signed ones, or more
        load(image)  # an array of an image that is not loaded has the shape from before it is turned
        values = np.asarray(image).astype(np.int64)
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        if low < 0 or high > 65535:
            raise ImageError(f"{name}: values from {low} to {high} have no natural 8-bit form; save the image with 8 or 16 bits")
        return values.astype(np.uint16)
    if not has_wide_colour(image):
        return None
    content = _content_of(image, name) if content is None else content
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    found = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    if found is None or found.dtype != np.uint16 or image.mode not in COLOUR_MODES:
        return None
    return found if found.ndim == 2 else found[:, :, 2::-1]  # BGR or BGRA → RGB


def load(image: Image.Image) -> None:
    """Load the pixels of a PIL image.

    Pillow 12 maps the file of an uncompressed TIFF into memory, with the width that the image has when it is turned: garbled,
    where that is another one. The file of an image without a name is read.
    """
    name = getattr(image, "filename", "")
    if image.format != "TIFF" or not name:
        image.load()
        return
    image.filename = ""  # pyright: ignore[reportAttributeAccessIssue] (a TIFF has it)
    try:
        image.load()
    finally:
        image.filename = name  # pyright: ignore[reportAttributeAccessIssue]


def has_wide_colour(image: Image.Image) -> bool:
    """Whether an image that is opened and not loaded has colour of 16 bits per channel, of which Pillow would keep 8."""
    tiles = getattr(image, "tile", ())
    wide = any(";16" in str(tile.args) for tile in tiles) or _range_of_ppm(image) == 65535
    return wide and not image.mode.startswith("I")  # grey, of which Pillow keeps all


def check_planes(image: Image.Image, name: str, bit_depth: int = 16) -> None:
    """Refuse TIFFs of 16 bits whose channels lie one after the other: nobody reads them correctly.

    Raises:
        ImageError: it is one. Compressed ones are read, but not with fewer than 16 bits.
    """
    tiles, bits = getattr(image, "tile", ()), _tiff_tag(image, BITS_TAG) or (8,)
    apart = _tiff_tag(image, PLANES_TAG) == 2 and image.mode.startswith("RGB") and bits[0] > 8
    if apart and tiles and (tiles[0].codec_name == "raw" or bit_depth < 16):
        raise ImageError(
            f"{name}: a TIFF with 16 bits whose channels are stored one after the other is not read; "
            "save it with interleaved channels (planar configuration 1)"
        )


def needs_file(image: Image.Image, bit_depth: int) -> bool:
    """Whether :func:`of_pil` reads more of an opened image than the pixels that Pillow makes of it."""
    return _white_is_zero(image) or (bit_depth < 16 and (has_wide_colour(image) or _range_of_ppm(image) is not None))


def _content_of(image: Image.Image, name: str) -> bytes:
    """The file of an opened image."""
    file = getattr(image, "fp", None)
    if file is None or image.tell() > 0:
        raise ImageError(f"{name}: of 16-bit colour Pillow keeps 8 bits, and its file is not at hand; give the path of the image")
    before = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(before)
    return content


def _range_of_ppm(image: Image.Image) -> int | None:
    """The maximum that a PGM or PPM says its values have, where that is above 255; None for any other image."""
    arguments = [tile.args for tile in getattr(image, "tile", ())]
    declared = image.format == "PPM" and arguments and isinstance(arguments[0], tuple) and arguments[0][0] in ("L", "RGB")
    return arguments[0][1] if declared else None


def _white_is_zero(image: Image.Image) -> bool:
    """A grey TIFF of 16 bits whose largest value is black, which Pillow turns with 8 bits alone."""
    return image.mode.startswith("I") and _tiff_tag(image, PHOTOMETRIC_TAG) == 0


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    """The value of a TIFF's tag; None where there is none."""
    return getattr(image, "tag_v2", {}).get(tag)


def left_to_turn(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 … 8 (from 5 on width and height are exchanged); 1 where EXIF is damaged.

    Also 1 for TIFFs, whose pixels and size are turned as they are read.
    """
    if image.format == "TIFF":
        return 1
    try:
        found = Image.Image.getexif(image).get(ORIENTATION_TAG, 1)  # PNG's own method would decode the whole image
    except Exception:  # the parser raises nearly anything on damaged data, and the pixels may be sound all the same
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _channels_first(pixels: np.ndarray) -> Tensor:
    """`[H, W, 3]` or `[H, W]` uint8 → `[3, H, W]`, channels-last in memory."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def without_text(png: bytes) -> bytes:
    """A PNG file without its text chunks, of which Pillow reads a limited amount (workflows, XMP) before it refuses the image."""
    kept, position = io.BytesIO(), 8
    kept.write(png[:8])
    while position + 12 <= len(png):
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        if png[position + 4 : position + 8] not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.write(png[position:end])
        position = end
    return kept.getvalue()
