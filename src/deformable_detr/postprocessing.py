"""From predictions to detections: the best scores of all queries and classes, with boxes in pixels of the original pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deformable_detr.boxes import cxcywh_to_xyxy
from deformable_detr.structures import Predictions


@torch.no_grad()
def postprocess(
    predictions: Predictions, image_sizes: Sequence[tuple[int, int]], top_k: int = 100, *, clip: bool = False
) -> list[dict[str, Tensor]]:
    """The `top_k` best of the Q * K (query, class) pairs of the last layer, for each image.

    Every class of a query is a yes or no of its own, so one query can give two detections with the same box. There is no
    non-maximum suppression and no threshold: matching has taught the queries to name each object once.

    Args:
        predictions: of B images.
        image_sizes: (height, width) in pixels of each original picture.
        top_k: how many detections to keep per image; all Q * K where there are fewer.
        clip: cut the boxes off at the picture's border. Off by default, as in the official evaluation, where a box may reach
            beyond the border; turn it on to draw or crop.

    Returns:
        For each image `scores` `[top_k]` in [0, 1], best first, `labels` `[top_k]` in [0, K) and `boxes` `[top_k, 4]`, xyxy in
        pixels; scores and boxes in float32 (or float64), on the device of the predictions.

    Raises:
        ValueError: not one size per image, or top_k below 1.
    """
    logits, boxes = predictions.logits[-1], predictions.boxes[-1]  # [B, Q, K], [B, Q, 4]
    if len(image_sizes) != len(predictions):
        raise ValueError(f"{len(image_sizes)} image sizes for a batch of {len(predictions)} images: there must be one per image")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    if logits.dtype != torch.float64:
        logits, boxes = logits.float(), boxes.float()
    num_classes = logits.shape[-1]
    scores, places = logits.flatten(1).sigmoid().topk(min(top_k, logits[0].numel()))  # [B, top_k]
    queries, labels = places // num_classes, places % num_classes
    sizes = torch.tensor([(width, height) for height, width in image_sizes], dtype=boxes.dtype, device=boxes.device)
    limits = sizes.repeat(1, 2)[:, None]  # [B, 1, 4]: width, height, width, height
    boxes = cxcywh_to_xyxy(boxes.gather(1, queries[..., None].expand(-1, -1, 4))) * limits
    if clip:
        boxes = boxes.clamp(min=0).minimum(limits)
    return [{"scores": s, "labels": k, "boxes": b} for s, k, b in zip(scores, labels, boxes, strict=True)]
