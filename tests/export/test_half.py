"""float16 files: what is converted, what stays, and how far the answers move."""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest

from deformable_detr.export.half import halve_onnx, to_half
from deformable_detr.export.tensorrt import troubles

CHAIN = """
<ir_version: 10, opset_import: ["" : 20]>
graph (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {{1.0, 2.0, 3.0, {last}}}, float[2] b = {{0.5, 0.25}}> {{
    [first] a = MatMul (x, w)
    [bias] c = Add (a, b)
    [relu] d = Relu (c)
    [second] e = MatMul (d, w)
    [exact] y = Softmax (e)
}}
"""


def test_products_with_weights_and_what_lies_between_are_float16_and_the_rest_is_not():
    graph = to_half(onnx.parser.parse_model(CHAIN.format(last=4.0)), "compute").graph
    kinds = {node.name: node.op_type for node in graph.node}
    assert list(kinds.values()) == ["Cast", "MatMul", "Add", "Relu", "MatMul", "Cast", "Softmax"]
    assert {tensor.data_type for tensor in graph.initializer} == {onnx.TensorProto.FLOAT16}


def test_a_weight_beyond_the_range_keeps_its_operation():
    graph = to_half(onnx.parser.parse_model(CHAIN.format(last=70000.0)), "compute").graph
    assert [node.op_type for node in graph.node] == ["MatMul", "Add", "Relu", "MatMul", "Softmax"]
    assert {tensor.data_type for tensor in graph.initializer} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("kind", ["weights", "compute"])
def test_a_whole_detector(prepared, tmp_path, kind):
    """Eleven bits of weights and activations: the best scores move by less than a hundredth."""
    path = tmp_path / "half.onnx"
    shutil.copy(prepared[1], path)
    assert "float16: scores differ by at most" in halve_onnx(path, kind)
    onnx.checker.check_model(str(path), full_check=True)
    assert path.stat().st_size < 0.6 * prepared[1].stat().st_size
    image = np.random.default_rng(0).integers(0, 255, (1, 80, 112, 3), dtype=np.uint8)
    one, other = (onnxruntime.InferenceSession(file).run(None, {"images": image})[0] for file in (path, prepared[1]))
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=0.01)
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    sensitive = [node for node in graph.node if node.op_type in ("Softmax", "LayerNormalization", "Sigmoid", "Floor")]
    assert sensitive
    assert {types.get(name) for node in sensitive for name in node.output if name in types} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("graph", "trouble"),
    [
        ("(float[4] x) => (float[4] y) { y = Hardmax (x) }", "operators Hardmax"),
        ("(double[4] x) => (double[4] y) { y = Abs (x) }", "the type DOUBLE (x)"),
        ("(float[4] x, int64[1] k) => (float[n] y, int64[n] i) { y, i = TopK (x, k) }", "input 1 of a TopK is computed"),
        ("(float[4] x) => (float[n] y, int64[n] i) <int64[1] k = {4000}> { y, i = TopK (x, k) }", "the best 4000 of a TopK"),
        ("(float[1,1,1,1,1,1,1,1,1] x) => (float[1,1,1,1,1,1,1,1,1] y) { y = Abs (x) }", "9 dimensions"),
    ],
)
def test_what_tensorrt_does_not_document_is_named(graph, trouble):
    found = list(troubles(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> graph {graph}')))
    assert any(trouble in text for text in found), found
