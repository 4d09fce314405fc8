"""A trained detector as a file that runs without this package: torch.export (.pt2), ONNX, OpenVINO; and the same files run from here."""

from deformable_detr.export.files import export_model
from deformable_detr.export.form import ExportForm
from deformable_detr.export.parity import ParityError
from deformable_detr.export.runtime import ExportedNetwork, load_exported

__all__ = ["ExportForm", "ExportedNetwork", "ParityError", "export_model", "load_exported"]
