"""From predictions and targets to losses: match every layer, then focal, L1 and GIoU loss (paper, section 4 and app. A.4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from deformable_detr.criterion.losses import at_least_float32, bbox_loss, class_loss, giou_loss
from deformable_detr.criterion.matcher import HungarianMatcher, Matching
from deformable_detr.criterion.targets import FlatTargets
from deformable_detr.structures import Predictions, Target

LOSS_KINDS = ("loss_class", "loss_bbox", "loss_giou")


@dataclass(frozen=True)
class BatchMatching:
    """What was matched with what: by each decoder layer, and among the proposals of a two-stage model."""

    decoder: Matching
    encoder: Matching | None = None


class SetCriterion(nn.Module):
    """The training losses of a batch; unweighted, so that runs with other weights can be compared."""

    def __init__(
        self,
        num_classes: int,
        *,
        class_weight: float = 2.0,
        bbox_weight: float = 5.0,
        giou_weight: float = 2.0,
        class_cost: float = 2.0,
        bbox_cost: float = 5.0,
        giou_cost: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        """Set the weights; the defaults are the official ones.

        Args:
            num_classes: K.
            class_weight: of the focal loss in :meth:`weighted_sum`.
            bbox_weight: of the L1 loss.
            giou_weight: of the generalised IoU loss.
            class_cost: of the focal cost in matching.
            bbox_cost: of the L1 cost in matching.
            giou_cost: of the generalised IoU cost in matching.
            focal_alpha: focal loss: weight of the positives.
            focal_gamma: focal loss: how strongly easy examples are played down.

        Raises:
            ValueError: num_classes below 1, or all costs 0.
        """
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.num_classes = num_classes
        self.weights: dict[str, float] = dict(zip(LOSS_KINDS, (class_weight, bbox_weight, giou_weight), strict=True))
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.matcher = HungarianMatcher(
            class_cost=class_cost,
            bbox_cost=bbox_cost,
            giou_cost=giou_cost,
            focal_alpha=focal_alpha,
            focal_gamma=focal_gamma,
        )

    def forward(self, predictions: Predictions, targets: Sequence[Target]) -> dict[str, Tensor]:
        """All losses of a batch, computed in float32 (or float64) whatever the precision of the predictions.

        With `torch.distributed` the number of objects is averaged over all processes, so each must call this.

        Args:
            predictions: of N decoder layers, with or without encoder proposals.
            targets: one per image, boxes in the same frame as the predictions; an image may be without objects.

        Returns:
            Scalars: `loss_class`, `loss_bbox`, `loss_giou` of the last layer; the same with `_0` … `_{N-2}` of the layers before
            it; the same with `_enc` of the proposals. Each is a sum divided by the number of objects per process.

        Raises:
            ValueError: targets that do not fit the batch or the classes; the message names the image.
            FloatingPointError: predictions with NaN or infinity; the message names the images.
        """
        matching = self.match(predictions, targets)
        num_boxes = self._num_boxes(targets, predictions.logits.device)
        layers = self._losses(predictions.logits, predictions.boxes, targets, matching.decoder, num_boxes)
        named = _named(layers, ["", *(f"_{layer}" for layer in range(len(predictions.logits) - 1))], first=-1)
        if matching.encoder is not None:
            logits, boxes = _encoder_layer(predictions)
            named |= _named(self._losses(logits, boxes, _as_objectness(targets), matching.encoder, num_boxes), ["_enc"])
        return named

    def match(self, predictions: Predictions, targets: Sequence[Target]) -> BatchMatching:
        """Which query of which layer is responsible for which object; arguments and errors as in :meth:`forward`."""
        self._check_batch(predictions, targets)
        decoder = self.matcher(predictions.logits, predictions.boxes, targets)
        if predictions.encoder_logits is None or predictions.encoder_boxes is None:
            return BatchMatching(decoder)
        logits, boxes = _encoder_layer(predictions)
        return BatchMatching(decoder, self.matcher(logits, boxes, _as_objectness(targets), source="encoder"))

    def weighted_sum(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The one number to minimise: every layer's and the proposals' losses, each times the weight of its kind.

        Args:
            losses: what :meth:`forward` returned.

        Returns:
            `[]`
        """
        by_kind: dict[str, list[Tensor]] = {kind: [] for kind in LOSS_KINDS}
        for name, loss in losses.items():
            kind = "_".join(name.split("_", 2)[:2])  # loss_bbox_3 → loss_bbox
            if kind not in by_kind:
                raise ValueError(f"{name!r} is not a loss of this criterion; its losses begin with {', '.join(LOSS_KINDS)}")
            by_kind[kind].append(loss)
        return torch.stack([self.weights[kind] * torch.stack(terms).sum() for kind, terms in by_kind.items() if terms]).sum()

    def _losses(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[Target], matching: Matching, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """The losses of all layers at once: each `[N]`."""
        logits, boxes = at_least_float32(logits), at_least_float32(boxes)
        flat = FlatTargets.from_targets(targets, boxes.device, boxes.dtype)
        layers = torch.arange(len(logits), device=logits.device)[:, None]  # [N, 1], against [M] and [N, M]
        starts = torch.tensor([0, *flat.counts[:-1]], device=logits.device).cumsum(0)
        objects = starts[matching.images] + matching.objects  # [N, M] within the whole batch
        positive = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        positive[layers, matching.images, matching.queries, flat.labels[objects]] = True
        matched, wanted = boxes[layers, matching.images, matching.queries], flat.boxes[objects]  # [N, M, 4]
        return {
            "loss_class": class_loss(logits, positive, num_boxes, self.focal_alpha, self.focal_gamma),
            "loss_bbox": bbox_loss(matched, wanted, num_boxes),
            "loss_giou": giou_loss(matched, wanted, num_boxes),
        }

    def _num_boxes(self, targets: Sequence[Target], device: torch.device) -> Tensor:
        """Objects per process, averaged over all processes, so that theirs average to the loss of the whole batch; at least 1."""
        count = torch.tensor(float(sum(len(target) for target in targets)), device=device)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(count)
            count = count / distributed.get_world_size()
        return count.clamp(min=1)

    def _check_batch(self, predictions: Predictions, targets: Sequence[Target]) -> None:
        if len(targets) != len(predictions):
            raise ValueError(f"{len(targets)} targets for a batch of {len(predictions)} images: there must be one per image")
        if predictions.logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"the criterion was made for {self.num_classes} classes, but the predictions have {predictions.logits.shape[-1]}"
            )


def _encoder_layer(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """The proposals as if they were one more decoder layer: `[1, B, S, K]` and `[1, B, S, 4]`."""
    assert predictions.encoder_logits is not None and predictions.encoder_boxes is not None
    return predictions.encoder_logits[None], predictions.encoder_boxes[None]


def _as_objectness(targets: Sequence[Target]) -> list[Target]:
    """The same objects, all of class 0.

    The proposals are to say where anything is at all, whatever it is. The class head that they share its form with has K
    channels, of which channel 0 serves as "there is an object" (the best proposals are chosen by it); the others learn "no".
    """
    return [Target(target.boxes, torch.zeros_like(target.labels), target.image_id, target.image_size) for target in targets]


def _named(losses: Mapping[str, Tensor], suffixes: Sequence[str], first: int = 0) -> dict[str, Tensor]:
    """Give each layer's value its name; `suffixes` belong to the layers `first`, `first + 1`, … (so -1 comes before 0)."""
    return {kind + suffix: values[first + step] for step, suffix in enumerate(suffixes) for kind, values in losses.items()}
