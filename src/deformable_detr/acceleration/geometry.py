"""Geometry that depends on the image sizes alone, computed once per size and kept for the last few sizes."""

from dataclasses import replace

from torch import nn

from deformable_detr.model.flatten import FlattenLevels, joined
from deformable_detr.structures import FeaturePyramid, FlatFeatures, Geometry


class KeptGeometry(nn.Module):
    """A `FlattenLevels` that caches the geometry of image sizes.

    Args:
        flatten: whose weights are used; they must not change afterwards.
        entries: number of geometries that are kept, the most recently used ones.
    """

    def __init__(self, flatten: FlattenLevels, entries: int) -> None:
        super().__init__()
        self.flatten, self.entries = flatten, entries
        self._kept: dict[tuple, Geometry] = {}

    def forward(self, pyramid: FeaturePyramid) -> FlatFeatures:
        """The sequence of a batch; where no image is padded, one geometry serves for all images of the batch."""
        features = joined(pyramid)
        if pyramid.padding_masks is None:
            geometry = self._remembered(replace(pyramid, levels=[level[:1] for level in pyramid.levels]))
        else:  # where only the masks say, comparing them costs more than it saves
            geometry = self.flatten.geometry(pyramid) if pyramid.sizes is None else self._remembered(pyramid)
        return geometry.for_images(len(features)).with_features(features)

    def kept(self) -> list[Geometry]:
        """The cached geometries."""
        return list(self._kept.values())

    def _remembered(self, pyramid: FeaturePyramid) -> Geometry:
        """Safe for several threads: each step is a single operation on the dict."""
        first = pyramid.levels[0]
        key = (tuple(level.shape[2:] for level in pyramid.levels), pyramid.sizes, first.dtype, first.device)
        found = self._kept.pop(key, None)
        found = self.flatten.geometry(pyramid) if found is None else found
        self._kept[key] = found
        for old in list(self._kept)[: -self.entries]:
            self._kept.pop(old, None)
        return found
