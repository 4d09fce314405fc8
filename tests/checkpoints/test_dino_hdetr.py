"""DINO and H-DETR: names and shapes of published files, listed by hand and filled with random weights; in, run, and out again."""

import argparse

import pytest
import torch
from tests.checkpoints.layouts import (
    CLASSES,
    LAYERS,
    QUERIES,
    WIDTH,
    detrex_file,
    mmdet_dino,
    official_dino,
    official_hdetr,
)

from deformable_detr.checkpoints import load_checkpoint, load_pretrained, save_weights
from deformable_detr.checkpoints.convert import convert


def write(path, content):
    torch.save(content, path)
    return path


def run(model, batch):
    with torch.no_grad():
        return model.eval()(batch)


def assert_equal_tensors(found, expected):
    assert set(found) == set(expected)
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]


DINO_SETTINGS = {
    "two_stage": True,
    "query_content": "learned",
    "query_position": "reference",
    "proposal_classes": True,
    "proposal_loss": "selected",
    "look_forward_twice": True,
    "decoder_norm": True,
    "logit_eps": 1e-3,
    "denoising_queries": 100,
    "num_queries": QUERIES,
    "num_classes": CLASSES,
    "dropout": 0.0,
}
HDETR_SETTINGS = {"query_content": "learned", "query_position": "proposal", "look_forward_twice": True, "logit_eps": 1e-5}


def assert_settings(config, expected):
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("levels", [4, 5])
def test_official_dino(levels, batch, tmp_path):
    tensors = official_dino(levels)
    source = write(tmp_path / "checkpoint0011.pth", {"model": tensors, "epoch": 11})
    loaded = load_checkpoint(source)
    config = loaded.model.metadata.model
    assert_settings(config, DINO_SETTINGS | {"shared_heads": True, "position_temperature": 20.0, "position_offset": 0.0})
    assert_settings(config, {"num_feature_levels": levels, "backbone_levels": 3 if levels == 4 else 4})
    ours = loaded.model.state_dict()
    assert torch.equal(ours["query_source.content_embed.weight"], tensors["transformer.tgt_embed.weight"])
    assert torch.equal(ours["query_source.class_head.weight"], tensors["transformer.enc_out_class_embed.weight"])
    assert torch.equal(ours["class_heads.0.bias"], tensors["class_embed.1.bias"])
    assert torch.equal(ours["denoising.label_embed.weight"], tensors["label_enc.weight"])
    assert loaded.report.missing == [] and loaded.report.lossy == []
    assert run(loaded.model, batch).logits.isfinite().all()
    convert(source, tmp_path / "back.pth", "official", classes="keep")
    back = torch.load(tmp_path / "back.pth", weights_only=False)
    assert_equal_tensors(back["model"], tensors)
    assert back["args"].dn_number == 100 and back["args"].pe_temperatureH == 20


def test_arguments_of_official_dino(tmp_path):
    arguments = argparse.Namespace(dn_number=300, dn_box_noise_scale=0.4, dn_label_noise_ratio=0.2, pe_temperatureH=40, dropout=0.1)
    source = write(tmp_path / "a.pth", {"model": official_dino(), "args": arguments})
    expected = {"denoising_queries": 300, "box_noise": 0.4, "label_noise": 0.2, "position_temperature": 40, "dropout": 0.1}
    assert_settings(load_pretrained(source).metadata.model, expected)


@pytest.mark.parametrize("name", ["ema_model", "model"])
def test_official_dino_with_ema(name, tmp_path):
    tensors = official_dino()
    source = write(tmp_path / "a.pth", {name: tensors, "args": argparse.Namespace()})
    assert load_pretrained(source).metadata.model.query_position == "reference"


def test_without_the_parts_of_training(batch, tmp_path):
    """An inference model: outputs do not depend on them."""
    source = write(tmp_path / "a.pth", {"model": official_dino()})
    whole, bare = load_pretrained(source), load_pretrained(source, denoising_queries=0)
    assert "denoising.label_embed.weight" not in bare.state_dict()
    assert torch.equal(run(whole, batch).boxes, run(bare, batch).boxes)
    fewer = load_pretrained(source, num_queries=5)
    assert run(fewer, batch).boxes.shape[-2] == 5
    with pytest.raises(ValueError, match="has learned contents for 12"):
        load_pretrained(source, num_queries=13)


@pytest.mark.parametrize("levels", [4, 5])
def test_mmdet_dino(levels, batch, tmp_path):
    tensors = mmdet_dino(levels)
    source = write(tmp_path / "dino.pth", {"state_dict": tensors, "meta": {"dataset_meta": {"classes": list("abcdefg")}}})
    loaded = load_checkpoint(source)
    assert_settings(loaded.model.metadata.model, DINO_SETTINGS | {"shared_heads": False, "position_temperature": 20.0})
    ours = loaded.model.state_dict()
    assert torch.equal(ours["query_source.class_head.weight"], tensors[f"bbox_head.cls_branches.{LAYERS}.weight"])
    assert torch.equal(ours["class_heads.1.weight"], tensors["bbox_head.cls_branches.1.weight"])
    assert torch.equal(ours["denoising.label_embed.weight"][:CLASSES], tensors["dn_query_generator.label_embedding.weight"])
    assert run(loaded.model, batch).logits.isfinite().all()
    convert(source, tmp_path / "back.pth", "mmdet", classes="keep")
    assert_equal_tensors(torch.load(tmp_path / "back.pth", weights_only=False)["state_dict"], tensors)
    with pytest.raises(ValueError, match="shared_heads=False"):
        convert(source, tmp_path / "official.pth", "official", classes="keep")
    assert not (tmp_path / "official.pth").exists()


def test_positions_of_mmdet_are_in_its_config(tmp_path):
    text = "model = dict(positional_encoding=dict(num_feats=128, normalize=True, offset=-0.5, temperature=10000))"
    source = write(tmp_path / "improved.pth", {"state_dict": mmdet_dino(), "meta": {"cfg": text}})
    assert_settings(load_pretrained(source).metadata.model, {"position_temperature": 10000, "position_offset": 0.5})


def test_official_to_mmdet_and_back(batch, tmp_path):
    tensors = official_dino()
    source = write(tmp_path / "a.pth", {"model": tensors})
    convert(source, tmp_path / "m.pth", "mmdet", classes="keep")
    heads = torch.load(tmp_path / "m.pth", weights_only=False)["state_dict"]
    assert torch.equal(heads["bbox_head.cls_branches.1.weight"], heads["bbox_head.cls_branches.0.weight"])
    expected, found = run(load_pretrained(source), batch), run(load_pretrained(tmp_path / "m.pth"), batch)
    assert torch.equal(found.boxes, expected.boxes) and torch.equal(found.logits, expected.logits)
    convert(tmp_path / "m.pth", tmp_path / "back.pth", "official", classes="keep")
    back = torch.load(tmp_path / "back.pth", weights_only=False)["model"]
    back["label_enc.weight"][-1] = tensors["label_enc.weight"][-1]  # no label has it, and mmdetection leaves it out
    assert_equal_tensors(back, tensors)


@pytest.mark.parametrize("levels", [4, 5])
def test_detrex_dino(levels, batch, tmp_path):
    tensors = detrex_file(True, levels)
    loaded = load_checkpoint(write(tmp_path / "dino_r50.pth", {"model": tensors}))
    assert loaded.report.source_format == "detrex"
    settings = DINO_SETTINGS | {"shared_heads": False, "position_temperature": 10_000.0, "position_offset": 0.5}
    assert_settings(loaded.model.metadata.model, settings)
    ours = loaded.model.state_dict()
    assert torch.equal(ours["query_source.class_head.bias"], tensors[f"class_embed.{LAYERS}.bias"])
    assert torch.equal(
        ours["neck.projections.3.0.weight"], tensors[f"neck.{'extra_convs.0' if levels == 4 else 'convs.3'}.conv.weight"]
    )
    assert run(loaded.model, batch).logits.isfinite().all()


@pytest.mark.parametrize("stated", [True, False])
def test_official_hdetr(stated, batch, tmp_path):
    tensors = official_hdetr(QUERIES + (20 if stated else 1500))
    arguments = argparse.Namespace(num_queries_one2one=QUERIES, num_queries_one2many=20, mixed_selection=True, dropout=0.0)
    source = write(tmp_path / "r50.pth", {"model": tensors} | ({"args": arguments} if stated else {}))
    loaded = load_checkpoint(source)
    further = 20 if stated else 1500
    assert_settings(loaded.model.metadata.model, HDETR_SETTINGS | {"num_queries": QUERIES, "one_to_many_queries": further})
    assert any("one_to_many_queries=1500" in note for note in loaded.report.notes) is not stated
    assert run(loaded.model, batch).boxes.shape[-2] == QUERIES
    convert(source, tmp_path / "back.pth", "official", classes="keep")
    back = torch.load(tmp_path / "back.pth", weights_only=False)
    assert_equal_tensors(back["model"], tensors)
    assert (back["args"].num_queries_one2one, back["args"].num_queries_one2many) == (QUERIES, further)
    bare = load_pretrained(source, one_to_many_queries=0)
    assert torch.equal(run(bare, batch).boxes, run(loaded.model, batch).boxes)
    with pytest.raises(ValueError, match="mmdetection cannot express this network: it has no H-DETR"):
        convert(source, tmp_path / "m.pth", "mmdet")


def test_hdetr_without_mixed_selection(tmp_path):
    """The split is in the arguments alone, and there is no table of contents."""
    arguments = argparse.Namespace(num_queries_one2one=QUERIES, num_queries_one2many=20, look_forward_twice=False)
    tensors = official_hdetr(rows=0)
    source = write(tmp_path / "a.pth", {"model": tensors, "args": arguments})
    expected = {"query_content": "proposal", "num_queries": QUERIES, "one_to_many_queries": 20, "look_forward_twice": False}
    assert_settings(load_pretrained(source).metadata.model, expected)
    convert(source, tmp_path / "back.pth", "official", classes="keep")
    assert_equal_tensors(torch.load(tmp_path / "back.pth", weights_only=False)["model"], tensors)


def test_detrex_hdetr(batch, tmp_path):
    tensors = detrex_file(False)
    loaded = load_checkpoint(write(tmp_path / "h_deformable_detr.pth", {"model": tensors}))
    assert_settings(loaded.model.metadata.model, HDETR_SETTINGS | {"num_queries": QUERIES, "one_to_many_queries": 1500})
    assert torch.equal(loaded.model.state_dict()["query_source.content_embed.weight"], tensors["query_embedding.weight"])
    assert run(loaded.model, batch).boxes.shape[-2] == QUERIES


def test_native_state_dict_of_dino(tmp_path, assert_same_weights):
    model = load_pretrained(write(tmp_path / "a.pth", {"model": official_dino()}))
    again = load_pretrained(write(tmp_path / "plain.pth", model.state_dict()))
    assert_same_weights(model, again)
    whole = load_pretrained(save_weights(tmp_path / "a.safetensors", model))
    assert whole.metadata.model == model.metadata.model
    assert again.metadata.model.shared_heads and again.metadata.model.logit_eps == 1e-3


def test_classes_of_dino_by_name(tmp_path):
    """All rows follow their classes: also those of the proposals, which are classes here, and those of the label table."""
    source = write(tmp_path / "a.pth", {"model": official_dino(), "classes": list("abcdefg")})
    before, after = load_pretrained(source).state_dict(), load_pretrained(source, classes=["c", "new", "a"]).state_dict()
    for name in ("class_heads.0.weight", "query_source.class_head.weight", "denoising.label_embed.weight"):
        assert torch.equal(after[name][0], before[name][2]) and torch.equal(after[name][2], before[name][0])
    assert torch.equal(after["denoising.label_embed.weight"][3], before["denoising.label_embed.weight"][7])
    assert len(after["denoising.label_embed.weight"]) == 4


def test_a_label_table_for_more_classes(tmp_path):
    """The original's table keeps COCO's size where only the number of classes was changed."""
    tensors = official_dino()
    tensors["label_enc.weight"] = torch.randn(92, WIDTH)
    loaded = load_checkpoint(write(tmp_path / "a.pth", {"model": tensors}))
    assert torch.equal(loaded.model.state_dict()["denoising.label_embed.weight"], tensors["label_enc.weight"][: CLASSES + 1])
    assert any("92 → 8 rows" in text for text in loaded.report.reshaped)


def test_transformers_has_neither(tmp_path):
    for tensors, name in ((official_dino(), "DINO"), (official_hdetr(), "H-DETR")):
        source = write(tmp_path / "a.pth", {"model": tensors})
        with pytest.raises(ValueError, match=f"transformers cannot express this network: it has no {name}"):
            convert(source, tmp_path / "folder", "huggingface")
