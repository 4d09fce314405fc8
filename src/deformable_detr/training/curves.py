"""The curves of a run as images: losses over the steps, average precision over the evaluations."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
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
    with _written(path, xlabel="optimiser step", ylabel="loss (log scale)", title="Training losses") as axes:
        for name, label in LOSSES.items():
            shown = [row for row in rows if name in row]
            if shown:
                marker = "." if len(rows) < 30 else None
                axes.plot([row["step"] for row in shown], [row[name] for row in shown], label=label, marker=marker)
        if rows:
            axes.set_yscale("log")
            rates = axes.twinx()
            steps, values = [row["step"] for row in rows], [row["lr"] for row in rows]
            rates.plot(steps, values, color="0.6", linestyle=":", label="learning rate (right)")
            rates.set(ylabel="learning rate", ylim=(0, None))
            axes.legend(handles=[*axes.get_lines(), *rates.get_lines()])


def draw_metrics_curve(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw AP, AP50 and AP75 over the optimiser steps.

    Args:
        path: PNG file to write.
        history: one row per evaluation with `step` and the metrics.
    """
    with _written(path, xlabel="optimiser step", ylabel="average precision", title="Validation", ylim=(0, 1)) as axes:
        for name, label in {"ap50": "AP50", "ap": "AP", "ap75": "AP75"}.items():
            rows = [row for row in history if isinstance(row.get(name), int | float)]
            if rows:
                axes.plot([row["step"] for row in rows], [row[name] for row in rows], label=label, marker="o", markersize=3)
        if axes.get_lines():
            axes.legend()


@contextmanager
def _written(path: Path, **texts: Any) -> Iterator[Axes]:
    """Axes to draw in, without a display and without matplotlib's global state; the file is written at the end."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(**texts)
    yield axes
    axes.grid(alpha=0.3)
    with atomic_file(path) as partial:
        FigureCanvasAgg(figure).print_figure(partial, dpi=110, format="png")
