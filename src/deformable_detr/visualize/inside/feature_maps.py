"""Feature maps as images: the three principal components of the channels become red, green and blue.

Similar colours mean similar features; the colours themselves have no meaning.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from deformable_detr.visualize.inside.inside import Inside


def principal_colors(features: Tensor, basis_of: Tensor | None = None) -> Tensor:
    """Project features on their three principal components.

    Args:
        features: `[X, C]`, any number of positions.
        basis_of: `[Y, C]`, the positions that define the components, so that several maps share their colours. None: `features`.

    Returns:
        `[X, 3]` in [0, 1]: each component from its 2nd to its 98th percentile.
    """
    source = (features if basis_of is None else basis_of).double()
    mean = source.mean(0)
    directions = torch.linalg.svd(source - mean, full_matrices=False).Vh[:3]  # [3, C]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()  # the sign of a component is arbitrary: fix it
    own, projected = (source - mean) @ directions.T, (features.double() - mean) @ directions.T
    low, high = own.quantile(0.02, 0), own.quantile(0.98, 0)
    colors = ((projected - low) / (high - low).clamp(min=1e-9)).clamp(0, 1).float()
    return torch.nn.functional.pad(colors, (0, 3 - colors.shape[1]), value=0.5)


def level_images(levels: Sequence[Tensor]) -> list[np.ndarray]:
    """Convert maps `[1, C, h, w]` of one width to images `[h, w, 3]` in [0, 1] with common colours."""
    sequences = [level[0].flatten(1).T.float() for level in levels]
    together = torch.cat(sequences)
    return [
        principal_colors(sequence, together).view(*level.shape[2:], 3).numpy()
        for sequence, level in zip(sequences, levels, strict=True)
    ]


def split_levels(inside: Inside, sequence: Tensor) -> list[Tensor]:
    """Split a sequence `[1, S, C]` into a map `[1, C, h, w]` for each level."""
    parts = sequence.split([h * w for h, w in inside.spatial_shapes], dim=1)
    return [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, inside.spatial_shapes, strict=True)]


def show_map(axes: Axes, inside: Inside, image: np.ndarray, **options) -> None:
    """Draw a map `[h, w]` or `[h, w, 3]` at the size of the image, without interpolation."""
    height, width = inside.input_size
    axes.imshow(image, extent=(0, width, height, 0), interpolation="nearest", **options)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#8b949e", linewidth=0.6)
