"""Samples of a dataset → one padded batch and its targets."""

from collections.abc import Sequence

from torch import Tensor

from deformable_detr.structures import ImageBatch, Target


def collate(samples: Sequence[tuple[Tensor, Target]], pad_size_divisor: int = 1) -> tuple[ImageBatch, list[Target]]:
    """Pad the images of several samples to one canvas; the data loader's `collate_fn`.

    Args:
        samples: pairs of a normalised image `[3, h, w]` and its target.
        pad_size_divisor: height and width of the canvas become multiples of this.

    Returns:
        The batch, with the targets' image ids, and the targets in the same order. Their boxes stay relative to each image's
        own size, not to the padded canvas.
    """
    images, targets = [image for image, _ in samples], [target for _, target in samples]
    return ImageBatch.from_images(images, [target.image_id for target in targets], pad_size_divisor), targets
