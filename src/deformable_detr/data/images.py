"""Read one image file of any usual kind as upright 8-bit RGB: the first stage of the data path."""

import io
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

UPLOAD_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""What :func:`decode_image` reads: Pillow's formats for images, without those that run other programs (EPS) or are rare."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif"})
"""Which files of a folder are images. A file that is named itself is read whatever its suffix."""

ORIENTATION_TAG = 0x0112
"""Of EXIF."""


class ImageTooLargeError(ValueError):
    """An image has more pixels than are allowed."""


def read_image(path: str | Path, *, upright: bool = True) -> Tensor:
    """Read an image as the detector wants it.

    Greyscale and palette images become RGB, CMYK is converted, 16-bit values keep their high byte (65535 → 255), and an
    alpha channel is dropped without compositing, as the official COCO code (and OpenCV) does: hidden colours show.

    Args:
        path: any format that Pillow reads.
        upright: turn the image as its EXIF orientation says; False gives the pixels as they are stored.

    Returns:
        `[3, H, W]` uint8, RGB. Stored channels-last, which the 8-bit resize is fastest on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image, is damaged or truncated, or has a pixel type without a natural 8-bit form.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            image.load()
            pixels = _rgb_pixels(ImageOps.exif_transpose(image) if upright else image, str(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image; check the image folder and the file names") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: this is a folder, not an image") from None
    except PermissionError:
        raise PermissionError(f"{path}: no permission to read this image") from None
    except UnidentifiedImageError:
        size = path.stat().st_size
        raise ValueError(
            f"{path}: not an image that can be read ({size} bytes); replace the file or remove it from the data"
        ) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}; cut or shrink the image first") from None
    except (OSError, SyntaxError, EOFError, IndexError, struct.error) as error:
        raise ValueError(
            f"{path}: the image is damaged or truncated ({error}); copy it again or remove it from the data"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)  # [H, W, 3] -> [3, H, W]


def read_size(path: str | Path, *, upright: bool = True) -> tuple[int, int]:
    """The (height, width) of an image, from its header alone.

    Args:
        path: any format that Pillow reads.
        upright: the size after turning the image as its EXIF orientation says; False gives that of the stored pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            turned = upright and read_orientation(image) >= 5
            return (image.width, image.height) if turned else (image.height, image.width)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image; check the image folder and the file names") from None
    except Exception as error:  # on damaged headers Pillow's decoders raise nearly anything
        raise ValueError(f"{path}: not an image that can be read ({error})") from None


def read_orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 … 8; from 5 on width and height are exchanged."""
    found = Image.Image.getexif(image).get(ORIENTATION_TAG, 1)  # PNG's own method would decode the whole image
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def decode_image(content: bytes, name: str, *, max_pixels: int) -> Tensor:
    """Like :func:`read_image`, for the content of a file that a stranger has sent.

    Args:
        content: one of :data:`UPLOAD_FORMATS`.
        name: of the image, in messages.
        max_pixels: images of more pixels (height x width) are refused before they are decoded.

    Returns:
        `[3, H, W]` uint8, RGB, upright.

    Raises:
        ImageTooLargeError: more than `max_pixels`.
        ValueError: not an image, damaged or truncated, or a pixel type without a natural 8-bit form.
    """
    try:
        with Image.open(io.BytesIO(content), formats=UPLOAD_FORMATS) as image:
            if image.width * image.height > max_pixels:
                size = f"{image.width} x {image.height} pixels"
                raise ImageTooLargeError(f"{name}: {size} are more than the {max_pixels} allowed; shrink the image first")
            image.load()
            pixels = _rgb_pixels(ImageOps.exif_transpose(image), name)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(f"{name}: {error}; shrink the image first") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name}: not an image that can be read ({len(content)} bytes)") from None
    except (ImageTooLargeError, _PixelTypeError, MemoryError):
        raise
    except Exception as error:  # on forged files Pillow's decoders raise nearly anything: KeyError, TypeError, zlib.error …
        raise ValueError(f"{name}: the image is damaged or truncated ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)  # [H, W, 3] -> [3, H, W]


class _PixelTypeError(ValueError):
    """A pixel type without a natural 8-bit form."""


def _rgb_pixels(image: Image.Image, name: str) -> np.ndarray:
    """`[H, W, 3]` uint8 of an opened image, in memory of its own."""
    if image.mode.startswith("I"):  # "I;16", "I;16B", and "I": 16 bits in 32
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise _PixelTypeError(
            f"{name}: 32-bit float pixels have no natural 8-bit form; save the image with 8 or 16 bits per channel"
        )
    return np.array(image.convert("RGB"))
