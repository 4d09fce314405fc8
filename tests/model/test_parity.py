"""The forward pass against transformers' Deformable DETR with the same random weights."""

import re
from typing import Any

import pytest
import torch
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

from deformable_detr.model import build_model
from deformable_detr.structures import ImageBatch

VARIANTS = {
    "r50": {},
    "r50-refine": {"with_box_refine": True},
    "r50-two-stage": {"with_box_refine": True, "two_stage": True},
    "r50-single-scale-dc5": {"num_feature_levels": 1, "dilation": True},
}
CLASSES = 11
QUERIES = 40

# our name → the name in transformers' running model; tried in turn until none applies
RENAMES = [
    (r"^backbone\.body\.", "model.backbone.model."),
    (r"^neck\.projections\.", "model.input_proj."),
    (r"^flatten\.level_embed", "model.level_embed"),
    (r"^query_source\.query_embed\.", "model.query_position_embeddings."),
    (r"^query_source\.reference_points\.", "model.reference_points."),
    (r"^query_source\.memory_proj\.", "model.enc_output."),
    (r"^query_source\.memory_norm\.", "model.enc_output_norm."),
    (r"^query_source\.query_proj\.", "model.pos_trans."),
    (r"^query_source\.query_norm\.", "model.pos_trans_norm."),
    (r"^query_source\.class_head\.", "class_embed.6."),
    (r"^query_source\.box_head\.", "bbox_embed.6."),
    (r"^class_heads\.", "class_embed."),
    (r"^decoder\.box_heads\.", "bbox_embed."),
    (r"^(en|de)coder\.layers\.", r"model.\1coder.layers."),
    (r"\.self_attn_norm\.", ".self_attn_layer_norm."),
    (r"\.cross_attn_norm\.", ".encoder_attn_layer_norm."),
    (r"\.ffn_norm\.", ".final_layer_norm."),
    (r"\.ffn\.linear(\d)", r".mlp.fc\1"),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
]


def randomise(model: torch.nn.Module) -> None:
    """Weights and statistics with no special values left, of a size that keeps boxes and logits away from saturation."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.data.uniform_(0.7, 1.3, generator=generator)
        elif "embeddings" in name or "level_embed" in name:
            tensor.data.normal_(generator=generator)
        elif tensor.ndim > 1:
            tensor.data.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        else:
            tensor.data.normal_(0, 2.0 if name.endswith("sampling_offsets.bias") else 0.2, generator=generator)


def translate(theirs: dict[str, torch.Tensor], our_keys: list[str]) -> dict[str, torch.Tensor]:
    ours = {}
    for key in our_keys:
        name = key
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if ".in_proj_" in name:
            ours[key] = torch.cat([theirs[name.replace("in_proj_", f"{part}_proj.")] for part in "qkv"])
        else:
            ours[key] = theirs[name]
    return ours


def make_pair(variant: str, *, dropout: float = 0.1, **settings):
    """Our model and theirs with the same weights, both in evaluation mode."""
    inherited: dict[str, Any] = {"num_labels": CLASSES}  # settings of every transformers model, and of every backbone
    inherited |= {"backbone": "resnet50", "use_timm_backbone": True, "use_pretrained_backbone": False}
    theirs = DeformableDetrForObjectDetection(
        DeformableDetrConfig(
            **inherited,
            num_queries=QUERIES,
            two_stage_num_proposals=QUERIES,
            dropout=dropout,
            **VARIANTS[variant],
        )
    ).eval()
    randomise(theirs)
    settings |= {"num_classes": CLASSES, "num_queries": QUERIES, "pretrained_backbone": False, "dropout": dropout}
    ours = build_model(variant, **settings).eval()
    ours.load_state_dict(translate(theirs.state_dict(), list(ours.state_dict())))
    return ours, theirs


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
    return make_pair(request.param)


@pytest.mark.parametrize("padded", [False, True])
def test_outputs_equal(pair, padded):
    ours, theirs = pair
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    padding_mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    if padded:
        padding_mask[1, 70:] = True
        padding_mask[1, :, 90:] = True
        images[1] *= ~padding_mask[1]
    with torch.no_grad():
        expected = theirs(pixel_values=images, pixel_mask=(~padding_mask).long())
        predictions = ours(ImageBatch(images, padding_mask))  # no image_sizes: the padded canvas runs as one, as theirs does
    assert predictions.logits.shape == (6, 2, QUERIES, CLASSES)
    assert expected.pred_boxes.std(dim=(0, 1)).min() > 0.01, "the boxes must differ for the comparison to mean something"
    torch.testing.assert_close(predictions.logits[-1], expected.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(predictions.boxes[-1], expected.pred_boxes, rtol=0, atol=1e-4)
    if theirs.config.with_box_refine:
        each_layer = expected.intermediate_reference_points.transpose(0, 1)
        torch.testing.assert_close(predictions.boxes, each_layer, rtol=0, atol=1e-4)
    if theirs.config.two_stage:
        torch.testing.assert_close(predictions.encoder_logits, expected.enc_outputs_class, rtol=0, atol=1e-4)
        theirs_boxes = expected.enc_outputs_coord_logits.sigmoid()  # their infinities become ones
        torch.testing.assert_close(predictions.encoder_boxes, theirs_boxes, rtol=0, atol=1e-4)
    else:
        assert predictions.encoder_logits is None
        assert predictions.encoder_boxes is None


@pytest.fixture(scope="module")
def original():
    return make_pair("r50-two-stage", dropout=0.0, original_padding=True)


@pytest.fixture(scope="module")
def padded_batch():
    """The small image has 39 positions, one less than there are queries: padding must be among the proposals."""
    generator = torch.Generator().manual_seed(2)
    return ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in ((96, 128), (40, 40), (70, 90))])


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_original_padding(original, padded_batch, training):
    ours, theirs = (model.train(training) for model in original)
    with torch.no_grad():
        expected = theirs(pixel_values=padded_batch.images, pixel_mask=(~padded_batch.padding_mask).long())
        found = ours(padded_batch)
    torch.testing.assert_close(found.logits[-1].sigmoid(), expected.logits.sigmoid(), rtol=0, atol=2e-5)
    torch.testing.assert_close(found.boxes[-1], expected.pred_boxes, rtol=0, atol=2e-5)
    torch.testing.assert_close(found.encoder_logits, expected.enc_outputs_class, rtol=0, atol=1e-4)


def test_original_padding_is_off_by_default(original, padded_batch):
    ours, _ = original
    default = build_model(ours.metadata.model, original_padding=False).eval()
    default.load_state_dict(ours.state_dict())
    with torch.no_grad():
        difference = default(padded_batch).boxes - ours.eval()(padded_batch).boxes
    assert difference.abs().max() > 0.1
