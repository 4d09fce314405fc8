"""The lines of YOLO's label files → boxes: as they are, of outlines, of oriented boxes, of poses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deformable_detr.data.entries import read_number
from deformable_detr.data.findings import Item
from deformable_detr.data.layout import fault
from deformable_detr.data.text import read_text, split_lines

TOLERANCE = 0.01
"""Normalised coordinates may be this far outside [0, 1], by rounding or imprecise annotation."""

FEWEST = 5
"""Boxes from which on the form of all lines is judged."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class LabelLine:
    """One line of a label file: a class, and numbers whose meaning is not known yet."""

    where: str
    """File and line."""

    label: int
    values: tuple[float, ...]


def read_lines(file: Path, names: Mapping[int, str]) -> tuple[list[LabelLine], list[Item]]:
    """The lines of a label file whose first word is a known class, followed by numbers; and what is wrong with the others.

    Args:
        file: the label file.
        names: the classes by their numbers; those without a name are unknown.
    """
    lines, faults = [], []
    try:
        text = read_text(file)
    except (OSError, ValueError) as error:
        return [], [fault(file, str(error).removeprefix(f"{file}: "))]
    for number, line in enumerate(split_lines(text), 1):
        where, words = f"{file}, line {number}", line.split()
        if not words:
            continue
        try:
            values = [read_number(word) for word in words]
        except ValueError:
            faults.append(fault(where, f"{line.strip()[:80]!r} is not a row of numbers"))
            continue
        if values[0] in names and names[int(values[0])]:
            lines.append(LabelLine(where, int(values[0]), tuple(values[1:])))
        else:
            known = f"{min(names)} to {max(names)}" if names else "none"
            faults.append(fault(where, f"class {words[0]} is unknown; the data.yaml names {known}"))
    return lines, faults


def boxes_of_lines(
    lines: Sequence[LabelLine], keypoints: tuple[int, int] | None
) -> tuple[list[tuple[int, Box] | None], list[Item]]:
    """The boxes of all lines of a split, which are judged together.

    Four numbers are a box `cx cy w h`; with `kpt_shape` the keypoints behind it are left out. Without, more numbers are the points
    of an outline or of an oriented box, whose bounding box is taken, unless the lines could be boxes with keypoints just as well.

    Args:
        lines: of all label files.
        keypoints: `kpt_shape` of the data.yaml: number of keypoints, and numbers for each (2 or 3). (0, 0): surely none; None: not
            said.

    Returns:
        For each line its class with (left, top, right, bottom) in shares of the image, or None; and what is wrong.
    """
    doubtful = _doubt(lines) if keypoints is None else None
    keypoints = None if keypoints == (0, 0) else keypoints
    boxes: list[tuple[int, Box] | None] = []
    faults = _other_form([line for line in lines if len(line.values) == 4])
    for line in lines:
        try:
            boxes.append((line.label, _box(line.values, keypoints, doubtful)))
        except ValueError as error:
            boxes.append(None)
            faults.append(fault(line.where, str(error)))
    return boxes, faults


def _other_form(lines: Sequence[LabelLine]) -> list[Item]:
    """What is wrong where boxes are written as corners, or as left, top, width, height: then many reach out of the image."""
    rows = np.array([line.values for line in lines], dtype=np.float64).reshape(-1, 4)
    place, size = rows[:, :2], rows[:, 2:]
    beyond = ((place - size / 2 < -2 * TOLERANCE) | (place + size / 2 > 1 + 2 * TOLERANCE)).any(axis=1)
    if len(rows) < FEWEST or not (np.abs(rows) <= 1 + TOLERANCE).all() or beyond.mean() < 0.2:
        return []
    corners, sized = (size > place).all(axis=1), (place + size <= 1 + TOLERANCE).all(axis=1)
    written = "class x1 y1 x2 y2" if corners.mean() >= 0.99 else "class left top w h" if sized.mean() >= 0.99 else None
    what = f"{beyond.sum()} of {len(rows)} boxes reach out of their images; the lines look like `{written}`, not `class cx cy w h`"
    return [fault(lines[int(beyond.argmax())].where, what)] if written else []


def _box(values: tuple[float, ...], keypoints: tuple[int, int] | None, doubtful: int | None) -> Box:
    count = len(values)
    if keypoints and count not in (4, 4 + keypoints[0] * keypoints[1]):
        wanted = 5 + keypoints[0] * keypoints[1]
        raise ValueError(f"{count + 1} numbers; with kpt_shape {list(keypoints)} a line has 5 or {wanted}")
    if not keypoints and count == doubtful:
        raise ValueError(
            f"{count + 1} numbers are an outline of {count // 2} points, or a box with keypoints: for keypoints write "
            f"{_shapes(count)} into the data.yaml, for outlines `kpt_shape: none`"
        )
    if not keypoints and count != 4 and (count < 6 or count % 2):
        wanted = "`class cx cy w h`, or a class and three or more points of an outline"
        raise ValueError(f"{count + 1} numbers; expected {wanted}{_hint(count)}")
    shares = values[:4] if keypoints else values
    if not all(-TOLERANCE <= share <= 1 + TOLERANCE for share in shares):  # false for NaN, too
        hint = f"; they look like pixels{_hint(count)}" if max(shares) > 2 else _hint(count)
        shown = " ".join(f"{share:g}" for share in shares)
        raise ValueError(f"{shown}: positions and sizes must be shares of the image in [0, 1]{hint}")
    if len(shares) == 4:
        cx, cy, w, h = shares
        if w < 0 or h < 0:
            raise ValueError(f"{cx:g} {cy:g} {w:g} {h:g}: a negative width or height")
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    return min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2])


def _hint(count: int) -> str:
    """What a line with this number of values after the class may be, if neither a box nor an outline."""
    if count == 5:
        return "; a sixth number is the score of a prediction, which is no ground truth"
    return f"; for a box with keypoints write {_shapes(count)} into the data.yaml" if count > 5 and _shapes(count) else ""


def _shapes(count: int) -> str:
    shapes = [f"`kpt_shape: [{(count - 4) // size}, {size}]`" for size in (2, 3) if (count - 4) % size == 0]
    return " or ".join(shapes)


def _doubt(lines: Sequence[LabelLine]) -> int | None:
    """How many numbers the lines have that could be a box with keypoints as well as an outline; None where there is no doubt.

    Poses have one length, outlines many. Of one length: read as boxes, outlines reach out of the image sooner or later, their
    points are outside of these boxes, and they hardly ever cross or touch themselves. So there is doubt where every line could be
    a box within the image, and either all points could be keypoints of theirs or some line would be no proper outline.
    """
    long = [line.values for line in lines if len(line.values) > 4]
    if not long or len({len(values) for values in long}) > 1 or len(long[0]) % 2:
        return None
    rows = np.array(long)
    center, half = rows[:, :2], rows[:, 2:4] / 2
    points = rows.reshape(len(rows), -1, 2)
    if (half <= 0).any() or (center - half < -TOLERANCE).any() or (center + half > 1 + TOLERANCE).any():
        return None
    inside = (np.abs(points[:, 2:] - center[:, None]) <= half[:, None] + TOLERANCE).all()
    return rows.shape[1] if inside or any(map(_crosses_itself, points)) else None


def _crosses_itself(points: np.ndarray) -> bool:
    """Whether two edges of the polygon `[n, 2]` that are no neighbours cross, or a point comes twice in a row."""
    first, last = points, np.roll(points, -1, axis=0)
    if (first == last)[:-1].all(axis=1).any():
        return True

    def side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return np.sign((b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0]))

    a, b = first[:, None], last[:, None]
    c, d = first[None], last[None]
    cross = (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
    return bool(cross.any())
