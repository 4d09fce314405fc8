import contextlib
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from PIL import Image

from deformable_detr.categories import Categories
from deformable_detr.checkpoints import save_weights
from deformable_detr.cli.__main__ import main
from deformable_detr.cli.predict import COMMAND
from deformable_detr.data.scenes import SHAPES, generate_scenes
from deformable_detr.detector import Detector
from deformable_detr.model import build_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights and images."""
    folder = tmp_path_factory.mktemp("export")
    small = {"two_stage": False, "num_feature_levels": 1, "num_encoder_layers": 1, "num_decoder_layers": 1}
    model = build_model("tiny", num_classes=len(SHAPES), **small)
    categories = Categories(tuple(shape.name for shape in SHAPES), tuple(shape.category_id for shape in SHAPES))
    model.metadata = replace(model.metadata, categories=categories, eval_short_side=96, max_long_side=96)
    save_weights(folder / "weights.safetensors", model)
    generate_scenes(folder / "data", train=3, val=2, image_size=64)
    (folder / "images").mkdir()
    for seed in range(2):  # they fill the canvas of 96 x 96
        pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def exported(folder):
    """The file, in the highest opset, and what was said when it was written."""
    target, said = folder / "detector.onnx", io.StringIO()
    with contextlib.redirect_stdout(said):
        options = ["--size", "96", "96", "--batch-size", "1", "--opset", "23"]
        assert main(["export", str(folder / "weights.safetensors"), str(target), *options]) == 0
    onnx.checker.check_model(str(target), full_check=True)
    assert [opset.version for opset in onnx.load(target).opset_import if opset.domain == ""] == [23]
    return target, said.getvalue()


def test_export_and_predict_give_what_the_weights_give(folder, exported, capsys, monkeypatch):
    weights, target = str(folder / "weights.safetensors"), str(exported[0])
    assert "scores differ by at most" in exported[1]
    assert f"written: {target}" in exported[1]
    found = {}
    for name, arguments in {"torch": [weights], "onnx": [target]}.items():
        if name == "onnx":
            monkeypatch.setattr("deformable_detr.model.deformable_detr.DeformableDETR.__init__", None)  # no model is built
        output = folder / name
        options = ["--threshold", "0", "--top_k", "5", "--no-draw", "--precision", "fp32", "--output", str(output)]
        assert main(["predict", *arguments, str(folder / "images"), *options]) == 0
        found[name] = json.loads((output / "predictions.json").read_text())
    capsys.readouterr()
    assert found["onnx"]["images"] == found["torch"]["images"]
    assert found["onnx"]["categories"] == found["torch"]["categories"]
    assert len(found["torch"]["annotations"]) == 10
    for one, other in zip(found["onnx"]["annotations"], found["torch"]["annotations"], strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.02)
        assert one["score"] == pytest.approx(other["score"], abs=2e-5)


def test_what_has_no_effect_on_a_file_is_said(folder, exported, caplog):
    detector = COMMAND.parse([str(exported[0]), "image.jpg", "--device", "cpu", "--precision", "auto"]).open()
    assert detector.optimize(precision="auto").precision == "fp32"
    assert caplog.messages == []
    detector.optimize(precision="bf16", compile=True)
    narrow = np.zeros((48, 24, 3), np.uint8)
    for _ in range(2):
        detector.predict(narrow)
    said = [record.message for record in caplog.records]
    assert len(said) == 3
    assert "precision='bf16' has no effect" in said[0]
    assert "compile=True has no effect: the ExportedNetwork runs as it is" in said[1]
    assert "96x48 pixels after resizing are padded to 96x96" in said[2]


def test_int8_states_its_accuracy(folder, exported, capsys, monkeypatch):
    """The float32 file, which it begins with, is the one that is there."""
    target = folder / "int8.onnx"
    monkeypatch.setattr(Detector, "export", lambda self, path, **form: shutil.copy(exported[0], path))
    options = ["--size", "96", "96", "--int8", str(folder / "data"), "--calibration_images", "2"]
    assert main(["export", str(folder / "weights.safetensors"), str(target), *options]) == 0
    assert "on 2 images" in capsys.readouterr().out
    from deformable_detr.export import ExportedNetwork

    form = ExportedNetwork(target).form
    assert form.int8
    assert form.details["images"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "tensorrt", "--fp16", "weights"], "--to tensorrt is opset 17 with --fp16 compute"),
        (["--to", "tensorrt", "--opset", "20", "--onnxruntime-web", "file.tgz"], "--to tensorrt is opset 17"),
        (["--to", "web", "--opset", "18"], "--to web goes together with"),
        (["--to", "web", "--no-padding-mask"], "--to web goes together with"),
    ],
)
def test_options_that_would_have_no_effect(options, message, tmp_path, capsys):
    assert main(["export", "no/weights", str(tmp_path / "detector.onnx"), *options]) == 2
    assert message in capsys.readouterr().err


def test_int8_is_for_onnx(folder, capsys):
    assert main(["export", str(folder / "weights.safetensors"), str(folder / "x.pt2"), "--int8", str(folder / "data")]) == 2
    assert "--int8 writes .onnx files" in capsys.readouterr().err
