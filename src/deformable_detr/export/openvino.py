"""OpenVINO: the ONNX graph as OpenVINO's own files, a .xml with a .bin beside it."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

from deformable_detr.export.form import METADATA_KEY, ExportForm
from deformable_detr.export.onnx import save_onnx

if TYPE_CHECKING:
    import onnx


def save_openvino(path: Path, proto: "onnx.ModelProto", form: ExportForm) -> None:
    """Convert, and write with the record of the detector in `rt_info`; the weights stay float32.

    Raises:
        ImportError: OpenVINO is missing.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError('writing OpenVINO files needs the package openvino: pip install "deformable-detr[openvino]"') from error
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source = Path(folder) / "network.onnx"
        save_onnx(source, proto, form)
        model = openvino.convert_model(str(source))
        openvino.save_model(model, str(path), compress_to_fp16=False)
        form = replace(form, weights_crc=crc32(path.with_suffix(".bin").read_bytes()))
        model.set_rt_info(form.to_json(), [METADATA_KEY])
        openvino.save_model(model, str(path), compress_to_fp16=False)
