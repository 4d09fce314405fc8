"""mmdetection's and detrex's layouts; their names stand here as their code has them."""

import re

import pytest
import torch

from deformable_detr.checkpoints import load_checkpoint, load_pretrained, save_weights
from deformable_detr.checkpoints.coco_classes import COCO_80, COCO_91
from deformable_detr.checkpoints.convert import convert

# official name → name elsewhere; the first that matches. Written apart from the package's own tables.
MMDET = [
    (r"^backbone\.0\.body\.", "backbone."),
    (r"^input_proj\.3\.0\.", "neck.extra_convs.0.conv."),
    (r"^input_proj\.3\.1\.", "neck.extra_convs.0.gn."),
    (r"^input_proj\.(\d)\.0\.", r"neck.convs.\1.conv."),
    (r"^input_proj\.(\d)\.1\.", r"neck.convs.\1.gn."),
    (r"^transformer\.level_embed", "level_embed"),
    (r"^query_embed\.", "query_embedding."),
    (r"^transformer\.reference_points\.", "reference_points_fc."),
    (r"^transformer\.enc_output\.", "memory_trans_fc."),
    (r"^transformer\.enc_output_norm\.", "memory_trans_norm."),
    (r"^transformer\.pos_trans\.", "pos_trans_fc."),
    (r"^transformer\.pos_trans_norm\.", "pos_trans_norm."),
    (r"^class_embed\.(\d)\.", r"bbox_head.cls_branches.\1."),
    (r"^bbox_embed\.(\d)\.layers\.0\.", r"bbox_head.reg_branches.\1.0."),
    (r"^bbox_embed\.(\d)\.layers\.1\.", r"bbox_head.reg_branches.\1.2."),
    (r"^bbox_embed\.(\d)\.layers\.2\.", r"bbox_head.reg_branches.\1.4."),
    (r"^transformer\.(encoder\.layers\.\d)\.norm1\.", r"\1.norms.0."),
    (r"^transformer\.(encoder\.layers\.\d)\.norm2\.", r"\1.norms.1."),
    (r"^transformer\.(decoder\.layers\.\d)\.norm2\.", r"\1.norms.0."),
    (r"^transformer\.(decoder\.layers\.\d)\.norm1\.", r"\1.norms.1."),
    (r"^transformer\.(decoder\.layers\.\d)\.norm3\.", r"\1.norms.2."),
    (r"^transformer\.(\w+\.layers\.\d)\.linear1\.", r"\1.ffn.layers.0.0."),
    (r"^transformer\.(\w+\.layers\.\d)\.linear2\.", r"\1.ffn.layers.1."),
    (r"^transformer\.(decoder\.layers\.\d\.self_attn)\.", r"\1.attn."),
    (r"^transformer\.(\w+\.layers)\.", r"\1."),
]
MMDET_2 = [  # from mmdetection 3.x
    (r"^(level_embed)$", r"bbox_head.transformer.\1s"),
    (r"^query_embedding\.", "bbox_head.query_embedding."),
    (r"^reference_points_fc\.", "bbox_head.transformer.reference_points."),
    (r"^memory_trans_fc\.", "bbox_head.transformer.enc_output."),
    (r"^memory_trans_norm\.", "bbox_head.transformer.enc_output_norm."),
    (r"^pos_trans_fc\.", "bbox_head.transformer.pos_trans."),
    (r"^pos_trans_norm\.", "bbox_head.transformer.pos_trans_norm."),
    (r"^(encoder\.layers\.\d)\.self_attn\.", r"bbox_head.transformer.\1.attentions.0."),
    (r"^(decoder\.layers\.\d)\.self_attn\.", r"bbox_head.transformer.\1.attentions.0."),
    (r"^(decoder\.layers\.\d)\.cross_attn\.", r"bbox_head.transformer.\1.attentions.1."),
    (r"^((en|de)coder\.layers\.\d)\.ffn\.", r"bbox_head.transformer.\1.ffns.0."),
    (r"^((en|de)coder\.layers\.\d)\.", r"bbox_head.transformer.\1."),
]
DETREX = [  # from mmdetection 2.x
    (r"^bbox_head\.transformer\.", "transformer."),
    (r"^bbox_head\.query_embedding\.", "query_embedding."),
    (r"^bbox_head\.cls_branches\.", "class_embed."),
    (r"^bbox_head\.reg_branches\.(\d)\.0\.", r"bbox_embed.\1.layers.0."),
    (r"^bbox_head\.reg_branches\.(\d)\.2\.", r"bbox_embed.\1.layers.1."),
    (r"^bbox_head\.reg_branches\.(\d)\.4\.", r"bbox_embed.\1.layers.2."),
    (r"^(neck\..+)\.gn\.", r"\1.norm."),
    (r"^backbone\.conv1\.", "backbone.stem.conv1."),
    (r"^backbone\.bn1\.", "backbone.stem.conv1.norm."),
    *[(rf"^backbone\.layer{k}\.(\d)\.conv(\d)\.", rf"backbone.res{k + 1}.\1.conv\2.") for k in range(1, 5)],
    *[(rf"^backbone\.layer{k}\.(\d)\.bn(\d)\.", rf"backbone.res{k + 1}.\1.conv\2.norm.") for k in range(1, 5)],
    *[(rf"^backbone\.layer{k}\.(\d)\.downsample\.0\.", rf"backbone.res{k + 1}.\1.shortcut.") for k in range(1, 5)],
    *[(rf"^backbone\.layer{k}\.(\d)\.downsample\.1\.", rf"backbone.res{k + 1}.\1.shortcut.norm.") for k in range(1, 5)],
]


def renamed(state_dict, rules):
    result = {}
    for name, tensor in state_dict.items():
        for pattern, replacement in rules:
            new, hits = re.subn(pattern, replacement, name)
            if hits:
                break
        else:
            new = name
        assert new not in result
        result[new] = tensor
    return result


def official(model, tmp_path):
    save_weights(tmp_path / "ours.safetensors", model)
    convert(tmp_path / "ours.safetensors", tmp_path / "official.pth", "official", classes="keep", overwrite=True)
    state_dict = torch.load(tmp_path / "official.pth", weights_only=False)["model"]
    return {
        name: tensor
        for name, tensor in state_dict.items()
        if not name.startswith(("transformer.decoder.bbox", "transformer.decoder.class"))
    }


def without_bias(model):
    for name, parameter in model.named_parameters():
        if re.fullmatch(r"neck\.projections\.\d\.0\.bias", name):
            parameter.data.zero_()
    return model


def mmdet_file(model, tmp_path):
    """As mmdetection 3.x saves it: no biases in the neck, a counter in every batch norm, and its book-keeping."""
    state_dict = {
        name: tensor
        for name, tensor in renamed(official(model, tmp_path), MMDET).items()
        if not re.fullmatch(r"neck.*conv\.bias", name)
    }
    counters = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for name in state_dict if "running_mean" in name
    }
    return {"meta": {"dataset_meta": {"classes": model.metadata.categories.names}}, "state_dict": state_dict | counters}


def test_mmdet_3_in(variant, make_model, tmp_path, assert_same_weights):
    model = without_bias(make_model(variant))
    content = mmdet_file(model, tmp_path)
    torch.save(content, tmp_path / "m.pth")
    loaded = load_checkpoint(tmp_path / "m.pth", num_queries=12)
    assert loaded.report.source_format == "mmdet"
    assert_same_weights(model, loaded.model)
    assert loaded.model.metadata.categories is not None
    assert loaded.model.metadata.categories.names == model.metadata.categories.names
    assert len(loaded.report.missing) == model.metadata.model.num_feature_levels
    assert loaded.report.mapped + len(loaded.report.dropped) == len(content["state_dict"]) + len(loaded.report.missing)


def test_mmdet_3_out(variant, make_model, tmp_path):
    model = without_bias(make_model(variant))
    save_weights(tmp_path / "a.safetensors", model)
    convert(tmp_path / "a.safetensors", tmp_path / "b.pth", "mmdet")
    expected = {k: v for k, v in mmdet_file(model, tmp_path)["state_dict"].items() if "num_batches" not in k}
    written = torch.load(tmp_path / "b.pth", weights_only=False)
    assert set(written["state_dict"]) == set(expected)
    assert not [name for name in expected if not torch.equal(expected[name], written["state_dict"][name])]
    assert written["meta"]["dataset_meta"]["classes"] == model.metadata.categories.names


def test_mmdet_2_in(variant, make_model, tmp_path, assert_same_weights):
    model = without_bias(make_model(variant))
    content = mmdet_file(model, tmp_path)
    meta = {"CLASSES": model.metadata.categories.names, "mmdet_version": "2.14.0"}
    torch.save({"state_dict": renamed(content["state_dict"], MMDET_2), "meta": meta}, tmp_path / "m.pth")
    loaded = load_checkpoint(tmp_path / "m.pth", num_queries=12)
    assert loaded.report.source_format == "mmdet 2.x"
    assert_same_weights(model, loaded.model)
    assert loaded.model.metadata.categories is not None
    assert loaded.model.metadata.categories.names == model.metadata.categories.names


def test_detrex_in(variant, make_model, tmp_path, assert_same_weights):
    model = make_model(variant, COCO_80)
    state_dict = renamed(renamed(renamed(official(model, tmp_path), MMDET), MMDET_2), DETREX)
    if variant in ("refine", "two-stage"):
        state_dict |= {
            f"transformer.decoder.{name}": tensor for name, tensor in state_dict.items() if name.startswith("bbox_embed.")
        }
    torch.save({"model": state_dict, "iteration": 5}, tmp_path / "d.pth")
    loaded = load_checkpoint(tmp_path / "d.pth", num_queries=12)
    assert loaded.report.source_format == "detrex"
    assert_same_weights(model, loaded.model)
    assert loaded.model.metadata.categories == COCO_80


def test_neck_with_bias_stays_exact(model, tmp_path, assert_same_weights):
    save_weights(tmp_path / "a.safetensors", model)
    report = convert(tmp_path / "a.safetensors", tmp_path / "b.pth", "mmdet")
    assert any("neck.bias=True" in note for note in report.notes) and report.lossy == []
    assert_same_weights(model, load_pretrained(tmp_path / "b.pth"))


def test_neck_without_bias_says_how_much_is_lost(make_model, tmp_path):
    save_weights(tmp_path / "a.safetensors", make_model("refine"))
    report = convert(tmp_path / "a.safetensors", tmp_path / "b.pth", "mmdet", neck_bias=False)
    assert len(report.lossy) == 1
    change = re.search(r"scores change by up to ([\d.e-]+)", report.lossy[0])
    assert change and 0 < float(change[1]) < 1
    assert not [name for name in torch.load(tmp_path / "b.pth", weights_only=False)["state_dict"] if name.endswith("conv.bias")]


def test_official_to_mmdet_goes_from_91_to_80_classes_and_back(make_model, batch, tmp_path):
    model = make_model("two-stage", COCO_91)
    save_weights(tmp_path / "a.safetensors", model)
    convert(tmp_path / "a.safetensors", tmp_path / "m.pth", "mmdet")
    convert(tmp_path / "m.pth", tmp_path / "o.pth", "official")
    eighty, back = load_pretrained(tmp_path / "m.pth").eval(), load_pretrained(tmp_path / "o.pth").eval()
    assert eighty.metadata.categories == COCO_80 and back.metadata.categories == COCO_91
    with torch.no_grad():
        expected, found, again = model(batch), eighty(batch), back(batch)
    ids = list(COCO_80.ids)
    torch.testing.assert_close(found.logits, expected.logits[..., ids])
    torch.testing.assert_close(found.boxes, expected.boxes)  # the proposals are the same: row 0 of their head stayed
    torch.testing.assert_close(again.logits[..., ids], expected.logits[..., ids])
    dead = [label for label in range(91) if label not in ids]
    assert again.logits[..., dead].max() <= -20


def test_bookkeeping_of_a_training_run_is_read_over(make_model, tmp_path):
    import numpy as np

    content = mmdet_file(without_bias(make_model("one-stage")), tmp_path)
    content["message_hub"] = {"log_scalars": {"loss": np.arange(4.0)}, "time": np.float64(3.0)}
    torch.save(content, tmp_path / "m.pth")
    assert load_pretrained(tmp_path / "m.pth").metadata.model.num_classes == 5


def test_other_backbones_have_other_names_in_mmdetection(make_model, tmp_path):
    from dataclasses import replace

    model = make_model("one-stage")
    model.metadata = replace(model.metadata, model=model.metadata.model.replace(backbone="convnext_tiny"))
    from deformable_detr.checkpoints import mmdet
    from deformable_detr.checkpoints.report import Report

    with pytest.raises(ValueError, match="convnext_tiny"):
        mmdet.write(tmp_path / "x.pth", model, Report("native", "mmdet"))
