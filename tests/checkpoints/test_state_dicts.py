"""Weights under wrappers and prefixes of training code, and EMA weights alone or beside the others."""

import itertools
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deformable_detr.checkpoints import load_checkpoint, load_pretrained, save_weights
from deformable_detr.checkpoints.convert import convert
from deformable_detr.checkpoints.load import LoadedCheckpoint

LAYOUTS = ("native", "official", "mmdet", "huggingface")


@pytest.fixture(params=LAYOUTS, scope="module")
def layout(request):
    return request.param


@pytest.fixture(scope="module")
def original(layout, make_model):
    """A detector that the layout can express."""
    return make_model("two-stage", thin=layout != "huggingface")


@pytest.fixture(scope="module")
def state_dict(layout, original, tmp_path_factory):
    """The names of one layout."""
    folder = tmp_path_factory.mktemp(layout)
    source = save_weights(folder / "a.safetensors", original)
    target = folder / {"native": "b.safetensors", "huggingface": "folder"}.get(layout, "a.pth")
    convert(source, target, layout, classes="keep")
    if layout in ("native", "huggingface"):
        return load_file(target / "model.safetensors" if target.is_dir() else target)
    content = torch.load(target, weights_only=False)
    return content.get("state_dict") or content["model"]


def prefixed(state_dict, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state_dict.items()}


def load(content, tmp_path, **options):
    torch.save(content, tmp_path / "x.pth")
    settings: dict[str, Any] = {"num_queries": 12} | options
    return load_checkpoint(tmp_path / "x.pth", **settings)


def embedding(loaded: LoadedCheckpoint) -> torch.Tensor:
    return loaded.model.get_parameter("flatten.level_embed")


WRAPPED = {
    "lightning": lambda weights: {"state_dict": prefixed(weights, "model."), "pytorch-lightning_version": "2.4"},
    "lightning twice": lambda weights: {"state_dict": prefixed(weights, "model.model.") | {"criterion.weight": torch.ones(3)}},
    "another attribute": lambda weights: {"state_dict": prefixed(weights, "detr.")},
    "fsdp": lambda weights: {"model": {f"_fsdp_wrapped_module.{_inside(name)}": t for name, t in weights.items()}},
    "compiled, distributed": lambda weights: {"model": prefixed(weights, "_orig_mod.module.")},
    "peft, joined": lambda weights: prefixed(weights, "base_model.model."),
    "deepspeed": lambda weights: {"module": weights, "dp_world_size": 2},
    "nested": lambda weights: {"checkpoint": {"network": {"model": weights}}, "epoch": 3},
    "plain": lambda weights: weights,
    "old ddp": lambda weights: prefixed(weights, "module."),
}


def _inside(name):
    """The wrapper of each layer, as FSDP puts it into the middle of names."""
    return name.replace("layers.1.", "layers.1._fsdp_wrapped_module.")


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_prefixes_are_found_by_what_is_under_them(wrapper, layout, state_dict, original, tmp_path, assert_same_weights):
    said = {"backbone": "test_resnet"} if layout == "huggingface" else {}  # a config says so there, the tensors cannot
    loaded = load(WRAPPED[wrapper](state_dict), tmp_path, **said)
    assert_same_weights(original, loaded.model)


def test_what_lies_beside_the_detector_is_said(make_model, tmp_path):
    weights = make_model("one-stage").state_dict()
    content = {"state_dict": prefixed(weights, "net.") | {"metric.total": torch.ones(3)}, "optimizer_states": [{"lr": 1.0}]}
    notes = load(content, tmp_path).report.notes
    assert "left: 1 tensors of other modules beside the detector: metric.total" in notes
    assert "training state left behind: optimizer_states" in notes


def shifted(weights, by):
    return {name: tensor + by if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


EMA = ["model_ema", "ema_model", "ema", "ema_state_dict", "state_dict_ema", "swa_weights", "teacher"]


INNER = {
    "bare": lambda weights: weights,
    "module": lambda weights: {"module": weights},
    "module.": lambda weights: prefixed(weights, "module."),
}


@pytest.mark.parametrize("name", EMA)
@pytest.mark.parametrize("inner", INNER)
def test_ema_alone(name, inner, make_model, tmp_path):
    weights = make_model("one-stage").state_dict()
    alone = load({name: INNER[inner](shifted(weights, 1.0)), "epoch": 3}, tmp_path)
    assert torch.equal(embedding(alone), weights["flatten.level_embed"] + 1)
    assert any(note.startswith(f"read: the EMA weights under {name}") for note in alone.report.notes)


def test_ema_weights_or_others_that_are_not_there(make_model, tmp_path):
    weights = make_model("one-stage").state_dict()
    with pytest.raises(ValueError, match="holds no weights without averaging"):
        load({"ema": weights}, tmp_path, ema=False)
    with pytest.raises(ValueError, match="holds no EMA weights"):
        load({"model": weights}, tmp_path, ema=True)


@pytest.mark.parametrize(("name", "inner"), list(zip(EMA, itertools.cycle(INNER), strict=False)))
def test_ema_beside(name, inner, make_model, tmp_path):
    weights = make_model("one-stage").state_dict()
    level_embed = weights["flatten.level_embed"]
    both = {name: INNER[inner](shifted(weights, 1.0)), "model": weights}
    plain = load(both, tmp_path)
    assert torch.equal(embedding(plain), level_embed)
    assert "read: the weights without averaging under model" in plain.report.notes
    assert any(f"left: the EMA weights under {name}" in note and "ema=True takes them" in note for note in plain.report.notes)
    assert torch.equal(embedding(load(both, tmp_path, ema=True)), level_embed + 1)
    assert torch.equal(embedding(load(both, tmp_path, ema=False)), level_embed)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
def test_wrapped_and_plain_names_in_one_dict(wrapper, make_model, tmp_path):
    """The plain ones are the model, whichever come first; that others are left is said, copies need no word."""
    weights = make_model("one-stage").state_dict()
    other = prefixed(shifted(weights, 1.0), wrapper)
    for content in (weights | other, other | weights):
        loaded = load(content, tmp_path)
        assert torch.equal(embedding(loaded), weights["flatten.level_embed"])
        assert f"left: the weights under {wrapper[:-1]}" in loaded.report.notes
        one = wrapper + "class_heads.0.bias"
        with pytest.raises(ValueError, match=one):
            load({name: tensor for name, tensor in content.items() if name in weights or name == one}, tmp_path)
    for content in (weights | prefixed(weights, wrapper), prefixed(weights, wrapper) | weights):
        assert not load(content, tmp_path).report.notes


def test_means_of_gradients_are_no_weights(make_model, tmp_path):
    weights = make_model("one-stage").state_dict()
    content = {"optimizer": {"exp_avg": shifted(weights, 1.0), "exp_avg_sq": weights}, "model": weights}
    assert torch.equal(embedding(load(content, tmp_path)), weights["flatten.level_embed"])
    with pytest.raises(ValueError, match="holds no EMA weights"):
        load(content, tmp_path, ema=True)


def test_several_files_of_weights_in_one_folder(make_model, tmp_path):
    save_weights(tmp_path / "model.safetensors", make_model("one-stage"))
    torch.save({}, tmp_path / "pytorch_model.bin")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    note = "read: model.safetensors; left: model.safetensors.index.json, pytorch_model.bin beside it"
    assert note in load_checkpoint(tmp_path).report.notes
    assert note not in load_checkpoint(tmp_path / "model.safetensors").report.notes


def test_ema_in_the_same_state_dict(make_model, tmp_path):
    weights = make_model("one-stage").state_dict()
    content = {"state_dict": prefixed(weights, "model.") | prefixed(shifted(weights, 1.0), "ema_model.module.")}
    assert torch.equal(embedding(load(content, tmp_path)), weights["flatten.level_embed"])
    assert torch.equal(embedding(load(content, tmp_path, ema=True)), weights["flatten.level_embed"] + 1)


@pytest.mark.parametrize(
    ("other", "more"),
    [("ema_state_dict", {"message_hub": {}}), ("current_model_state", {"averaging_state": {"n": 1}})],
    ids=["mmengine", "lightning"],
)
def test_frameworks_that_save_the_average_as_the_model(other, more, make_model, tmp_path):
    weights = make_model("one-stage").state_dict()
    counted = {"steps": torch.tensor(100)} if other == "ema_state_dict" else {}
    content = {"state_dict": shifted(weights, 1.0), other: prefixed(weights, "module.") | counted, **more}
    loaded = load(content, tmp_path)  # what their own code would load
    assert torch.equal(embedding(loaded), weights["flatten.level_embed"] + 1)
    assert "read: the EMA weights under state_dict" in loaded.report.notes
    assert torch.equal(embedding(load(content, tmp_path, ema=False)), weights["flatten.level_embed"])
    assert torch.equal(embedding(load(content, tmp_path, ema=True)), weights["flatten.level_embed"] + 1)


def test_adapters_that_are_not_joined(make_model, tmp_path):
    weights = prefixed(make_model("one-stage").state_dict(), "base_model.model.")
    weights["base_model.model.decoder.layers.0.ffn.linear1.lora_A.default.weight"] = torch.ones(4, 64)
    with pytest.raises(ValueError, match="LoRA adapters"):
        load(weights, tmp_path)


def test_non_finite_weights_are_named(make_model, tmp_path):
    weights = make_model("two-stage").state_dict()
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    weights["encoder.layers.1.ffn.linear1.weight"][3, 5] = float("nan")
    weights["decoder.box_heads.0.layers.1.bias"][0] = float("inf")
    with pytest.raises(ValueError, match=r"NaN or infinite values \(2\).*Did the training diverge") as caught:
        load(weights, tmp_path)
    for name in ("encoder.layers.1.ffn.linear1.weight", "decoder.box_heads.0.layers.1.bias"):
        assert name in str(caught.value)


@pytest.mark.parametrize("variant", ["one-stage", "refine", "two-stage"])
def test_heads_full_of_nan_are_no_difference_between_copies(variant, make_model, tmp_path):
    save_weights(tmp_path / "a.safetensors", make_model(variant))
    convert(tmp_path / "a.safetensors", tmp_path / "a.pth", "official")
    weights = torch.load(tmp_path / "a.pth", weights_only=False)["model"]
    content = {n: torch.full_like(t, float("nan")) if "class_embed" in n else t for n, t in weights.items()}
    with pytest.raises(ValueError, match=r"NaN or infinite values.*class_embed\.0\.weight"):
        load(content, tmp_path)


def test_large_finite_weights_are_no_nan(make_model, tmp_path):
    weights = {name: tensor.clone() for name, tensor in make_model("one-stage").state_dict().items()}
    weights["encoder.layers.1.ffn.linear1.weight"].fill_(3e38)  # their sum is infinite
    assert load_pretrained(save_weights(tmp_path / "a.safetensors", make_model("one-stage"), state_dict=weights))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_eight_bits_are_read(dtype, make_model, tmp_path):
    weights = {name: t.to(dtype) if t.is_floating_point() else t for name, t in make_model("one-stage").state_dict().items()}
    found = load(weights, tmp_path).model.state_dict()
    assert not [name for name, tensor in weights.items() if not torch.equal(found[name], tensor.to(found[name].dtype))]


def test_negative_variances_are_named(make_model, tmp_path):
    """Their square root is NaN, and a network full of NaN finds nothing in any image."""
    weights = {name: tensor.clone() for name, tensor in make_model("one-stage").state_dict().items()}
    weights["backbone.body.layer2.0.bn1.running_var"][3] = -0.5
    with pytest.raises(ValueError, match=r"negative variances \(1\): backbone\.body\.layer2\.0\.bn1\.running_var"):
        load(weights, tmp_path)


def test_weights_in_whole_numbers_are_refused(make_model, tmp_path):
    weights = make_model("one-stage").state_dict()
    weights["encoder.layers.1.ffn.linear1.weight"] = weights["encoder.layers.1.ffn.linear1.weight"].to(torch.int8)
    with pytest.raises(ValueError, match=r"wrong type \(1\): encoder.layers.1.ffn.linear1.weight is int8, expected float32"):
        load(weights, tmp_path)
