"""Our own files: everything comes back, atomically and in memory of its own."""

import json
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from deformable_detr.checkpoints import load_pretrained, native, save_weights
from deformable_detr.checkpoints.convert import convert
from deformable_detr.checkpoints.native import save_thresholds
from deformable_detr.config import DataConfig, Metadata, ModelConfig
from deformable_detr.model import build_model
from deformable_detr.structures import ImageBatch

from ..processes import start


def test_everything_comes_back(model, tmp_path, assert_same_weights):
    model.metadata = replace(
        model.metadata, eval_short_side=320, mean=(0.1, 0.2, 0.3), training={"epoch": 4, "metrics": {"AP": 0.5}}
    )
    back = load_pretrained(save_weights(tmp_path / "new" / "a.safetensors", model))
    assert_same_weights(model, back)
    assert back.metadata == model.metadata
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {n for n, p in back.named_parameters() if p.requires_grad}


def test_trained_batch_norms_come_back(tmp_path, assert_same_weights):
    model = build_model("tiny", num_classes=3)
    model(torch.rand(1, 3, 64, 64).unbind())  # counters move
    assert_same_weights(model, load_pretrained(save_weights(tmp_path / "a.safetensors", model)))


@pytest.mark.parametrize(("backbone", "normed"), [("test_convnext", True), ("test_vit", False)])
def test_norms_of_the_backbone_in_a_bare_state_dict(backbone, normed, tmp_path, assert_same_weights):
    """Those of ConvNeXt are a setting; a plain Vision Transformer has one without."""
    options = {"img_size": 64} if backbone == "test_vit" else {}
    model = build_model("tiny", backbone=backbone, backbone_options=options, backbone_norm=normed).eval()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    settings: dict[str, Any] = {"num_queries": model.metadata.model.num_queries, "backbone": backbone, "backbone_options": options}
    back = load_pretrained(tmp_path / "a.pth", **settings).eval()
    assert_same_weights(model, back)
    assert back.metadata.model.backbone_norm is normed
    image = list(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        assert torch.equal(model(image).boxes, back(image).boxes)


def test_other_weights_and_metadata(make_model, tmp_path):
    model = make_model("one-stage")
    average = {name: tensor * 0.5 if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}
    metadata = replace(model.metadata, training={"epoch": 1})
    back = load_pretrained(save_weights(tmp_path / "a.safetensors", model, metadata=metadata, state_dict=average))
    assert torch.equal(back.get_parameter("flatten.level_embed"), model.flatten.level_embed * 0.5)
    assert back.metadata.training == {"epoch": 1}


def test_half_precision_becomes_single(make_model, tmp_path):
    model = make_model("one-stage")
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}
    back = load_pretrained(save_weights(tmp_path / "a.safetensors", model, state_dict=half))
    assert {parameter.dtype for parameter in back.parameters()} == {torch.float32}
    torch.testing.assert_close(back.flatten.level_embed, model.flatten.level_embed, rtol=1e-3, atol=1e-3)


def test_tensors_that_share_memory(make_model, tmp_path):
    model = make_model("refine")
    state_dict = model.state_dict()
    state_dict["class_heads.1.weight"] = state_dict["class_heads.0.weight"]
    back = load_pretrained(save_weights(tmp_path / "a.safetensors", model, state_dict=state_dict))
    assert torch.equal(back.get_parameter("class_heads.1.weight"), model.class_heads[0].weight)


def test_loaded_weights_can_be_changed_and_saved_over_their_own_file(make_model, tmp_path):
    path = save_weights(tmp_path / "a.safetensors", make_model("one-stage"))
    model = load_pretrained(path)
    level_embed = model.get_parameter("flatten.level_embed")
    with torch.no_grad():
        level_embed.add_(1.0)
    expected = level_embed.detach().clone()
    save_weights(path, model)
    assert torch.equal(model.get_parameter("flatten.level_embed"), expected)
    assert torch.equal(load_pretrained(path).get_parameter("flatten.level_embed"), expected)


@pytest.mark.parametrize("layout", ["native", "official", "mmdet", "huggingface"])
def test_files_appear_whole_or_not_at_all(layout, make_model, tmp_path, monkeypatch):
    source = save_weights(tmp_path / "a.safetensors", make_model("one-stage", thin=layout != "huggingface"))
    target = tmp_path / "target"
    if layout == "huggingface":
        target.mkdir()
    existing = target / "model.safetensors" if layout == "huggingface" else target
    existing.write_bytes(b"before")

    def fail(content, path, *rest):
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(native, "save_file", fail)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        convert(source, target, layout, overwrite=True)
    assert existing.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(["a.safetensors", existing.name])


def test_a_run_folder_stands_for_its_best_weights(make_model, tmp_path):
    model = make_model("one-stage")
    save_weights(tmp_path / "weights" / "last.safetensors", model, metadata=replace(model.metadata, training={"kind": "last"}))
    assert load_pretrained(tmp_path).metadata.training == {"kind": "last"}
    save_weights(tmp_path / "weights" / "best.safetensors", model, metadata=replace(model.metadata, training={"kind": "best"}))
    assert load_pretrained(str(tmp_path)).metadata.training == {"kind": "best"}


def test_header_is_what_others_can_read(make_model, tmp_path):
    with safe_open(save_weights(tmp_path / "a.safetensors", make_model("one-stage")), framework="pt") as file:
        assert file.metadata()["format"] == "deformable-detr"


def load_and_measure(small, large, result):
    import resource  # which Windows has not

    load_pretrained(small)  # what the libraries need for themselves
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load_pretrained(large)
    result.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss has other units elsewhere")
def test_loading_makes_one_copy_in_memory(make_model, tmp_path):
    small = save_weights(tmp_path / "small.safetensors", make_model("one-stage"))
    large = save_weights(tmp_path / "large.safetensors", build_model("r50", pretrained_backbone=False))
    start(load_and_measure, small, large, tmp_path / "added").join()
    added, size = int((tmp_path / "added").read_text()) * 1024, large.stat().st_size
    assert size > 155e6
    assert 0.9 * size < added < 2.5 * size  # every page of the file is mapped once, and copied


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_that_is_written_over_changes_nothing(suffix, make_model, tmp_path, assert_same_weights):
    """As `cp` does it, in place; a file that becomes shorter would end the process at the next use of its weights."""
    model, path = make_model("one-stage"), tmp_path / f"a.{suffix}"
    if suffix == "pth":
        torch.save(model.state_dict(), path)
    else:
        save_weights(path, model)
    loaded = load_pretrained(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert_same_weights(model, loaded)


THRESHOLDS = (0.1, 0.2, 0.35, 0.4, 0.55)


def test_thresholds_come_back_and_older_files_have_none(model, tmp_path):
    path = save_weights(tmp_path / "a.safetensors", model)
    assert load_pretrained(path).metadata.thresholds is None
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        record = json.loads(header["metadata"])
        del record["thresholds"]  # as written by older versions
        save_file({name: file.get_tensor(name) for name in file.keys()}, path, header | {"metadata": json.dumps(record)})  # noqa: SIM118
    assert load_pretrained(path).metadata == model.metadata
    save_weights(path, model, metadata=replace(model.metadata, thresholds=THRESHOLDS))
    assert load_pretrained(path).metadata.thresholds == THRESHOLDS


def test_thresholds_are_put_into_a_file(model, tmp_path, assert_same_weights):
    path = save_weights(tmp_path / "a.safetensors", model, metadata=replace(model.metadata, training={"epoch": 4}))
    save_thresholds(path, THRESHOLDS)
    back = load_pretrained(path)
    assert_same_weights(model, back)
    assert back.metadata == replace(model.metadata, training={"epoch": 4}, thresholds=THRESHOLDS)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_thresholds_that_do_not_fit(make_model, tmp_path):
    model = make_model("one-stage")
    path = save_weights(tmp_path / "a.safetensors", model)
    content = path.read_bytes()
    with pytest.raises(ValueError, match="2 thresholds for 5 classes"):
        save_thresholds(path, (0.5, 0.5))
    with pytest.raises(ValueError, match=r"thresholds must lie in \[0, 1\]"):
        save_thresholds(path, (0.5, 0.5, 0.5, 0.5, 1.5))
    assert path.read_bytes() == content
    torch.save(model.state_dict(), tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"b.pth is not a weights file of our own.*convert it first"):
        save_thresholds(tmp_path / "b.pth", THRESHOLDS)


@pytest.mark.parametrize(
    "numbers", [{"std": (0.2, 0.2, 0.0)}, {"std": (0.2, 0.2, math.nan)}, {"mean": (0.5,)}, {"mean": ("a", 1, 1)}]
)
def test_normalisation_that_makes_no_numbers_is_refused(numbers):
    for make in (DataConfig, partial(Metadata, ModelConfig())):
        with pytest.raises(ValueError, match="must be three finite numbers each"):
            make(**numbers)


def test_weights_loaded_in_inference_mode_can_be_trained(make_model, tmp_path):
    path = save_weights(tmp_path / "weights.safetensors", make_model("one-stage"))
    with torch.inference_mode():
        loaded = load_pretrained(path)
    loaded(ImageBatch.from_images([torch.rand(3, 64, 64)])).logits.sum().backward()
    assert loaded.get_parameter("class_heads.0.bias").grad is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [("dilation", True), ("num_heads", 4), ("num_decoder_points", 2), ("position_offset", -0.5), ("output_eps", 1e-3)],
)
def test_what_the_weights_have_learned_with_is_not_to_be_chosen(name, value, make_model, tmp_path):
    """The tensors would fit, and the network would compute something else."""
    path = save_weights(tmp_path / "a.safetensors", make_model("two-stage"))
    with pytest.raises(ValueError, match=rf"{name}={value} was asked for, but the native checkpoint holds a network with {name}="):
        load_pretrained(path, **{name: value})
    stored = load_pretrained(path).metadata.model
    assert load_pretrained(path, **{name: getattr(stored, name)}, dropout=0.3).metadata.model == replace(stored, dropout=0.3)


def test_the_kind_of_weights_that_was_asked_for(make_model, tmp_path):
    model = make_model("two-stage")
    for averaged in (True, False):
        model.metadata = replace(model.metadata, training={"ema": averaged})
        path = save_weights(tmp_path / "a.safetensors", model)
        load_pretrained(path)
        load_pretrained(path, ema=averaged)
        with pytest.raises(ValueError, match=rf"a\.safetensors holds no .*\(ema={not averaged}\)"):
            load_pretrained(path, ema=not averaged)
