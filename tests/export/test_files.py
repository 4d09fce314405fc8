import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from deformable_detr.checkpoints import load_pretrained, save_weights
from deformable_detr.detector import Detector
from deformable_detr.export import ParityError, export_model, files, load_exported
from deformable_detr.inference import Predictor
from deformable_detr.model import build_model
from deformable_detr.structures import Categories

VARIANTS = {
    "one-stage": {"two_stage": False, "box_refinement": False},
    "refine": {"two_stage": False},
    "two-stage": {},
    "single-scale": {"two_stage": False, "num_feature_levels": 1},
    "single-scale-dc5": {"two_stage": False, "num_feature_levels": 1, "dilation": True},
}


def small_model(variant="single-scale", **settings):
    """One encoder and one decoder layer, which is all that an export can get wrong."""
    torch.manual_seed(0)
    settings = {"num_encoder_layers": 1, "num_decoder_layers": 1, "num_classes": 3} | VARIANTS[variant] | settings
    model = build_model("tiny", **settings).eval()
    categories = Categories(("cat", "Hündin", "bird"), (7, 3, 90))
    model.metadata = replace(model.metadata, categories=categories, eval_short_side=80, max_long_side=112)
    return model


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((80, 112), (60, 80), (112, 80))]


CANVAS = (80, 112)  # that of the first picture


def assert_same_detections(path, model, pictures, runtime=None, top_k=8):
    """Float32 in another order of operations: 1e-4 of the canvas is a hundredth of a pixel here."""
    found = load_exported(path, runtime).predict(pictures, 0.0, batch_size=3, top_k=top_k)
    expected = Predictor(model, device="cpu").predict(pictures, 0.0, batch_size=3, top_k=top_k)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-5)
        np.testing.assert_allclose(one.xyxy, other.xyxy, atol=0.02)
        assert one.data["class_name"].tolist() == other.data["class_name"].tolist()
        assert one.data["category_id"].tolist() == other.data["category_id"].tolist()


# the other variants are in the tests below; learned references are constants, which two layers use: a case of its own
@pytest.mark.parametrize(
    ("variant", "settings"),
    [("two-stage", {}), ("single-scale-dc5", {}), ("one-stage", {"num_decoder_layers": 2, "num_feature_levels": 2})],
)
def test_onnx_without_grid_sample(variant, settings, tmp_path):
    model = small_model(variant, **settings)
    path = tmp_path / "detector.onnx"
    difference = export_model(model, path, size=CANVAS, batch_size=1, grid_sample=False)
    assert difference.box < 1e-4
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert "GridSample" not in kinds
    assert sorted(item.name for item in tmp_path.iterdir()) == ["detector.onnx"]


def test_any_batch_and_size_as_program_and_onnx(tmp_path, pictures):
    model = small_model()
    for name in ("detector.pt2", "detector.onnx"):
        export_model(model, tmp_path / name)
        assert_same_detections(tmp_path / name, model, pictures)
    graph = onnx.load(tmp_path / "detector.onnx")
    assert [opset.version for opset in graph.opset_import if opset.domain == ""] == [20]
    assert "GridSample" in {node.op_type for node in graph.graph.node}
    assert b"site-packages" not in graph.SerializeToString()
    names = next(item.value for item in graph.metadata_props if item.key == "names")
    assert names == "{0: 'cat', 1: 'Hündin', 2: 'bird'}"
    record = json.loads(next(item.value for item in graph.metadata_props if item.key == "deformable_detr"))
    assert record["metadata"]["categories"]["ids"] == [7, 3, 90]


def test_openvino_with_the_best_inside(tmp_path, pictures):
    model = small_model("two-stage")
    export_model(model, tmp_path / "detector.xml", size=CANVAS, batch_size=2, top_k=8)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["detector.bin", "detector.xml"]
    assert_same_detections(tmp_path / "detector.xml", model, pictures[:1])


def test_openvino_runs_onnx_files_without_a_mask(tmp_path, pictures):
    model = small_model("refine")
    export_model(model, tmp_path / "detector.onnx", size=CANVAS, padding_mask=False, grid_sample=False)
    assert_same_detections(tmp_path / "detector.onnx", model, pictures[:1], runtime="openvino")
    with pytest.raises(ValueError, match=r"112x80 pixels.*takes 80x112"):
        load_exported(tmp_path / "detector.onnx").predict(pictures[2])


def test_preparation_inside(tmp_path, pictures):
    model = small_model()
    export_model(model, tmp_path / "detector.onnx", preprocess=True, top_k=8)
    session = onnxruntime.InferenceSession(tmp_path / "detector.onnx")
    scores, _, boxes = session.run(None, {"pictures": pictures[1][None]})
    expected = Predictor(model, device="cpu").predict(pictures[1], 0.0, top_k=8)
    np.testing.assert_allclose(scores[0], expected.confidence, atol=1e-3)  # a pixel may be one grey level off
    assert boxes.shape == (1, 8, 4)
    with pytest.raises(ValueError, match="prepares pictures by itself"):
        load_exported(tmp_path / "detector.onnx")


def test_weights_from_a_file(tmp_path, pictures):
    model = small_model("one-stage")
    save_weights(tmp_path / "weights.safetensors", model)
    Detector(load_pretrained(tmp_path / "weights.safetensors"), device="cpu").export(tmp_path / "detector.pt2", size=CANVAS)
    assert_same_detections(tmp_path / "detector.pt2", model, pictures[:1])


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    def write_changed(path, program, form):
        weights = program.state_dict
        name = next(name for name in weights if name.endswith("class_heads.0.bias"))
        weights[name] = torch.nn.Parameter(weights[name] + 1.0, requires_grad=False)  # not in place: the network shares it
        files.save_program(path, program, form)

    monkeypatch.setitem(files.WRITERS, ".pt2", write_changed)
    with pytest.raises(ParityError, match=r"scores differ by at most \d\.\de-02, boxes by 0\.0"):
        export_model(small_model(), tmp_path / "detector.pt2", size=CANVAS, batch_size=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("detector.tflite", {}, "detector.tflite has .tflite"),
        ("detector", {}, "has none"),
        ("detector.onnx", {"size": (16, 640)}, "at least 33 pixels"),
        ("detector.onnx", {"top_k": 0}, "top_k must be at least 1"),
    ],
)
def test_mistakes_are_named(name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_model(small_model(), tmp_path / name, **options)


def test_foreign_and_missing_files(tmp_path):
    foreign = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["a"], ["b"])],
            "graph",
            [onnx.helper.make_tensor_value_info("a", 1, [1])],
            [onnx.helper.make_tensor_value_info("b", 1, [1])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(foreign, tmp_path / "foreign.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    torch.save({}, tmp_path / "weights.pt2")
    with pytest.raises(ValueError, match="not written by deformable-detr export"):
        load_exported(tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match=r"cannot read .*broken\.onnx"):
        load_exported(tmp_path / "broken.onnx")
    with pytest.raises(ValueError, match=r"weights\.pt2 is not a \.pt2"):
        load_exported(tmp_path / "weights.pt2")
    with pytest.raises(FileNotFoundError, match=r"nothing\.onnx"):
        load_exported(tmp_path / "nothing.onnx")
    with pytest.raises(ValueError, match="known are pt2, onnx, openvino"):
        load_exported(tmp_path / "broken.onnx", "tensorrt")
