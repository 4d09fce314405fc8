"""A trained detector as a file that runs without this package (.pt2, ONNX, OpenVINO), and such files run from here."""

from deformable_detr.export.files import export_model
from deformable_detr.export.form import ExportForm
from deformable_detr.export.parity import ParityError
from deformable_detr.export.runtime import ExportedNetwork, load_exported

__all__ = ["ExportForm", "ExportedNetwork", "ParityError", "export_model", "load_exported"]
