"""Whether an exported .onnx keeps to what TensorRT documents, before it is carried to a machine that has TensorRT.

Facts from the operator table of onnx-tensorrt for TensorRT 8.5 (docs/operators.md at commit 6d0ab7b), and LayerNormalization, which
8.6 added. Later versions take more.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_TABLE = """
Abs Add And ArgMax ArgMin AveragePool Cast Ceil Clip Concat Constant ConstantOfShape Conv Cos CumSum Div
Einsum Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gemm Greater GreaterOrEqual
GridSample HardSigmoid HardSwish Identity InstanceNormalization IsNaN LayerNormalization LeakyRelu Less
LessOrEqual Log LogSoftmax MatMul Max MaxPool Min Mod Mul Neg Not OneHot Or Pad Pow Range Reciprocal ReduceL2
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize Round ScatterElements ScatterND Shape
Sigmoid Sign Sin Size Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tan Tanh Tile TopK Transpose Trilu
Unsqueeze Where Xor
"""

OPERATORS = frozenset(_TABLE.split())
"""What a detector may consist of, and is documented."""

CONSTANT_INPUTS = {"TopK": (1,), "Slice": (3,), "Squeeze": (1,), "Unsqueeze": (1,), "CumSum": (1,)}
"""Operator → inputs that must be constants."""

TYPES = ("FLOAT", "FLOAT16", "INT32", "INT64", "BOOL")
"""Of the values; INT64 becomes INT32 there."""

MOST_DIMENSIONS = 8
MOST_BEST = 3840
"""The largest K of a TopK."""


def check_tensorrt(path: str | Path) -> None:
    """See that operators, types and shapes of an .onnx are documented ones.

    Args:
        path: the file; it is removed where they are not.

    Raises:
        ValueError: the message names every trouble.
    """
    import onnx

    found = list(dict.fromkeys(troubles(onnx.load(path))))
    if found:
        Path(path).unlink()
        raise ValueError(f"TensorRT does not document all of {path}, which is removed: {'; '.join(found)}")


def troubles(proto: "onnx.ModelProto") -> Iterator[str]:
    """What TensorRT does not document of a graph: operators, computed inputs, types, dimensions, large choices."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(proto).graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    if unknown := sorted({node.op_type for node in graph.node} - OPERATORS):
        yield f"operators {', '.join(unknown)}"
    for node in graph.node:
        for index in CONSTANT_INPUTS.get(node.op_type, ()):
            if len(node.input) > index and node.input[index] not in constants:
                yield f"input {index} of a {node.op_type} is computed ({node.name})"
    values = (*graph.input, *graph.output, *graph.value_info)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for name, kind in kinds.items():
        if kind and (label := onnx.TensorProto.DataType.Name(kind)) not in TYPES:
            yield f"the type {label} ({name})"
    for value in values:
        if (rank := len(value.type.tensor_type.shape.dim)) > MOST_DIMENSIONS:
            yield f"{rank} dimensions ({value.name})"
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "TopK" and node.input[1] in weights:
            count = int(onnx.numpy_helper.to_array(weights[node.input[1]]).item())
            if count > MOST_BEST:
                yield f"the best {count} of a TopK, of which {MOST_BEST} are the most"
