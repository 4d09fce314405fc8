"""What can be predicted on: files, folders, patterns, PIL images, arrays and tensors, as one stream of images.

First step of prediction: a :class:`InputImage` knows its name and gives its pixels, upright and RGB, when asked.
"""

import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from deformable_detr.data.images import IMAGE_SUFFIXES, read_image

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
Source = ImageLike | Iterable[ImageLike]


@dataclass(frozen=True, eq=False)
class InputImage:
    """One image to predict on, not yet read."""

    name: str
    """Its name in messages: the path, or `image 3` for the fourth of a list."""

    content: Path | Image.Image | np.ndarray | Tensor
    """Where its pixels come from."""

    @property
    def path(self) -> Path | None:
        """The file, where there is one."""
        return self.content if isinstance(self.content, Path) else None

    def read(self) -> Tensor:
        """The pixels: `[3, H, W]` uint8, RGB, upright (turned as the EXIF orientation of a file or a PIL image says).

        Raises:
            FileNotFoundError: the file is not there (any more).
            ValueError: the file cannot be decoded, or the array or tensor is not a uint8 image; the message names it.
        """
        if isinstance(self.content, Path):
            _check_exists(self.content)
            return read_image(self.content)
        if isinstance(self.content, Image.Image):
            return _from_pil(self.content)
        if isinstance(self.content, np.ndarray):
            return _from_array(self.content, self.name)
        return _from_tensor(self.content, self.name)


def is_single(source: Source) -> bool:
    """Whether `source` is one image (and not a folder, a pattern or several images)."""
    if isinstance(source, (str, Path)):
        return not Path(source).is_dir() and not _is_pattern(source)
    return isinstance(source, (Image.Image, np.ndarray, Tensor))


def open_source(source: Source) -> Iterator[InputImage]:
    """The images of `source`, one after the other; nothing is read yet.

    Args:
        source: a file, a folder (the images directly in it, in natural order: 2 before 10), a glob pattern (`**` goes into
            subfolders), a PIL image, a numpy array (uint8 `[H, W, 3]` RGB, or `[H, W]` grey), a torch tensor
            (uint8 `[3, H, W]` RGB), or any iterable of these. An iterator is consumed lazily, so it may be endless.

    Raises:
        FileNotFoundError: a path or pattern leads nowhere, or a folder has no image.
        TypeError: something that is no source.
    """
    if isinstance(source, (str, Path)):
        yield from (InputImage(str(path), path) for path in list_images(source))
    elif isinstance(source, (Image.Image, np.ndarray, Tensor)):
        yield InputImage("the image", source)
    elif isinstance(source, Iterable) and not isinstance(source, (bytes, dict)):
        for index, item in enumerate(source):
            if isinstance(item, (Image.Image, np.ndarray, Tensor)):
                yield InputImage(f"image {index}", item)
            elif isinstance(item, (str, Path)):
                yield from open_source(item)
            else:
                raise TypeError(f"item {index} of the list is a {type(item).__name__}; {_EXPECTED}")
    else:
        raise TypeError(f"cannot predict on a {type(source).__name__}; {_EXPECTED}")


def list_images(source: str | Path) -> list[Path]:
    """The files that a path, a folder or a glob pattern stands for, in natural order (`frame2.jpg` before `frame10.jpg`).

    A path that is neither a folder nor a pattern stands for itself, whether there is such a file or not.

    Raises:
        FileNotFoundError: the pattern matches no image, or the folder has none.
    """
    path = Path(source)
    if path.is_dir():
        found = [item for item in path.iterdir() if item.is_file() and item.suffix.lower() in IMAGE_SUFFIXES]
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


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """A sort key that compares runs of digits as numbers."""
    parts = re.split(r"(\d+)", str(path).casefold())
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


_EXPECTED = (
    "expected a file, a folder, a glob pattern, a PIL image, a uint8 numpy array [H, W, 3] (RGB), "
    "a uint8 torch tensor [3, H, W] (RGB), or a list of these"
)


def _is_pattern(source: str | Path) -> bool:
    return glob.has_magic(str(source)) and not Path(source).exists()


def _check_exists(path: Path) -> None:
    if path.exists():
        return
    if re.match(r"[a-z]+:/", str(path)):
        raise FileNotFoundError(f"{path} is an address, not a file: download the image first")
    raise FileNotFoundError(f"no such image or folder: {path}")


def _from_pil(image: Image.Image) -> Tensor:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        raise ValueError(
            f"a PIL image of mode {upright.mode!r} has no fixed range; give the file itself, or convert it to 8 bits per channel"
        )
    return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1).contiguous()


def _from_array(array: np.ndarray, name: str) -> Tensor:
    if array.dtype != np.uint8:
        raise ValueError(f"{name} is an array of {array.dtype}; expected uint8, 0 … 255 (not normalised)")
    if array.ndim == 2:
        array = np.stack([array] * 3, axis=-1)
    if array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ValueError(
            f"{name} is an array of shape {list(array.shape)}; expected [height, width, 3] RGB or [height, width] grey"
        )
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1).contiguous()


def _from_tensor(tensor: Tensor, name: str) -> Tensor:
    if tensor.dtype != torch.uint8:
        raise ValueError(f"{name} is a tensor of {tensor.dtype}; expected torch.uint8, 0 … 255 (not normalised)")
    if tensor.ndim != 3 or tensor.shape[0] != 3 or tensor.numel() == 0:
        hint = " (a batch: pass list(batch))" if tensor.ndim == 4 else ""
        raise ValueError(f"{name} is a tensor of shape {list(tensor.shape)}{hint}; expected [3, height, width] RGB")
    return tensor.cpu()
