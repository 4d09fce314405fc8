"""Comparison of an exported file with the PyTorch model, made at every export on drawn scenes of several sizes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deformable_detr.boxes import cxcywh_to_xyxy
from deformable_detr.data.scenes import draw_scene
from deformable_detr.export.form import ExportForm
from deformable_detr.structures import ImageBatch

TOLERANCE = 1e-4
"""Largest difference of a score (in [0, 1]) or a box coordinate (share of the image): 0.1 pixel of 1000."""

Answer = tuple[Tensor, Tensor]  # logits [B, Q, K], boxes [B, Q, 4] cxcywh
Detections = tuple[Tensor, Tensor, Tensor]  # scores [B, k], labels [B, k], boxes [B, k, 4] xyxy


class ParityError(FloatingPointError):
    """The outputs of an exported file differ from those of the model."""


@dataclass(frozen=True)
class Difference:
    """The largest ones over all images."""

    score: float
    """Of the scores, in [0, 1]."""

    box: float
    """Of the box coordinates, as a share of the image's side."""

    def __str__(self) -> str:
        return f"scores differ by at most {self.score:.1e}, boxes by {self.box:.1e} of the image's side"

    def largest(self, other: "Difference") -> "Difference":
        """The worse of both, number by number."""
        return Difference(max(self.score, other.score), max(self.box, other.box))


def assert_parity(
    candidate: Callable[[ImageBatch], Sequence[Tensor]],
    model: Callable[[Tensor, Tensor], Answer],
    batches: Sequence[ImageBatch],
    what: str,
) -> Difference:
    """Compare an exported model with the original one on the same batches.

    Args:
        candidate: the exported one: logits and boxes, or scores, labels and boxes of the best.
        model: the PyTorch model: images `[B, 3, H, W]` and padding mask `[B, H, W]` → logits and boxes.
        batches: the images.
        what: the name of the file in the message.

    Returns:
        The largest differences.

    Raises:
        ParityError: a difference above `TOLERANCE`, or a non-finite value; the message has the numbers.
    """
    worst = Difference(0.0, 0.0)
    for batch in batches:
        found = tuple(candidate(batch))
        with torch.no_grad():
            expected = model(batch.images, batch.padding_mask)
        one = difference(found, expected) if len(found) == 2 else difference_of_best(found, expected)  # type: ignore[arg-type]
        if not (one.score <= TOLERANCE and one.box <= TOLERANCE):
            shape = "x".join(map(str, batch.images.shape))
            raise ParityError(f"{what} does not compute what the model computes: {one} (input {shape}, allowed {TOLERANCE:.0e})")
        worst = worst.largest(one)
    return worst


def difference(found: Answer, expected: Answer) -> Difference:
    """Difference of two predictions, whatever the order of the queries: proposals of equal rank may be swapped."""
    if found[0].shape != expected[0].shape or not all(item.isfinite().all() for item in found):
        return Difference(float("inf"), float("inf"))
    from scipy.optimize import linear_sum_assignment  # a slow import

    worst = Difference(0.0, 0.0)
    rows, wanted = (torch.cat((logits.sigmoid(), boxes), dim=-1) for logits, boxes in (found, expected))  # [B, Q, K + 4]
    for one, other in zip(rows, wanted, strict=True):
        if (one - other).abs().max() > TOLERANCE:
            one = one[torch.from_numpy(linear_sum_assignment(torch.cdist(other, one, p=1).numpy())[1])]
        gaps = (one - other).abs()
        worst = worst.largest(Difference(float(gaps[:, :-4].max()), float(gaps[:, -4:].max())))
    return worst


def difference_of_best(found: Detections, expected: Answer) -> Difference:
    """The same for chosen detections: the scores must be the best ones, and each must be a query's with its box.

    Which of two equal scores comes first, or comes last of all, is open.
    """
    scores, labels, boxes = found
    all_scores, all_boxes = expected[0].sigmoid(), cxcywh_to_xyxy(expected[1])  # [B, Q, K], [B, Q, 4]
    if not (scores.isfinite().all() and boxes.isfinite().all()):
        return Difference(float("inf"), float("inf"))
    best = all_scores.flatten(1).topk(scores.shape[1]).values
    of_label = all_scores.gather(2, labels[:, None].expand(-1, all_scores.shape[1], -1)).transpose(1, 2)  # [B, k, Q]
    box_gaps = (boxes[:, :, None] - all_boxes[:, None]).abs().amax(-1)  # [B, k, Q]
    gaps = torch.maximum(box_gaps, (of_label - scores[..., None]).abs()).amin(-1)
    return Difference(float((scores - best).abs().max()), float(gaps.max()))


def parity_batches(form: ExportForm) -> list[ImageBatch]:
    """Drawn scenes in the shapes that the file will meet: wide, tall, square, alone, several, and padded where it takes a mask."""
    if form.size is not None:
        height, width = form.size
        groups = [[form.size] * (form.batch_size or 3)]
        if form.padding_mask:
            groups.append([(height, width * 3 // 4), *[(height * 2 // 3, width)] * ((form.batch_size or 3) - 1)])
    else:
        short = max(form.smallest_side, min(160, form.metadata.eval_short_side))
        wide, tall, square = (short, short * 4 // 3 + 3), (short * 5 // 4 + 1, short), (short + 5, short + 5)
        groups = [[wide] * (form.batch_size or 1), [tall] * (form.batch_size or 3), [square] * (form.batch_size or 2)]
        if form.padding_mask:
            groups.append([(wide, tall, square)[index % 3] for index in range(form.batch_size or 3)])
    return [_batch(sizes, form, seed) for seed, sizes in enumerate(groups)]


def _batch(sizes: Sequence[tuple[int, int]], form: ExportForm, seed: int) -> ImageBatch:
    images = list(_images(sizes, form, seed))
    batch = ImageBatch.from_images(images)
    if form.size is not None:
        right, bottom = form.size[1] - batch.images.shape[3], form.size[0] - batch.images.shape[2]
        batch = ImageBatch(F.pad(batch.images, (0, right, 0, bottom)), F.pad(batch.padding_mask, (0, right, 0, bottom), value=True))
    return replace(batch, image_sizes=None)  # the model, too, is to see the padded canvas


def _images(sizes: Sequence[tuple[int, int]], form: ExportForm, seed: int) -> Iterator[Tensor]:
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device="cpu")[:, None, None] for values in (form.metadata.mean, form.metadata.std)
    )
    for index, size in enumerate(sizes):
        scene, _ = draw_scene(np.random.default_rng((7, seed, index)))
        pixels = torch.from_numpy(scene).permute(2, 0, 1)[None].float() / 255
        yield (F.interpolate(pixels, size=size, mode="bilinear", antialias=True)[0] - mean) / std
