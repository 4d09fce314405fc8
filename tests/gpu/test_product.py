"""What people do with a detector, on a real GPU: train, evaluate, predict, explain, save, export; skipped where there is none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from deformable_detr import Detector, build_model
from deformable_detr.checkpoints import huggingface, load_pretrained, mmdet, official
from deformable_detr.checkpoints.report import Report
from deformable_detr.data.scenes import generate_scenes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

SMALL = {"preset": "demo", "batch_size": 2, "num_workers": 0, "device": "cuda"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return generate_scenes(tmp_path_factory.mktemp("scenes"), train=24, val=6)


@pytest.fixture(scope="module")
def detector(data, tmp_path_factory):
    return Detector.train(data, output_dir=tmp_path_factory.mktemp("run") / "first", steps=8, show_progress=False, **SMALL)


@pytest.fixture(scope="module")
def image(data):
    return sorted((data / "val").glob("*.*"))[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_goes_on(data, tmp_path, precision):
    settings = {**SMALL, "output_dir": tmp_path / "run", "precision": precision, "show_progress": False}
    Detector.train(data, steps=4, **settings)
    detector = Detector.train(data, steps=8, resume=True, **settings)
    assert detector.result is not None and detector.result.steps == 8


def test_the_recipe_fits_a_budget_to_this_machine(data, tmp_path):
    settings = {"recipe": "small-data", "budget": "30s", "device": "cuda", "pretrained_backbone": False}
    detector = Detector.train(data, output_dir=tmp_path / "run", show_progress=False, num_workers=0, **settings)
    assert detector.result is not None and detector.result.steps > 1


def test_evaluation_is_that_of_the_cpu(detector, data, tmp_path):
    weights = detector.save(tmp_path / "weights.safetensors")
    metrics = [Detector.load(weights, device=device).evaluate(data, "val").ap50 or 0.0 for device in ("cuda", "cpu")]
    assert metrics[0] == pytest.approx(metrics[1], abs=0.02)


def test_prediction_explanation_description(detector, image, data):
    assert next(detector.model.parameters()).is_cuda
    one = detector.predict(image, threshold=0.0)
    assert len(one) and np.isfinite(one.xyxy).all()
    assert len(list(detector.predict(data / "val"))) == 6
    assert detector.explain(image) is not None
    assert detector.describe(image) is not None
    many = detector.predict(image, threshold=0.0, tiles=96)
    assert len(many)


def test_weights_are_written_and_read(detector, tmp_path):
    assert load_pretrained(detector.save(tmp_path / "own.safetensors"))
    detector.save_pretrained(tmp_path / "folder")
    assert Detector.from_pretrained(tmp_path / "folder")
    model = build_model("r50", num_classes=5, pretrained_backbone=False).cuda()
    for path, layout in ((tmp_path / "a.pth", official), (tmp_path / "b.pth", mmdet), (tmp_path / "hf", huggingface)):
        layout.write(path, model, Report("native"))
        again = load_pretrained(path)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(again.state_dict()[name], value.cpu(), msg=f"{layout.__name__}: {name}")


def test_a_file_without_this_package(detector, tmp_path, image):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    difference = detector.export(tmp_path / "detector.onnx")
    assert difference is not None and Path(tmp_path / "detector.onnx").stat().st_size > 0
