"""Augmentations that mix several images of a dataset into one: mosaic, copy-paste, mixup.

They work on images as they are read, before `train_transform`. Everything random, the partner images too, comes from torch's
global generator, which the dataset seeds per image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from deformable_detr.boxes import cxcywh_to_xyxy, pixels_of, xyxy_to_cxcywh
from deformable_detr.data.augmentations import SMALLEST_SHARE, happens, integer, kept_share, uniform
from deformable_detr.structures import Target

ReadImage = Callable[[int], tuple[Tensor, Target]]
"""Index → image `[3, H, W]` uint8 with its target, as read."""

MIDDLE = (0.3, 0.7)  # of each side: where the four images of a mosaic may meet
MIXUP_SHAPE = 8.0  # both parameters of the beta distribution of the first image's share: mostly 0.3 … 0.7
MOST_PASTED = 4
PASTE_SCALE = (0.6, 1.5)  # of the size that the object has in its own image
LARGEST_PASTED = 0.6  # of a side of the image that is pasted into


@dataclass(frozen=True, eq=False)
class Scene:
    """An image with its boxes in pixels."""

    image: Tensor
    """`[3, H, W]` uint8."""

    boxes: Tensor
    """`[T, 4]` float, xyxy in pixels of the image."""

    labels: Tensor
    """`[T]` int64."""

    @classmethod
    def from_target(cls, image: Tensor, target: Target) -> Self:
        """The image of a dataset, whose target has boxes in [0, 1]."""
        return cls(image, cxcywh_to_xyxy(target.boxes).reshape(-1, 4) * pixels_of(image.shape[1:]), target.labels)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.shape[1], self.image.shape[2]


@dataclass(frozen=True)
class Mixing:
    """Mosaic, copy-paste and mixup, each with a probability; one after the other, in this order.

    Boxes are cut to what is seen of them; those with less than `SMALLEST_SHARE` of their area left are dropped.
    """

    mosaic: float = 0.0
    copy_paste: float = 0.0
    mixup: float = 0.0

    def __call__(self, index: int, length: int, read: ReadImage) -> tuple[Tensor, Target]:
        """Read an image and, perhaps, mix others into it.

        Args:
            index: which image.
            length: how many there are to draw partners from.
            read: reads one.

        Returns:
            The image `[3, H, W]` uint8 and its target, whose `image_id` is that of image `index`.
        """

        def partner() -> Scene:
            return Scene.from_target(*read(integer(0, length)))

        image, target = read(index)
        scene = original = Scene.from_target(image, target)
        if happens(self.mosaic):
            scene = make_mosaic([scene, partner(), partner(), partner()])
        if happens(self.copy_paste):
            scene = paste_objects(scene, partner())
        if happens(self.mixup):
            scene = mix_up(scene, partner())
        if scene is original:
            return image, target
        boxes = xyxy_to_cxcywh(scene.boxes / pixels_of(scene.size))
        return scene.image, Target(boxes, scene.labels, target.image_id, scene.size)


def make_mosaic(scenes: Sequence[Scene]) -> Scene:
    """Four images around a random point of a canvas that has the size of the first one.

    Each fills its quarter: a window of it, at a scale between the whole image just covering its quarter and just covering the
    canvas (Bochkovskiy et al. 2020, section 3.3, has the idea).

    Args:
        scenes: upper left, upper right, lower left, lower right.
    """
    height, width = scenes[0].size
    if min(height, width) < 2:  # nothing to divide
        return scenes[0]
    y, x = (max(1, min(side - 1, round(side * uniform(*MIDDLE)))) for side in (height, width))
    canvas = scenes[0].image.new_empty(height, width, 3).permute(2, 0, 1)  # in memory as images are read
    parts = []
    for scene, (top, left, bottom, right) in zip(
        scenes, [(0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width)], strict=True
    ):
        smallest, largest = (max(h / scene.size[0], w / scene.size[1]) for h, w in ((bottom - top, right - left), (height, width)))
        part = _window(scene, (bottom - top, right - left), smallest * (largest / smallest) ** uniform(0, 1))
        canvas[:, top:bottom, left:right] = part.image
        parts.append(replace(part, boxes=part.boxes + part.boxes.new_tensor([left, top, left, top])))
    return Scene(canvas, torch.cat([part.boxes for part in parts]), torch.cat([part.labels for part in parts]))


def mix_up(scene: Scene, other: Scene) -> Scene:
    """Two images blended, with the objects of both (Zhang et al. 2019, "Bag of freebies", section 3.1).

    The second one is resized to cover the first and cut to its size. The first one's share comes from Beta(8, 8).
    """
    height, width = scene.size
    cover = max(height / other.size[0], width / other.size[1])
    part = _window(other, scene.size, cover)
    shape = torch.tensor(MIXUP_SHAPE, dtype=torch.float32, device="cpu")
    share = float(torch.distributions.Beta(shape, shape).sample())
    image = (scene.image * share + part.image * (1 - share)).round().to(torch.uint8)
    return Scene(image, torch.cat((scene.boxes, part.boxes)), torch.cat((scene.labels, part.labels)))


def paste_objects(scene: Scene, other: Scene) -> Scene:
    """Paste some objects of another image at random positions (after Ghiasi et al. 2021, with boxes in place of masks).

    An object is the content of its box, about as large in proportion to the image as in its own. What it hides of earlier objects
    is cut off from their boxes.
    """
    count = min(len(other.labels), 1 + integer(0, MOST_PASTED))
    image, places = scene.image.clone(), []
    layers = scene.image.new_zeros(scene.size)  # [H, W] which pasted object is on top; 0: the image itself
    chosen = torch.randperm(len(other.labels), dtype=torch.int64, device=other.labels.device)[:count]
    for number, index in enumerate(chosen.tolist(), 1):
        left, top, right, bottom = _whole_pixels(other.boxes[index])
        x, y, crop = _placed(scene, other, other.image[:, top:bottom, left:right])
        image[:, y : y + crop.shape[1], x : x + crop.shape[2]] = crop
        layers[y : y + crop.shape[1], x : x + crop.shape[2]] = number
        places.append([x, y, x + crop.shape[2], y + crop.shape[1]])
    boxes = torch.cat((scene.boxes, scene.boxes.new_tensor(places).reshape(-1, 4)))
    labels = torch.cat((scene.labels, other.labels[chosen]))
    owners = [0] * len(scene.labels) + list(range(1, count + 1))
    return _what_is_seen(Scene(image, boxes, labels), layers, owners)


def _placed(scene: Scene, other: Scene, crop: Tensor) -> tuple[int, int, Tensor]:
    """Where an object `[3, h, w]` of another image goes, (x, y) of its corner, and the object at its new size."""
    factor = min(side / of for side, of in zip(scene.size, other.size, strict=True)) * uniform(*PASTE_SCALE)
    factor = min(factor, *(LARGEST_PASTED * room / side for room, side in zip(scene.size, crop.shape[1:], strict=True)))
    height, width = (max(1, round(side * factor)) for side in crop.shape[1:])
    y, x = (integer(0, room - side + 1) for room, side in zip(scene.size, (height, width), strict=True))
    return x, y, _resized(crop, (height, width))


def _what_is_seen(scene: Scene, layers: Tensor, owners: Sequence[int]) -> Scene:
    """Shrink boxes to what is not hidden, in whole pixels, and drop those that are mostly hidden.

    Args:
        scene: with the whole box of every object.
        layers: `[H, W]` the layer on top at each pixel.
        owners: of each box the layer that its object is in.
    """
    boxes, keep = scene.boxes.clone(), []
    for number, (box, owner) in enumerate(zip(scene.boxes, owners, strict=True)):
        left, top, right, bottom = _whole_pixels(box)
        visible = layers[top:bottom, left:right] <= owner  # [h, w]
        if visible.float().mean() < SMALLEST_SHARE:
            continue
        keep.append(number)
        if not visible.all():
            columns, rows = (visible.any(dim=axis).nonzero().flatten() for axis in (0, 1))
            seen = boxes.new_tensor([left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1])
            boxes[number] = torch.cat((box[:2].maximum(seen[:2]), box[2:].minimum(seen[2:])))
    return Scene(scene.image, boxes[keep], scene.labels[keep])


def _whole_pixels(box: Tensor) -> list[int]:
    """All pixels that a box touches, at least one: left, top, right, bottom."""
    right_bottom = box[2:].ceil()
    return torch.cat((box[:2].floor().minimum(right_bottom - 1), right_bottom)).int().tolist()


def _window(scene: Scene, size: tuple[int, int], factor: float) -> Scene:
    """A random window of the image at `factor` times its scale, as an image of `size` (height, width).

    The factor must be large enough for the image to fill `size`; it may be off by the rounding to whole pixels.
    """
    window = [min(room, max(1, round(side / factor))) for room, side in zip(scene.size, size, strict=True)]
    top, left = (integer(0, room - side + 1) for room, side in zip(scene.size, window, strict=True))
    image = _resized(scene.image[:, top : top + window[0], left : left + window[1]], size)
    limits = scene.boxes.new_tensor([window[1], window[0], window[1], window[0]])
    shifted = scene.boxes - scene.boxes.new_tensor([left, top, left, top])
    cut = shifted.clamp(min=0).minimum(limits)
    keep = kept_share(shifted, cut) >= SMALLEST_SHARE
    return Scene(image, cut[keep] * (pixels_of(image.shape[1:]) / limits), scene.labels[keep])


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`[3, H, W]` at another (height, width): bilinear with antialias."""
    same = tuple(image.shape[1:]) == size
    return image if same else F.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)
