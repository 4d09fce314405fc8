import onnx
import pytest

from deformable_detr.export.quantize import exact_nodes


@pytest.mark.parametrize(
    ("bias", "exact"),
    [
        ("model.encoder.layers.0.self_attn.sampling_offsets.bias", True),
        ("model.class_heads.0.bias", True),
        ("model.decoder.box_heads.1.layers.2.bias", True),
        ("model.encoder.layers.0.ffn.linear1.bias", False),
        ("model.encoder.layers.0.self_attn.value_proj.bias", False),
    ],
)
def test_geometry_and_heads_are_told_by_their_biases(bias, exact):
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    graph (float[2, 2] x, float[2, 2] val_1, float[2] b) => (float[2, 2] y) {
        [linear] z = MatMul (x, val_1)
        y = Add (z, b)
    }
    """
    model = onnx.parser.parse_model(text)
    model.graph.node[1].input[1] = bias
    assert exact_nodes(model) == (["linear"] if exact else [])
