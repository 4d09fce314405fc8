"""Precision over recall, class by class, as an image."""

from pathlib import Path

import numpy as np

from deformable_detr.evaluation.metrics import Metrics

MOST_CLASSES = 10  # more lines than colours could not be told apart


def save_pr_curves(metrics: Metrics, path: str | Path) -> None:
    """Draw precision over recall at IoU .50: the mean over the classes, and the classes with the most objects.

    Args:
        metrics: from an evaluation; its classes carry the curves.
        path: PNG, PDF or SVG by its ending; the folder is made where it is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    classes = [entry for entry in metrics.per_class if entry.precision]
    shown = sorted(classes, key=lambda entry: -entry.num_objects)[:MOST_CLASSES]
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a screen and without pyplot's global state
    axes = figure.add_subplot(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(f"IoU .50, {metrics.num_images} images")
    axes.grid(alpha=0.3)
    for entry in shown:
        axes.plot(_recalls(entry.precision), entry.precision, linewidth=1.2, label=f"{entry.name}: {entry.ap50:.2f}")
    if classes:
        mean = np.mean([entry.precision for entry in classes], axis=0)
        axes.plot(_recalls(mean), mean, color="black", linewidth=2.5, label=f"mean of {len(classes)} classes: {mean.mean():.2f}")
        axes.legend(loc="lower left", fontsize="small", title="AP50")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _recalls(precision: np.ndarray | tuple[float, ...]) -> np.ndarray:
    return np.linspace(0, 1, len(precision))
