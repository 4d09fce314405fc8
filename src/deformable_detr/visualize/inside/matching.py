"""Which query each target is matched with in training, and how stable that is (DN-DETR, section 3.2, measures the instability)."""

from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from torch import Tensor

from deformable_detr.criterion import SetCriterion
from deformable_detr.criterion.matcher import HungarianMatcher, Matching
from deformable_detr.model import DeformableDETR
from deformable_detr.structures import ImageBatch, ImageId, Target
from deformable_detr.visualize.figures import View, check_counts, new_figure, open_frame
from deformable_detr.visualize.inside.capture import capture_calls, evaluating

Matcher = HungarianMatcher | SetCriterion
UNMATCHED = -1


class Samples(Sized, Protocol):
    """Images with targets, such as `build_dataset(folder, "train", data, training=False)`."""

    def __getitem__(self, index: int, /) -> tuple[Tensor, Target]:
        """The normalised image `[3, h, w]` and its target."""
        ...


@dataclass
class Assignments:
    """The matching at one time, such as in one epoch."""

    queries: dict[ImageId, Tensor] = field(default_factory=dict)
    """For each image int64 `[T]`: the query that each of its targets is matched with; -1 for a target without a query."""

    kind: str = "query"
    """What the numbers are: `query`, or `position` in the sequence."""

    def add(self, matching: Matching, targets: Sequence[Target], layer: int = -1) -> None:
        """Add one batch.

        Raises:
            ValueError: an image without an id, which cannot be recognised in another epoch.
        """
        for index, target in enumerate(targets):
            if target.image_id is None:
                raise ValueError("a target has no image_id; without it the same image cannot be recognised in another epoch")
            self.queries[target.image_id] = query_of_each(matching, index, len(target), layer)


def query_of_each(matching: Matching, image: int, num_targets: int, layer: int = -1) -> Tensor:
    """`[T]` int64: the query that each target of an image is matched with; -1 for a target without a query."""
    chosen, objects = matching.of_image(image, layer)
    queries = torch.full((num_targets,), UNMATCHED, dtype=torch.int64, device="cpu")
    queries[objects.cpu()] = chosen.cpu()
    return queries


@dataclass(frozen=True, eq=False)
class MatchingView(View):
    """The matchings of E checkpoints or epochs; a step is from one to the next."""

    names: tuple[str, ...]
    """Of the checkpoints."""

    assignments: tuple[Assignments, ...]
    """One for each of them."""

    stability: tuple[float, ...]
    """`E − 1` shares in [0, 1]: targets that kept their query, of all targets."""

    instability: tuple[float, ...]
    """`E − 1` numbers: queries whose target changed, per image (DN-DETR's IS)."""


@contextmanager
def recording(matcher: Matcher, assignments: Assignments, layer: int = -1) -> Iterator[Assignments]:
    """Record a matcher's results for the decoder while the block lasts: wrap an epoch of training in it.

    Augmentation moves objects, so that in training part of the change comes from the images; :func:`record_matching` matches a
    model's predictions on images that stay the same.

    Args:
        matcher: of the criterion, or the criterion itself.
        assignments: is added to.
        layer: which decoder layer's matching.
    """

    def note(module: Any, args: tuple, keywords: dict[str, Any], matching: Matching) -> None:
        source = keywords.get("source", args[3] if len(args) > 3 else "decoder")
        if source == "decoder":
            assignments.add(matching, keywords.get("targets", args[2] if len(args) > 2 else ()), layer)

    module = matcher.matcher if isinstance(matcher, SetCriterion) else matcher
    handle = module.register_forward_hook(note, with_kwargs=True)
    try:
        yield assignments
    finally:
        handle.remove()


@torch.no_grad()
def record_matching(
    model: DeformableDETR, dataset: Samples, matcher: Matcher, *, limit: int | None = 200, layer: int = -1
) -> Assignments:
    """Match a model's predictions with the targets of a dataset, image by image.

    A query of a two-stage model is only a rank, so that there the **position** in the sequence that the query comes
    from is recorded instead.

    Args:
        model: any variant.
        dataset: images without random augmentation.
        matcher: as in training, such as `SetCriterion(num_classes)`.
        limit: largest number of images. None: all.
        layer: which decoder layer's matching.
    """
    assignments = Assignments()
    device = next(model.parameters()).device
    hungarian = matcher.matcher if isinstance(matcher, SetCriterion) else matcher
    count = len(dataset) if limit is None else min(limit, len(dataset))
    with evaluating(model):
        for index in range(count):
            image, target = dataset[index]
            with capture_calls([model.query_source]) as calls:
                predictions = model(ImageBatch.from_images([image.to(device)]))
            ranking = calls[model.query_source].output.ranking
            matching = hungarian(predictions.logits, predictions.boxes, [target.to(device)])
            assignments.add(matching, [target], layer)
            if ranking is not None and target.image_id is not None:
                assignments.kind = "position"
                queries = assignments.queries[target.image_id]
                positions = ranking.best[0].cpu()
                assignments.queries[target.image_id] = torch.where(queries < 0, queries, positions[queries.clamp(min=0)])
    return assignments


def compare_assignments(before: Assignments, after: Assignments) -> tuple[float, float]:
    """Compare two matchings on the images that both contain.

    Returns:
        The share of targets that kept their query, in [0, 1], and the number of queries per image whose target changed (also to
        or from none): DN-DETR's instability.

    Raises:
        ValueError: no image with a target in common, or queries in one and positions in the other.
    """
    if before.kind != after.kind:
        raise ValueError(f"one recording is of the {before.kind} of each target, the other of the {after.kind}: record both alike")
    stayed = targets = changed = images = 0
    for image_id in before.queries.keys() & after.queries.keys():
        old, new = before.queries[image_id], after.queries[image_id]
        if len(old) != len(new):
            raise ValueError(f"image {image_id!r} has {len(old)} targets in one and {len(new)} in the other recording")
        stayed += int(((old == new) & (old != UNMATCHED)).sum())
        targets += len(old)
        images += 1
        first, second = ({query: target for target, query in enumerate(x.tolist()) if query != UNMATCHED} for x in (old, new))
        changed += sum(first.get(query) != second.get(query) for query in first.keys() | second.keys())
    if targets == 0:
        raise ValueError("the two recordings have no image with a target in common")
    return stayed / targets, changed / images


def view_matching(assignments: Mapping[str, Assignments], *, num_targets: int = 24) -> MatchingView:
    """Draw which query each target is matched with, checkpoint by checkpoint, and how stable that is.

    Args:
        assignments: from :func:`record_matching` or :func:`recording`, in the order of the training; the keys are its names.
        num_targets: number of targets that are drawn, those of the first images.

    Raises:
        ValueError: fewer than two matchings, no image in common, or `num_targets` is below 1.
    """
    check_counts(num_targets=num_targets)
    names, records = tuple(assignments), tuple(assignments.values())
    if len(records) < 2:
        raise ValueError("matching is compared between at least two checkpoints or epochs")
    steps = [compare_assignments(old, new) for old, new in pairwise(records)]
    stability, instability = (tuple(values) for values in zip(*steps, strict=True))
    common = [image_id for image_id in records[0].queries if all(image_id in record.queries for record in records)]
    rows = [(image_id, target) for image_id in common for target in range(len(records[0].queries[image_id]))]
    if not rows:
        raise ValueError("the recordings have no image with a target in common")
    figure = _draw(names, records, rows[:num_targets], stability, instability)
    return MatchingView(figure, names, records, stability, instability)


SAME, OTHER = "#cfe4f5", "#f6c667"
"""Cells of the table: blue and amber, which are distinguishable with colour blindness."""


def _draw(
    names: Sequence[str],
    records: Sequence[Assignments],
    rows: Sequence[tuple[ImageId, int]],
    stability: Sequence[float],
    instability: Sequence[float],
):
    table = np.array([[int(record.queries[image_id][target]) for record in records] for image_id, target in rows])
    kind = records[0].kind
    figure = new_figure(10.5, max(3.6, 0.22 * len(rows) + 1.4), f"The {kind} that each target is matched with")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.25, 1))[0]
    _draw_table(left.subplots(), names, rows, table)
    upper, lower = right.subplots(2, 1, sharex=True)
    _draw_steps(upper, names, [f"{value:.0%}" for value in stability], stability)
    upper.set(ylim=(0, 1.18), yticks=(0, 0.5, 1))
    upper.set_title(f"share of the targets that kept their {kind}", fontsize=9.5)
    _draw_steps(lower, names, [f"{value:.2f}" for value in instability], instability)
    lower.set(ylim=(0, max(*instability, 0.1) * 1.25), xlabel="compared with the one before")
    lower.set_title(f"{'queries' if kind == 'query' else 'positions'} whose target changed, per image", fontsize=9.5)
    return figure


def _draw_table(axes: Axes, names: Sequence[str], rows: Sequence[tuple[ImageId, int]], table: np.ndarray) -> None:
    """Targets by checkpoints `[R, E]` with the number of the query in each cell; changes are amber and bold."""
    changed = np.diff(table, axis=1, prepend=table[:, :1]) != 0
    colors = np.where(changed[..., None], to_rgb(OTHER), to_rgb(SAME))
    colors[:, 0] = 1  # nothing precedes the first one
    axes.imshow(colors, aspect="auto")
    for (row, column), query in np.ndenumerate(table):
        text, weight = "–" if query == UNMATCHED else str(query), "bold" if changed[row, column] else "normal"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, fontweight=weight)
    axes.set(xticks=range(len(names)), yticks=range(len(rows)))
    axes.set_xticklabels(names, rotation=0 if max(map(len, names)) < 8 else 30)
    axes.set_yticklabels([f"image {image_id}, target {target}" for image_id, target in rows], fontsize=7.5)
    axes.set_title("blue: unchanged, amber and bold: changed", fontsize=9.5)


def _draw_steps(axes: Axes, names: Sequence[str], labels: Sequence[str], values: Sequence[float]) -> None:
    steps = range(1, len(names))
    axes.plot(steps, values, marker="o", color="#0072b2", linewidth=2.2)
    for step, value, label in zip(steps, values, labels, strict=True):
        axes.annotate(label, (step, value), (0, 7), textcoords="offset points", ha="center", fontsize=8.5)
    axes.set(xticks=steps, xticklabels=names[1:], xlim=(0.7, len(names) - 0.7))
    open_frame(axes, grid=True)
    axes.tick_params(labelsize=8.5)
