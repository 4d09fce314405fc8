"""Plain Vision Transformers: levels from one map, images of any size, learning rates by layer."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from deformable_detr.criterion import SetCriterion
from deformable_detr.model import build_model
from deformable_detr.model.neck import ChannelMapper
from deformable_detr.model.plain_backbone import PlainBackbone, SimpleFeaturePyramid, is_plain
from deformable_detr.structures import ImageBatch, Target
from deformable_detr.training.memory import set_gradient_checkpointing
from deformable_detr.training.optimizer import build_optimizer

SMALL: dict[str, Any] = {"hidden_dim": 32, "num_heads": 4, "num_encoder_layers": 1, "num_decoder_layers": 2, "ffn_dim": 32}
VITS = {
    "vit_tiny_patch16_224": {"embed_dim": 16, "depth": 3, "num_heads": 2, "img_size": 64},
    "vit_small_patch14_dinov2": {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 56},
    "vit_small_patch16_dinov3": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64},
}


def detector(name: str, preset: str = "r50-two-stage", **settings: Any) -> Any:
    torch.manual_seed(0)
    options: Any = {"backbone": name, "backbone_options": VITS[name], "pretrained_backbone": False, "num_queries": 5}
    return build_model(preset, num_classes=3, **{**SMALL, **options, **settings})


@pytest.mark.parametrize("name", VITS)
def test_a_detector_on_a_plain_vit_trains_on_odd_sizes(name: str) -> None:
    model = detector(name, "r50-dino", denoising_queries=50)
    sizes = [(75, 101), (64, 90)]
    images = ImageBatch.from_images([torch.randn(3, *size) for size in sizes])
    targets = [Target(torch.tensor([[0.5, 0.5, 0.2, 0.3]]), torch.tensor([1])) for _ in sizes]
    criterion = SetCriterion.from_config(model.metadata.model)
    criterion.weighted_sum(criterion(model.train()(images, targets), targets)).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert all("cls_token" in name or "reg_token" in name or "mask_token" in name for name in missing), missing
    levels = model.neck(model.backbone(images.images))
    stride = model.backbone.strides[0]
    rows, columns = -(-75 // stride), -(-101 // stride)
    expected = [(2 * rows, 2 * columns), (rows, columns), (-(-rows // 2), -(-columns // 2))]
    assert [tuple(level.shape[2:]) for level in levels[:3]] == expected and len(levels) == 4
    model.eval()
    with torch.no_grad():  # an image's boxes do not depend on its neighbour
        both, alone = model(images), model([images.images[1, :, :64, :90]])
    torch.testing.assert_close(both.boxes[:, 1:], alone.boxes, rtol=1e-4, atol=1e-4)


def test_pyramid_by_definition() -> None:
    torch.manual_seed(0)
    pyramid, source = SimpleFeaturePyramid(8, 4).double(), torch.randn(1, 8, 3, 5, dtype=torch.float64)
    quarter, half, same, coarse = pyramid([source])
    assert [level.shape[1] for level in (quarter, half, same, coarse)] == pyramid.channels == [2, 4, 8, 8]
    assert torch.equal(same, source)
    expected = F.pad(source, (0, 1, 0, 1), value=-torch.inf).unflatten(3, (3, 2)).unflatten(2, (2, 2)).amax((3, 5))
    assert torch.equal(coarse, expected)

    def twice(x: torch.Tensor, layer: Any) -> torch.Tensor:
        """A transposed 2×2 convolution of stride 2: each pixel becomes a block of four."""
        blocks = torch.einsum("bchw,coyx->bohywx", x, layer.weight) + layer.bias[None, :, None, None, None, None]
        return blocks.flatten(4, 5).flatten(2, 3)

    torch.testing.assert_close(half, twice(source, pyramid.levels[1]))
    first, norm, _, second = pyramid.levels[0]  # type: ignore[misc]
    between = twice(source, first)
    centred = between - between.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(quarter, twice(F.gelu(normed), second))


@pytest.mark.parametrize(("levels", "stages", "sides"), [(1, 3, [8]), (3, 3, [16, 8, 4]), (5, 4, [32, 16, 8, 4, 2])])
def test_levels(levels: int, stages: int, sides: list[int]) -> None:
    model = detector("vit_tiny_patch16_224", num_feature_levels=levels, backbone_levels=stages)
    assert [level.shape[-1] for level in model.neck(model.backbone(torch.randn(1, 3, 128, 128)))] == sides


def test_learning_rates_fall_from_layer_to_layer() -> None:
    model = detector("vit_tiny_patch16_224")
    assert (type(model.backbone), type(model.neck)) == (PlainBackbone, ChannelMapper)
    groups = {group["name"]: group for group in build_optimizer(model, lr=1.0, backbone_layer_decay=0.5).param_groups}
    rates = [groups[name]["lr"] for name in sorted(groups) if name.startswith("backbone.")]
    assert all(later == pytest.approx(2 * earlier) for earlier, later in pairwise(rates)) and len(rates) >= 4
    of = {parameter: group["lr"] for group in groups.values() for parameter in group["params"]}
    body: Any = model.backbone.body
    body = body.model
    assert of[body.patch_embed.proj.weight] == min(rates)
    assert of[body.blocks[2].mlp.fc1.weight] == 2 * of[body.blocks[1].mlp.fc1.weight] == 4 * of[body.blocks[0].mlp.fc1.weight]
    assert of[next(model.neck.pyramid.parameters())] == 1.0
    assert len(of) == sum(parameter.requires_grad for parameter in model.parameters())


def test_a_frozen_vit_and_one_that_computes_again() -> None:
    model = detector("vit_tiny_patch16_224", frozen_backbone_stages=5)
    set_gradient_checkpointing(model, True)
    assert model.backbone.body.model.grad_checkpointing
    assert not any(parameter.requires_grad for parameter in model.backbone.body.parameters())


def test_which_are_plain() -> None:
    plain = ("vit_small_patch14_dinov2.lvd142m", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "deit_tiny_patch16_224")
    others = ("resnet50.tv_in1k", "swin_tiny_patch4_window7_224", "convnext_tiny")
    assert all(map(is_plain, plain)) and not any(map(is_plain, others))
