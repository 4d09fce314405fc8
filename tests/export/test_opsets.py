"""Versions of ONNX's operators. Whole detectors are exported in 17 and 20 (test_files.py), and 23 (tests/cli/test_export.py)."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformable_detr.config import Metadata
from deformable_detr.export.exported_program import trace
from deformable_detr.export.form import ExportForm
from deformable_detr.export.onnx import to_onnx
from deformable_detr.presets import model_preset
from deformable_detr.structures import ImageBatch


class Pieces(nn.Module):
    """What the opsets write differently: group norm, resizing, pieces, reductions, sampling, self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.group_norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.attention, self.layer_norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        features = self.group_norm(self.convolution(images))
        free = F.interpolate((~padding_mask)[:, None].float(), size=(5, 6), mode="nearest")
        queries = self.layer_norm(features.flatten(2).transpose(1, 2))
        talked, _ = self.attention(queries, queries, queries, need_weights=False)
        boxes, _ = talked.sigmoid().chunk(2, -1)
        places = 2 * boxes[:, None, :, :2] - talked.amin((1, 2), keepdim=True)[..., None]
        sampled = F.grid_sample(features, places, mode="bilinear", padding_mode="zeros", align_corners=False)
        return sampled[:, :, 0].transpose(1, 2) + free.amax((1, 2, 3))[:, None, None], boxes


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    network = Pieces().eval().requires_grad_(False)
    batch = ImageBatch.from_images([torch.randn(3, 10, 12), torch.randn(3, 9, 8)])
    form = ExportForm(Metadata(model_preset("tiny")), size=(10, 12), batch_size=2)
    expected = network(batch.images, batch.padding_mask)
    return trace(network, form, batch), form, {"images": batch.images, "padding_mask": batch.padding_mask}, expected


@pytest.mark.parametrize("opset", [19, 21])  # between those, where the translator begins to write other operators
def test_an_opset_computes_the_same(opset, traced):
    program, form, inputs, expected = traced
    proto = to_onnx(program, replace(form, opset=opset))
    onnx.checker.check_model(proto, full_check=True)
    assert [(one.domain, one.version) for one in proto.opset_import] == [("", opset)]
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one), other.numpy(), atol=1e-5)
