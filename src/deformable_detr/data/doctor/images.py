"""Checks that need the image files: there, readable, of the annotated size, upright; and what duplicates are found by."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from deformable_detr.data.doctor.split_data import SplitData
from deformable_detr.data.images import open_image, read_size
from deformable_detr.data.pixels import check_planes, left_to_turn, wide_pixels
from deformable_detr.files import is_file
from deformable_detr.pipeline import ordered_map

THREADS = 8
THUMBNAIL = 16


class ImageFacts(NamedTuple):
    """What one reading of an image file tells."""

    stored_size: tuple[int, int]
    """(height, width) of the pixels as they are stored."""

    orientation: int = 1
    """Of EXIF, 1 … 8."""

    digest: bytes = b""
    """Of the file."""

    difference_hash: int = 0
    """64 bits: whether each of 8 x 8 pixels is brighter than its right neighbour."""

    thumbnail: np.ndarray | None = None
    """`[16, 16]` uint8 grey."""

    highest: int | None = None
    """The largest value of a 16-bit image."""

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) after turning as EXIF says."""
        height, width = self.stored_size
        return (width, height) if self.orientation >= 5 else (height, width)


def read_facts(path: Path) -> ImageFacts:
    """Read an image once: decoded to the end, but at an eighth of its size where the format can (JPEG).

    Raises:
        OSError: there is no such file, or it cannot be read.
        ImageError: it is no image, damaged, or of a kind that is not read.
    """
    content = path.read_bytes()
    with open_image(content, str(path)) as image:
        orientation, size = left_to_turn(image), (image.height, image.width)
        check_planes(image, str(path))
        wide = wide_pixels(image, str(path), content)
        image.draft("L", (8 * THUMBNAIL, 8 * THUMBNAIL))
        image.load()
        grey = image.convert("L")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    bits = np.packbits((small[:, :-1] > small[:, 1:]).ravel())
    thumbnail = np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    digest = hashlib.blake2b(content, digest_size=16).digest()
    highest = None if wide is None else int(wide.max(initial=0))
    return ImageFacts(size, orientation, digest, int.from_bytes(bits.tobytes(), "big"), thumbnail, highest)


def check_images(data: SplitData, progress: Callable[[], None]) -> dict[int, ImageFacts]:
    """Read every listed image, by several threads, and note what is wrong with it.

    Args:
        data: the split; findings about boxes that a turned image explains are withdrawn from it.
        progress: called after each image.

    Returns:
        The facts of the images that can be used, by their position.
    """
    facts: dict[int, ImageFacts] = {}
    paths = map(data.path, range(len(data.image_ids)))
    pairs = ordered_map(read_facts, paths, num_threads=THREADS, limit=4 * THREADS, name="doctor")
    for image, (_, future) in enumerate(pairs):
        progress()
        try:
            facts[image] = future.result()
        except (OSError, ValueError) as error:
            _note_unreadable(data, image, error)
        else:
            _check_size(data, image, facts[image])
    _check_bit_depth(data, facts)
    return facts


def check_sample(data: SplitData, count: int) -> None:
    """Look at the headers of a few images, evenly spread: whether they are there, and of the annotated size."""
    number = len(data.image_ids)
    for image in range(0, number, max(1, -(-number // count))):
        path = data.path(image)
        try:
            if not is_file(path):
                raise FileNotFoundError(path)
            sizes = (read_size(path, upright=False), read_size(path))
        except (OSError, ValueError) as error:
            _note_unreadable(data, image, error)
        else:
            _check_size(data, image, ImageFacts(stored_size=sizes[0], orientation=6 if sizes[0] != sizes[1] else 1))


def _note_unreadable(data: SplitData, image: int, error: Exception) -> None:
    missing = isinstance(error, FileNotFoundError)
    text = "no such file" if missing else str(error).removeprefix(f"{data.path(image)}: ")
    data.found.add("image-missing" if missing else "image-damaged", data.image_item(image, text))


def _check_bit_depth(data: SplitData, facts: Mapping[int, ImageFacts]) -> None:
    """Note 16-bit images of which not one uses the upper bits."""
    highest = {image: read.highest for image, read in facts.items() if read.highest is not None}
    bits = max(8, max(highest.values(), default=0).bit_length())
    if highest and bits < 15:
        text = f"values up to {max(highest.values())}: set data.bit_depth {bits}"
        data.found.add("bit-depth", *(data.image_item(image, text, value=bits) for image in highest))


def _check_size(data: SplitData, image: int, facts: ImageFacts) -> None:
    """Compare an image's size with the annotated one, in both orientations."""
    annotated = tuple(int(side) for side in data.sizes[image])
    if not all(annotated):
        return
    height, width = facts.upright_size
    if annotated not in (facts.upright_size, facts.stored_size):
        text = f"is {width} x {height} pixels (width x height), annotated as {annotated[1]} x {annotated[0]}"
        data.found.add("image-size", data.image_item(image, text, value=facts.upright_size))
        return
    if facts.upright_size == facts.stored_size:
        return
    if annotated == facts.stored_size:
        data.found.add("exif-stored", data.image_item(image, f"EXIF orientation {facts.orientation}"))
        return
    boxes = data.boxes[data.images == image]
    upper = boxes[:, :2] + boxes[:, 2:]
    if (upper > np.array([width, height]) + 2).any() and (upper <= np.array([height, width]) + 2).all():
        data.found.withdraw(("box-outside", "box-clipped"), image)
        text = f"EXIF orientation {facts.orientation}; boxes reach beyond {width} x {height} but fit in {height} x {width}"
        data.found.add("exif-boxes", data.image_item(image, text, value=facts.stored_size))
