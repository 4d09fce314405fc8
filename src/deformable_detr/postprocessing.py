"""From predictions to detections: the best scores of all queries and classes, with boxes in pixels of the original images."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from deformable_detr.boxes import cxcywh_to_xyxy
from deformable_detr.config import MAX_DETECTIONS
from deformable_detr.structures import Predictions


@torch.no_grad()
def postprocess(
    predictions: Predictions,
    image_sizes: Sequence[tuple[int, int]],
    top_k: int = MAX_DETECTIONS,
    *,
    clip: bool = False,
    nms_iou: float | None = None,
) -> list[dict[str, Tensor]]:
    """The `top_k` best of the Q * K (query, class) pairs of the last layer, for each image.

    Every class of a query is decided on its own, so one query can give two detections with the same box. A pair with the logit -inf
    is none: exported files that choose the best by themselves say nothing of the others. There is no
    threshold, and by default no non-maximum suppression: one-to-one matching teaches queries to detect each object once. A model
    that was trained for few steps has not learned that fully yet; `nms_iou` removes the duplicate detections.

    Args:
        predictions: of B images.
        image_sizes: (height, width) in pixels of each original image.
        top_k: how many detections to keep per image; all Q * K where there are fewer.
        clip: cut the boxes off at the image's border. Off by default, as in the official evaluation, where a box may reach
            beyond the border; turn it on to draw or crop.
        nms_iou: drop a detection that overlaps a better one of its class by more than this IoU, in (0, 1]. None: keep all.

    Returns:
        For each image `scores` `[top_k]` in [0, 1], best first, `labels` `[top_k]` in [0, K) and `boxes` `[top_k, 4]`, xyxy in
        pixels; fewer with `nms_iou`, and where pairs are none. Scores and boxes in float32 (or float64), on the device of the
        predictions.

    Raises:
        ValueError: not one size per image, top_k below 1, or an IoU out of range.
    """
    logits, boxes = predictions.logits[-1], predictions.boxes[-1]  # [B, Q, K], [B, Q, 4]
    if len(image_sizes) != len(predictions):
        raise ValueError(f"{len(image_sizes)} image sizes for a batch of {len(predictions)} images: there must be one per image")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    if nms_iou is not None and not 0 < nms_iou <= 1:
        raise ValueError(f"nms_iou must lie in (0, 1], or be None for no suppression; not {nms_iou}")
    if logits.dtype != torch.float64:
        logits, boxes = logits.float(), boxes.float()
    num_classes = logits.shape[-1]
    scores, places = logits.flatten(1).sigmoid().topk(min(top_k, logits[0].numel()))  # [B, top_k]
    queries, labels = places // num_classes, places % num_classes
    exists = logits.flatten(1).gather(1, places) != float("-inf")
    sizes = torch.tensor([(width, height) for height, width in image_sizes], dtype=boxes.dtype, device=boxes.device)
    limits = sizes.repeat(1, 2)[:, None]  # [B, 1, 4]: width, height, width, height
    boxes = cxcywh_to_xyxy(boxes.gather(1, queries[..., None].expand(-1, -1, 4))) * limits
    if clip:
        boxes = boxes.clamp(min=0).minimum(limits)
    found = [
        {"scores": s[kept], "labels": k[kept], "boxes": b[kept]}
        for s, k, b, kept in zip(scores, labels, boxes, exists, strict=True)
    ]
    return found if nms_iou is None else [_without_duplicates(one, nms_iou) for one in found]


def _without_duplicates(found: dict[str, Tensor], nms_iou: float) -> dict[str, Tensor]:
    """The detections of one image that do not overlap a better one of the same class too much."""
    boxes, scores, labels = (found[name].cpu() for name in ("boxes", "scores", "labels"))
    if len(boxes) == 0 or not boxes.isfinite().all():
        return found  # non-finite: for the caller to complain about
    boxes = boxes.double()  # `batched_nms` moves each class by the largest coordinate: in float32 that rounds, below 0 it overlaps
    kept = batched_nms(boxes - boxes.amin(), scores.double(), labels, nms_iou)
    return {name: value[kept.to(value.device)] for name, value in found.items()}
