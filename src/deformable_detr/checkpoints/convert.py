"""Weights of one layout → a file or folder of another, with a report on what became of every tensor."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from deformable_detr.categories import Categories
from deformable_detr.checkpoints import huggingface, mmdet, native, official
from deformable_detr.checkpoints.coco_classes import COCO_80, COCO_91
from deformable_detr.checkpoints.load import LoadedCheckpoint, load_checkpoint
from deformable_detr.checkpoints.report import Report
from deformable_detr.model import DeformableDETR

Layout = Literal["native", "official", "mmdet", "huggingface"]
ClassLayout = Literal["auto", "keep", "coco80", "coco91"]

_EXPECTED_CLASSES = {"official": COCO_91, "mmdet": COCO_80}
"""The COCO layout that a code base works with."""


def convert(
    source: str | Path,
    target: str | Path,
    to: Layout,
    *,
    classes: ClassLayout = "auto",
    neck_bias: bool = True,
    overwrite: bool = False,
    **settings: Any,
) -> Report:
    """Read weights of any known layout and write them in another.

    Args:
        source: as for `load_pretrained`.
        target: the file, or for `huggingface` the folder.
        to: the layout.
        classes: `coco80` and `coco91` change between the two layouts of COCO's classes; `auto` does so where the target's code
            works with the other one (official: 91, mmdetection: 80); `keep` never does.
        neck_bias: mmdetection only: keep the biases of the neck, which need `neck.bias=True` in its config. False drops them, and
            the report says how much the outputs change.
        overwrite: replace an existing target.
        settings: further keywords of `load_pretrained`, such as `dilation=True`.

    Raises:
        FileExistsError: there is something at `target`.
        ValueError: the source does not fit, or the target layout cannot express the network.
    """
    if to not in WRITERS:
        raise ValueError(f"unknown layout {to!r}; known are {', '.join(WRITERS)}")
    target = Path(target).expanduser()
    _check_target(target, to, overwrite)
    loaded = load_checkpoint(source, **settings)
    wanted = _classes_for(loaded.model.metadata.categories, to, classes)
    if wanted is not None:
        loaded = load_checkpoint(source, classes=wanted, **settings)
    report = Report(loaded.report.source_format, to)
    if to == "mmdet":
        mmdet.write(target, loaded.model, report, neck_bias=neck_bias)
    else:
        WRITERS[to](target, loaded.model, report)
    return _joined(loaded, report)


def _check_target(target: Path, to: Layout, overwrite: bool) -> None:
    wants_folder = to == "huggingface"
    if to in ("official", "mmdet") and target.suffix.lower() == ".safetensors":
        raise ValueError(f"{target}: the layout {to} is a pickle, which programs do not read under this name; name it .pth")
    if target.is_dir() and not wants_folder:
        raise ValueError(f"{target} is a folder, but the layout {to} is one file: give a file name")
    if wants_folder and target.is_file():
        raise ValueError(f"{target} is a file, but the layout huggingface is a folder: give a folder name")
    taken = (target / "model.safetensors").exists() if wants_folder else target.exists()
    if taken and not overwrite:
        raise FileExistsError(f"{target} exists: choose another name, or pass --overwrite")


def _classes_for(found: Categories | None, to: Layout, classes: ClassLayout) -> Categories | None:
    """The COCO layout to change to; None: leave the classes as they are."""
    if classes == "keep" or (classes == "auto" and to not in _EXPECTED_CLASSES):
        return None
    wanted = _EXPECTED_CLASSES[to] if classes == "auto" else {"coco80": COCO_80, "coco91": COCO_91}[classes]
    if found not in (COCO_80, COCO_91):
        if classes == "auto":
            return None
        raise ValueError(f"--classes {classes}: the source does not have COCO's classes")
    return None if found == wanted else wanted


WRITERS: dict[str, Callable[[Path, DeformableDETR, Report], None]] = {
    "native": native.write,
    "official": official.write,
    "mmdet": mmdet.write,
    "huggingface": huggingface.write,
}
"""Layout → the function that writes it."""


def _joined(loaded: LoadedCheckpoint, written: Report) -> Report:
    """Both ways, source → ours → target, as one report."""
    read = loaded.report
    kinds = ("reshaped", "dropped", "missing", "lossy", "notes")
    joined = replace(written, **{kind: getattr(read, kind) + getattr(written, kind) for kind in kinds})
    if loaded.class_mapping is not None:
        mapping = loaded.class_mapping
        joined.notes.append(f"classes: {mapping.num_old_classes} → {len(mapping.classes)}, {len(mapping.kept)} kept by name")
    return joined
