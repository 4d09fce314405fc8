"""From predictions and targets to losses: match every layer, then class, L1 and GIoU loss (paper, section 4 and app. A.4)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, distributed, nn

from deformable_detr.boxes import cxcywh_to_xyxy, elementwise_iou
from deformable_detr.categories import Categories
from deformable_detr.config import LossConfig, ModelConfig
from deformable_detr.criterion.class_losses import class_loss_function
from deformable_detr.criterion.denoising import DenoisingMatcher
from deformable_detr.criterion.losses import at_least_float32, elementwise_giou
from deformable_detr.criterion.matched_rows import MatchedRows
from deformable_detr.criterion.matcher import HungarianMatcher, Matching
from deformable_detr.criterion.quality_matcher import QualityMatcher
from deformable_detr.schema import known
from deformable_detr.structures import Branch, Predictions, Target

LOSS_KINDS = ("loss_class", "loss_bbox", "loss_giou")

SUFFIXES: dict[Branch, str] = {"decoder": "", "encoder": "_enc", "denoising": "_dn", "one_to_many": "_one_to_many"}
"""What the names of each branch's losses end in, before the number of the layer."""


@dataclass(frozen=True)
class BatchMatching:
    """The pairs of queries and objects: of the decoder layers, the proposals, and the branches that exist in training alone."""

    decoder: Matching
    encoder: Matching | None = None
    denoising: Matching | None = None
    one_to_many: Matching | tuple[Matching, ...] | None = None
    """A tuple has one `Matching` per layer, where the number of pairs differs between layers."""


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
        giou_eps: float = 0.0,
        class_loss: str = "focal",
        mal_gamma: float = 1.5,
        copies: int = 1,
        encoder_copies: int = 1,
        encoder_classes: bool = False,
        one_to_many_copies: int = 6,
        one_to_many: QualityMatcher | None = None,
        branch_weights: Mapping[str, float] | None = None,
        weight_per_class: Sequence[float] | None = None,
    ) -> None:
        """Set weights and parts; the defaults are the official ones.

        Args:
            num_classes: K.
            class_weight: of the class loss in :meth:`weighted_sum`.
            bbox_weight: of the L1 loss.
            giou_weight: of the generalised IoU loss.
            class_cost: of the focal cost in matching.
            bbox_cost: of the L1 cost in matching.
            giou_cost: of the generalised IoU cost in matching.
            focal_alpha: focal loss and cost: weight of the positives.
            focal_gamma: focal loss and cost: how strongly easy examples are played down.
            giou_eps: added to the denominators of the generalised IoU, in loss and cost.
            class_loss: `focal`, `ia-bce`, `varifocal` or `mal`; see `class_losses.py`.
            mal_gamma: of the class loss `mal`.
            copies: with how many queries each object is matched in every decoder layer. Above 1 the model gives several boxes per
                object and needs NMS.
            encoder_copies: with how many proposals of the encoder.
            encoder_classes: the proposals learn the classes; otherwise channel 0 learns whether there is any object.
            one_to_many_copies: with how many queries of a one-to-many branch (H-DETR).
            one_to_many: matches that branch in another way than by a Hungarian matching with copies.
            branch_weights: weights that differ in one branch, by name: `loss_class_dn`, `loss_bbox_one_to_many`, …
            weight_per_class: K numbers that the losses of the classes' scores are multiplied by, matched or not. None: 1 for all.

        Raises:
            ValueError: num_classes or copies below 1, all costs 0, an unknown class loss or name among the weights, another number
                of weights than of classes, or a weight below 0.
        """
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.num_classes = num_classes
        self.weights: dict[str, float] = dict(zip(LOSS_KINDS, (class_weight, bbox_weight, giou_weight), strict=True))
        self.branch_weights = _branch_weights(self.weights, branch_weights or {})
        self.class_loss = class_loss_function(class_loss, focal_alpha=focal_alpha, focal_gamma=focal_gamma, mal_gamma=mal_gamma)
        self.giou_eps, self.encoder_classes = giou_eps, encoder_classes
        self.weight_per_class = weight_per_class
        if weight_per_class is not None and (len(weight_per_class) != num_classes or min(weight_per_class) < 0):
            raise ValueError(f"weight_per_class needs {num_classes} numbers of at least 0, not {list(weight_per_class)}")
        costs = {"class_cost": class_cost, "bbox_cost": bbox_cost, "giou_cost": giou_cost, "giou_eps": giou_eps}
        hungarian = partial(HungarianMatcher, **costs, focal_alpha=focal_alpha, focal_gamma=focal_gamma)
        self.matcher = hungarian(copies=copies)
        self.encoder_matcher = hungarian(copies=encoder_copies)
        self.denoising_matcher = DenoisingMatcher()
        self.one_to_many_matcher = one_to_many or hungarian(copies=one_to_many_copies)

    @classmethod
    def from_config(cls, model: ModelConfig, loss: LossConfig | None = None, categories: Categories | None = None) -> Self:
        """The losses that fit a model.

        Args:
            model: its settings; they say how proposals and a one-to-many branch are trained.
            loss: kinds and weights. None, and settings that are None: as the model of this kind was published.
            categories: the names that `loss.weight_per_class` is about.

        Raises:
            ValueError: as in `__init__`, and for weights of unknown classes.
        """
        loss = loss or LossConfig()
        class_weight = loss.class_weight_of(model)
        kinds = dict(zip(LOSS_KINDS, (class_weight, loss.bbox_weight, loss.giou_weight), strict=True))
        scaled = {f"{kind}_one_to_many": loss.one_to_many_weight * weight for kind, weight in kinds.items()}
        return cls(
            model.num_classes,
            class_weight=class_weight,
            bbox_weight=loss.bbox_weight,
            giou_weight=loss.giou_weight,
            class_cost=loss.class_cost,
            bbox_cost=loss.bbox_cost,
            giou_cost=loss.giou_cost,
            focal_alpha=loss.focal_alpha,
            focal_gamma=loss.focal_gamma,
            giou_eps=loss.giou_eps_of(model),
            class_loss=loss.class_loss_of(model),
            mal_gamma=loss.mal_gamma,
            copies=loss.copies,
            encoder_copies=loss.encoder_copies,
            encoder_classes=model.proposal_classes,
            one_to_many_copies=loss.one_to_many_copies,
            one_to_many=None if model.one_to_many_queries else QualityMatcher(loss.one_to_many_copies),
            branch_weights=scaled | loss.branch_weights,
            weight_per_class=_weight_per_class(loss.weight_per_class, categories),
        )

    def forward(self, predictions: Predictions, targets: Sequence[Target], num_boxes: Tensor | None = None) -> dict[str, Tensor]:
        """All losses of a batch, computed in float32 (or float64) whatever the precision of the predictions.

        With `torch.distributed` the number of objects is averaged over all processes, so each must call this.

        Args:
            predictions: of N decoder layers, with or without encoder proposals and the branches of training.
            targets: one per image, boxes in the same frame as the predictions; an image may be without objects.
            num_boxes: `[]` objects per process that the sums are divided by, where this batch is one of several of a step.
                None: those of this batch.

        Returns:
            Scalars: `loss_class`, `loss_bbox`, `loss_giou` of the last layer; the same with `_0` … `_{N-2}` of the layers before
            it; the same with `_enc` of the proposals, with `_dn` and `_dn_0` … of the denoising queries, with `_one_to_many` and
            `_one_to_many_0` … of the one-to-many branch. Each is a sum divided by the number of objects per process, and by the
            number of denoising groups or the copies of each object.

        Raises:
            ValueError: targets that do not fit the batch or the classes; the message names the image.
            FloatingPointError: predictions with NaN or infinity; the message names the images.
        """
        if num_boxes is None:  # before the matching, which may end with an error in one of several processes
            num_boxes = self._num_boxes(targets, predictions.logits.device)
        matching = self.match(predictions, targets)
        branches = _branches(predictions)
        without_classes: list[Branch] = [branch for branch in branches if not self._has_classes(branch)]
        rows = MatchedRows.of_branches(branches, vars(matching), targets, without_classes)
        names: list[str] = []  # of the layers as they lie in the rows
        divisors: list[Tensor] = []
        for branch, (logits, _) in branches.items():
            names += [*(f"{SUFFIXES[branch]}_{layer}" for layer in range(len(logits) - 1)), SUFFIXES[branch]]
            divisors += [self._matcher(branch).divisor(num_boxes, logits.shape[2], targets)] * len(logits)
        divisor = torch.stack(divisors)
        return {
            kind + name: value
            for kind, sums in self._losses(rows, self._class_scale(branches)).items()
            for name, value in zip(names, (sums / divisor).unbind(), strict=True)
        }

    def match(self, predictions: Predictions, targets: Sequence[Target]) -> BatchMatching:
        """Which query of which layer is responsible for which object; arguments and errors as in :meth:`forward`."""
        self._check_batch(predictions, targets)
        matchings = {}
        for branch, layers in _branches(predictions).items():
            wanted = targets if self._has_classes(branch) else _as_objectness(targets)
            matchings[branch] = self._matcher(branch)(*layers, wanted, source=branch)
        return BatchMatching(**matchings)

    def weighted_sum(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The one number to minimise: every branch's and layer's losses, each times the weight of its kind in that branch.

        Args:
            losses: what :meth:`forward` returned.

        Returns:
            `[]`
        """
        by_weight: dict[tuple[str, float], list[Tensor]] = {}
        for name, loss in losses.items():
            without_layer = re.sub(r"_\d+$", "", name)
            if without_layer not in self.branch_weights:
                raise ValueError(f"{name!r} is not a loss of this criterion; its losses begin with {', '.join(LOSS_KINDS)}")
            kind = "_".join(name.split("_", 2)[:2])  # loss_bbox_dn_3 → loss_bbox
            by_weight.setdefault((kind, self.branch_weights[without_layer]), []).append(loss)
        return torch.stack([weight * torch.stack(terms).sum() for (_, weight), terms in by_weight.items()]).sum()

    def _matcher(self, branch: Branch) -> HungarianMatcher | DenoisingMatcher | QualityMatcher:
        return {
            "decoder": self.matcher,
            "encoder": self.encoder_matcher,
            "denoising": self.denoising_matcher,
            "one_to_many": self.one_to_many_matcher,
        }[branch]

    def _has_classes(self, branch: Branch) -> bool:
        """Whether a branch learns the classes, or only where an object is."""
        return branch != "encoder" or self.encoder_classes

    def _class_scale(self, branches: Mapping[Branch, tuple[Tensor, Tensor]]) -> Tensor | None:
        """What the class losses are multiplied by, `[R, K]`; objectness belongs to no class. None: by nothing."""
        if self.weight_per_class is None:
            return None
        scales = []
        for branch, (logits, _) in branches.items():
            weights = self.weight_per_class if self._has_classes(branch) else [1.0] * self.num_classes
            scales.append(at_least_float32(logits).new_tensor(weights).expand(logits[..., 0].numel(), -1))
        return torch.cat(scales)

    def _losses(self, rows: MatchedRows, class_scale: Tensor | None) -> dict[str, Tensor]:
        """The losses of each layer of each branch, not yet divided: of each kind `[Z]`."""
        corners = cxcywh_to_xyxy(rows.matched), cxcywh_to_xyxy(rows.wanted)
        with torch.no_grad():
            overlap = elementwise_iou(*corners)
        class_loss = self.class_loss(rows.logits, (rows.queries, rows.labels), overlap.to(rows.logits.dtype))
        class_loss = class_loss if class_scale is None else class_loss * class_scale
        return {
            "loss_class": _sums(class_loss, rows.queries_of_layer),
            "loss_bbox": _sums((rows.matched - rows.wanted).abs(), rows.pairs_of_layer),
            "loss_giou": _sums(1 - elementwise_giou(*corners, self.giou_eps), rows.pairs_of_layer),
        }

    def _num_boxes(self, targets: Sequence[Target], device: torch.device) -> Tensor:
        """Objects per process, averaged over all processes, so that their losses average to the loss of the whole batch."""
        count = number_of_boxes(targets, device)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(count)
            count = count / distributed.get_world_size()
        return count

    def _check_batch(self, predictions: Predictions, targets: Sequence[Target]) -> None:
        if len(targets) != len(predictions):
            raise ValueError(f"{len(targets)} targets for a batch of {len(predictions)} images: there must be one per image")
        if predictions.logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"the criterion was made for {self.num_classes} classes, but the predictions have {predictions.logits.shape[-1]}"
            )


def number_of_boxes(targets: Sequence[Target], device: torch.device) -> Tensor:
    """The objects of a batch, `[]` float32: with it as `num_boxes` the criterion waits for no other process."""
    return torch.tensor(float(sum(len(target) for target in targets)), dtype=torch.float32, device=device)


def _branches(predictions: Predictions) -> dict[Branch, tuple[Tensor, Tensor]]:
    """Logits `[N, B, ·, K]` and boxes `[N, B, ·, 4]` of the branches that there are."""
    found: dict[Branch, tuple[Tensor, Tensor] | None] = {branch: predictions.of(branch) for branch in SUFFIXES}
    return {branch: layers for branch, layers in found.items() if layers is not None}


def _branch_weights(weights: Mapping[str, float], differing: Mapping[str, float]) -> dict[str, float]:
    """The weight of each kind of loss in each branch, by the name of the loss without its layer."""
    named = {kind + suffix: weight for kind, weight in weights.items() for suffix in SUFFIXES.values()}
    if unknown := sorted(differing.keys() - named.keys()):
        raise ValueError(f"{unknown} are no losses of a branch; known are {', '.join(named)}")
    return named | dict(differing)


def _weight_per_class(weights: Mapping[str, float], categories: Categories | None) -> list[float] | None:
    """Named weights → one for each class; None where there are none."""
    if not weights:
        return None
    names = categories.names if categories is not None else ()
    for name in weights:
        known(name, "class in loss.weight_per_class", names)
    return [float(weights.get(name, 1.0)) for name in names]


def _as_objectness(targets: Sequence[Target]) -> list[Target]:
    """The same objects, all of class 0.

    The proposals are to say where anything is at all, whatever it is. The class head that they share its form with has K
    channels, of which channel 0 serves as "there is an object" (the best proposals are chosen by it); the others learn "no".
    """
    return [Target(target.boxes, torch.zeros_like(target.labels), target.image_id, target.image_size) for target in targets]


def _sums(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """The sum of so many rows, then of so many, …: `[len(lengths)]`."""
    return torch.stack([part.sum() for part in values.split(list(lengths))])
