import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from deformable_detr.config import Metadata
from deformable_detr.data.images import read_image
from deformable_detr.data.scenes import generate_scenes
from deformable_detr.export import ExportedNetwork, quantize
from deformable_detr.export.form import ExportForm
from deformable_detr.export.quantize import check_dataset, exact_nodes, quantize_onnx, write_int8
from deformable_detr.presets import model_preset


@pytest.mark.parametrize(
    ("bias", "exact"),
    [
        ("encoder.layers.0.self_attn.sampling_offsets.bias", True),
        ("class_head.bias", True),
        ("decoder.box_heads.1.layers.2.bias", True),
        ("encoder.layers.0.ffn.linear1.bias", False),
        ("encoder.layers.0.self_attn.value_proj.bias", False),
    ],
)
def test_geometry_and_heads_are_told_by_their_biases(bias, exact):
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    graph (float[2, 2] x, float[2] b) => (float[2, 2] y) <float[2, 2] val_1 = {1.0, 2.0, 3.0, 4.0}> {
        [linear] z = MatMul (x, val_1)
        y = Add (z, b)
    }
    """
    model = onnx.parser.parse_model(text)
    model.graph.node[1].input[1] = bias
    assert exact_nodes(model) == (["linear"] if exact else [])


def test_products_without_weights_stay_exact():
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    graph (float[2, 2] x, float[2, 2] y) => (float[2, 2] z) {
        [attention] z = MatMul (x, y)
    }
    """
    assert exact_nodes(onnx.parser.parse_model(text)) == ["attention"]


def test_a_bias_of_two_convolutions_and_a_tensor_called_like_its_copy(tmp_path):
    """The quantiser would call the second copy `b0`, which would be taken for the output of the product: other numbers."""
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    graph (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
    <float[1, 1, 1, 1] w = {2.0}, float[1, 1, 1, 1] v = {-1.0}, float[1] b = {0.5}, float[4, 4] m = {MATRIX}> {
        [first] a = Conv (x, w, b)
        [second] c = Conv (a, v, b)
        [product] b0 = MatMul (c, m)
        y = Add (b0, x)
    }
    """
    matrix = np.eye(4, dtype=np.float32)
    model = onnx.parser.parse_model(text.replace("MATRIX", ", ".join(map(str, matrix.ravel()))))
    onnx.save(model, tmp_path / "float.onnx")
    image = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    write_int8(tmp_path / "float.onnx", tmp_path / "int8.onnx", [[image]])
    (found,) = onnxruntime.InferenceSession(tmp_path / "int8.onnx").run(None, {"x": image})
    np.testing.assert_allclose(np.asarray(found), -(2 * image + 0.5) + 0.5 + image, atol=0.05)


@pytest.fixture
def found_by_the_file(prepared, tmp_path):
    """A copy of the file that takes images, and a dataset whose objects are what onnxruntime finds with it: its AP is 1."""
    path = shutil.copy(prepared[1], tmp_path / "detector.onnx")
    data = generate_scenes(tmp_path / "data", train=3, val=3, image_size=64)
    session = onnxruntime.InferenceSession(path)
    file = data / "annotations" / "instances_val.json"
    record = json.loads(file.read_text())
    names = ("cat", "Hündin", "bird")
    record["categories"] = [{"id": number, "name": name} for number, name in zip((7, 3, 90), names, strict=True)]
    record["annotations"] = []
    for image in record["images"]:
        pixels = read_image(data / "val" / image["file_name"]).permute(1, 2, 0).numpy()
        _, labels, boxes = (np.asarray(output)[0] for output in session.run(None, {"images": pixels[None]}))
        for label, box in zip(labels, boxes * np.tile([image["width"], image["height"]], 2), strict=True):
            corner, size = box[:2], box[2:] - box[:2]
            annotation = {"id": len(record["annotations"]) + 1, "image_id": image["id"], "iscrowd": 0, "area": float(size.prod())}
            annotation |= {"category_id": record["categories"][label]["id"], "bbox": [*map(float, corner), *map(float, size)]}
            record["annotations"].append(annotation)
    file.write_text(json.dumps(record))
    return path, data


def test_a_file_that_takes_images_is_measured_with_images(found_by_the_file, tmp_path):
    path, data = found_by_the_file
    before = onnx.load(path)
    result = quantize_onnx(path, data, num_images=2)
    assert result.num_images == 3
    assert result.ap_before > 0.99
    assert 0.2 < result.ap_after <= 1
    after = onnx.load(path)
    eight_bit = {node.input[0] for node in after.graph.node if node.op_type == "QuantizeLinear"}
    assert "preprocess/prepared" in eight_bit  # the input of the first convolution
    assert not [name for name in eight_bit if name.startswith("preprocess/") and name != "preprocess/prepared"]
    assert (tmp_path / "detector.onnx").stat().st_size < 0.5 * len(before.SerializeToString())
    form = ExportedNetwork(path).form
    assert (form.int8, form.preprocess, form.top_k) == (True, True, 20)
    assert form.details == {"ap_before": result.ap_before, "ap_after": result.ap_after, "images": 3}
    outputs = onnxruntime.InferenceSession(path).run(None, {"images": np.zeros((1, 50, 70, 3), np.uint8)})
    scores, labels, _ = (np.asarray(output) for output in outputs)
    assert scores.shape == labels.shape == (1, 20)


@pytest.mark.parametrize(("preprocess", "nms_iou"), [(False, 0.7), (True, None)])
def test_the_ap_is_that_of_what_is_run(preprocess, nms_iou, tmp_path, monkeypatch):
    """`predict` drops duplicates where the weights say so; a file that prepares images is run by others."""
    data = generate_scenes(tmp_path / "data", train=1, val=1, image_size=32)
    metadata = Metadata(model_preset("tiny"), nms_iou=0.7)
    network = SimpleNamespace(form=ExportForm(metadata, preprocess=preprocess), metadata=metadata)
    asked = {}
    monkeypatch.setattr(
        quantize, "evaluate", lambda *_, **keywords: asked.update(keywords) or SimpleNamespace(ap=1.0, num_images=1)
    )
    quantize._average_precision(network, data)  # type: ignore[arg-type]
    assert asked["nms_iou"] == nms_iou and asked["top_k"] == metadata.model.max_detections


def test_the_data_set_is_looked_for_before_an_export(prepared, tmp_path):
    data = generate_scenes(tmp_path / "data", train=1, val=1, image_size=32)
    check_dataset(data, prepared[0].metadata)
    (data / "annotations" / "instances_val.json").unlink()
    with pytest.raises(FileNotFoundError, match="val"):
        check_dataset(data, prepared[0].metadata)
