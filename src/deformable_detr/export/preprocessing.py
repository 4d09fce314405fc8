"""Resizing and normalisation as an ONNX graph that goes in front of the model: arithmetic alone, so that every runtime has it."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from deformable_detr.config import Metadata
from deformable_detr.data.scenes import draw_scene
from deformable_detr.data.transforms import eval_transform
from deformable_detr.export.form import ExportForm
from deformable_detr.export.parity import TOLERANCE, ParityError
from deformable_detr.export.sessions import Session

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT = "images", "prepared"

# The triangle filter of a bilinear resize with antialias is a matrix: one row per new pixel, whose weights fall off linearly
# with the distance and add up to 1. As in the 8-bit resize of Pillow and torchvision, rows come first and both results are
# rounded, halves up.
_GRAPH = """
<ir_version: 10, opset_import: ["" : {opset}]>
preprocess (uint8[batch, image_height, image_width, 3] images) => (float[batch, 3, height, width] prepared) {{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    two = Constant <value_int = 2> ()
    short_side = Constant <value_int = {short_side}> ()
    max_long_side = Constant <value_int = {max_long_side}> ()
    shape = Shape (images)
    old_height = Gather (shape, one)
    old_width = Gather (shape, two)
    short = Min (old_height, old_width)
    long = Max (old_height, old_width)
    wanted_long = Mul (long, short_side)
    allowed = Mul (max_long_side, short)
    is_too_long = Greater (wanted_long, allowed)
    quotient = Div (allowed, long)
    product = Mul (quotient, long)
    rest = Sub (allowed, product)
    twice_rest = Mul (rest, two)
    is_above = Greater (twice_rest, long)
    is_half = Equal (twice_rest, long)
    parity = Mod (quotient, two)
    is_odd = Equal (parity, one)
    is_half_and_odd = And (is_half, is_odd)
    is_up = Or (is_above, is_half_and_odd)
    step = Cast <to = 7> (is_up)
    rounded = Add (quotient, step)
    capped = Max (rounded, one)
    new_short = Where (is_too_long, capped, short_side)
    new_long_area = Mul (new_short, long)
    new_long = Div (new_long_area, short)
    is_tall = Greater (old_height, old_width)
    new_height = Where (is_tall, new_long, new_short)
    new_width = Where (is_tall, new_short, new_long)
    {rows}
    {columns}
    decoded = Cast <to = 1> (images)
    planes = Transpose <perm = [0, 3, 1, 2]> (decoded)
    darkest = Constant <value_float = 0.0> ()
    brightest = Constant <value_float = 255.0> ()
    width_matrix_t = Transpose <perm = [1, 0]> (width_matrix)
    wide = MatMul (planes, width_matrix_t)
    wide_raised = Add (wide, half)
    wide_whole = Floor (wide_raised)
    wide_pixels = Clip (wide_whole, darkest, brightest)
    high = MatMul (height_matrix, wide_pixels)
    high_raised = Add (high, half)
    high_whole = Floor (high_raised)
    pixels = Clip (high_whole, darkest, brightest)
    centred = Sub (pixels, mean)
    prepared = Div (centred, std)
}}
"""

_MATRIX = """
    {axis}_old = Cast <to = 1> (old_{axis})
    {axis}_new = Cast <to = 1> (new_{axis})
    {axis}_scale = Div ({axis}_old, {axis}_new)
    {axis}_reach = Max ({axis}_scale, unit)
    {axis}_to = Range (zero, new_{axis}, one)
    {axis}_to_float = Cast <to = 1> ({axis}_to)
    {axis}_to_middle = Add ({axis}_to_float, half)
    {axis}_centre = Mul ({axis}_to_middle, {axis}_scale)
    {axis}_centre_column = Unsqueeze ({axis}_centre, last_axis)
    {axis}_from = Range (zero, old_{axis}, one)
    {axis}_from_float = Cast <to = 1> ({axis}_from)
    {axis}_from_middle = Add ({axis}_from_float, half)
    {axis}_offset = Sub ({axis}_from_middle, {axis}_centre_column)
    {axis}_distance = Abs ({axis}_offset)
    {axis}_share = Div ({axis}_distance, {axis}_reach)
    {axis}_fall = Sub (unit, {axis}_share)
    {axis}_triangle = Relu ({axis}_fall)
    {axis}_sum = ReduceSum ({axis}_triangle, last_axis)
    {axis}_matrix = Div ({axis}_triangle, {axis}_sum)
"""

GREY_LEVELS = 1.01
"""Allowed difference of a prepared pixel: torchvision's 8-bit resize has weights of few bits, which may tip a rounding."""


def preprocessing_graph(form: ExportForm) -> "onnx.ModelProto":
    """Decoded images `[B, H, W, 3]` uint8 RGB → normalised ones `[B, 3, h, w]`, as `eval_transform` makes them."""
    import onnx
    from onnx import numpy_helper, parser

    metadata = form.metadata
    text = _GRAPH.format(
        opset=form.opset,
        short_side=metadata.eval_short_side,
        max_long_side=metadata.max_long_side,
        rows=_MATRIX.format(axis="height"),
        columns=_MATRIX.format(axis="width"),
    )
    model = parser.parse_model(text)
    constants = {
        "unit": np.array(1.0, np.float32),
        "half": np.array(0.5, np.float32),
        "last_axis": np.array([1], np.int64),
        "mean": 255 * np.array(metadata.mean, np.float32).reshape(3, 1, 1),
        "std": 255 * np.array(metadata.std, np.float32).reshape(3, 1, 1),
    }
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    for node in model.graph.node:
        node.name = node.output[0]  # the quantiser tells nodes by their names
    onnx.checker.check_model(model)
    return model


def put_in_front(model: "onnx.ModelProto", form: ExportForm) -> "onnx.ModelProto":
    """The model (one input, `images`) with the preparation of the images before it."""
    from onnx import compose

    graph = compose.add_prefix(preprocessing_graph(form), "preprocess/", rename_inputs=False)
    graph.ir_version = model.ir_version
    whole = compose.merge_models(graph, model, io_map=[(f"preprocess/{OUTPUT}", "images")])
    del whole.opset_import[1:]  # both graphs' opset, the same twice, which the quantiser refuses
    return whole


def assert_preparation(whole: Session, network: Session, form: ExportForm, what: str) -> None:
    """Check the preparation against `eval_transform`, and the file with it against the model alone, on drawn scenes.

    Args:
        whole: the file, taking images.
        network: the same without preparation, taking images (and compared with the model before).
        form: of the file without preparation.
        what: the name of the file in the message.

    Raises:
        ParityError: a pixel is off by more than one grey level, or the outputs differ; the message has the numbers.
    """
    from onnx.reference import ReferenceEvaluator

    graph = ReferenceEvaluator(preprocessing_graph(form))
    std = np.array(form.metadata.std, np.float32).reshape(3, 1, 1)
    for seed, (height, width) in enumerate(((120, 150), (150, 100))):
        scene, _ = draw_scene(np.random.default_rng((11, seed)), 2 * max(height, width))
        pixels = np.repeat(np.ascontiguousarray(scene[:height, :width])[None], form.batch_size or 2, axis=0)
        images: np.ndarray = graph.run(None, {INPUT: pixels})[0]  # type: ignore[assignment]
        levels = float(np.abs((images - prepared(pixels[0], form.metadata).numpy()) * std).max() * 255)
        if levels > GREY_LEVELS:
            raise ParityError(f"{what}: its preparation differs by {levels:.2f} grey levels from that of the detector")
        gap = float(np.abs(whole([pixels])[0] - network([images])[0]).max())
        if not gap <= 10 * TOLERANCE:  # logits, or scores: both follow from everything before them
            raise ParityError(f"{what} computes something else with its preparation inside: {form.outputs[0]} differ by {gap:.1e}")


def prepared(image: np.ndarray, metadata: Metadata) -> torch.Tensor:
    """What the model should see of one image `[H, W, 3]`: `[1, 3, h, w]`."""
    transform = eval_transform(metadata.eval_short_side, metadata.max_long_side, metadata.mean, metadata.std)
    return transform(torch.from_numpy(image).permute(2, 0, 1).contiguous())[0][None]
