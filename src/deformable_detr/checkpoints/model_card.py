"""The README of a saved detector: what it detects, how well, and how it was made, from its metadata."""

import json
from typing import Any

from deformable_detr.checkpoints.architecture import variant_name
from deformable_detr.class_names import NO_CLASS
from deformable_detr.config import Metadata

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_SEPARATE = ("metrics", "dataset", "recipe")


def model_card(metadata: Metadata, *, name: str, license: str | None = None) -> str:
    """Markdown with the header that the hub reads.

    Args:
        metadata: of the detector; `metadata.training` may have `dataset`, `metrics`, `recipe` and anything else of plain values.
        name: the title.
        license: of the weights, such as `apache-2.0`.
    """
    sections = [_header(license), f"# {name}\n", _summary(metadata), _metrics(metadata.training.get("metrics"))]
    sections += [_training(metadata.training), _classes(metadata), _use(name)]
    return "\n".join(section for section in sections if section)


def _header(license: str | None) -> str:
    lines = [
        "---",
        "library_name: deformable-detr",
        "pipeline_tag: object-detection",
        "tags:",
        "- object-detection",
        "- deformable-detr",
    ]
    return "\n".join([*lines, *([f"license: {license}"] if license else []), "---\n"])


def _summary(metadata: Metadata) -> str:
    config = metadata.model
    parts = ["iterative box refinement"] if config.box_refinement else []
    parts += ["two-stage"] if config.two_stage else []
    return (
        f"Deformable DETR (`{variant_name(config)}`{', ' + ', '.join(parts) if parts else ''}): backbone {config.backbone}, "
        f"{config.num_feature_levels} feature level{'s' * (config.num_feature_levels > 1)}, {config.num_queries} queries, "
        f"{config.num_classes} classes. Images are resized to a short side of {metadata.eval_short_side} pixels, "
        f"a long side of at most {metadata.max_long_side}.\n"
    )


def _metrics(metrics: Any) -> str:
    if not isinstance(metrics, dict):
        return ""
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    first = [key for key in _METRICS if key in numbers]
    rows = [f"| {key} | {numbers[key]:.4g} |" for key in [*first, *(key for key in numbers if key not in first)]]
    return "\n".join(["## How good it is\n", "| metric | value |", "|---|---|", *rows, ""]) if rows else ""


def _training(training: dict[str, Any]) -> str:
    lines = [f"- data: {training['dataset']}"] if training.get("dataset") else []
    for key, value in training.items():
        if key not in _SEPARATE and value is not None:
            lines.append(f"- {key}: {value if isinstance(value, str | int | float) else json.dumps(value, default=str)}")
    recipe = training.get("recipe")
    if recipe:
        lines.append(f"\n```json\n{json.dumps(recipe, indent=2, default=str)}\n```")
    return "\n".join(["## How it was made\n", *lines, ""]) if lines else ""


def _classes(metadata: Metadata) -> str:
    if metadata.categories is None:
        return ""
    names = [name for name in metadata.categories.names if name != NO_CLASS]
    return f"## Classes\n\n{', '.join(names)}\n"


def _use(name: str) -> str:
    return (
        "## How to use it\n\n```python\nimport deformable_detr as dd\n\n"
        f'detector = dd.Detector.load("path/to/{name}")  # or the name of this model on the hub\n'
        'detections = detector.predict("image.jpg", threshold=0.5)\n```\n'
    )
