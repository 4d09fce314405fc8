"""Swin Transformers against transformers' own, at sizes that are no multiple of the window, and the norms behind backbones."""

from typing import Any

import pytest
import torch
from torch import nn

from deformable_detr.model import build_model
from deformable_detr.model.backbone import Backbone
from deformable_detr.model.normed_backbone import NormedBackbone

TINY_SWIN = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 4, "img_size": 64}


def swin() -> NormedBackbone:
    torch.manual_seed(0)
    backbone = NormedBackbone("swin_tiny_patch4_window7_224", pretrained=False, frozen_stages=0, options=TINY_SWIN)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return backbone.eval()


def as_transformers(backbone: NormedBackbone) -> nn.Module:
    """The same weights in transformers' `SwinBackbone`."""
    from transformers import SwinBackbone, SwinConfig

    names = ["stage2", "stage3", "stage4"]
    inherited: dict[str, Any] = {"out_features": names}  # a setting of every backbone in transformers
    config = SwinConfig(image_size=64, embed_dim=8, depths=[2] * 4, num_heads=[1, 2, 4, 8], window_size=4, **inherited)
    theirs, ours = SwinBackbone(config), dict(backbone.body.named_parameters())
    weights = {}
    for name, value in ours.items():
        name = name.replace("patch_embed.proj", "swin.embeddings.patch_embeddings.projection")
        name = name.replace("patch_embed.norm", "swin.embeddings.norm")
        for stage in range(4):
            # timm's stage begins with the merging of patches with which transformers' stage before it ends
            name = name.replace(f"layers_{stage}.downsample", f"swin.encoder.layers.{stage - 1}.downsample")
            name = name.replace(f"layers_{stage}.", f"swin.encoder.layers.{stage}.")
        name = name.replace("attn.relative_position_bias_table", "attention.relative_position_bias.relative_position_bias_table")
        name = name.replace("blocks.0.norm1", "blocks.0.layernorm_before").replace("blocks.1.norm1", "blocks.1.layernorm_before")
        name = name.replace("blocks.0.norm2", "blocks.0.layernorm_after").replace("blocks.1.norm2", "blocks.1.layernorm_after")
        name = name.replace("attn.proj", "attention.o_proj")
        if "attn.qkv" in name:
            for part, rows in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
                weights[name.replace("attn.qkv", f"attention.{part}")] = rows
        else:
            weights[name] = value
    for stage, norm in zip(names, backbone.norms, strict=True):
        weights |= {f"hidden_states_norms.{stage}.{key}": value for key, value in norm.named_parameters()}
    unknown = theirs.load_state_dict(weights, strict=False)
    assert not unknown.unexpected_keys and all(key.startswith("swin.layernorm.") for key in unknown.missing_keys)
    return theirs.eval()


@pytest.mark.parametrize("size", [(164, 212), (160, 256), (133, 150)])
def test_swin_equals_transformers(size: tuple[int, int]) -> None:
    backbone = swin()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        ours, theirs = backbone(images), as_transformers(backbone)(images).feature_maps
    for level, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-4, atol=1e-4)


def test_norms_behind_a_convolutional_backbone() -> None:
    options = {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}
    plain = Backbone("convnext_tiny", pretrained=False, frozen_stages=0, options=options)
    normed = NormedBackbone("convnext_tiny", pretrained=False, frozen_stages=0, options=options)
    normed.body.load_state_dict(plain.body.state_dict())
    images = torch.randn(1, 3, 96, 64)
    for level, before, channels in zip(normed(images), plain(images), (16, 32, 64), strict=True):
        torch.testing.assert_close(level, torch.layer_norm(before.movedim(1, -1), (channels,)).movedim(-1, 1))


def test_swin_without_norms_is_refused() -> None:
    with pytest.raises(ValueError, match="set backbone_norm to true"):
        build_model("r50", backbone="swin_tiny_patch4_window7_224", pretrained_backbone=False)


def test_swin_l_has_the_official_number_of_parameters() -> None:
    with torch.device("meta"):
        model = build_model("swin-l-dino", pretrained_backbone=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == 217_230_066
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_detector_on_swin_trains_and_runs_fast() -> None:
    from deformable_detr.acceleration.model import InferenceModel

    small = {"hidden_dim": 32, "num_heads": 4, "num_encoder_layers": 1, "num_decoder_layers": 2, "ffn_dim": 32, "num_queries": 5}
    model = build_model("swin-t-hdetr", pretrained_backbone=False, backbone_options=TINY_SWIN, one_to_many_queries=6, **small)
    images = [torch.randn(3, 100, 130), torch.randn(3, 120, 90)]
    model.train()(images).boxes.sum().backward()
    assert isinstance(model.backbone, NormedBackbone)
    assert all(norm.weight.grad is not None for norm in model.backbone.norms)
    model.eval()
    with torch.no_grad():
        expected = model(images)
    fast = InferenceModel(model)(images)
    torch.testing.assert_close(fast.boxes[-1], expected.boxes[-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast.logits[-1], expected.logits[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["test_convnext", "efficientnet_b0"])
def test_norms_behind_other_backbones(name: str) -> None:
    """Of any kind of timm's feature models, in the dtype of the weights."""
    backbone = NormedBackbone(name, pretrained=False, frozen_stages=0).double()
    maps = backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(level.shape[2:]) for level in maps] == [(8, 12), (4, 6), (2, 3)]
    for level in maps:
        assert level.dtype == torch.float64
        torch.testing.assert_close(
            level.mean(1), torch.zeros_like(level[:, 0]), atol=1e-6, rtol=0
        )  # a layer norm without weights yet
