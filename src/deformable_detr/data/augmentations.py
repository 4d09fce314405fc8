"""Augmentations of single images that the official recipe does not have: colour, and large-scale jitter.

torchvision v2 transforms, placed by `train_transform`. Those that mix several images are in `data/mixing.py`. Random numbers come
from PyTorch's generator of the process, whatever its default dtype and device are.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

SMALLEST_SHARE = 0.2
"""Boxes that a cut or an object pasted over them leaves less than this share of their area are no targets any more."""

HUE_SHARE = 0.125
"""The hue's strength where a single number is given for all four: colours often tell classes apart."""

ColorStrength = float | tuple[float, float, float, float]


def uniform(low: float = 0.0, high: float = 1.0) -> float:
    """A number in [low, high)."""
    return low + (high - low) * float(torch.rand((), dtype=torch.float32, device="cpu"))


def integer(low: int, high: int) -> int:
    """A whole number in [low, high)."""
    return int(torch.randint(low, high, (), dtype=torch.int64, device="cpu"))


def happens(probability: float) -> bool:
    """Whether something of this probability happens; a probability of 0 draws nothing."""
    return probability > 0 and uniform() < probability


def build_color_jitter(strength: ColorStrength) -> v2.Transform:
    """Random brightness, contrast and saturation, in random order, then the hue.

    Args:
        strength: four numbers: brightness, contrast and saturation are multiplied by factors drawn from [1 − s, 1 + s], the hue is
            turned by up to s of the colour circle. One number s means (s, s, s, s/8); 0 changes nothing.

    Raises:
        ValueError: not one or four numbers, negative ones, or a hue above 0.5.
    """
    numbers = (strength, strength, strength, strength * HUE_SHARE) if isinstance(strength, (int, float)) else tuple(strength)
    if len(numbers) != 4 or min(numbers) < 0 or numbers[3] > 0.5:
        raise ValueError(
            "color_jitter must be one number, or four (brightness, contrast, saturation, hue), from 0 on, the hue up to 0.5; "
            f"not {strength}"
        )
    return v2.Compose([v2.ColorJitter(*numbers[:3]), HueJitter(numbers[3])]) if any(numbers) else v2.Identity()


class HueJitter(v2.Transform):
    """Turn the hue of a uint8 image by up to `strength` of the colour circle, through OpenCV's HSV.

    torchvision's own takes five times as long; see docs/augmentation.md.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the angle, in 256ths of the circle."""
        return {"shift": round(256 * uniform(-self.strength, self.strength)) if self.strength else 0}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Turn an image `[3, H, W]`; boxes stay."""
        if params["shift"] == 0 or isinstance(inpt, tv_tensors.BoundingBoxes):
            return inpt
        hsv = cv2.cvtColor(inpt.permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2HSV_FULL)
        hsv[:, :, 0] += np.uint8(params["shift"] % 256)  # wraps around, as the circle does
        turned = torch.from_numpy(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)).permute(2, 0, 1)
        return tv_tensors.wrap(turned, like=inpt)  # pyright: ignore[reportCallIssue]


class ScaleJitter(v2.Transform):
    """Resize to a random multiple of the usual size; then cut to that size, or lay on a canvas of that size.

    Large-scale jitter (Ghiasi et al. 2021, section 3.1) for images of any aspect ratio. An image is resampled only once.

    Args:
        resize: gives the usual size: its `make_params` names it `size`.
        scale_range: smallest and largest multiple.
        fill: RGB in 0 … 255 of the canvas around an image that became smaller.
    """

    def __init__(self, resize: v2.Transform, scale_range: tuple[float, float], fill: Sequence[float]) -> None:
        super().__init__()
        low, high = scale_range
        if not 0 < low <= high:
            raise ValueError(f"scale_jitter must be two numbers above 0, the smaller first, not {scale_range}")
        self.resize, self.low, self.high, self.fill = resize, low, high, list(fill)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the window that is cut out of the image, the size it is resized to, and what is laid around it."""
        height, width = v2.query_size(flat_inputs)
        new_height, new_width = self.resize.make_params(flat_inputs)["size"]
        scale = uniform(self.low, self.high)
        window = [max(1, round(side / max(scale, 1))) for side in (height, width)]
        top, left = (integer(0, side - part + 1) for side, part in zip((height, width), window, strict=True))
        size = [max(1, round(side * min(scale, 1))) for side in (new_height, new_width)]
        above, before = (integer(0, side - part + 1) for side, part in zip((new_height, new_width), size, strict=True))
        return {
            "window": (top, left, *window),
            "size": size,
            "padding": [before, above, new_width - size[1] - before, new_height - size[0] - above],
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut, resize and pad; of a box that the cut leaves too little of, no area is left, so that it is removed later."""
        cut = F.crop(inpt, *params["window"])
        if isinstance(inpt, tv_tensors.BoundingBoxes):
            enough = kept_share(inpt, cut) >= SMALLEST_SHARE
            cut = tv_tensors.wrap(cut.as_subclass(Tensor) * enough[:, None], like=cut)  # pyright: ignore[reportCallIssue]
        resized = F.resize(cut, params["size"], v2.InterpolationMode.BILINEAR, antialias=True)
        return F.pad(resized, params["padding"], fill=self.fill) if any(params["padding"]) else resized


def kept_share(before: Tensor, after: Tensor) -> Tensor:
    """`[T]` the share of their area that boxes `[T, 4]` xyxy have kept; 0 for those that had none."""
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (before, after)]
    return (areas[1] / areas[0]).nan_to_num(0.0, posinf=0.0).as_subclass(Tensor)
