"""int8 for onnxruntime: an exported .onnx with 8-bit convolutions and linear maps, and what that costs in AP."""

import tempfile
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from deformable_detr.config import Metadata
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.loader import build_dataset, build_loader
from deformable_detr.evaluation import evaluate
from deformable_detr.export.exported_program import quiet
from deformable_detr.export.form import ExportForm
from deformable_detr.export.onnx import drop_unused_weights, save_onnx
from deformable_detr.export.runtime import ExportedNetwork
from deformable_detr.structures import Target

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Quantised:
    """What int8 costs."""

    ap_before: float
    """COCO AP of the float32 file."""

    ap_after: float
    """COCO AP of the int8 file, on the same images."""

    num_images: int
    """How many were evaluated."""

    def __str__(self) -> str:
        change = self.ap_after - self.ap_before
        return f"int8: AP {self.ap_before:.4f} -> {self.ap_after:.4f} ({change:+.4f}) on {self.num_images} images"


def quantize_onnx(path: str | Path, dataset: str | Path, *, num_images: int = 64) -> Quantised:
    """Replace an exported .onnx by its int8 form, and measure both on the validation split.

    The ranges of the activations come from training images, run one at a time at their own size. Convolutions and linear
    maps of the backbone, the neck, the encoder and the decoder become 8-bit, weights with a scale per channel; what says where
    to look and where objects are (offsets, attention weights, box heads, class heads) stays float32, and so does the preparation
    of the images. A file that has it inside is given decoded images throughout, as its users give them.

    Args:
        path: an .onnx of `export_model`, with or without the preparation of the images and the choice of the best inside.
        dataset: folder of a dataset, as for training, with the splits `train` and `val`.
        num_images: training images that the ranges are taken from; all where there are fewer.

    Returns:
        AP before and after; they are in the file's record, too.

    Raises:
        FileNotFoundError: the dataset or a split is missing.
        ImportError: onnx or onnxruntime is missing.
        ValueError: fewer than one image, or classes that do not fit.
    """
    if num_images < 1:
        raise ValueError(f"the ranges need at least 1 image, not {num_images}")
    path = Path(path)
    network = ExportedNetwork(path, "onnx")
    images = islice(build_loader(_split(dataset, "train", network.form), batch_size=1, training=False), num_images)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        partial = Path(folder) / path.name
        write_int8(path, partial, [network.arrays(batch.images) for batch, _ in images])
        form = replace(network.form, int8=True)
        _write_record(partial, form)
        before, count = _average_precision(network, dataset)
        after, _ = _average_precision(ExportedNetwork(partial, "onnx"), dataset)
        result = Quantised(before, after, count)
        _write_record(partial, replace(form, details={"ap_before": before, "ap_after": after, "images": count}))
        partial.replace(path)
    return result


def check_dataset(dataset: str | Path, metadata: Metadata) -> None:
    """Find out whether a dataset will do for :func:`quantize_onnx`, before minutes go into an export.

    Raises:
        FileNotFoundError: the dataset or a split is missing.
        ValueError: an annotation file is damaged.
    """
    for split in ("train", "val"):
        _split(dataset, split, ExportForm(metadata))


def _split(dataset: str | Path, split: str, form: ExportForm) -> CocoDataset:
    """The images of a split as the file takes them."""
    metadata = form.metadata
    images = build_dataset(dataset, split, metadata.evaluation_data(), training=False)
    if form.preprocess:
        images.transform = _as_decoded
    return images


def _as_decoded(image: Tensor, target: Target | None) -> tuple[Tensor, Target | None]:
    return image.float(), target


def _average_precision(network: ExportedNetwork, dataset: str | Path) -> tuple[float, int]:
    images = _split(dataset, "val", network.form)
    loader = build_loader(images, batch_size=1, training=False)
    metadata = network.metadata
    metrics = evaluate(
        network,
        loader,
        metadata.named_categories,
        images.ground_truth,
        device="cpu",
        top_k=metadata.model.max_detections,
        nms_iou=None if network.form.preprocess else metadata.nms_iou,  # those files are run by other programs, without suppression
    )
    return metrics.ap, metrics.num_images


def write_int8(source: Path, target: Path, inputs: list[list[np.ndarray]]) -> None:
    """Static quantisation in QDQ form, unsigned activations."""
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise ImportError('int8 needs onnx and onnxruntime: pip install "deformable-detr[onnx]"') from error
    proto = onnx.load(source)
    own_biases(proto)
    names = [item.name for item in proto.graph.input]

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride] (None ends it)
            arrays = next(self.rest, None)
            return None if arrays is None else dict(zip(names, arrays, strict=True))

    with quiet():
        quantize_static(
            proto,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            nodes_to_exclude=exact_nodes(proto),
            per_channel=True,
            reduce_range=True,  # 7-bit weights: sums of two 8-bit products overflow on x86 processors without VNNI
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": False},
        )


def own_biases(proto: "onnx.ModelProto") -> None:
    """Give each convolution a bias of its own.

    onnxruntime's quantiser makes the copies of a shared one itself, and calls them by its name with a number behind it: that of
    `val_41` may be `val_417`, which is another tensor of the graph already.
    """
    biases = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) == 3 and node.input[2] in biases:
            bias = proto.graph.initializer.add()
            bias.CopyFrom(biases[node.input[2]])
            bias.name = node.input[2] = f"{node.name}.{bias.name}"
    drop_unused_weights(proto)


def exact_nodes(proto: "onnx.ModelProto") -> list[str]:
    """Names of the products that stay float32: geometry, prediction heads, and all that multiply no weights.

    Without weights are those of the self-attention and of the preparation of the images. The translator renames weights when it
    transposes them, but not the biases that are added after them.
    """
    exact = ("sampling_offsets.", "attention_weights.", "box_head", "class_head", "reference_points.")
    weights = {tensor.name for tensor in proto.graph.initializer}
    added = {name: list(node.input) for node in proto.graph.node if node.op_type == "Add" for name in node.input}
    found = []
    for node in proto.graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            names = [*node.input, *added.get(node.output[0], [])]
            if node.input[1] not in weights or any(word in name for word in exact for name in names):
                found.append(node.name)
    return found


def _write_record(path: Path, form: ExportForm) -> None:
    import onnx

    save_onnx(path, onnx.load(path), form)
