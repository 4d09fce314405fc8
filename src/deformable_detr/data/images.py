"""Read one picture file of any usual kind as upright 8-bit RGB: the first stage of the data path."""

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


def read_image(path: str | Path, *, upright: bool = True) -> Tensor:
    """Read a picture as the detector wants it.

    Greyscale and palette pictures become RGB, CMYK is converted, 16-bit values keep their high byte (65535 → 255), and an
    alpha channel is dropped without compositing, as the official COCO code (and OpenCV) does: hidden colours show.

    Args:
        path: any format that Pillow reads.
        upright: turn the picture as its EXIF orientation says; False gives the pixels as they are stored.

    Returns:
        `[3, H, W]` uint8, RGB. Stored channels-last, which the 8-bit resize is fastest on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a picture, is damaged or truncated, or has a pixel type without a natural 8-bit form.
    """
    path = Path(path)
    try:
        with Image.open(path) as picture:
            picture.load()
            pixels = _rgb_pixels(ImageOps.exif_transpose(picture) if upright else picture, path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such picture; check the image folder and the file names") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: this is a folder, not a picture") from None
    except PermissionError:
        raise PermissionError(f"{path}: no permission to read this picture") from None
    except UnidentifiedImageError:
        size = path.stat().st_size
        raise ValueError(
            f"{path}: not a picture that can be read ({size} bytes); replace the file or remove it from the data"
        ) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}; cut or shrink the picture first") from None
    except (OSError, SyntaxError, EOFError, IndexError, struct.error) as error:
        raise ValueError(
            f"{path}: the picture is damaged or truncated ({error}); copy it again or remove it from the data"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)  # [H, W, 3] -> [3, H, W]


def _rgb_pixels(picture: Image.Image, path: Path) -> np.ndarray:
    """`[H, W, 3]` uint8 of an opened picture, in memory of its own."""
    if picture.mode.startswith("I"):  # "I;16", "I;16B", and "I": 16 bits in 32
        grey = np.asarray(picture).astype(np.int64).clip(0, 65535) >> 8
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if picture.mode == "F":
        raise ValueError(f"{path}: 32-bit float pixels have no natural 8-bit form; save the picture with 8 or 16 bits per channel")
    return np.array(picture.convert("RGB"))
