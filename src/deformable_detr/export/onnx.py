"""ONNX: the model as a graph that onnxruntime, OpenVINO, TensorRT and others run."""

import mmap
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import torch
from torch.export import ExportedProgram

from deformable_detr.export.exported_program import quiet
from deformable_detr.export.form import METADATA_KEY, ExportForm

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

OPSETS = range(17, 24)
"""The versions of the operators that can be written. 20 is the first whose GridSample the operator needs nothing beside."""

GRAPH = 7 << 3 | 2
"""Key of the field of a .onnx that holds its graph: number 7, of bytes."""

FIRST_TRANSLATED = 18
"""The translator writes no older one."""

HINT = 'pip install "deformable-detr[onnx]"'


def to_onnx(program: ExportedProgram, form: ExportForm) -> "onnx.ModelProto":
    """Translate a traced model.

    Raises:
        ImportError: onnx or onnxscript is missing.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"writing ONNX needs the packages onnx and onnxscript: {HINT}") from error
    with quiet():
        translated = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=max(form.opset, FIRST_TRANSLATED),
            input_names=list(form.inputs),
            output_names=list(form.outputs),
            optimize=False,
            verbose=False,
        )
        if translated is None:
            raise RuntimeError("torch.onnx.export gave no program")
        _simplify(translated.model)
    proto = translated.model_proto
    _forget_sources(proto)
    _name_axes(proto)
    if form.opset < FIRST_TRANSLATED:
        _lower(proto, form.opset)
    return proto


def _simplify(model: "ir.Model") -> None:
    """Constants computed, what comes twice or is not used left out, batch norms inside their convolutions.

    These are the translator's own steps, less its many rules for other models: one of them goes through the whole graph for
    every node.
    """
    from onnx_ir import passes
    from onnx_ir.passes import common as steps
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import RewritePass
    from onnxscript.rewriter.rules import common as rules

    shorter = RewritePass(
        [
            rules.no_op_cast_rule,
            rules.no_op_expand_rule,
            rules.no_op_transpose_rule,
            rules.transpose_transpose_rule,
            rules.reshape_reshape_rule,
            rules.unsqueeze_unsqueeze_rule,
            rules.fuse_batchnorm_into_conv_rule,
        ]
    )
    steps.InlinePass()(model)
    for _ in range(2):
        fold_constants(model, onnx_shape_inference=True)
        shorter(model)
        steps.RemoveUnusedNodesPass()(model)
    passes.Sequential(
        steps.RemoveUnusedFunctionsPass(),
        steps.RemoveUnusedOpsetsPass(),
        steps.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        steps.LiftSubgraphInitializersToMainGraphPass(),
        steps.DeduplicateInitializersPass(size_limit=2**31),  # weights that are used twice were transposed twice
        steps.CommonSubexpressionEliminationPass(),
        steps.OutputFixPass(),
        steps.NameFixPass(),
    )(model)


def save_onnx(path: Path, proto: "onnx.ModelProto", form: ExportForm) -> None:
    """Write a .onnx with the record of the detector, and the class names once more for other programs, in its metadata."""
    import onnx

    categories = form.metadata.categories
    entries = {METADATA_KEY: replace(form, weights_crc=crc32(proto.graph.SerializeToString())).to_json()}
    if categories is not None:
        entries["names"] = str(dict(enumerate(categories.names)))
    onnx.helper.set_model_props(proto, entries)
    onnx.save_model(proto, path)


def save_openvino(path: Path, proto: "onnx.ModelProto", form: ExportForm) -> None:
    """Write OpenVINO's own files, a .xml with a .bin beside it; the record is in `rt_info`, and the weights stay float32.

    Raises:
        ImportError: OpenVINO is missing.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError('writing OpenVINO files needs the package openvino: pip install "deformable-detr[openvino]"') from error
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source = Path(folder) / "network.onnx"
        save_onnx(source, proto, form)
        model = openvino.convert_model(str(source))
        openvino.save_model(model, str(path), compress_to_fp16=False)
        form = replace(form, weights_crc=crc32(path.with_suffix(".bin").read_bytes()))
        model.set_rt_info(form.to_json(), [METADATA_KEY])
        openvino.save_model(model, str(path), compress_to_fp16=False)


def graph_crc(path: Path) -> int:
    """CRC-32 of the graph in a .onnx, weights included, as it stands in the file: without the package onnx."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory, memoryview(memory) as content:
        position = 0
        while position < len(content):
            key, position = _varint(content, position)
            number, position = _varint(content, position)  # of a field: its value, or its length in bytes
            if key == GRAPH:
                with content[position : position + number] as graph:
                    return crc32(graph)
            position += number if key & 7 == 2 else 0
    return 0


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    """A number as protocol buffers store it, seven bits in each byte, and where it ends."""
    number = shift = 0
    while content[position] & 0x80:
        number |= (content[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return number | content[position] << shift, position + 1


def _forget_sources(proto: "onnx.ModelProto") -> None:
    """Drop the file names and lines of this machine that the translator writes to every node."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
    for function in proto.functions:
        for node in function.node:
            del node.metadata_props[:]
    del proto.graph.metadata_props[:]


def drop_unused_weights(proto: "onnx.ModelProto") -> None:
    """Leave out what no operation takes."""
    used = {name for node in proto.graph.node for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def _name_axes(proto: "onnx.ModelProto") -> None:
    """`batch`, `height` and `width` for axes that are not fixed, in place of the tracer's symbols."""
    names = {}
    for axis, name in {0: "batch", 2: "height", 3: "width"}.items():
        names[proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param] = name  # of the images
    for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\b[a-z]+\d+\b", lambda symbol: names.get(symbol[0], symbol[0]), size.dim_param)


def _lower(proto: "onnx.ModelProto", opset: int) -> None:
    """Write the operators as an older opset has them.

    That is: without attributes that it does not know, whose values here are what it does anyway, and with axes of reductions as
    attributes. The checker sees what else would have to change, and the check of parity that nothing else does.
    """
    import onnx

    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        older = onnx.defs.get_schema(node.op_type, opset)
        attributes = [attribute for attribute in node.attribute if attribute.name in older.attributes]
        if node.op_type.startswith("Reduce") and len(node.input) > older.max_input:
            attributes.append(onnx.helper.make_attribute("axes", constants[node.input.pop()].tolist()))
        del node.attribute[:]
        node.attribute.extend(attributes)
    drop_unused_weights(proto)
    proto.opset_import[0].version = opset
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import)  # programs of that time refuse newer files
    onnx.checker.check_model(proto)
