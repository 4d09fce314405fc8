"""Looking inside, describing and exporting works for the presets of later models, and shows their own ranking of proposals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deformable_detr.acceleration.model import InferenceModel
from deformable_detr.boxes import cxcywh_to_xyxy
from deformable_detr.export.files import export_model
from deformable_detr.export.network import exportable_network, plain_network
from deformable_detr.model import DeformableDETR, build_model
from deformable_detr.visualize import look_inside
from deformable_detr.visualize.inside.description import describe
from deformable_detr.visualize.pages.explanation import explain

SMALL = {"hidden_dim": 32, "num_heads": 4, "num_encoder_layers": 1, "num_decoder_layers": 2, "ffn_dim": 32, "num_queries": 6}
RESNET = {"backbone": "resnet18", "backbone_options": {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}}
SWIN = {"backbone_options": {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 4, "img_size": 64}}
VIT = {"backbone": "vit_tiny_patch16_224", "backbone_options": {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 64}}
TRACED = ["r50-hdetr", "swin-t-hdetr", "r50-fast", "vit-dino"]  # the others are made of parts of these; r50-dino goes to ONNX
PRESETS = ["r50-plus", "r50-hdetr", "r50-dino", "r50-dino-5scale", "swin-l-dino", "swin-t-hdetr", "r50-fast", "vit-dino"]


def small_model(preset: str) -> DeformableDETR:
    torch.manual_seed(0)
    backbone = next((settings for name, settings in {"swin": SWIN, "vit": VIT}.items() if name in preset), RESNET)
    settings: dict[str, Any] = {**SMALL, **backbone, "num_classes": 3, "pretrained_backbone": False}
    model = build_model(preset.replace("vit-", "r50-"), **settings)
    model.metadata = replace(model.metadata, eval_short_side=96, max_long_side=128)
    with torch.no_grad():
        for parameter in model.query_source.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)  # so that classes are ranked otherwise than objectness
    return model.eval()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_shown_proposals_are_those_that_became_queries(preset: str) -> None:
    inside = look_inside(small_model(preset), torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8))
    assert inside.proposals is not None
    assert len(inside.proposals.objectness) == len(inside.proposals.boxes) == inside.flat.features.shape[1]
    shares = inside.proposals.boxes[inside.proposals.taken] / torch.tensor([128.0, 96.0, 128.0, 96.0])
    torch.testing.assert_close(shares, cxcywh_to_xyxy(inside.queries.reference_points[0]), rtol=0, atol=1e-5)
    assert explain(inside, inside.detections(top_k=1)[0].query).origin
    taken = inside.proposals.objectness[inside.proposals.taken]
    assert (taken[:-1] >= taken[1:]).all() and taken.min() >= inside.proposals.objectness.sort(descending=True).values[5]


@pytest.mark.parametrize("preset", PRESETS)
def test_describing_and_optimizing(preset: str) -> None:
    model = small_model(preset)
    assert describe(model, torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)).rows
    image = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        expected = plain_network(model)(image, torch.zeros(1, 96, 128, dtype=torch.bool))
        fast = InferenceModel(model)([image[0]])
    torch.testing.assert_close((fast.logits[-1], fast.boxes[-1]), expected, rtol=1e-4, atol=1e-5)


def test_levels_of_a_plain_transformer_are_described_as_they_are_made() -> None:
    """The neck makes three levels of its one map, and a fourth one of the last of these."""
    rows = describe(small_model("vit-dino"), torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)).rows
    notes = [row.note for row in rows if row.part == "neck"]
    assert notes == [*["1x1 convolution, GroupNorm"] * 3, "3x3 convolution, stride 2, GroupNorm"]


@pytest.mark.parametrize("preset", TRACED)
def test_exporting(preset: str) -> None:
    plain = plain_network(small_model(preset))
    inputs = torch.randn(1, 3, 96, 128), torch.zeros(1, 96, 128, dtype=torch.bool)
    with torch.no_grad():
        exported = torch.export.export(exportable_network(plain), inputs).module()(*inputs)
        torch.testing.assert_close(tuple(exported), plain(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_onnx_gives_the_same(tmp_path: Path) -> None:
    """Exporting runs the file and compares it with the network. One preset, since each takes many seconds."""
    export_model(small_model("r50-dino"), tmp_path / "a.onnx", size=(96, 128), batch_size=1)
    assert (tmp_path / "a.onnx").is_file()
