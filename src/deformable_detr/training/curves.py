"""The curves of a run as images: losses over the steps, average precision over the evaluations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deformable_detr.files import atomic_file

LOSSES = {"loss": "weighted sum", "loss_class": "class", "loss_bbox": "L1", "loss_giou": "GIoU"}


def draw_loss_curve(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw the logged losses (the sum over all layers; class, L1 and GIoU of the last layer) and the learning rate.

    Args:
        path: PNG file to write.
        records: the lines of log.jsonl; those of kind `train` are drawn.
    """
    rows = [record for record in records if record.get("kind") == "train"]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, label in LOSSES.items():
        shown = [row for row in rows if name in row]
        if shown:
            axes.plot(
                [row["step"] for row in shown], [row[name] for row in shown], label=label, marker="." if len(rows) < 30 else None
            )
    axes.set(xlabel="optimiser step", ylabel="loss (log scale)", title="Training losses")
    if rows:
        axes.set_yscale("log")
        rates = axes.twinx()
        rates.plot(
            [row["step"] for row in rows], [row["lr"] for row in rows], color="0.6", linestyle=":", label="learning rate (right)"
        )
        rates.set(ylabel="learning rate", ylim=(0, None))
        handles = [*axes.get_lines(), *rates.get_lines()]
        axes.legend(handles=handles)
    axes.grid(alpha=0.3)
    _write(figure, path)


def draw_metrics_curve(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw AP, AP50 and AP75 over the optimiser steps.

    Args:
        path: PNG file to write.
        history: one row per evaluation with `step` and the metrics.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, label in {"ap50": "AP50", "ap": "AP", "ap75": "AP75"}.items():
        rows = [row for row in history if isinstance(row.get(name), int | float)]
        if rows:
            axes.plot([row["step"] for row in rows], [row[name] for row in rows], label=label, marker="o", markersize=3)
    axes.set(xlabel="optimiser step", ylabel="average precision", title="Validation", ylim=(0, 1))
    if axes.get_lines():
        axes.legend()
    axes.grid(alpha=0.3)
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    """Draw without a display and without matplotlib's global state."""
    with atomic_file(path) as partial:
        FigureCanvasAgg(figure).print_figure(partial, dpi=110, format="png")
