"""The official layout, in and out; names and shapes are listed by hand from the published files."""

import argparse
from typing import Any

import pytest
import torch

from deformable_detr.checkpoints import load_checkpoint, load_pretrained, official, save_weights
from deformable_detr.checkpoints.coco_classes import COCO_NAMES
from deformable_detr.checkpoints.convert import convert
from deformable_detr.checkpoints.report import Report
from deformable_detr.model import build_model
from deformable_detr.presets import MODEL_PRESETS

ENTRIES = {"r50-single-scale": 549, "r50-single-scale-dc5": 549, "r50": 561, "r50-refine": 597, "r50-two-stage": 630}
ENTRIES |= {"r50-hdetr": 631, "r50-dino": 626, "r50-dino-5scale": 630}
"""Tensors in the published files."""


CHANNELS = (16, 32, 64, 128)
"""Of the stages: a ResNet-18 with a quarter of its width."""


def official_shapes(*, width=64, ffn=48, classes=91, queries=12, layers=2, levels=4, points=4, refine=False, two_stage=False):
    """Name → shape of a checkpoint of the original code with a ResNet-18."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name, out_features, in_features):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out_features, in_features), (out_features,)

    def norm(name, channels, *more):
        shapes.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", *more)})

    def conv_norm(conv, bn, *shape):
        shapes[f"{conv}.weight"] = shape
        norm(bn, shape[0], "running_mean", "running_var")

    body = "backbone.0.body"
    conv_norm(f"{body}.conv1", f"{body}.bn1", 64, 3, 7, 7)
    for stage, channels in enumerate(CHANNELS, start=1):
        before = 64 if stage == 1 else channels // 2
        for block in range(2):
            name = f"{body}.layer{stage}.{block}"
            conv_norm(f"{name}.conv1", f"{name}.bn1", channels, before if block == 0 else channels, 3, 3)
            conv_norm(f"{name}.conv2", f"{name}.bn2", channels, channels, 3, 3)
        if before != channels:
            conv_norm(f"{body}.layer{stage}.0.downsample.0", f"{body}.layer{stage}.0.downsample.1", channels, before, 1, 1)
    for level, channels in enumerate((*CHANNELS[1:], CHANNELS[-1]) if levels == 4 else CHANNELS[-1:]):
        kernel = 3 if level == 3 else 1
        shapes[f"input_proj.{level}.0.weight"], shapes[f"input_proj.{level}.0.bias"] = (width, channels, kernel, kernel), (width,)
        norm(f"input_proj.{level}.1", width)
    shapes["transformer.level_embed"] = (levels, width)

    def attention(name):
        linear(f"{name}.sampling_offsets", 8 * levels * points * 2, width)
        linear(f"{name}.attention_weights", 8 * levels * points, width)
        linear(f"{name}.value_proj", width, width)
        linear(f"{name}.output_proj", width, width)

    for kind, norms in (("encoder", (1, 2)), ("decoder", (1, 2, 3))):
        for layer in range(layers):
            name = f"transformer.{kind}.layers.{layer}"
            attention(f"{name}.{'self_attn' if kind == 'encoder' else 'cross_attn'}")
            if kind == "decoder":
                shapes[f"{name}.self_attn.in_proj_weight"], shapes[f"{name}.self_attn.in_proj_bias"] = (
                    (3 * width, width),
                    (3 * width,),
                )
                linear(f"{name}.self_attn.out_proj", width, width)
            linear(f"{name}.linear1", ffn, width)
            linear(f"{name}.linear2", width, ffn)
            for index in norms:
                norm(f"{name}.norm{index}", width)
    if two_stage:
        linear("transformer.enc_output", width, width)
        norm("transformer.enc_output_norm", width)
        linear("transformer.pos_trans", 2 * width, 2 * width)
        norm("transformer.pos_trans_norm", 2 * width)
    else:
        shapes["query_embed.weight"] = (queries, 2 * width)
        linear("transformer.reference_points", 2, width)
    prefixes = ["", *(["transformer.decoder."] if refine else [])]
    for head in range(layers + two_stage):
        for prefix in prefixes:
            if not prefix or two_stage:
                linear(f"{prefix}class_embed.{head}", classes, width)
            for index, out_features in enumerate((width, width, 4)):
                linear(f"{prefix}bbox_embed.{head}.layers.{index}", out_features, width)
    return shapes


def official_state_dict(**options):
    """Random tensors; heads that the original code shares are copies of each other."""
    generator = torch.Generator().manual_seed(3)
    state_dict = {}
    for name, shape in official_shapes(**options).items():
        original = name.removeprefix("transformer.decoder.") if "_embed." in name else name
        if not options.get("refine") and name.startswith(("class_embed.", "bbox_embed.")):
            kind, _, rest = name.split(".", 2)
            original = f"{kind}.0.{rest}"
        state_dict[name] = state_dict[original] if original in state_dict else torch.rand(shape, generator=generator)
    return state_dict


FLAGS = {
    "one-stage": {},
    "refine": {"refine": True},
    "two-stage": {"refine": True, "two_stage": True},
    "single-scale-dc5": {"levels": 1},
}

OURS = {  # official name → ours, of one tensor of each kind
    "backbone.0.body.layer2.0.downsample.0.weight": "backbone.body.layer2.0.downsample.0.weight",
    "input_proj.0.1.weight": "neck.projections.0.1.weight",
    "transformer.level_embed": "flatten.level_embed",
    "transformer.encoder.layers.1.self_attn.value_proj.bias": "encoder.layers.1.self_attn.value_proj.bias",
    "transformer.encoder.layers.1.norm1.weight": "encoder.layers.1.self_attn_norm.weight",
    "transformer.encoder.layers.1.norm2.weight": "encoder.layers.1.ffn_norm.weight",
    "transformer.encoder.layers.0.linear2.weight": "encoder.layers.0.ffn.linear2.weight",
    "transformer.decoder.layers.0.norm1.weight": "decoder.layers.0.cross_attn_norm.weight",
    "transformer.decoder.layers.0.norm2.weight": "decoder.layers.0.self_attn_norm.weight",
    "transformer.decoder.layers.0.norm3.weight": "decoder.layers.0.ffn_norm.weight",
    "transformer.decoder.layers.0.self_attn.in_proj_weight": "decoder.layers.0.self_attn.in_proj_weight",
    "transformer.decoder.layers.1.cross_attn.sampling_offsets.bias": "decoder.layers.1.cross_attn.sampling_offsets.bias",
    "class_embed.0.bias": "class_heads.0.bias",
    "bbox_embed.0.layers.2.weight": "decoder.box_heads.0.layers.2.weight",
}
OURS_ONE_STAGE = {"query_embed.weight": "query_source.query_embed.weight"}
OURS_TWO_STAGE = {
    "transformer.enc_output.weight": "query_source.memory_proj.weight",
    "transformer.enc_output_norm.weight": "query_source.memory_norm.weight",
    "transformer.pos_trans.weight": "query_source.query_proj.weight",
    "transformer.pos_trans_norm.weight": "query_source.query_norm.weight",
    "class_embed.2.weight": "query_source.class_head.weight",
    "bbox_embed.2.layers.1.weight": "query_source.box_head.layers.1.weight",
    "class_embed.1.weight": "class_heads.1.weight",
}


def test_every_kind_of_tensor_arrives(variant, tmp_path):
    state_dict = official_state_dict(**FLAGS[variant])
    torch.save({"model": state_dict, "epoch": 49}, tmp_path / "r18.pth")
    dilation: dict[str, Any] = {"dilation": True} if variant == "single-scale-dc5" else {}
    loaded = load_checkpoint(tmp_path / "r18.pth", **dilation)
    ours = loaded.model.state_dict()
    for theirs, name in (OURS | (OURS_TWO_STAGE if variant == "two-stage" else OURS_ONE_STAGE)).items():
        assert torch.equal(ours[name], state_dict[theirs]), name
    config = loaded.model.metadata.model
    assert (config.backbone, config.backbone_options) == ("resnet18.tv_in1k", {"channels": list(CHANNELS)})
    assert (config.num_classes, config.hidden_dim, config.ffn_dim, config.num_heads) == (91, 64, 48, 8)
    assert (config.num_encoder_layers, config.num_decoder_layers) == (2, 2)
    assert config.num_queries == (300 if variant == "two-stage" else 12)
    assert config.box_refinement is (variant in ("refine", "two-stage"))
    assert config.two_stage is (variant == "two-stage")
    assert config.num_feature_levels == (1 if variant == "single-scale-dc5" else 4)
    assert config.dilation is (variant == "single-scale-dc5")
    assert loaded.report.missing == [] and loaded.report.lossy == []
    assert loaded.report.mapped + len(loaded.report.dropped) == len(state_dict)
    assert not any(parameter.is_meta for parameter in loaded.model.parameters())


@pytest.mark.parametrize("preset", ENTRIES)
def test_written_file_has_the_published_number_of_tensors(preset, tmp_path):
    with torch.device("meta"):
        model = build_model(preset, pretrained_backbone=False)
    official.write(tmp_path / "x.pth", model, Report("native", "official"))
    assert len(torch.load(tmp_path / "x.pth", weights_only=False)["model"]) == ENTRIES[preset]


@pytest.mark.parametrize("old_container", [False, True])
def test_round_trip_is_bit_equal(variant, old_container, tmp_path):
    state_dict = official_state_dict(**FLAGS[variant])
    content = {"model": state_dict, "args": argparse.Namespace(nheads=8, num_queries=12, lr_backbone_names=["backbone.0"])}
    torch.save(content, tmp_path / "in.pth", _use_new_zipfile_serialization=not old_container)
    report = convert(tmp_path / "in.pth", tmp_path / "out.pth", "official")
    assert report.lossy == [] and report.missing == []
    back = torch.load(tmp_path / "out.pth", weights_only=False)
    assert set(back["model"]) == set(state_dict)
    assert not [name for name in state_dict if not torch.equal(back["model"][name], state_dict[name])]
    assert back["args"].num_queries == 12


def test_our_settings_and_names_travel_along(model, tmp_path, assert_same_weights):
    save_weights(tmp_path / "a.safetensors", model)
    convert(tmp_path / "a.safetensors", tmp_path / "b.pth", "official")
    back = load_pretrained(tmp_path / "b.pth")
    assert_same_weights(model, back)
    assert back.metadata == model.metadata


def test_arguments_of_the_file_are_used(tmp_path):
    arguments = argparse.Namespace(dilation=True, nheads=4, enc_n_points=8, dec_n_points=8, dropout=0.3, backbone="resnet18")
    torch.save({"model": official_state_dict(levels=1), "args": arguments}, tmp_path / "a.pth")
    config = load_pretrained(tmp_path / "a.pth").metadata.model
    assert (config.dilation, config.num_heads, config.num_encoder_points, config.dropout) == (True, 4, 8, 0.3)
    assert config.backbone == "resnet18.tv_in1k"


@pytest.mark.parametrize(("size", "dilation"), [("r50ss", False), ("r50ssdc5", True)])
def test_libreyolo_names_the_variant_that_the_tensors_cannot_tell(size, dilation, tmp_path, caplog):
    """The record that LibreYOLO 1.6 writes: 80 names in a row beside 91 rows of the heads, which are COCO's ids."""
    content = {"model": official_state_dict(levels=1), "schema_version": "1.0", "libreyolo_version": "1.6.0", "task": "detect"}
    names = {**dict(enumerate(COCO_NAMES.values())), 3: "motorbike"}
    content |= {"model_family": "deformable_detr", "size": size, "nc": 80, "names": names, "imgsz": 800}
    torch.save(content, tmp_path / "a.pt")
    metadata = load_pretrained(tmp_path / "a.pt").metadata
    assert metadata.model.dilation is dilation
    assert "DC5" not in caplog.text
    assert metadata.named_categories.names[:5] == ("N/A", "person", "bicycle", "car", "motorbike")
    assert metadata.named_categories.names[90] == "toothbrush"


def test_training_state_is_left_behind(tmp_path):
    content = {
        "model": official_state_dict(),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "lr_scheduler": {"last_epoch": 1},
    }
    torch.save(content, tmp_path / "a.pth")
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert "training state left behind: optimizer, lr_scheduler" in loaded.report.notes
    assert loaded.model.metadata.training == {"source": "a.pth", "layout": "official"}


def test_names_of_coco(tmp_path):
    torch.save({"model": official_state_dict()}, tmp_path / "a.pth")
    categories = load_pretrained(tmp_path / "a.pth").metadata.categories
    assert categories is not None
    assert (categories.names[1], categories.names[18], categories.names[90]) == ("person", "dog", "toothbrush")
    assert [label for label, name in enumerate(categories.names) if name == "N/A"] == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert categories.ids == tuple(range(91))


def test_same_predictions_as_the_module_that_was_saved(model, batch, tmp_path):
    save_weights(tmp_path / "a.safetensors", model)
    convert(tmp_path / "a.safetensors", tmp_path / "b.pth", "official")
    with torch.no_grad():
        expected, found = model(batch), load_pretrained(tmp_path / "b.pth").eval()(batch)
    assert torch.equal(expected.logits, found.logits) and torch.equal(expected.boxes, found.boxes)


def test_every_preset_is_recognised(tmp_path):
    assert set(ENTRIES) <= set(MODEL_PRESETS)
    model = build_model("r50-two-stage", pretrained_backbone=False)
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    loaded = load_pretrained(tmp_path / "plain.pt")
    assert loaded.metadata.model.replace(pretrained_backbone=True) == MODEL_PRESETS["r50-two-stage"]


def with_levels(preset, levels, stages):
    with torch.device("meta"):
        return build_model(preset, num_feature_levels=levels, backbone_levels=stages, pretrained_backbone=False)


@pytest.mark.parametrize(
    ("preset", "levels", "stages"), [("r18", 2, 3), ("r18", 5, 4), ("r18", 4, 1), ("r50-dino", 2, 3), ("r50-dino", 1, 3)]
)
def test_levels_that_the_original_code_cannot_build_are_refused(preset, levels, stages, tmp_path):
    """It takes stages 3 to 5, or the last alone; DINO's has `assert return_interm_indices in [[0,1,2,3], [1,2,3], [3]]`."""
    with pytest.raises(ValueError, match=f"official layout cannot express this network: {levels} feature levels"):
        official.write(tmp_path / "x.pth", with_levels(preset, levels, stages), Report("native", "official"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("preset", "levels", "stages"), [("r18", 3, 3), ("r18", 5, 3), ("r50-dino", 4, 1)])
def test_other_numbers_of_levels_are_written(preset, levels, stages, tmp_path):
    official.write(tmp_path / "x.pth", with_levels(preset, levels, stages), Report("native", "official"))
    content = torch.load(tmp_path / "x.pth", weights_only=False)
    assert len(content["model"]["transformer.level_embed"]) == content["args"].num_feature_levels == levels
