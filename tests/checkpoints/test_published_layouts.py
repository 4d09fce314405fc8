"""Every published file of DINO and H-DETR by its name: found settings, and weights that arrive where they belong."""

import argparse
import functools
import itertools
from pathlib import Path

import pytest
import torch
from tests.checkpoints.layouts import (
    CHANNELS,
    DEPTHS,
    HEADS,
    QUERIES,
    WINDOW,
    detrex_file,
    mmdet_dino,
    official_dino,
    official_hdetr,
    position_index,
)

from deformable_detr.checkpoints import load_checkpoint, load_pretrained
from deformable_detr.checkpoints.convert import Layout, convert
from deformable_detr.checkpoints.load import describe, read_weights
from deformable_detr.checkpoints.published import PUBLISHED
from deformable_detr.checkpoints.swin import settings_of_swin
from deformable_detr.checkpoints.tensor_files import TensorFile
from deformable_detr.model import build_model
from deformable_detr.presets import MODEL_PRESETS

DINO_20 = {"position_temperature": 20.0, "position_offset": 0.0, "logit_eps": 1e-3, "max_detections": 300}
DINO_10000 = DINO_20 | {"position_temperature": 10_000.0, "position_offset": 0.5}
DINO_ARGUMENTS = argparse.Namespace(pe_temperatureH=20, dn_number=100, num_select=300, dropout=0.0, backbone="resnet50")
IMPROVED = (
    "model = dict(positional_encoding=dict(normalize=True, offset=-0.5, temperature=10000), "
    "dn_cfg=dict(group_cfg=dict(num_dn_queries=300)))"
)

DINO = [
    *((f"checkpoint{n}_4scale.pth", 4, False, DINO_20) for n in ("0011", "0023", "0033")),
    *((f"checkpoint{n}_5scale.pth", 5, False, DINO_20) for n in ("0011", "0022", "0031")),
    ("checkpoint0029_4scale_swin.pth", 4, True, DINO_20),
    ("dino-4scale_r50_8xb2-12e_coco_20221202_182705-55b2bba2.pth", 4, False, DINO_20 | {"output_eps": 1e-5}),
    ("dino-4scale_r50_improved_8xb2-12e_coco_20230818_162607-6f47a913.pth", 4, False, DINO_10000 | {"denoising_queries": 300}),
    ("dino-5scale_swin-l_8xb2-12e_coco_20230228_072924-a654145f.pth", 5, True, DINO_20 | {"output_eps": 1e-5}),
    ("dino-5scale_swin-l_8xb2-36e_coco-5486e051.pth", 5, True, DINO_20 | {"output_eps": 1e-5}),
    ("dino_r50_4scale_12ep_49_2AP.pth", 4, False, DINO_10000 | {"denoising_queries": 100, "output_eps": None}),
    ("dino_r50_4scale_24ep.pth", 4, False, DINO_20),
    ("dino_r50_5scale_12ep.pth", 5, False, DINO_10000),
    ("dino_r50_4scale_12ep_300dn.pth", 4, False, DINO_10000 | {"denoising_queries": 300}),
    ("dino_r50_4scale_12ep_hacked_trainer.pth", 4, False, DINO_10000),
    ("dino_r50_4scale_12ep_backbone_2e-5_class_weight_2.0.pth", 4, False, DINO_10000 | {"denoising_queries": 100}),
    ("dino_r50_4scale_12ep_backbone_2e-5_class_weight_2.0_300dn.pth", 4, False, DINO_10000 | {"denoising_queries": 300}),
    ("dino_swin_large_4scale_12ep.pth", 4, True, DINO_10000),
    ("dino_swin_large_384_4scale_36ep.pth", 4, True, DINO_10000),
    ("dino_swin_large_384_5scale_12ep.pth", 5, True, DINO_10000),
    ("dino_swin_large_384_5scale_36ep.pth", 5, True, DINO_10000),
]
"""(name, scales, Swin Transformer, settings)"""


@functools.cache
def generated(make, *arguments, **settings):
    return make(*arguments, **settings)


def read(name, content):
    """Tensors and settings of a file with this name, without the network."""
    tensors = {f"{key}/{name}": tensor for key in ("model", "state_dict") for name, tensor in content.get(key, {}).items()}
    weights = read_weights(TensorFile(Path(name), tensors, extras=content))
    config = describe(weights, {}, name).model
    assert weights.unknown == [] and not [note for note in weights.report.notes if note.startswith("assumed")]
    return config


def dino_file(name, levels, swin):
    if name.startswith("checkpoint"):
        return {"model": generated(official_dino, levels, swin=swin), "args": DINO_ARGUMENTS}
    if name.startswith("dino-"):
        return {"state_dict": generated(mmdet_dino, levels, swin=swin), "meta": {"cfg": IMPROVED} if "improved" in name else {}}
    return {"model": generated(detrex_file, True, levels, swin=swin)}


def assumed(loaded):
    return [note for note in loaded.report.notes if note.startswith("assumed")]


@pytest.mark.parametrize(("name", "levels", "swin", "expected"), DINO, ids=[item[0] for item in DINO])
def test_dino(name, levels, swin, expected):
    config = read(name, dino_file(name, levels, swin))
    sizes = {"num_feature_levels": levels, "backbone_levels": levels - 1, "num_queries": QUERIES, "backbone_norm": swin}
    expected = expected | sizes | {"query_position": "reference", "look_forward_twice": True}
    assert {key: getattr(config, key) for key in expected} == expected


TRICKS = "dp0_mqs_lft_"
HYBRID = "hybrid_branch_lambda1_group6_t1500_"
HDETR = [
    f"{before}{backbone}_{branch}{tricks}deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage_{epochs}.pth"
    for before, backbone, (branch, tricks), epochs in [
        *itertools.product([""], ["r50", "swin_tiny"], [("", ""), ("", TRICKS), (HYBRID, TRICKS)], ["12eps", "36eps"]),
        *itertools.product([""], ["swin_large"], [("", ""), ("", TRICKS), (HYBRID, TRICKS), (f"{HYBRID}n900_", TRICKS)], ["12eps"]),
        *itertools.product(["drop_path0.5_"], ["swin_large"], [("", ""), (HYBRID, TRICKS), (f"{HYBRID}n900_", TRICKS)], ["36eps"]),
        *itertools.product(["decay0.05_"], ["swin_tiny"], [(HYBRID, TRICKS)], ["12eps", "36eps"]),
        ("decay0.05_drop_path0.5_", "swin_large", (f"{HYBRID}n900_", TRICKS), "36eps"),
        ("", "swin_tiny", ("", ""), "12eps_2"),
    ]
]
CONVERTED = [name for name in HDETR if HYBRID in name and "decay" not in name]
MODIFIED = "h_deformable_detr_r50_two_stage_12ep_modified_train_net.pth"


def hdetr_arguments(name):
    """What their code keeps; the number of queries is that of the generated file."""
    return argparse.Namespace(
        num_queries_one2one=900 if "n900" in name else 300,
        num_queries_one2many=1500 if HYBRID in name else 0,
        mixed_selection=TRICKS in name,
        look_forward_twice=TRICKS in name,
        dropout=0.0 if TRICKS in name else 0.1,
        drop_path_rate=0.5 if "drop_path0.5" in name else 0.2,
        topk=100,
    )


def assert_hdetr(config, name, detections):
    tricks, swin = TRICKS in name or name == MODIFIED, "swin" in name
    expected = {
        "num_queries": 900 if "n900" in name else 300,
        "one_to_many_queries": 1500 if HYBRID in name or name == MODIFIED else 0,
        "query_content": "learned" if tricks else "proposal",
        "query_position": "proposal",
        "look_forward_twice": tricks,
        "dropout": 0.0 if tricks else 0.1,
        "position_temperature": 10_000.0,
        "position_offset": 0.5,
        "logit_eps": 1e-5,
        "max_detections": detections,
        "backbone_norm": swin,
    }
    assert {key: getattr(config, key) for key in expected} == expected
    if swin:
        assert config.backbone_options["drop_path_rate"] == (0.5 if "drop_path0.5" in name else 0.2)


def hdetr_rows(name):
    return 0 if TRICKS not in name else (900 if "n900" in name else 300) + (1500 if HYBRID in name else 0)


@pytest.mark.parametrize("name", HDETR)
def test_hdetr(name):
    tensors = generated(official_hdetr, hdetr_rows(name), swin="swin" in name)
    for content in ({"model": tensors, "args": hdetr_arguments(name)}, {"model": tensors}):  # the name says it all the same
        assert_hdetr(read(name, content), name, 100)


@pytest.mark.parametrize("name", [*CONVERTED, MODIFIED])
def test_hdetr_of_detrex(name):
    rows = 1800 if name == MODIFIED else hdetr_rows(name)
    assert_hdetr(read(name, {"model": generated(detrex_file, False, swin="swin" in name, rows=rows)}), name, 300)


def test_the_arguments_count_more_than_the_name():
    arguments = argparse.Namespace(num_queries=1800, num_queries_one2one=600, num_queries_one2many=1200, look_forward_twice=False)
    config = read(CONVERTED[0], {"model": generated(official_hdetr, 1800), "args": arguments})
    assert (config.num_queries, config.one_to_many_queries, config.look_forward_twice) == (600, 1200, False)


@pytest.mark.parametrize(
    ("tensors", "named", "passed"),
    [
        (lambda: official_hdetr(1812), "num_queries=312, one_to_many_queries=1500, look_forward_twice=True", {"num_queries": 312}),
        (lambda: detrex_file(True), "position_temperature=10000.0, position_offset=0.5", {"position_temperature": 20.0}),
    ],
    ids=["hdetr", "dino"],
)
def test_what_nothing_says_is_asked_for(tensors, named, passed, tmp_path, caplog):
    torch.save({"model": tensors()}, tmp_path / "mine.pth")
    (note,) = assumed(load_checkpoint(tmp_path / "mine.pth"))
    assert named in note and "pass what is otherwise" in note and note in caplog.text
    remaining = assumed(load_checkpoint(tmp_path / "mine.pth", **passed))
    assert not any(next(iter(passed)) in note for note in remaining)


def test_copies_and_weight_of_the_training_are_told(tmp_path):
    arguments = argparse.Namespace(num_queries_one2one=QUERIES, num_queries_one2many=20, k_one2many=4, lambda_one2many=0.5)
    torch.save({"model": official_hdetr(), "args": arguments}, tmp_path / "a.pth")
    notes = load_checkpoint(tmp_path / "a.pth").report.notes
    assert "trained with loss.one_to_many_copies=4" in notes and "trained with loss.one_to_many_weight=0.5" in notes


def merged_by_mmdet(tensor):
    """The original's columns in mmdetection's order: column c·4 + j is column [0, 2, 1, 3][j]·C + c."""
    channels = tensor.shape[-1] // 4
    result = torch.empty_like(tensor)
    for c in range(channels):
        for j in range(4):
            result[..., c * 4 + j] = tensor[..., [0, 2, 1, 3][j] * channels + c]
    return result


SWIN_NAMES = [
    ("layers.", "stages."),
    (".attn.", ".attn.w_msa."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
]


@pytest.mark.parametrize("levels", [4, 5])
def test_swin_is_the_same_from_all_layouts_and_goes_back(levels, batch, tmp_path):
    official = official_dino(levels, swin=True)
    mmdet = mmdet_dino(levels, swin=True)
    detrex = detrex_file(True, levels, swin=True)
    for name, tensor in official.items():
        if name.startswith("backbone.0."):
            detrex[name.replace("backbone.0.", "backbone.")] = tensor
            theirs = name.replace("backbone.0.", "backbone.").replace("patch_embed.proj.", "patch_embed.projection.")
            for ours, other in SWIN_NAMES:
                theirs = theirs.replace(ours, other)
            assert theirs in mmdet
            mmdet[theirs] = merged_by_mmdet(tensor) if ".downsample." in name else tensor
    states = []
    for index, content in enumerate(({"model": official}, {"state_dict": mmdet}, {"model": detrex})):
        torch.save(content, tmp_path / f"{index}.pth")
        model = load_pretrained(tmp_path / f"{index}.pth")
        states.append({name: value for name, value in model.state_dict().items() if name.startswith("backbone.")})
        if index == 0:
            fresh = dict(build_model(model.metadata.model).named_buffers())  # indices of the windows, which no file keeps
            assert all(torch.equal(buffer, fresh[name]) for name, buffer in model.named_buffers())
            with torch.no_grad():
                assert model.eval()(batch).logits.isfinite().all()
    for other in states[1:]:
        assert other.keys() == states[0].keys()
        assert all(torch.equal(value, other[name]) for name, value in states[0].items())
    assert torch.equal(states[0]["backbone.norms.0.weight"], official[f"backbone.0.norm{5 - levels}.weight"])
    assert torch.equal(
        states[0]["backbone.body.layers_2.downsample.reduction.weight"], official["backbone.0.layers.1.downsample.reduction.weight"]
    )
    files: tuple[tuple[Layout, str, dict, str], ...] = (
        ("official", "model", official, "0.pth"),
        ("mmdet", "state_dict", mmdet, "1.pth"),
    )
    for layout, key, tensors, source in files:
        convert(tmp_path / source, tmp_path / layout, layout, classes="keep")
        back = torch.load(tmp_path / layout, weights_only=False)[key]
        assert back.keys() == tensors.keys()
        assert all(torch.equal(value, back[name]) for name, value in tensors.items())


def test_swin_of_hdetr_goes_back(tmp_path):
    tensors = official_hdetr(swin=True)
    torch.save({"model": tensors, "args": argparse.Namespace(num_queries_one2one=QUERIES)}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.pth", "official", classes="keep")
    back = torch.load(tmp_path / "b.pth", weights_only=False)["model"]
    assert back.keys() == tensors.keys() and all(torch.equal(value, back[name]) for name, value in tensors.items())
    options = load_pretrained(tmp_path / "a.pth").metadata.model.backbone_options
    assert (options["embed_dim"], tuple(options["depths"]), options["window_size"]) == (CHANNELS[0], DEPTHS, WINDOW)
    assert position_index()[0, -1] == 0 and tuple(options["num_heads"]) == HEADS


@pytest.mark.parametrize("preset", [name for name, config in MODEL_PRESETS.items() if config.backbone.startswith("swin")])
def test_published_swins_are_recognised(preset):
    with torch.device("meta"):
        model = build_model(preset, pretrained_backbone=False)
    found = settings_of_swin(model.state_dict(), None)
    expected = model.metadata.model
    assert found is not None and found["backbone"] == expected.backbone.split(".")[0]
    assert found["backbone_options"] == expected.backbone_options
    assert expected.backbone_norm and "backbone.norms.0.weight" in model.state_dict()  # by which it is recognised


def test_every_published_file_of_both_is_among_these():
    known = {item[0] for item in DINO} | set(HDETR)
    assert {item.file_name for item in PUBLISHED.values() if "dino" in item.preset or "hdetr" in item.preset} <= known
