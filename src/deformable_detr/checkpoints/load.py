"""One door for weights of every kind: `load_pretrained` looks at the file and picks the reader."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deformable_detr.categories import Categories
from deformable_detr.checkpoints import detrex, hub, huggingface, mmdet, native, official
from deformable_detr.checkpoints.architecture import infer_config
from deformable_detr.checkpoints.class_mapping import (
    ClassMapping,
    map_class_heads,
    map_classes,
    map_thresholds,
    placeholder_classes,
)
from deformable_detr.checkpoints.coco_classes import default_categories
from deformable_detr.checkpoints.files import TensorFile, read_tensors
from deformable_detr.checkpoints.fit import build_from
from deformable_detr.checkpoints.report import Report
from deformable_detr.checkpoints.weights import Weights
from deformable_detr.config import Metadata
from deformable_detr.model import DeformableDETR

logger = logging.getLogger(__name__)

READERS: dict[str, Callable[[TensorFile], Weights]] = {
    "native": native.read,
    "official": official.read,
    "mmdet": mmdet.read,
    "mmdet 2.x": mmdet.read_version_2,
    "detrex": detrex.read,
    "huggingface": huggingface.read,
}
"""Layout → the function that gives its tensors our names."""

_TRAINING_STATE = ("optimizer", "lr_scheduler", "param_schedulers", "message_hub", "scheduler", "trainer")


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A detector, and how it came about."""

    model: DeformableDETR
    """With `.metadata` set."""

    report: Report
    """What became of every tensor of the file."""

    class_mapping: ClassMapping | None
    """Which class started from which; None when the classes are the file's own."""

    path: Path
    """The file that was read."""


def load_pretrained(
    source: str | Path,
    num_classes: int | None = None,
    classes: Sequence[str] | Categories | None = None,
    strict: bool = True,
    **settings: Any,
) -> DeformableDETR:
    """A detector from weights of any known layout.

    The layout, the variant and the numbers of classes and queries are read from the file. Pickled files are read with an
    allow-list: nothing in them is ever executed.

    Args:
        source: a file (ours, official, mmdetection 3.x or 2.x, detrex, transformers), a folder (a run of ours, a saved detector, a
            transformers model), or `hf://owner/name` or `owner/name` on the Hugging Face hub.
        num_classes: how many classes are wanted; None: as many as the file has.
        classes: their names. Rows of the class heads are kept for classes of the same name, the others start afresh.
        strict: every tensor must fit. Otherwise what does not fit keeps its initial value, with a warning.
        settings: what the file cannot show, such as `dilation=True` for a DC5 model, `num_heads`, `dropout`, or `num_queries`
            of a two-stage model. A setting that contradicts the file is an error. `revision` pins a version on the hub.

    Raises:
        FileNotFoundError: nothing there.
        ConnectionError: the hub cannot be reached, and the files are not in its cache.
        ValueError: the file is damaged, of an unknown layout, refused, or does not fit; the message names the tensors.
    """
    return load_checkpoint(source, num_classes, classes, strict, **settings).model


def load_checkpoint(
    source: str | Path,
    num_classes: int | None = None,
    classes: Sequence[str] | Categories | None = None,
    strict: bool = True,
    *,
    revision: str | None = None,
    **settings: Any,
) -> LoadedCheckpoint:
    """As :func:`load_pretrained`, with the report on what became of every tensor and class."""
    path = find_weights(source, revision)
    file = read_tensors(path)
    weights = read_weights(file)
    stale = [name for name in _TRAINING_STATE if name in file.extras]
    if stale:
        weights.report.notes.append(f"training state left behind: {', '.join(stale)}")
    metadata = describe(weights, settings, origin=path.name if Path(source).exists() else f"{source}, {path.parent.name}")
    wanted = _wanted_classes(classes, num_classes, metadata)
    mapping = None
    if wanted is not None:
        metadata, mapping = _change_classes(weights, metadata, wanted)
    model = build_from(weights, metadata, path, strict=strict)
    weights.report.mapped = len(weights.tensors) - len(weights.report.reshaped)
    return LoadedCheckpoint(model, weights.report, mapping, path)


def find_weights(source: str | Path, revision: str | None = None) -> Path:
    """The weights file that a path or the name of a model on the hub stands for.

    Raises:
        FileNotFoundError: no file, or a folder without weights.
        ConnectionError: the hub cannot be reached, and its cache does not have the model.
    """
    path = Path(source).expanduser()
    if not path.exists() and hub.is_hub_name(source):
        path = hub.download(str(source), revision)
    elif revision is not None:
        raise ValueError(f"revision={revision!r} is for models on the hub, but {source} is not one")
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"no weights at {path}")
        return path
    names = ("weights/best.safetensors", "weights/last.safetensors", "model.safetensors", "pytorch_model.bin")
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"no weights in the folder {path}: expected one of {', '.join(names)}")
    return found


def read_weights(file: TensorFile) -> Weights:
    """Give the tensors of a file our names.

    Raises:
        ValueError: an unknown layout.
    """
    return READERS[detect_layout(file)](file)


def detect_layout(file: TensorFile) -> str:
    """Which layout a file has, from the names of its tensors.

    Raises:
        ValueError: none that is known; the message says what it looks like.
    """
    if file.header.get("format") == native.FORMAT:
        return "native"
    names = file.tensors
    marks = {
        "native": ("neck.projections.", "query_source."),
        "mmdet 2.x": ("bbox_head.transformer.encoder.layers.0.attentions.0.", "neck."),
        "detrex": ("transformer.encoder.layers.0.attentions.0.sampling_offsets.", "neck."),
        "official": ("transformer.encoder.layers.0.self_attn.sampling_offsets.", "input_proj.0.0."),
        "mmdet": ("encoder.layers.0.self_attn.sampling_offsets.", "bbox_head."),
        "huggingface": ("model.encoder.layers.0.self_attn.sampling_offsets.", "model.input_proj.0.0."),
    }
    for layout, prefixes in marks.items():
        if all(any(name.startswith(prefix) for name in names) for prefix in prefixes):
            return layout
    raise ValueError(f"{file.path}: {_what_it_may_be(file)}")


def _what_it_may_be(file: TensorFile) -> str:
    names = list(file.tensors)
    shown = ", ".join(names[:3])
    if any("sampling_offsets" in name for name in names):
        return f"a relative of Deformable DETR, or an incomplete file: no known layout has these names ({shown}, …)"
    if any("in_proj_weight" in name or "q_proj" in name for name in names):
        return f"a transformer, but not a Deformable DETR: there is no tensor named sampling_offsets ({shown}, …)"
    if any(name.startswith(("layer1.", "conv1.", "stages")) for name in names):
        return f"weights of a backbone alone ({shown}, …): pass them as pretrained_backbone when building a model"
    return f"not a Deformable DETR ({len(names)} tensors: {shown}, …)"


def describe(weights: Weights, settings: dict[str, Any], origin: str) -> Metadata:
    """Settings, classes and image sizes of the network in a checkpoint."""
    config = infer_config(weights, settings)
    if weights.metadata is not None:
        return replace(weights.metadata, model=config)
    details: dict[str, Any] = {"categories": None} | weights.details
    named = details["categories"]
    if named is not None and len(named) != config.num_classes:
        details["categories"] = None
        weights.report.notes.append(f"the file names {len(named)} classes, but its heads have {config.num_classes}: names left out")
    training = {"source": origin, "layout": weights.report.source_format}
    return Metadata(model=config, training=training, **details)


def _wanted_classes(classes: Sequence[str] | Categories | None, num_classes: int | None, metadata: Metadata) -> Categories | None:
    """The classes that are asked for; None: those of the file."""
    if classes is not None:
        if isinstance(classes, str):
            raise ValueError(f"classes must be a list of names, not the text {classes!r}")
        wanted = classes if isinstance(classes, Categories) else Categories.from_names(list(classes))
        if not len(wanted):
            raise ValueError("classes is empty: name at least one")
        if num_classes is not None and num_classes != len(wanted):
            raise ValueError(f"num_classes is {num_classes}, but {len(wanted)} classes are named")
        return wanted
    if num_classes is None or num_classes == metadata.model.num_classes:
        return None
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    return default_categories(num_classes) if _is_coco(metadata.categories) else placeholder_classes(num_classes)


def _is_coco(categories: Categories | None) -> bool:
    return categories is not None and categories in (default_categories(80), default_categories(91))


def _change_classes(weights: Weights, metadata: Metadata, wanted: Categories) -> tuple[Metadata, ClassMapping]:
    mapping = map_classes(metadata.categories, metadata.model.num_classes, wanted)
    if metadata.categories is None and mapping.is_identity:
        logger.info("the file names no classes; its %d are taken to be, in this order: %s", len(wanted), ", ".join(wanted.names))
    if not mapping.is_identity:
        map_class_heads(weights, mapping)
        logger.info("%s", mapping)
    model = metadata.model.replace(num_classes=len(wanted))
    return replace(metadata, model=model, categories=wanted, thresholds=map_thresholds(metadata.thresholds, mapping)), mapping
