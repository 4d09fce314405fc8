"""Networks without numbers have the tensors of those with numbers; what is not theirs is computed as ever."""

import pytest
import torch
from torch import nn

from deformable_detr.model import build_model
from deformable_detr.model.skeleton import skeletons


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "tiny"},
        {"preset": "demo-fast"},
        {"preset": "r50-two-stage"},
        {"preset": "tiny", "backbone": "swin_tiny_patch4_window7_224", "backbone_norm": True, "backbone_options": {}},
        {"preset": "tiny", "backbone": "convnext_atto", "backbone_norm": True, "backbone_options": {}},
        {"preset": "tiny", "backbone": "vit_tiny_patch16_224", "backbone_options": {}},
    ],
)
def test_a_skeleton_has_the_tensors_of_a_network(settings: dict) -> None:
    before = torch.random.get_rng_state()
    with skeletons():
        skeleton = build_model(**settings, pretrained_backbone=False)
    assert torch.equal(torch.random.get_rng_state(), before)
    network = build_model(**settings, pretrained_backbone=False)
    found, expected = skeleton.state_dict(), network.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].is_meta and (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype), name
    assert [p.requires_grad for p in skeleton.parameters()] == [p.requires_grad for p in network.parameters()]


def test_tensors_with_numbers_are_filled_meanwhile() -> None:
    drawn = torch.randn(50, generator=torch.Generator().manual_seed(3))
    weight = torch.zeros(50)
    with skeletons():
        nn.init.normal_(weight, generator=torch.Generator().manual_seed(3))
        again = torch.randn(50, generator=torch.Generator("cpu").manual_seed(3), device="cpu")
        on_the_cpu = torch.randn(50, device="cpu")
        assert torch.zeros(3).normal_().is_meta
    assert torch.equal(weight, drawn) and torch.equal(again, drawn)
    assert on_the_cpu.std() > 0.5
