"""Files that are not what they should be: each ends in an error that names what does not fit."""

import argparse
import json
import os
import pickle
import re
import struct
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from deformable_detr.checkpoints import load_pretrained, save_weights
from deformable_detr.checkpoints.convert import convert


@pytest.fixture
def native_file(make_model, tmp_path):
    return save_weights(tmp_path / "ours.safetensors", make_model("two-stage"))


@pytest.fixture
def official_file(native_file, tmp_path):
    """Without our own header, as the original code writes it."""
    path = tmp_path / "official.pth"
    convert(native_file, path, "official")
    content = torch.load(path, weights_only=False)
    torch.save({"model": content["model"], "args": content["args"]}, path)
    return path


def alter(path, change):
    content = torch.load(path, weights_only=False)
    change(content["model"])
    torch.save(content, path)


def message_of(path, **options):
    with pytest.raises(ValueError) as caught:
        load_pretrained(path, **options)
    assert path.name in str(caught.value) or "checkpoint" in str(caught.value)
    return str(caught.value)


def move(old, new):
    return lambda state_dict: state_dict.update({new: state_dict.pop(old)})


def transpose(name):
    return lambda state_dict: state_dict.update({name: state_dict[name].T.contiguous()})


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            move("transformer.encoder.layers.1.norm1.weight", "transformer.encoder.layers.1.norm_1.weight"),
            [
                "missing (1): transformer.encoder.layers.1.norm1.weight",
                "not understood (1): transformer.encoder.layers.1.norm_1.weight",
            ],
        ),
        (
            move("transformer.level_embed", "transformer.levels"),
            ["without transformer.level_embed", "not understood: transformer.levels"],
        ),
        (
            lambda state_dict: [state_dict.pop(name) for name in list(state_dict) if "decoder.layers.1.linear" in name],
            ["missing (4): transformer.decoder.layers.1.linear1.weight, transformer.decoder.layers.1.linear1.bias"],
        ),
        (
            transpose("transformer.encoder.layers.0.linear1.weight"),
            ["transformer.encoder.layers.0.linear1.weight is [64, 48], expected [48, 64] (transposed?)"],
        ),
        (
            lambda state_dict: [transpose(f"{prefix}class_embed.1.weight")(state_dict) for prefix in ("", "transformer.decoder.")],
            ["class_embed.1.weight is [64, 5], expected [5, 64] (transposed?)"],
        ),
        (transpose("class_embed.1.weight"), ["class_embed.1.weight and transformer.decoder.class_embed.1.weight must be copies"]),
        (
            lambda state_dict: state_dict.update({"bbox_attention.weight": torch.ones(2)}),
            ["not understood (1): bbox_attention.weight"],
        ),
    ],
    ids=["renamed", "renamed-key-of-shape", "incomplete", "transposed", "transposed-head", "transposed-copy", "further"],
)
def test_official_files_that_do_not_fit(official_file, change, parts):
    alter(official_file, change)
    message = message_of(official_file)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("convert", "kind"),
    [
        (lambda tensor: tensor.to_sparse(), "sparse"),
        (lambda tensor: tensor.to("meta"), r"without content \(meta\)"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "quantised"),
        (lambda tensor: tensor.to(torch.complex64), "complex"),
    ],
    ids=["sparse", "meta", "quantised", "complex"],
)
def test_tensors_that_are_no_plain_numbers(convert, kind, official_file):
    name = "transformer.encoder.layers.0.linear1.weight"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own quantised tensors are deprecated
        alter(official_file, lambda state_dict: state_dict.update({name: convert(state_dict[name])}))
        with pytest.raises(ValueError, match=rf"1 tensors are {kind} \(model/{name}\): save plain weights"):
            load_pretrained(official_file)


def test_wrong_class_count(official_file):
    def change(state_dict):
        for prefix in ("", "transformer.decoder."):
            state_dict[f"{prefix}class_embed.1.weight"] = torch.zeros(8, 64)
            state_dict[f"{prefix}class_embed.1.bias"] = torch.zeros(8)

    alter(official_file, change)
    assert "class_embed.1.bias is [8], expected [5]" in message_of(official_file)


@pytest.mark.parametrize("rows", [None, 2])
def test_a_head_that_does_not_fit_while_the_classes_change(official_file, rows):
    def change(state_dict):
        for name in [name for name in state_dict if name.endswith("class_embed.1.bias")]:
            bias = state_dict.pop(name)
            state_dict |= {} if rows is None else {name: bias[:rows].clone()}

    alter(official_file, change)
    expected = "missing (1): class_embed.1.bias" if rows is None else "class_embed.1.bias is [2], expected [3]"
    assert expected in message_of(official_file, classes=["cell", "dust", "hair"])
    model = load_pretrained(official_file, classes=["cell", "dust", "hair"], strict=False)
    biases = [model.get_submodule(f"class_heads.{layer}").bias for layer in (0, 1)]
    assert [len(bias) for bias in biases] == [3, 3]  # type: ignore[arg-type]


def test_another_file_with_the_ending_of_an_index(native_file):
    native_file.with_name("pages.index.json").write_text("{}")
    assert load_pretrained(native_file).metadata.model.num_classes == 5


def test_what_pickles_may_hold_is_left_to_others(official_file):
    mine = [json.JSONDecoder, argparse.Namespace]
    with torch.serialization.safe_globals(mine):
        load_pretrained(official_file)
        assert set(torch.serialization.get_safe_globals()) >= set(mine)
    assert not set(torch.serialization.get_safe_globals()) & set(mine)


def test_copies_that_differ(official_file):
    alter(official_file, lambda state_dict: state_dict.update({"transformer.decoder.bbox_embed.0.layers.0.bias": torch.ones(64)}))
    message = message_of(official_file)
    assert "bbox_embed.0.layers.0.bias and transformer.decoder.bbox_embed.0.layers.0.bias must be copies" in message


@pytest.mark.parametrize(
    ("setting", "value", "found"),
    [("two_stage", False, True), ("num_feature_levels", 1, 4), ("hidden_dim", 256, 64), ("num_encoder_layers", 6, 2)],
)
def test_wrong_variant(official_file, native_file, setting, value, found):
    for path in (official_file, native_file):
        message = message_of(path, **{setting: value})
        assert f"{setting}={value} was asked for" in message and f"{setting}={found}" in message


def test_wrong_number_of_heads(official_file):
    assert "pass num_heads" in message_of(official_file, num_heads=7)


def test_unknown_setting(native_file):
    with pytest.raises(ValueError, match="unknown model setting \\['depth'\\]"):
        load_pretrained(native_file, depth=3)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.001])
def test_half_downloaded_safetensors(native_file, share):
    content = native_file.read_bytes()
    native_file.write_bytes(content[: int(len(content) * share)])
    message = message_of(native_file)
    assert "Fetch it again" in message
    if share > 0.1:
        assert re.search(rf"it has {int(len(content) * share):,} of {len(content):,} bytes", message)


@pytest.mark.parametrize("old_container", [False, True])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.0001])
def test_half_downloaded_pickle(official_file, share, old_container):
    torch.save(torch.load(official_file, weights_only=False), official_file, _use_new_zipfile_serialization=not old_container)
    content = official_file.read_bytes()
    official_file.write_bytes(content[: int(len(content) * share)])
    assert "Fetch it again" in message_of(official_file)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 163\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"just some text that is long enough to be looked at", "a text file, not weights"),
    ],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_not_weights_at_all(content, part, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    message = message_of(tmp_path / name)
    assert part in message


class Hostile:
    """Runs a command when it is unpickled by a careless reader."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
def test_hostile_pickle_is_refused_and_not_executed(container, official_file, tmp_path):
    marker = tmp_path / "executed"
    content = torch.load(official_file, weights_only=False) | {"optimizer": Hostile(marker)}
    if container == "pickle":
        official_file.write_bytes(pickle.dumps(content["optimizer"]))
    else:
        torch.save(content, official_file, _use_new_zipfile_serialization=container == "zip")
    message = message_of(official_file)
    assert "refused" in message and "nothing was executed" in message
    assert container == "pickle" or "system" in message
    assert not marker.exists()
    torch.load(official_file, weights_only=False) if container != "pickle" else pickle.loads(official_file.read_bytes())
    assert marker.exists()  # it would have worked


def test_hostile_namespace(official_file, tmp_path):
    content = torch.load(official_file, weights_only=False)
    content["args"].device = Hostile(tmp_path / "executed")
    torch.save(content, official_file)
    assert "refused" in message_of(official_file)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["transformer.encoder.layers.0.self_attn.in_proj_weight", "query_embed.weight"], "not a Deformable DETR"),
        (["conv1.weight", "layer1.0.conv1.weight"], "weights of a backbone alone"),
        (["transformer.layers.0.sampling_offsets.weight"], "a relative of Deformable DETR"),
        (["linear.weight"], "not a Deformable DETR (1 tensors: linear.weight"),
    ],
)
def test_other_networks(names, part, tmp_path):
    torch.save({name: torch.ones(2, 2) for name in names}, tmp_path / "other.pth")
    assert part in message_of(tmp_path / "other.pth")


def test_pickles_of_other_things(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    assert "holds a list" in message_of(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    assert "holds no tensors" in message_of(tmp_path / "empty.pth")


def header_of(path):
    content = path.read_bytes()
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])["__metadata__"]


def test_our_file_with_a_broken_header(native_file):
    tensors, header = load_file(native_file), header_of(native_file)
    save_file(tensors, native_file, header | {"metadata": header["metadata"][:-5]})
    assert "its header cannot be read" in message_of(native_file)
    save_file(tensors, native_file, {"format": "deformable-detr"})
    assert "its header cannot be read" in message_of(native_file)


def test_our_file_with_another_class_count_than_its_header(native_file):
    tensors = load_file(native_file)
    tensors["class_heads.0.bias"] = torch.zeros(4)
    save_file(tensors, native_file, header_of(native_file))
    assert "class_heads.0.bias is [4], expected [5]" in message_of(native_file)


def test_not_strict_keeps_what_fits(native_file, make_model, caplog):
    tensors = load_file(native_file)
    tensors["further"] = torch.ones(1)
    del tensors["encoder.layers.0.ffn.linear1.weight"]
    save_file(tensors, native_file, header_of(native_file))
    assert "missing (1): encoder.layers.0.ffn.linear1.weight" in message_of(native_file)
    model = load_pretrained(native_file, strict=False)
    assert "encoder.layers.0.ffn.linear1.weight" in caplog.text and "further" in caplog.text
    expected = make_model("two-stage").state_dict()
    loaded = model.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], loaded[name])] == ["encoder.layers.0.ffn.linear1.weight"]


@pytest.mark.parametrize("checksums", [True, False])
def test_a_flipped_byte(official_file, checksums):
    """PyTorch writes a checksum for each tensor and does not read it; it can be told to write none."""
    if not checksums:
        content = torch.load(official_file, weights_only=False)
        torch.serialization.set_crc32_options(False)
        torch.save(content, official_file)
        torch.serialization.set_crc32_options(True)
    load_pretrained(official_file)
    bytes_of_file = bytearray(official_file.read_bytes())
    weight = torch.load(official_file, weights_only=False)["model"]["transformer.encoder.layers.0.linear1.weight"]
    bytes_of_file[bytes_of_file.index(weight.numpy().tobytes()) + 6] ^= 16
    official_file.write_bytes(bytes_of_file)
    if checksums:
        with pytest.raises(ValueError, match=r"damaged PyTorch checkpoint \(the checksum of .*/data/\d+ does not fit its bytes"):
            load_pretrained(official_file)
    else:
        load_pretrained(official_file)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_pretrained(tmp_path / "no.safetensors")
    with pytest.raises(FileNotFoundError, match="no weights in the folder"):
        load_pretrained(tmp_path)
    with pytest.raises(ValueError, match="revision"):
        load_pretrained(tmp_path, revision="main")


def test_a_key_in_two_files_of_one_model(native_file, tmp_path):
    """Equal, it does no harm; different, the files are of two models."""
    tensors, key = load_file(native_file), "flatten.level_embed"
    names = list(tensors)
    parts = {"a.safetensors": {n: tensors[n] for n in names[::2]}, "b.safetensors": {n: tensors[n] for n in names[1::2]}}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: part for part, held in parts.items() for name in held}}))
    for value in (tensors[key], tensors[key].double(), tensors[key] + 1):
        save_file(parts["a.safetensors"] | {key: tensors[key]}, tmp_path / "a.safetensors")
        save_file(parts["b.safetensors"] | {key: value}, tmp_path / "b.safetensors")
        if value is tensors[key]:
            assert torch.equal(load_pretrained(index, num_queries=12).get_parameter(key), value)
            continue
        with pytest.raises(ValueError, match=r"flatten\.level_embed has other values in .*b\.safetensors than in the files before"):
            load_pretrained(index)


@pytest.mark.parametrize("kind", ["sparse", "without content"])
def test_odd_tensors_in_two_files_of_one_model(kind, native_file, tmp_path):
    tensor = torch.eye(3).to_sparse() if kind == "sparse" else torch.empty(3, device="meta")
    weights = load_file(native_file)
    index = tmp_path / "model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"flatten.level_embed": "a.bin", "x": "b.bin"}}))
    for name in ("a.bin", "b.bin"):
        torch.save(weights | {"x": tensor}, tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: it checks sparse tensors
        with pytest.raises(ValueError, match=rf"1 tensors are {kind}"):
            load_pretrained(index)


@pytest.mark.parametrize("classes", [["a", None, "c"], {0: "a", 1: "b"}, [1, 2]])
def test_names_of_classes_that_are_no_text(classes, native_file):
    with pytest.raises(ValueError, match="classes must be a list of names, each a text"):
        load_pretrained(native_file, classes=classes)
