"""What depends on the sizes of images alone and not on their content: computed once per size, kept for the last few sizes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deformable_detr.model.encoder import encoder_reference_points
from deformable_detr.model.flatten import FlattenLevels, valid_ratio
from deformable_detr.model.queries import proposal_logits
from deformable_detr.structures import FlatFeatures, ImageBatch


@dataclass(frozen=True)
class Constants:
    """Everything of a batch that its image sizes decide. B is 1 where no image is padded."""

    positions: Tensor
    """`[B, S, C]` sine position plus level embedding."""

    padding_mask: Tensor
    """`[B, S]` bool."""

    valid_ratios: Tensor
    """`[B, L, 2]`."""

    reference_points: Tensor
    """`[B, S, L, 2]` of the encoder."""

    proposals: tuple[Tensor, Tensor] | None
    """Of a two-stage model: `proposal_logits`."""

    padded: bool
    """Whether there is any padding."""


class ConstantsCache:
    """Constants by the sizes of a batch.

    Args:
        flatten: gives positions.
        proposals: whether the proposals' logits are wanted.
        entries: so many are kept, the last ones used; 0 computes them anew each time.
    """

    def __init__(self, flatten: FlattenLevels, *, proposals: bool, entries: int) -> None:
        self.flatten, self.proposals, self.entries = flatten, proposals, entries
        self._kept: dict[tuple, Constants] = {}

    def get(self, batch: ImageBatch, levels: Sequence[Tensor], padding_masks: Sequence[Tensor] | None) -> Constants:
        """The constants of a batch.

        Args:
            batch: of images.
            levels: its maps, `[B, C, h, w]`.
            padding_masks: of the levels, `[B, h, w]`; None where no image is padded.
        """
        shapes = tuple((level.shape[2], level.shape[3]) for level in levels)
        dtype, device = levels[0].dtype, levels[0].device

        def build() -> Constants:
            masks = padding_masks or [torch.zeros(1, *shape, dtype=torch.bool, device=device) for shape in shapes]
            return self._build(shapes, masks, dtype, padded=padding_masks is not None)

        if padding_masks is not None and batch.image_sizes is None:
            return build()  # only the mask says, and comparing masks costs more than it saves
        sizes = batch.image_sizes if padding_masks is not None else None
        return self._remembered((shapes, sizes, dtype, device), build)

    def kept(self) -> list[Constants]:
        """What is kept now."""
        return list(self._kept.values())

    def _remembered(self, key: tuple, build: Callable[[], Constants]) -> Constants:
        """Safe for several threads: each step is a single operation on the dict."""
        found = self._kept.pop(key, None)
        found = build() if found is None else found
        self._kept[key] = found
        for old in list(self._kept)[: -self.entries or None]:
            self._kept.pop(old, None)
        return found

    def _build(self, shapes: tuple[tuple[int, int], ...], masks: Sequence[Tensor], dtype: torch.dtype, padded: bool) -> Constants:
        positions = self.flatten.positions(masks).to(dtype)
        mask = torch.cat([mask.flatten(1) for mask in masks], dim=1)
        ratios = torch.stack([valid_ratio(mask) for mask in masks], dim=1)
        flat = FlatFeatures(positions, positions, mask, shapes, ratios)
        return Constants(
            positions=positions,
            padding_mask=mask,
            valid_ratios=ratios,
            reference_points=encoder_reference_points(shapes, ratios),
            proposals=proposal_logits(flat) if self.proposals else None,
            padded=padded,
        )
