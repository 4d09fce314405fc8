"""The change of the weights between two checkpoints of one model, part by part.

The running statistics of batch norms are left out: they are no weights, and so large that they would hide everything else.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.ticker import PercentFormatter
from torch import Tensor, nn

from deformable_detr.checkpoints import load_pretrained
from deformable_detr.visualize.figures import View, new_figure, open_frame

LAYER = re.compile(r"^(encoder|decoder)\.layers\.(\d+)\.(.+)$")
OF_CLASSES = re.compile("class_head|label_embed")
KINDS = {
    "self_attn.in_proj": "self-attention",
    "self_attn.out_proj": "self-attention",
    "sampling_offsets": "sampling offsets",
    "attention_weights": "attention weights",
    "value_proj": "value projection",
    "output_proj": "output projection",
    "ffn.linear": "feed-forward",
    "norm": "norms",
}
"""Part of a parameter's name → row of the figure."""


@dataclass(frozen=True)
class PartChange:
    """The relative change of one part."""

    part: str
    """Such as `neck`, or `decoder 3: sampling offsets` (layers from 1)."""

    parameters: int
    """Number of weights."""

    change: float
    """‖after − before‖ / ‖before‖, over all its weights together; infinite where all of them were 0 before."""

    most_changed: str
    """Its tensor with the largest relative change."""


@dataclass(frozen=True, eq=False)
class WeightChangesView(View):
    """The change of each part, in the order of the data path."""

    parts: tuple[PartChange, ...]

    total: float
    """The relative change of all weights together."""


Weights = nn.Module | Mapping[str, Tensor] | str | Path


def view_weight_changes(before: Weights, after: Weights) -> WeightChangesView:
    """Compare two checkpoints. Class heads and label embeddings for another number of classes are left out.

    ```python
    view_weight_changes("coco.safetensors", "runs/first").save("changes.png")  # the effect of fine-tuning
    ```

    Args:
        before: a model, its state dict, or a run folder or weights file of any known format.
        after: the same model later.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: tensors that are in only one of them, or of different shapes.
    """
    old, new = (_floating(one) for one in (before, after))
    for name in [name for name in old.keys() & new.keys() if OF_CLASSES.search(name) and old[name].shape != new[name].shape]:
        del old[name], new[name]
    different = sorted(old.keys() ^ new.keys()) or [name for name in old if old[name].shape != new[name].shape]
    if different:
        raise ValueError(
            f"the two are not of one architecture: {len(different)} tensors differ in name or shape, such as {different[0]}"
        )
    groups: dict[str, list[str]] = {}
    for name in old:
        groups.setdefault(part_of(name), []).append(name)
    parts = tuple(_change(part, names, old, new) for part, names in groups.items())
    total = _relative(old, new, list(old))
    return WeightChangesView(_draw(parts, total), parts, total)


def part_of(name: str) -> str:
    """Name the part that a parameter belongs to: transformer layers by kind, the backbone by stage, the rest by module."""
    if found := LAYER.match(name):
        stack, layer, rest = found.groups()
        kind = next((kind for piece, kind in KINDS.items() if piece in rest), rest.split(".")[0])
        return f"{stack} {int(layer) + 1}: {kind}"
    pieces = name.split(".")
    if pieces[0] == "backbone":
        return f"backbone {pieces[2]}" if len(pieces) > 3 else "backbone"
    if pieces[0] == "decoder":
        return "box heads" if pieces[1] == "box_heads" else f"decoder {pieces[1].replace('_', ' ')}"
    return {"class_heads": "class heads", "query_source": "queries", "flatten": "level embedding"}.get(pieces[0], pieces[0])


def _floating(weights: Weights) -> dict[str, Tensor]:
    weights = load_pretrained(weights) if isinstance(weights, (str, Path)) else weights
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    learned = {name: value for name, value in state.items() if value.is_floating_point() and ".running_" not in name}
    return {name: value.detach().cpu().double() for name, value in learned.items()}


def _relative(old: Mapping[str, Tensor], new: Mapping[str, Tensor], names: list[str]) -> float:
    difference = sum(float((new[name] - old[name]).square().sum()) for name in names)
    size = sum(float(old[name].square().sum()) for name in names)
    return (difference / size) ** 0.5 if size else float("inf") if difference else 0.0


def _change(part: str, names: list[str], old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> PartChange:
    most = max(names, key=lambda name: _relative(old, new, [name]))
    return PartChange(part, sum(old[name].numel() for name in names), _relative(old, new, names), most)


def _draw(parts: tuple[PartChange, ...], total: float):
    """Bars for the parts outside the transformer, a table of kinds and layers for the transformer."""
    inside = {part.part: part.change for part in parts if ": " in part.part}
    outside = [part for part in parts if ": " not in part.part]
    layers = list(dict.fromkeys(name.split(": ")[0] for name in inside))
    kinds = [kind for kind in dict.fromkeys(KINDS.values()) if any(f"{layer}: {kind}" in inside for layer in layers)]
    table = np.array([[inside.get(f"{layer}: {kind}", np.nan) for layer in layers] for kind in kinds])
    title = f"Relative change of the weights, part by part (all together: {total:.1%})"
    figure = new_figure(11, max(3.4, 0.32 * max(len(outside), len(kinds)) + 1.6), title)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    values = [part.change for part in outside]
    finite = [value if np.isfinite(value) else 0.0 for value in values]
    bars = left.barh([part.part for part in outside], finite, color="#0072b2", height=0.72)
    left.bar_label(bars, [_percent(value) for value in values], padding=2, fontsize=8)
    left.set(xlim=(0, max([*finite, 1e-6]) * 1.22), xlabel="‖after − before‖ / ‖before‖")
    left.xaxis.set_major_formatter(PercentFormatter(1.0))
    left.invert_yaxis()
    open_frame(left)
    left.tick_params(labelsize=8.5)
    if table.size:
        finite_table = np.ma.masked_invalid(table)
        shown = right.imshow(finite_table, cmap="viridis", aspect="auto", vmin=0)
        middle = float(finite_table.max() or 0.0) * 0.6
        for (row, column), value in np.ndenumerate(table):
            if not np.isnan(value):
                color = "black" if value > middle else "white"
                right.text(column, row, _percent(value), ha="center", va="center", fontsize=8, color=color)
        right.set(xticks=range(len(layers)), yticks=range(len(kinds)), yticklabels=kinds)
        right.set_xticklabels([layer.replace(" ", "\n") for layer in layers])
        right.tick_params(labelsize=8.5)
        bar = figure.colorbar(shown, ax=right, shrink=0.85, aspect=20, format=PercentFormatter(1.0))
        bar.ax.tick_params(labelsize=8)
    return figure


def _percent(change: float) -> str:
    """Format a relative change; a part that was all zero before has none."""
    return f"{change:.1%}" if np.isfinite(change) else "was 0"
