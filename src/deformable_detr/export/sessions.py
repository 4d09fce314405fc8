"""The programs that run exported files: each opens a file and gives its record and a function of arrays."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from deformable_detr.export.form import METADATA_KEY, ExportForm

Arrays = list[np.ndarray]
Session = Callable[[Arrays], Arrays]


def open_onnxruntime(path: Path) -> tuple[ExportForm, Session]:
    """A .onnx in onnxruntime, on a GPU where its build has one.

    Raises:
        ImportError: onnxruntime is missing.
        ValueError: not an ONNX file, or not one of a detector.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError('the runtime onnx needs onnxruntime: pip install "deformable-detr[onnx]"') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise ValueError(f"onnxruntime cannot read {path}: {error}") from error
    form = ExportForm.from_json(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), path)
    names = [item.name for item in session.get_inputs()]
    return form, lambda arrays: list(session.run(None, dict(zip(names, arrays, strict=True))))  # type: ignore[arg-type]


def open_openvino(path: Path) -> tuple[ExportForm, Session]:
    """An OpenVINO .xml (with its .bin beside it), or a .onnx, in OpenVINO.

    Raises:
        ImportError: OpenVINO is missing.
        ValueError: not a model file, or not one of a detector.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError('the runtime openvino needs OpenVINO: pip install "deformable-detr[openvino]"') from error
    core = openvino.Core()
    core.set_property({"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"})
    try:
        model = core.read_model(str(path))
        compiled = core.compile_model(model, "CPU")
    except RuntimeError as error:
        raise ValueError(f"OpenVINO cannot run {path}: {error}") from error
    where = [METADATA_KEY] if model.has_rt_info([METADATA_KEY]) else ["framework", METADATA_KEY]
    text = str(model.get_rt_info(where).value) if model.has_rt_info(where) else None
    form = ExportForm.from_json(text, path)
    return form, lambda arrays: [np.array(array) for array in compiled(arrays).to_tuple()]


def open_program(path: Path) -> tuple[ExportForm, Session]:
    """A .pt2 in PyTorch.

    Raises:
        ValueError: not a .pt2, or not one of a detector.
    """
    extra = {METADATA_KEY: ""}
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            program = torch.export.load(file, extra_files=extra).module()  # type: ignore[arg-type]
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a .pt2 that this PyTorch ({torch.__version__}) can read: {error}") from error
    form = ExportForm.from_json(extra[METADATA_KEY], path)
    return form, lambda arrays: [output.numpy() for output in program(*map(torch.from_numpy, arrays))]


SESSIONS: dict[str, Callable[[Path], tuple[ExportForm, Session]]] = {
    "pt2": open_program,
    "onnx": open_onnxruntime,
    "openvino": open_openvino,
}
"""Runtime → the function that opens a file with it."""

SUFFIXES = {".pt2": "pt2", ".onnx": "onnx", ".xml": "openvino"}
"""Suffix of a file → the runtime that is taken for it when none is named."""
