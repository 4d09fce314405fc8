"""Class heads for another set of classes: the rows of the classes that both have stay, matched by name."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deformable_detr.categories import Categories
from deformable_detr.checkpoints.families import LABELS
from deformable_detr.checkpoints.weights import Weights
from deformable_detr.class_names import NO_CLASS, match_classes
from deformable_detr.model.heads import class_head

PROPOSAL_HEAD = "query_source.class_head"

SILENT_LOGIT = -20.0
"""Bias of a channel without a class: its score is 2e-9."""


@dataclass(frozen=True)
class ClassMapping:
    """For each new class, the row of the old heads that it starts from."""

    classes: Categories
    """The new classes."""

    sources: tuple[int | None, ...]
    """The old label of each new one; None: initialised afresh."""

    old_classes: Categories | None
    """The classes before; None when only their number was known."""

    num_old_classes: int
    """How many there were."""

    @property
    def kept(self) -> dict[str, str]:
        """New name → old name, of the classes that keep their weights."""
        return {
            name: self.old_classes.names[source] if self.old_classes else f"label {source}"
            for name, source in zip(self.classes.names, self.sources, strict=True)
            if source is not None
        }

    @property
    def fresh(self) -> list[str]:
        """The new classes that are initialised afresh."""
        return [name for name, source in zip(self.classes.names, self.sources, strict=True) if source is None]

    @property
    def is_identity(self) -> bool:
        """Whether every row stays where it is."""
        return self.sources == tuple(range(self.num_old_classes))

    def __str__(self) -> str:
        kept = [new if new == old else f"{new} (from {old})" for new, old in self.kept.items() if new != NO_CLASS]
        fresh = [name for name in self.fresh if name != NO_CLASS]
        return (
            f"class heads: {self.num_old_classes} → {len(self.classes)} classes\n"
            f"  kept ({len(kept)}): {', '.join(kept) or 'none'}\n"
            f"  initialised afresh ({len(fresh)}): {', '.join(fresh) or 'none'}"
        )


def map_classes(old: Categories | None, num_old: int, new: Categories) -> ClassMapping:
    """Find for each new class the old one that it is (:func:`~deformable_detr.class_names.match_classes`).

    Args:
        old: the classes of the weights. None: unknown; as many new ones are taken for them, in this order.
        num_old: how many they are.
        new: the classes wanted.
    """
    if old is None:
        same_number = len(new) == num_old  # then the names are those that the file left out
        return ClassMapping(new, tuple(range(num_old)) if same_number else (None,) * len(new), None, num_old)
    return ClassMapping(new, tuple(match_classes(new, old, unique=False)), old, num_old)


def map_class_heads(weights: Weights, mapping: ClassMapping, *, proposal_classes: bool = False) -> None:
    """Rearrange the rows of all class heads.

    Fresh rows have the usual small weights and the focal prior as bias; channels without a class never
    respond. Row 0 of the proposals' head is no class but says whether there is an object at all: it stays, whatever the classes.

    Args:
        weights: changed in place.
        mapping: which row goes where.
        proposal_classes: the head of the proposals knows the classes (DINO), so that its rows are treated as all others.
    """
    prefixes = ("class_heads.", f"{PROPOSAL_HEAD}.")
    for name in [name for name in weights.tensors if name.startswith(prefixes) and name.endswith(".weight")]:
        head = name.removesuffix(".weight")
        weight, bias = weights.tensors[name], weights.tensors.get(f"{head}.bias")
        if bias is None or weight.ndim != 2 or not len(weight) == len(bias) == mapping.num_old_classes:
            continue  # it does not fit, which is said with all that does not
        sources = mapping.sources
        silent = [row for row, class_name in enumerate(mapping.classes.names) if class_name == NO_CLASS]
        if head == PROPOSAL_HEAD and not proposal_classes:
            sources = (0, *(source or None for source in sources[1:]))
            silent = [row for row, source in enumerate(sources) if source is None]
        weight, bias = _rearrange(weight, bias, sources, silent)
        for key, tensor in ((name, weight), (f"{head}.bias", bias)):
            weights.report.reshaped.append(f"{weights.named(key)} ({mapping.num_old_classes} → {len(sources)} rows)")
            weights.tensors[key] = tensor
    map_label_table(weights, mapping)


def map_label_table(weights: Weights, mapping: ClassMapping) -> None:
    """Rearrange the table of labels that denoising starts from; new classes get fresh rows, the last row belongs to no class."""
    table = weights.tensors.get(LABELS)
    if table is None or table.ndim != 2 or len(table) != mapping.num_old_classes + 1:
        return
    rows = nn.Embedding(len(mapping.sources) + 1, table.shape[1]).weight.detach().to(table.dtype)
    for row, source in enumerate((*mapping.sources, mapping.num_old_classes)):
        if source is not None:
            rows[row] = table[source]
    weights.report.reshaped.append(f"{weights.named(LABELS)} ({len(table)} → {len(rows)} rows)")
    weights.tensors[LABELS] = rows


def map_thresholds(thresholds: Sequence[float] | None, mapping: ClassMapping) -> tuple[float, ...] | None:
    """The score thresholds of the new classes; None where there were none, or where a class starts afresh."""
    if thresholds is None or any(name != NO_CLASS for name in mapping.fresh):
        return None
    silent = 1.0  # of channels without a class, which never respond
    return tuple(silent if source is None else thresholds[source] for source in mapping.sources)


def _rearrange(weight: Tensor, bias: Tensor, sources: Sequence[int | None], silent: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows from the old head; fresh ones elsewhere, and ones that never respond at `silent`."""
    fresh = class_head(weight.shape[1], len(sources))
    rows = [row for row, source in enumerate(sources) if source is not None]
    old_rows = [source for source in sources if source is not None]
    with torch.no_grad():
        fresh.weight[silent] = 0.0
        fresh.bias[silent] = SILENT_LOGIT
        fresh.weight[rows] = weight[old_rows].to(fresh.weight.dtype)
        fresh.bias[rows] = bias[old_rows].to(fresh.bias.dtype)
    return fresh.weight.detach(), fresh.bias.detach()
