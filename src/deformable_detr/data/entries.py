"""Parse the values of annotation files in the forms that people write: ids, flags, numbers, boxes, outlines."""

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

LARGEST_SIDE = 1_000_000
"""Pixels above which a width or height cannot be meant."""

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""What all programs take for the same number; Python alone reads `1_0`, digits of other scripts and `nan`."""

LONGEST_RUN = 12
"""Letters of a compressed run length, 5 bits each, from which on it cannot be meant."""

TRUE, FALSE = ("1", "true", "yes"), ("", "0", "false", "no", "none", "null")


def as_id(value: Any) -> int | str | None:
    """An id in one form, so that 7, 7.0 and "7" are the same and "07" is another; None for what can be no id."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else str(value)
    if isinstance(value, str):
        text = value.strip()
        digits = text.removeprefix("-")
        return int(text) if len(digits) < 4000 and digits.isascii() and digits.isdecimal() and str(int(digits)) == digits else value
    return None


def as_flag(value: Any) -> bool | None:
    """A flag written as 0 or 1 or a word, or left out; None for anything else."""
    if value is None or (isinstance(value, (bool, int, float)) and value in (0, 1)):
        return bool(value)
    word = value.strip().lower() if isinstance(value, str) else None
    return True if word in TRUE else False if word in FALSE else None


def read_flag(value: Any) -> bool:
    """The same.

    Raises:
        ValueError: anything else; says what.
    """
    if (flag := as_flag(value)) is None:
        raise ValueError(f"{short(value)} is neither yes (1, true) nor no (0, false)")
    return flag


def read_number(value: Any) -> float:
    """A finite number, also one in quotes.

    Raises:
        ValueError: anything else; says what.
    """
    plain = NUMBER.fullmatch(value.strip()) if isinstance(value, str) else type(value) in (int, float)
    if not plain:
        raise ValueError(f"{short(value)} is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{short(value)} is no number that can be meant")
    return number


def as_number(value: Any) -> float | None:
    """The same; None in place of the error."""
    try:
        return read_number(value)
    except ValueError:
        return None


def as_whole(text: Any) -> int | None:
    """A whole number from 0 on, written in digits, as classes and counts are; else None."""
    return int(text) if re.fullmatch("[0-9]{1,9}", str(text)) else None


def short(value: Any, most: int = 80) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= most else text[:most] + "…"


def as_side(value: Any) -> int:
    """A width or height in whole pixels; 0 for what cannot be one."""
    number = as_number(value)
    return int(number) if number is not None and number == int(number) and 0 < number <= LARGEST_SIDE else 0


def as_size(height: Any, width: Any) -> tuple[int, int] | None:
    """A (height, width) in pixels; None unless both can be meant."""
    size = as_side(height), as_side(width)
    return size if all(size) else None


def as_box(value: Any) -> list[float] | None:
    """Left, top, width, height; None unless these are four finite numbers, the last two not negative."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    box = [number for entry in value if (number := as_number(entry)) is not None]
    return box if len(box) == 4 and box[2] >= 0 and box[3] >= 0 else None


def crowd_of(entry: dict[str, Any]) -> Any:
    """`iscrowd` of an annotation, also by the names `isCrowd` and `is_crowd`; 0 where there is none."""
    if "iscrowd" in entry:
        return entry["iscrowd"]
    return next((value for key, value in entry.items() if key.replace("_", "").lower() == "iscrowd"), 0)


def angle_of(entry: dict[str, Any]) -> float | None:
    """Degrees, as CVAT writes them beside the box of a turned rectangle."""
    attributes = entry.get("attributes")
    return as_number(attributes.get("rotation")) if isinstance(attributes, dict) else None


def box_of_segmentation(segmentation: Any, image_size: tuple[int, int] = (0, 0)) -> list[float] | None:
    """The bounding box (left, top, width, height) of COCO's outlines or run lengths; None where there is nothing to bound.

    Args:
        segmentation: as annotated.
        image_size: (height, width) of the image, which run lengths must have, too; 0 where it is not known.

    Raises:
        ValueError: run lengths that cannot be those of the image; says why.
    """
    if isinstance(segmentation, dict) and segmentation:
        from faster_coco_eval.core import mask

        counts, size = _run_lengths(segmentation, image_size), list(map(as_side, segmentation["size"]))
        box = mask.toBbox(mask.frPyObjects({"size": size, "counts": counts}, *size)).flatten().tolist()
        return box if any(box) else None
    numbers = list(_flatten(segmentation))
    points = [as_number(value) for value in numbers]
    if len(points) < 6 or len(points) % 2 or None in points:
        return None
    places = np.array(points, dtype=np.float64).reshape(-1, 2)
    lower, upper = places.min(axis=0), places.max(axis=0)
    return [*lower.tolist(), *(upper - lower).tolist()]


def _flatten(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for entry in value:
            yield from _flatten(entry)
    else:
        yield value


def _run_lengths(segmentation: dict[str, Any], image_size: tuple[int, int]) -> list[int]:
    """Of all columns, background first. They must cover the image, no more and no less; compressed ones are text."""
    counts, size = segmentation.get("counts"), segmentation.get("size")
    height, width = map(as_side, size) if isinstance(size, list) and len(size) == 2 else (0, 0)
    if not height or not width or (all(image_size) and image_size != (height, width)):
        raise ValueError(f"its run lengths are of the size {short(size)}, not [height, width] of the image")
    runs = _decompress(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and 0 <= run <= height * width for run in runs):
        raise ValueError(f"its run lengths are {short(counts)}: not numbers of pixels from 0 to {height} x {width}")
    if sum(runs) != height * width:
        raise ValueError(f"its run lengths add up to {sum(runs)} pixels, not to {height} x {width}")
    return runs


def _decompress(text: str) -> list[int] | None:
    """COCO's compressed run lengths: 5 bits per letter, little end first, from the third on as differences to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 5 * LONGEST_RUN:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts if shift == 0 else None
