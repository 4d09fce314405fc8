"""Checks of the boxes of a split, from its annotations alone."""

import numpy as np

from deformable_detr.data.doctor.split_data import SplitData

SLACK = 2.0
"""Pixels by which a box may reach over the edge without a finding."""

FEWEST = 5
"""Boxes from which on the whole file's form is judged."""

FORMS = {
    "xyxy": "boxes-xyxy",
    "centred": "boxes-centred",
    "shares": "boxes-normalised",
    "centred shares": "boxes-normalised",
}
"""The findings of the forms of :func:`box_form` that COCO does not have."""

WEIGHTS = np.sqrt([2.0, 3.0, 5.0, 7.0, 11.0])
"""Irrational, so that the weighted sums of different coordinates are hardly ever equal."""


def check_boxes(data: SplitData) -> None:
    """Note what is wrong with the boxes: their positions, and repeated boxes."""
    check_geometry(data)
    _check_repeated(data)


def check_geometry(data: SplitData) -> None:
    """Note boxes outside of their image; boxes in another format are converted first, so that the rest is judged in pixels."""
    limits = limits_of(data, data.images)
    data.form = box_form(data.boxes, limits, data.areas)
    if data.form != "xywh":
        data.found.add(FORMS[data.form], *(data.box_item(i, f"bbox is {_shown(data.boxes[i])}") for i in range(len(data.boxes))))
        data.boxes = to_pixels(data.boxes, limits, data.form)
    lower, upper = data.boxes[:, :2], data.boxes[:, :2] + data.boxes[:, 2:]
    empty = (data.boxes[:, 2:] <= 0).any(axis=1)
    outside = ~empty & ((lower >= limits) | (upper <= 0)).any(axis=1)
    beyond = np.maximum(-lower, upper - limits).max(axis=1, initial=0)  # [A] pixels over the edge
    clipped = ~empty & ~outside & (beyond > SLACK)
    tiny = ~empty & (data.boxes[:, 2:] < 1).all(axis=1)
    for code, mask in (("box-degenerate", empty), ("box-outside", outside), ("box-clipped", clipped), ("box-tiny", tiny)):
        data.found.add(code, *(data.box_item(int(i), _in_image(data, int(i))) for i in np.flatnonzero(mask)))


def limits_of(data: SplitData, images: np.ndarray) -> np.ndarray:
    """`[A, 2]` width and height of the images at these positions; infinite where an image cannot be read."""
    limits = data.sizes[images][:, ::-1].astype(np.float64)
    limits[(limits == 0).any(axis=1)] = np.inf
    return limits


def box_form(boxes: np.ndarray, limits: np.ndarray, areas: np.ndarray) -> str:
    """How the boxes of a file are written.

    Args:
        boxes: `[A, 4]` as written in the file.
        limits: `[A, 2]` (width, height) of their images in pixels.
        areas: `[A]` as written in the file.

    Returns:
        `xywh`, or with near certainty `xyxy`, `centred` (cxcywh), `shares` (xywh in [0, 1]) or `centred shares` (cxcywh in [0, 1],
        as in YOLO).
    """
    sized = (boxes[:, 2:] > 0).all(axis=1)
    boxes, limits, areas = boxes[sized], limits[sized], areas[sized]
    if len(boxes) == 0 or limits.max() <= 1:
        return "xywh"
    if (boxes <= 1.01).all():
        beyond = (boxes[:, :2] + boxes[:, 2:] > 1.01).any(axis=1)
        before = (boxes[:, :2] - boxes[:, 2:] / 2 < -0.01).any(axis=1)
        return "centred shares" if beyond.sum() > before.sum() else "shares"
    corners = ((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= limits + 1) & (boxes[:, :2] >= -1)).all(axis=1)
    beyond = (boxes[:, :2] + boxes[:, 2:] > limits + SLACK).any(axis=1)
    between = np.isclose(areas, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), rtol=0.01, atol=0.5)  # the corners' area
    own = np.isclose(areas, boxes[:, 2:].prod(axis=1), rtol=0.01, atol=0.5)
    told = (between & ~own).mean() >= 0.9
    if len(boxes) >= FEWEST and corners.mean() >= 0.99 and (beyond.mean() >= 0.2 or told):
        return "xyxy"
    half = boxes[:, 2:] / 2
    centred = ((boxes[:, :2] - half >= -1) & (boxes[:, :2] + half <= limits + 1)).all(axis=1)
    return "centred" if len(boxes) >= FEWEST and centred.mean() >= 0.99 and beyond.mean() >= 0.2 else "xywh"


def to_pixels(boxes: np.ndarray, limits: np.ndarray, form: str) -> np.ndarray:
    """`[A, 4]` boxes of a form of :func:`box_form` → left, top, width, height in pixels."""
    scale = np.where(np.isfinite(limits), limits, 1.0)[:, [0, 1, 0, 1]]
    if form == "xyxy":
        return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
    if form.startswith("centred"):
        boxes = np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]), axis=1)
    return boxes * scale if form.endswith("shares") else boxes


def _check_repeated(data: SplitData) -> None:
    """Boxes with equal coordinates in the same image: duplicates if of one class, possibly intended if of two."""
    places = np.column_stack((data.images, data.boxes.round(1) + 0.0))  # [A, 5], -0.0 made 0.0
    _, group, count = np.unique((places * WEIGHTS).sum(axis=1), return_inverse=True, return_counts=True)
    shared = np.flatnonzero((count[group] > 1) & (data.boxes[:, 2:] > 0).all(axis=1))  # few, so that few are compared one by one
    first: dict[tuple, tuple[int, set[int]]] = {}
    for index, place in zip(shared.tolist(), map(tuple, places[shared].tolist()), strict=True):
        category = int(data.category_ids[index])
        if place not in first:
            first[place] = (index, {category})
            continue
        original, categories = first[place]
        other = data.split.annotations.annotation_ids[data.positions[original]]
        if category in categories:
            data.found.add("box-twice", data.box_item(index, f"the same as annotation {other}"))
        else:
            name, before = data.categories[category], data.categories[int(data.category_ids[original])]
            data.found.add("box-two-classes", data.box_item(index, f"{name!r} where annotation {other} is {before!r}"))
            categories.add(category)


def _in_image(data: SplitData, index: int) -> str:
    height, width = data.sizes[data.images[index]]
    return f"bbox {_shown(data.boxes[index])} in an image of {width} x {height}"


def _shown(box: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in box) + "]"
