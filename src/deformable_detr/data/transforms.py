"""Image and boxes → what the model sees: the official augmentation, resizing, normalisation (torchvision transforms v2).

Randomness comes from torch's global generator, which the dataset seeds per image.
"""

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from deformable_detr.boxes import cxcywh_to_xyxy, pixels_of, xyxy_to_cxcywh
from deformable_detr.data.augmentations import ColorStrength, ScaleJitter, build_color_jitter, integer
from deformable_detr.structures import Target

Triple = tuple[float, float, float]
SMALLEST_SIDE = 1e-3  # pixels; below it a box is what rounding left of one outside the crop


def train_transform(
    *,
    train_short_sides: Sequence[int],
    crop_short_sides: Sequence[int],
    crop_range: tuple[int, int],
    max_long_side: int,
    mean: Triple,
    std: Triple,
    horizontal_flip: float = 0.5,
    vertical_flip: float = 0.0,
    color_jitter: ColorStrength = 0.0,
    scale_jitter: tuple[float, float] = (1.0, 1.0),
) -> "DetectionTransform":
    """The official augmentation of DETR and Deformable DETR, with its sizes as settings; more where asked for.

    Args:
        train_short_sides: the short side becomes one of these (pixels).
        crop_short_sides: every second image is resized to one of these and cropped before that; empty: never.
        crop_range: smallest and largest side of the crop (pixels).
        max_long_side: the long side never exceeds this (pixels).
        mean: of the RGB channels, in [0, 1].
        std: of the RGB channels, in [0, 1].
        horizontal_flip: probability of a left-right flip.
        vertical_flip: probability of an upside-down flip.
        color_jitter: strength, see `build_color_jitter`; 0: none (official).
        scale_jitter: range of the multiple of the size, see `ScaleJitter`; (1, 1): none (official).
    """
    resize: v2.Transform = ResizeShortSide(train_short_sides, max_long_side)
    if tuple(scale_jitter) != (1, 1):
        resize = ScaleJitter(resize, scale_jitter, fill=[round(255 * value) for value in mean])
    return DetectionTransform(
        v2.RandomHorizontalFlip(horizontal_flip),
        v2.RandomVerticalFlip(vertical_flip),
        v2.RandomChoice([resize, v2.Compose([ResizeShortSide(crop_short_sides), RandomSizeCrop(*crop_range), resize])])
        if crop_short_sides
        else resize,
        build_color_jitter(color_jitter),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(mean), list(std)),
    )


def eval_transform(short_side: int, max_long_side: int, mean: Triple, std: Triple) -> "DetectionTransform":
    """The preparation of an image for evaluation and prediction: resize and normalise, nothing random.

    Args:
        short_side: the short side becomes this (pixels) …
        max_long_side: … unless the long side would exceed this (pixels).
        mean: of the RGB channels, in [0, 1].
        std: of the RGB channels, in [0, 1].
    """
    return DetectionTransform(
        ResizeShortSide([short_side], max_long_side),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(mean), list(std)),
    )


class DetectionTransform:
    """A chain of v2 transforms that takes and gives an image with its :class:`Target`.

    Boxes are clipped to what is left of the image, and those that nothing is left of are removed with their labels.
    """

    def __init__(self, *steps: v2.Transform) -> None:
        self.steps = v2.Compose(list(steps))

    @overload
    def __call__(self, image: Tensor, target: None = None) -> tuple[Tensor, None]: ...

    @overload
    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]: ...

    @overload
    def __call__(self, image: Tensor, target: Target | None) -> tuple[Tensor, Target | None]: ...

    def __call__(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target | None]:
        """Transform one image.

        Args:
            image: `[3, H, W]` uint8.
            target: its boxes, cxcywh in [0, 1] of the image's size; None when there are none to follow.

        Returns:
            The image `[3, h, w]` float, and the target with boxes in [0, 1] of the new image's size.
        """
        if target is None:
            return self.steps(tv_tensors.Image(image, device=image.device)).as_subclass(Tensor), None
        size = image.shape[-2:]
        pixel_boxes = cxcywh_to_xyxy(target.boxes) * pixels_of(size)
        boxes = tv_tensors.BoundingBoxes(
            pixel_boxes.reshape(-1, 4),
            format="XYXY",  # type: ignore[arg-type]
            canvas_size=tuple(size),  # type: ignore[arg-type]
            device=pixel_boxes.device,
        )
        image, boxes = self.steps(tv_tensors.Image(image, device=image.device), boxes)
        scale = pixels_of(image.shape[-2:])
        clipped = boxes.as_subclass(Tensor).clamp(min=0).minimum(scale)  # [T, 4]
        keep = ((clipped[:, 2:] - clipped[:, :2]) > SMALLEST_SIDE).all(dim=1)
        new_boxes = xyxy_to_cxcywh(clipped[keep] / scale)
        return image.as_subclass(Tensor), Target(new_boxes, target.labels[keep], target.image_id, target.image_size)

    def __repr__(self) -> str:
        return f"DetectionTransform({self.steps})"


def resized_size(height: int, width: int, short_side: int, max_long_side: int | None = None) -> tuple[int, int]:
    """The (height, width) that an image is resized to; the official rounding.

    The short side becomes `short_side`. Where the long side would then exceed `max_long_side`, the short side becomes the
    nearest whole number that belongs to that long side instead. The long side follows the aspect ratio, rounded down.
    """
    short, long = min(height, width), max(height, width)
    if max_long_side is not None and long / short * short_side > max_long_side:
        short_side = max(1, round(max_long_side * short / long))
    long_side = int(short_side * long / short)
    return (short_side, long_side) if height <= width else (long_side, short_side)


class ResizeShortSide(v2.Transform):
    """Resize so that the short side becomes one of `short_sides`, drawn at random; see :func:`resized_size`."""

    def __init__(self, short_sides: Sequence[int], max_long_side: int | None = None) -> None:
        super().__init__()
        if not short_sides or min(short_sides) < 1:
            raise ValueError(f"short sides must be one or more numbers of pixels, not {list(short_sides)}")
        self.short_sides = tuple(short_sides)
        self.max_long_side = max_long_side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the short side and work out the new size."""
        height, width = v2.query_size(flat_inputs)
        choice = integer(0, len(self.short_sides)) if len(self.short_sides) > 1 else 0
        return {"size": resized_size(height, width, self.short_sides[choice], self.max_long_side)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize: bilinear with antialias, on 8-bit values where the input has them."""
        size = list(params["size"])
        return (
            inpt
            if tuple(F.get_size(inpt)) == params["size"]
            else F.resize(inpt, size, v2.InterpolationMode.BILINEAR, antialias=True)
        )


class RandomSizeCrop(v2.Transform):
    """Cut out a window whose width and height are drawn on their own from [smallest, largest], as far as the image goes."""

    def __init__(self, smallest: int, largest: int) -> None:
        super().__init__()
        if not 1 <= smallest <= largest:
            raise ValueError(f"crop_range must be two numbers of pixels, the smaller first, not ({smallest}, {largest})")
        self.smallest, self.largest = smallest, largest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the window."""
        height, width = v2.query_size(flat_inputs)
        crop_width, crop_height = self._draw_side(width), self._draw_side(height)
        top = integer(0, height - crop_height + 1)
        left = integer(0, width - crop_width + 1)
        return {"top": top, "left": left, "height": crop_height, "width": crop_width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop; boxes are clipped to the window."""
        return F.crop(inpt, **params)

    def _draw_side(self, side: int) -> int:
        low, high = min(self.smallest, side), min(self.largest, side)
        return integer(low, high + 1)


class Transpose(v2.Transform):
    """Exchange x and y."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Transpose an image `[..., H, W]` or boxes xyxy."""
        if isinstance(inpt, tv_tensors.BoundingBoxes):
            height, width = inpt.canvas_size
            swapped = inpt.as_subclass(Tensor)[:, [1, 0, 3, 2]]
            return tv_tensors.wrap(swapped, like=inpt, canvas_size=(width, height))  # pyright: ignore[reportCallIssue]
        return tv_tensors.wrap(inpt.as_subclass(Tensor).transpose(-1, -2), like=inpt)  # pyright: ignore[reportCallIssue]


TURNS = {"vertical_flip": DetectionTransform(v2.RandomVerticalFlip(1.0)), "transpose": DetectionTransform(Transpose())}
"""What images of whole steps go through before `train_transform`: wide and tall ones in one batch would be padded to squares."""
