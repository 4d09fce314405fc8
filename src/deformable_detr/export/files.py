"""Model → exported file: trace, translate, write, and keep the file only if it computes what the model computes."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deformable_detr.export.exported_program import save_program, trace
from deformable_detr.export.form import ExportForm, smallest_side
from deformable_detr.export.network import exportable_network, plain_network
from deformable_detr.export.onnx import OPSETS, save_onnx, save_openvino, to_onnx
from deformable_detr.export.parity import Difference, assert_parity, parity_batches
from deformable_detr.export.preprocessing import assert_preparation, put_in_front
from deformable_detr.export.sessions import SESSIONS, SUFFIXES, Session
from deformable_detr.model.plain import network_of
from deformable_detr.schema import plain_numbers
from deformable_detr.structures import ImageBatch


@torch.autocast("cpu", enabled=False)  # neither is to be written into the file
@torch.inference_mode(False)
def export_model(
    model: nn.Module,
    path: str | Path,
    *,
    padding_mask: bool = True,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    grid_sample: bool = True,
    preprocess: bool = False,
    top_k: int | None = None,
    opset: int = 20,
) -> Difference:
    """Write a detector to a file that runs without this package.

    The file is run at once, on drawn scenes of several sizes and batches, padded ones too. It appears under its name only if
    its scores and boxes are those of the model (to 1e-4).

    Args:
        model: the detector.
        path: the suffix says what is written: `.pt2` (torch.export), `.onnx`, or `.xml` (OpenVINO; the weights go to a `.bin`
            beside it). An existing file is replaced.
        padding_mask: give the model a second input that says where a batch is padded. False: one input.
        size: fix the canvas to this (height, width). None: any size.
        batch_size: fix the number of images per run. None: any number.
        grid_sample: False writes the operator as gather and arithmetic, for runtimes whose GridSample is slow or wrong.
        preprocess: put resizing and normalisation inside: decoded images `[B, H, W, 3]` uint8 RGB in, no mask. Not for .pt2.
        opset: version of the operators of an .onnx, 17 to 23.
        top_k: put the choice of the best detections inside. None: logits and boxes of all queries out.

    Returns:
        How far the file is from the model.

    Raises:
        ImportError: a package that writes or runs the format is missing.
        ParityError: the file computed something else; it is not kept.
        TypeError: a number of another kind, or a model without weights to write: quantised, or that of an exported file.
        ValueError: an unknown suffix, or a size that the model cannot take.
    """
    path, suffix, model = Path(path), Path(path).suffix.lower(), network_of(model)
    smallest = smallest_side(model.metadata.model)
    batch_size, top_k, opset = plain_numbers("a whole number", Integral, int, batch_size=batch_size, top_k=top_k, opset=opset)
    if size is not None:
        sides = {f"side {index} of size": side for index, side in enumerate(size)}
        size = tuple(plain_numbers("a whole number", Integral, int, **sides))
    _check(path, size, smallest)
    if opset not in OPSETS or (opset != 20 and suffix != ".onnx"):
        raise ValueError(f"opset is for .onnx, from {OPSETS[0]} to {OPSETS[-1]}, not {opset}")
    if preprocess and (size is not None or suffix == ".pt2"):
        raise ValueError("preprocess is for .onnx and .xml, and the images decide the size: leave out size")
    padding_mask = padding_mask and not preprocess
    form = ExportForm(model.metadata, padding_mask, size, batch_size, grid_sample, opset=opset, top_k=top_k, smallest_side=smallest)
    plain = plain_network(model)
    batches = parity_batches(form)
    program = trace(exportable_network(plain, top_k), form, batches[0 if form.size else 1])
    translated: Any = program if suffix == ".pt2" else to_onnx(program, form)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        partial, open_session = Path(folder) / path.name, SESSIONS[SUFFIXES[suffix]]
        WRITERS[suffix](partial, translated, form)
        _, session = open_session(partial)
        worst = assert_parity(lambda batch: run_session(session, form, batch), plain, batches, path.name)
        if preprocess:
            WRITERS[suffix](partial, put_in_front(translated, form), replace(form, preprocess=True))
            assert_preparation(open_session(partial)[1], session, form, path.name)
        for file in sorted(partial.parent.iterdir(), key=lambda file: file == partial):  # the weights first
            file.replace(path.parent / file.name)
    return worst


def run_session(session: Session, form: ExportForm, batch: ImageBatch) -> list[Tensor]:
    """The outputs of an exported model for a padded batch."""
    return [torch.from_numpy(output) for output in session([tensor.numpy() for tensor in form.given(batch)])]


WRITERS: dict[str, Callable[[Path, Any, ExportForm], None]] = {
    ".pt2": save_program,
    ".onnx": save_onnx,
    ".xml": save_openvino,
}
"""Suffix → the function that writes a traced (.pt2) or translated model."""


def _check(path: Path, size: tuple[int, int] | None, smallest: int) -> None:
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"the suffix says what is written, {', '.join(WRITERS)}, but {path.name} has {path.suffix or 'none'}")
    if size is not None and (len(size) != 2 or min(size) < smallest):
        raise ValueError(f"size must be a height and a width of at least {smallest} pixels for this model, not {size}")
