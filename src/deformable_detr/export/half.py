"""float16 in an exported .onnx: weights alone, or the arithmetic of convolutions and linear maps, too.

What is sensitive stays float32 in either form: sampling locations and attention weights, softmax and layer norms, the boxes, the
prediction heads, and the sums along the residual path of encoder and decoder. It is the choice of the 8-bit form (`quantize.py`).
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from deformable_detr.data.scenes import draw_scene
from deformable_detr.export.form import ExportForm
from deformable_detr.export.onnx import drop_unused_weights, save_onnx
from deformable_detr.export.parity import ParityError, parity_batches
from deformable_detr.export.quantize import exact_nodes
from deformable_detr.export.sessions import Session, open_onnxruntime

if TYPE_CHECKING:
    import onnx

LARGEST = 65504.0
"""Of float16; a weight beyond it keeps its operation in float32."""

FOLLOWS = ("Relu", "MaxPool", "Reshape", "Transpose", "Add")
"""Operations that stay float16 between two others, if all their inputs are; the residual sums of the transformer are not, since one
input is a layer norm's."""


def halve_onnx(path: str | Path, kind: Literal["weights", "compute"]) -> str:
    """Replace an exported .onnx by its float16 form; inputs and outputs stay as they are.

    Args:
        path: an .onnx of `export_model`.
        kind: `weights`: stored in float16 and computed in float32, which halves the file. `compute`: convolutions and linear maps
            run in float16, for GPUs and TensorRT.

    Returns:
        How far the file is from the float32 one, in a line.

    Raises:
        ParityError: a non-finite output.
    """
    import onnx

    path = Path(path)
    form, whole = open_onnxruntime(path)
    proto = to_half(onnx.load(path), kind)
    form = replace(form, fp16=kind)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        partial = Path(folder) / path.name
        save_onnx(partial, proto, form)
        text = _distance(whole, open_onnxruntime(partial)[1], form)
        partial.replace(path)
    return text


def to_half(proto: "onnx.ModelProto", kind: Literal["weights", "compute"]) -> "onnx.ModelProto":
    """The graph with float16 weights, changed in place."""
    graph, rewrite = proto.graph, _Rewrite(proto)
    exact = set(exact_nodes(proto))
    for node in list(graph.node):
        multiplies = node.op_type in ("Conv", "MatMul", "Gemm") and node.name not in exact and rewrite.fits(node)
        if multiplies and kind == "weights":
            rewrite.store_half(node)
        elif kind == "compute" and (multiplies or rewrite.follows(node)):
            rewrite.compute_half(node)
            continue
        rewrite.nodes.append(node)
    return rewrite.finish()


class _Rewrite:
    """Builds the new list of nodes; a value has its float16 form, where one is needed, under `NAME/half`."""

    def __init__(self, proto: "onnx.ModelProto") -> None:
        from onnx import numpy_helper

        self.proto, self.nodes = proto, []
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        self.integers = {name for name, array in self.weights.items() if array.dtype != np.float32}
        self.small = {
            name for name, array in self.weights.items() if name not in self.integers and np.abs(array).max(initial=0.0) <= LARGEST
        }
        self.half: set[str] = set()

    def fits(self, node: "onnx.NodeProto") -> bool:
        """Whether its weights are floats within float16's range."""
        found = [name for name in node.input if name in self.weights]
        return bool(found) and self.small.issuperset(found)

    def follows(self, node: "onnx.NodeProto") -> bool:
        """Whether everything float that it takes is there in float16 already."""
        if node.op_type not in FOLLOWS:
            return False
        values = [name for name in node.input if name not in self.integers]
        data = set(values[:1] if node.op_type in ("Reshape", "MaxPool") else values)
        computed = data - self.weights.keys()
        return bool(computed) and computed <= self.half and len(node.output) == 1 and data - computed <= self.small

    def store_half(self, node: "onnx.NodeProto") -> None:
        """Float16 weights, turned into float32 before they are used."""
        for index, name in enumerate(node.input):
            if name in self.weights:
                self._as_half(name)
                node.input[index] = self._cast(f"{name}/half", f"{name}/float", 1)

    def compute_half(self, node: "onnx.NodeProto") -> None:
        """The node in float16, and its result in float32 for whoever needs it."""
        shape = node.input[1] if node.op_type == "Reshape" else None
        for index, name in enumerate(node.input):
            if name and name not in self.integers and name != shape:
                node.input[index] = self._as_half(name)
        (output,) = node.output
        node.output[0] = f"{output}/half"
        self.half.add(output)
        self.nodes.append(node)
        self._cast(f"{output}/half", output, 1)

    def _as_half(self, name: str) -> str:
        from onnx import numpy_helper

        half = f"{name}/half"
        if name not in self.half:
            self.half.add(name)
            if name in self.weights:
                self.proto.graph.initializer.append(numpy_helper.from_array(self.weights[name].astype(np.float16), half))
            else:
                self._cast(name, half, 10)
        return half

    def _cast(self, source: str, target: str, to: int) -> str:
        from onnx import helper

        if not any(node.output[0] == target for node in self.nodes if node.op_type == "Cast"):
            self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=to))
        return target

    def finish(self) -> "onnx.ModelProto":
        """Put the nodes into the graph; casts and weights that nobody uses are left out."""
        graph = self.proto.graph
        used = {name for node in self.nodes for name in node.input} | {output.name for output in graph.output}
        kept = [node for node in self.nodes if node.op_type != "Cast" or node.output[0] in used]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(kept)
        drop_unused_weights(self.proto)
        return self.proto


def _distance(whole: Session, halved: Session, form: ExportForm) -> str:
    """Of the answers of two files to the same drawn scenes, in a line."""
    score, boxes = 0.0, []
    for arrays in _inputs(form):
        expected, found = _rows(whole(arrays), form), _rows(halved(arrays), form)
        if not np.isfinite(found).all():
            raise ParityError("in float16 there are non-finite outputs: this detector needs float32")
        for one, other in zip(found, expected, strict=True):
            one = one[linear_sum_assignment(cdist(other, one, "cityblock"))[1]]  # equal ranks may be swapped
            score = max(score, float(np.abs(one[:, :-4] - other[:, :-4]).max()))
            boxes.append(np.abs(one[:, -4:] - other[:, -4:]).max(axis=1))
    box = float(np.median(np.concatenate(boxes)))
    return f"float16: scores differ by at most {score:.1e}, half of the boxes by less than {box:.1e} of the image's side"


def _inputs(form: ExportForm) -> Iterator[list[np.ndarray]]:
    for seed, batch in enumerate(
        parity_batches(replace(form, preprocess=False, padding_mask=form.padding_mask and not form.preprocess))
    ):
        if form.preprocess:
            generators = [np.random.default_rng((13, seed, index)) for index in range(len(batch.images))]
            yield [np.stack([draw_scene(generator, 300)[0][:120, :150] for generator in generators])]
        else:
            yield [tensor.numpy() for tensor in form.given(batch)]


def _rows(outputs: list[np.ndarray], form: ExportForm) -> np.ndarray:
    """`[B, Q, K + 4]`: scores and boxes of each query, or `[B, k, 1 + 4]` of the best."""
    scores = outputs[0][..., None] if form.top_k is not None else 1 / (1 + np.exp(-outputs[0]))
    return np.concatenate((scores, outputs[-1]), axis=-1)
