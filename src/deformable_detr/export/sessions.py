"""The programs that run exported files: each opens a file and gives its record and a function of arrays.

ImportError: the program is missing. ValueError: a file that it cannot run, or not one of a detector.
"""

import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from zlib import crc32

import numpy as np
import torch

from deformable_detr.checkpoints.weights import tensors_crc
from deformable_detr.export.exported_program import quiet
from deformable_detr.export.form import METADATA_KEY, ExportForm
from deformable_detr.export.onnx import graph_crc

Arrays = list[np.ndarray]
Session = Callable[[Arrays], Arrays]


def open_onnxruntime(path: Path) -> tuple[ExportForm, Session]:
    """A .onnx in onnxruntime, on a GPU where its build has one."""
    try:
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
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
    form.check_network(graph_crc(path), path)
    inputs = _in_order([({item.name}, item) for item in session.get_inputs()], form.inputs, path)
    outputs = [
        item.name for item in _in_order([({item.name}, item) for item in session.get_outputs()], form.outputs, path, spare=True)
    ]
    types = [_TYPES.get(item.type) for item in inputs]

    def run(arrays: Arrays) -> Arrays:
        given = {item.name: np.asarray(array, kind) for item, array, kind in zip(inputs, arrays, types, strict=True)}
        try:
            return [_single(np.asarray(output)) for output in session.run(outputs, given)]
        except InvalidArgument as error:
            raise ValueError(f"{path} does not take what its record says: {error}") from error

    return form, run


def open_openvino(path: Path) -> tuple[ExportForm, Session]:
    """An OpenVINO .xml (with its .bin beside it), or a .onnx, in OpenVINO."""
    try:
        import openvino
    except ImportError as error:
        raise ImportError('the runtime openvino needs OpenVINO: pip install "deformable-detr[openvino]"') from error
    core = openvino.Core()
    core.set_property({"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"})
    core.set_property({"ENABLE_MMAP": False})  # weights stay what they were when the file was read
    try:
        model = core.read_model(str(path))
        compiled = core.compile_model(model, "CPU")
    except RuntimeError as error:
        raise ValueError(f"OpenVINO cannot run {path}: {error}") from error
    where = [METADATA_KEY] if model.has_rt_info([METADATA_KEY]) else ["framework", METADATA_KEY]
    text = str(model.get_rt_info(where).value) if model.has_rt_info(where) else None
    form = ExportForm.from_json(text, path)
    if path.suffix.lower() == ".onnx":
        form.check_network(graph_crc(path), path)
    elif where == [METADATA_KEY]:  # other programs that convert a .onnx keep its record further inside
        weights = path.with_suffix(".bin")
        if form.weights_crc not in (None, crc32(weights.read_bytes())):
            raise ValueError(f"{weights} is not what {path.name} was written with: copy both files of one export")
    inputs = _in_order([(port.get_names(), place) for place, port in enumerate(model.inputs)], form.inputs, path)
    outputs = _in_order([(port.get_names(), place) for place, port in enumerate(model.outputs)], form.outputs, path)
    requests = threading.local()  # one would hand a thread the inputs and outputs of another

    def run(arrays: Arrays) -> Arrays:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        found = requests.own.infer(dict(zip(inputs, arrays, strict=True))).to_tuple()
        return [np.array(found[place]) for place in outputs]

    return form, run


def open_program(path: Path) -> tuple[ExportForm, Session]:
    """A .pt2 in PyTorch."""
    extra = {METADATA_KEY: ""}
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a .pt2, or it was cut off")
    try:
        with quiet(), torch.device("cpu"), path.open("rb") as file:  # one thread at a time, too
            program = torch.export.load(file, extra_files=extra)  # type: ignore[arg-type]
            network = program.module()
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a .pt2 that this PyTorch ({torch.__version__}) can read: {error}") from error
    form = ExportForm.from_json(extra[METADATA_KEY], path)
    form.check_network(tensors_crc(program.state_dict), path)

    def run(arrays: Arrays) -> Arrays:
        with torch.autocast("cpu", enabled=False):  # its types are written into it
            return [output.numpy() for output in network(*map(torch.from_numpy, arrays))]

    return form, run


_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_TYPES |= {"tensor(bool)": np.bool_, "tensor(uint8)": np.uint8}
"""onnxruntime's names of types. Other tools change those of inputs and outputs, to float16 mostly."""

_Port = TypeVar("_Port")


def _in_order(ports: Sequence[tuple[set[str], _Port]], wanted: Sequence[str], path: Path, spare: bool = False) -> list[_Port]:
    """Inputs or outputs of a file in the order of its record: by their names, or as they stand where other tools changed these.

    Args:
        ports: their names, and what stands for them.
        wanted: the names in the record.
        path: of the file.
        spare: there may be further ones.
    """
    named = [next((port for names, port in ports if name in names), None) for name in wanted]
    if all(port is not None for port in named) and (spare or len(ports) == len(wanted)):
        return [port for port in named if port is not None]
    if len(ports) != len(wanted):
        found = ", ".join("/".join(sorted(names)) or "one without a name" for names, _ in ports)
        raise ValueError(f"{path} has {found} where its record says {', '.join(wanted)}: it was changed after its export")
    return [port for _, port in ports]


def _single(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype in (np.float16, np.float64) else array


SESSIONS: dict[str, Callable[[Path], tuple[ExportForm, Session]]] = {
    "pt2": open_program,
    "onnx": open_onnxruntime,
    "openvino": open_openvino,
}
"""Runtime → the function that opens a file with it."""

SUFFIXES = {".pt2": "pt2", ".onnx": "onnx", ".xml": "openvino"}
"""Suffix of a file → the runtime that is taken for it when none is named."""
