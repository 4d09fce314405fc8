"""Loading weights of every layout: `load_pretrained` examines the file and chooses the reader."""

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from deformable_detr.categories import Categories
from deformable_detr.checkpoints import detrex, hub, huggingface, mmdet, native, official
from deformable_detr.checkpoints.adapters import ADAPTER_NAME, read_adapter
from deformable_detr.checkpoints.architecture import infer_config
from deformable_detr.checkpoints.class_mapping import ClassMapping, map_class_heads, map_classes, map_thresholds
from deformable_detr.checkpoints.coco_classes import default_categories
from deformable_detr.checkpoints.families import is_dino
from deformable_detr.checkpoints.fit import build_from
from deformable_detr.checkpoints.published import PUBLISHED, fetch, settings_of
from deformable_detr.checkpoints.report import Report, shorten
from deformable_detr.checkpoints.side_records import read_side_records
from deformable_detr.checkpoints.state_dicts import select_state_dict
from deformable_detr.checkpoints.tensor_files import TensorFile, read_tensors, shard_names
from deformable_detr.checkpoints.weights import Weights
from deformable_detr.class_names import NO_CLASS, normalise_name
from deformable_detr.config import Metadata
from deformable_detr.model import DeformableDETR
from deformable_detr.schema import plain_numbers

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

_FOLDER_NAMES = ("weights/best.safetensors", "weights/last.safetensors", "model.safetensors", "model.safetensors.index.json")
_FOLDER_NAMES += ("model.fp16.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", ADAPTER_NAME)
"""What weights are called in a folder, best first."""

_COCO_BY_NUMBER = ("official", "mmdet", "mmdet 2.x", "detrex")
"""Layouts in which 80 or 91 classes without names are COCO's."""


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A detector, and the reports of its loading."""

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
    ema: bool | None = None,
    **settings: Any,
) -> DeformableDETR:
    """A detector from weights of any known layout.

    The layout, the variant and the numbers of classes and queries are read from the file. Pickled files are read with an
    allow-list: nothing in them is ever executed.

    Args:
        source: a file (ours, official, mmdetection 3.x or 2.x, detrex, transformers), a folder (a run of ours, a saved detector, a
            transformers model, an adapter of peft), `hf://owner/name` or `owner/name` on the Hugging Face hub, or the short name of
            published weights (docs/model-zoo.md), such as `r50-two-stage-coco`.
        num_classes: how many classes are wanted; None: as many as the file has.
        classes: their names. Rows of the class heads are kept for classes of the same name, the others start afresh.
        strict: every tensor must fit. Otherwise what does not fit keeps its initial value, with a warning.
        ema: where a file holds EMA weights beside those without averaging: True takes the first, False the others, None what
            the file itself calls its model. The report says what was taken.
        settings: what the file cannot show, such as `dilation=True` for a DC5 model, `num_heads`, `dropout`, or `num_queries`
            of a two-stage model. A setting that contradicts the file is an error. `revision` pins a version on the hub.

    Raises:
        FileNotFoundError: nothing there.
        ConnectionError: the hub cannot be reached, and the files are not in its cache.
        ValueError: the file is damaged, of an unknown layout, refused, or does not fit; the message names the tensors.
    """
    return load_checkpoint(source, num_classes, classes, strict, ema, **settings).model


@torch.inference_mode(False)  # the weights can be trained wherever they are loaded
def load_checkpoint(
    source: str | Path,
    num_classes: int | None = None,
    classes: Sequence[str] | Categories | None = None,
    strict: bool = True,
    ema: bool | None = None,
    *,
    revision: str | None = None,
    **settings: Any,
) -> LoadedCheckpoint:
    """As :func:`load_pretrained`, with the report on what became of every tensor and class."""
    path = find_weights(source, revision)
    adapter = path.name == ADAPTER_NAME
    weights = _of_the_kind(read_adapter(path, load_pretrained), ema, path) if adapter else read_weights(read_tensors(path), ema)
    metadata = describe(weights, settings, origin=path.name if Path(source).exists() else f"{source}, {path.parent.name}")
    _refuse(weights, path, strict)
    if Path(source).is_dir() and (others := _others_beside(path)):
        weights.report.notes.append(f"read: {path.name}; left: {', '.join(others)} beside it")
        logger.info("%s: %s", path.parent, weights.report.notes[-1])
    wanted = _wanted_classes(classes, num_classes, metadata)
    mapping = None
    if wanted is not None:
        metadata, mapping = _change_classes(weights, metadata, wanted)
    model = build_from(weights, metadata, path, strict=strict)
    weights.report.mapped = len(weights.tensors) - len(weights.report.reshaped)
    return LoadedCheckpoint(model, weights.report, mapping, path)


def _refuse(weights: Weights, path: Path, strict: bool) -> None:
    reasons = "\n  ".join(weights.refused)
    if reasons and strict:
        raise ValueError(f"{path} asks for what this network has not (strict=False reads it all the same):\n  {reasons}")
    if reasons:
        logger.warning("%s: what this network has not is left out:\n  %s", path, reasons)


def find_weights(source: str | Path, revision: str | None = None) -> Path:
    """The weights file that a path, a short name of published weights or the name of a model on the hub refers to.

    Raises:
        FileNotFoundError: no file, or a folder without weights.
        ConnectionError: the hub cannot be reached, and its cache does not have the model.
    """
    path = Path(source).expanduser()
    short = None if path.exists() else PUBLISHED.get(str(source))
    if short is not None and short.address.startswith("hf://"):
        source = short.address
    if short is not None and source != short.address:
        path = fetch(str(source))
    elif not path.exists() and hub.is_hub_name(source):
        path = hub.download(str(source), revision)
    elif revision is not None:
        raise ValueError(f"revision={revision!r} is for models on the hub, but {source} is not one")
    if not path.is_dir():
        if not path.exists():
            near = difflib.get_close_matches(str(source), PUBLISHED, n=3)
            raise FileNotFoundError(f"no weights at {path}" + (f"; published weights are called {', '.join(near)}" if near else ""))
        return path
    found = next((path / name for name in _FOLDER_NAMES if (path / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"no weights in the folder {path}: {_what_folder(path)}")
    return found


def _others_beside(path: Path) -> list[str]:
    """Further weights of a folder from which one file was chosen; not those of a run, of which the best are meant."""
    present = [path.parent / name for name in _FOLDER_NAMES if "/" not in name and name not in (path.name, ADAPTER_NAME)]
    present = [other for other in present if other.is_file()]
    return [other.name for other in present if other.suffix != ".json" or path.name not in shard_names(other)]


def _what_folder(folder: Path) -> str:
    """What a folder without weights of ours seems to be."""
    if (folder / "adapter_config.json").is_file():
        return f"it holds an adapter of peft, but no {ADAPTER_NAME}: save it as safetensors"
    if (folder / "saved_model.pb").is_file():
        return "it holds a TensorFlow SavedModel: pass the PyTorch or safetensors weights that it was made from"
    if any(folder.glob("*.distcp")):
        return "it holds a distributed checkpoint: join it (python -m torch.distributed.checkpoint.format_utils dcp_to_torch)"
    kinds = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".onnx", ".xml", ".pt2")
    inside = [*folder.glob("*"), *folder.glob("*/*")]
    files = sorted(file.relative_to(folder).as_posix() for file in inside if file.suffix in kinds)
    if files:
        return f"which of its files is meant ({shorten(files, 5)})? Name it"
    return f"expected one of {', '.join(_FOLDER_NAMES)}"


def read_weights(file: TensorFile, ema: bool | None = None) -> Weights:
    """Find the weights of the model in a file, give its tensors our names, and read what is said beside them.

    Args:
        file: everything in it.
        ema: as for :func:`load_pretrained`.

    Raises:
        ValueError: an unknown layout, or no weights of the kind that `ema` asks for.
    """
    if file.header.get("format") == native.FORMAT:
        return _of_the_kind(native.read(file), ema, file.path)
    file, layout, notes = select_state_dict(file, ema)
    weights = READERS[layout](file)
    weights.report.notes += notes
    if weights.metadata is None:
        read_side_records(weights, file.extras)
        if layout in _COCO_BY_NUMBER:
            num_classes = len(weights.tensors.get("class_heads.0.bias", ()))
            weights.details.setdefault("categories", default_categories(num_classes))
        if weights.settings.get("two_stage"):
            weights.settings = settings_of(file.path.name, dino=is_dino(weights)) | weights.settings
    for note in weights.report.notes:
        logger.info("%s: %s", file.path, note)
    for loss in weights.report.lossy:
        logger.warning("%s: %s", file.path, loss)
    return weights


def _of_the_kind(weights: Weights, ema: bool | None, path: Path) -> Weights:
    """Weights of a file of ours, which has one set of them and says which."""
    averaged = bool(weights.metadata is not None and (weights.metadata.training or {}).get("ema"))
    if ema is not None and ema is not averaged:
        wanted = "EMA weights" if ema else "weights without averaging"
        said = "EMA weights" if averaged else "not said to be EMA weights"
        raise ValueError(f"{path} holds no {wanted} (ema={ema}): its only ones are {said}")
    return weights


def describe(weights: Weights, settings: dict[str, Any], origin: str) -> Metadata:
    """Settings, classes and image sizes of the model in a checkpoint."""
    config = infer_config(weights, settings)
    for entry, setting, value in weights.stated:
        if setting not in settings and not _is_stated(getattr(config, setting), value):
            weights.refused.append(f"config.json: {entry} is {value!r}, but the network has {setting} {getattr(config, setting)!r}")
    if weights.metadata is not None:
        return replace(weights.metadata, model=config)
    details: dict[str, Any] = {"categories": None} | weights.details
    named = details["categories"]
    if named is not None and len(named) != config.num_classes:
        details["categories"] = None
        weights.report.notes.append(f"the file names {len(named)} classes, but its heads have {config.num_classes}: names left out")
    training = {"source": origin, "layout": weights.report.source_format}
    return Metadata(model=config, training=training, **details)


def _is_stated(built: Any, value: Any) -> bool:
    """Whether a setting is what a config says; names of backbones may leave out which weights they came from."""
    return built == value or (isinstance(built, str) and isinstance(value, str) and built.split(".")[0] == value.split(".")[0])


def _wanted_classes(classes: Sequence[str] | Categories | None, num_classes: int | None, metadata: Metadata) -> Categories | None:
    """The classes that are asked for; None: those of the file."""
    (num_classes,) = plain_numbers("a whole number", Integral, int, num_classes=num_classes)
    if classes is not None:
        if isinstance(classes, str):
            raise ValueError(f"classes must be a list of names, not the text {classes!r}")
        if not isinstance(classes, Categories) and not all(isinstance(name, str) for name in classes):
            raise ValueError(f"classes must be a list of names, each a text, not {classes!r}")
        wanted = classes if isinstance(classes, Categories) else Categories.from_names(list(classes))
        if wanted is not classes:
            _check_distinct(wanted.names)
        if not len(wanted):
            raise ValueError("classes is empty: name at least one")
        if num_classes is not None and num_classes != len(wanted):
            raise ValueError(f"num_classes is {num_classes}, but {len(wanted)} classes are named")
        return wanted
    if num_classes is None or num_classes == metadata.model.num_classes:
        return None
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    is_coco = metadata.categories in (default_categories(80), default_categories(91))
    return default_categories(num_classes) if is_coco else Categories.unnamed(num_classes)


def _check_distinct(names: Sequence[str]) -> None:
    """See that no two names mean one class."""
    first: dict[str, str] = {}
    for name in names:
        key = normalise_name(name)
        if name != NO_CLASS and key in first:
            raise ValueError(f"classes has {first[key]!r} and {name!r}, which are one name: a class must be named once")
        first[key] = name


def _change_classes(weights: Weights, metadata: Metadata, wanted: Categories) -> tuple[Metadata, ClassMapping]:
    mapping = map_classes(metadata.categories, metadata.model.num_classes, wanted)
    if metadata.categories is None and mapping.is_identity:
        logger.info("the file names no classes; its %d are taken to be, in this order: %s", len(wanted), ", ".join(wanted.names))
    if not mapping.is_identity:
        map_class_heads(weights, mapping, proposal_classes=metadata.model.proposal_classes)
        logger.info("%s", mapping)
    model = metadata.model.replace(num_classes=len(wanted))
    return replace(metadata, model=model, categories=wanted, thresholds=map_thresholds(metadata.thresholds, mapping)), mapping
