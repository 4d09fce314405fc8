"""`deformable-detr convert`."""

import pytest
import torch

from deformable_detr.checkpoints import load_pretrained, save_weights
from deformable_detr.cli.__main__ import main


@pytest.fixture
def source(make_model, tmp_path):
    return save_weights(tmp_path / "ours.safetensors", make_model("two-stage"))


@pytest.mark.parametrize(
    ("layout", "target"), [("official", "a.pth"), ("mmdet", "b.pth"), ("huggingface", "folder"), ("native", "c.safetensors")]
)
def test_there_and_back(layout, target, make_model, tmp_path, capsys, assert_same_weights):
    model = make_model("two-stage", thin=layout != "huggingface")
    source = save_weights(tmp_path / "ours.safetensors", model)
    assert main(["convert", str(source), str(tmp_path / target), "--to", layout]) == 0
    output = capsys.readouterr().out
    assert f"native → {layout}" in output and "lossy     no" in output and "mapped" in output and "missing   0" in output
    assert main(["convert", str(tmp_path / target), str(tmp_path / "back.safetensors")]) == 0
    assert f"{layout} → native" in capsys.readouterr().out
    back = load_pretrained(tmp_path / "back.safetensors")
    assert_same_weights(model, back)
    assert back.metadata == model.metadata


def test_what_the_tensors_cannot_say(make_model, tmp_path, capsys):
    path = save_weights(tmp_path / "a.safetensors", make_model("single-scale-dc5"))
    main(["convert", str(path), str(tmp_path / "b.pth"), "--to", "official"])
    torch.save({"model": torch.load(tmp_path / "b.pth", weights_only=False)["model"]}, tmp_path / "bare.pth")
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "bare.pth"), str(tmp_path / "c.safetensors")]) == 0
    assert "pass dilation=True if it is the DC5 variant" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "bare.pth"), str(tmp_path / "d.safetensors"), "--dilation"]) == 0
    assert load_pretrained(tmp_path / "d.safetensors").metadata.model.dilation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOURCE", "TARGET", "--to", "onnx"], "to"),
        (["no.pth", "TARGET"], "no weights at no.pth"),
        (["SOURCE", "SOURCE"], "this file is read, and would be written over"),
        (["SOURCE", "THERE"], "exists"),
        (["SOURCE", "FOLDER", "--to", "mmdet"], "is a folder"),
        (["SOURCE", "new.safetensors", "--to", "official"], "a pickle, which programs do not read under this name"),
        (["SOURCE", "/proc/new.safetensors"], "cannot be written here"),
        (["SOURCE", "THERE", "--to", "huggingface"], "is a file"),
        (["SOURCE", "TARGET", "--classes", "coco80"], "does not have COCO's classes"),
    ],
)
def test_mistakes(arguments, message, source, tmp_path, capsys):
    (there := tmp_path / "there.safetensors").write_bytes(b"weights of another day")
    places = {"SOURCE": str(source), "TARGET": str(tmp_path / "x.pth"), "FOLDER": str(tmp_path), "THERE": str(there)}
    assert main(["convert", *(places.get(str(argument), str(argument)) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.pth").exists() and there.read_bytes() == b"weights of another day"


def test_an_existing_target_is_replaced_when_asked(source, tmp_path):
    (tmp_path / "x.pth").write_text("old")
    (tmp_path / "misnamed.safetensors").symlink_to("x.pth")
    assert main(["convert", str(source), str(tmp_path / "x.pth"), "--to", "official", "--overwrite"]) == 0
    for name in ("x.pth", "misnamed.safetensors"):
        assert load_pretrained(tmp_path / name).metadata.model.two_stage
