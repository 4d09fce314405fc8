"""`deformable-detr export`: a detector as a file for other programs, checked against the model."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deformable_detr.cli.command import Command, needs
from deformable_detr.cli.screen import show

if TYPE_CHECKING:
    from deformable_detr.detector import Detector

EXAMPLES = """\
  deformable-detr export runs/first detector.onnx                             any batch and size
  deformable-detr export runs/first detector.onnx --no-grid-sample            gather and arithmetic instead of GridSample
  deformable-detr export runs/first detector.onnx --top-k 100                 scores, labels and boxes out
  deformable-detr export runs/first detector.onnx --preprocess --top-k 100          8-bit images in
  deformable-detr export runs/first detector.xml --size 800 1066 --batch-size 1     fixed
  deformable-detr export runs/first detector.pt2
  deformable-detr export runs/first detector.onnx --int8 my_data              quantised, with its AP before and after
  deformable-detr predict detector.onnx photos/                               run it
  deformable-detr export runs/first detector.onnx --to tensorrt --size 800 1088 --batch-size 1
  deformable-detr export runs/first site --to web                             a page; python -m http.server -d site
"""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a detector to a file that runs without this package. The suffix of OUTPUT says what is written: .pt2 (torch.export),
    .onnx, or .xml (OpenVINO, with a .bin beside it). The file is run at once on drawn scenes of several sizes and batches, and
    is kept only if its scores and boxes are those of the PyTorch model. Class names and image sizes are inside.

    With --to web, OUTPUT is a folder: a page that detects in the visitor's browser, for any static server.
    """

    weights: str
    """A run folder (its best weights), or weights of any known format."""

    output: str
    """The file to write: .pt2, .onnx or .xml; a folder with --to web."""

    to: Literal["web", "tensorrt"] | None = None
    """`web`: write a page with the detector and onnxruntime-web (WebAssembly, WebGPU) instead of a file. `tensorrt`: an .onnx of
    operators that TensorRT documents: opset 17 without GridSample, and --fp16 compute."""

    onnxruntime_web: str | None = field(default=None, metadata=needs("to"))
    """web: the npm package onnxruntime-web as a .tgz, where npm cannot fetch it; the message then says which version."""

    grid_sample: bool = True
    """Use GridSample; otherwise gather and arithmetic, for runtimes where that is slow or wrong."""

    padding_mask: bool = True
    """Take a mask that says where the images of a batch are padded. Otherwise: images of one size only, one input."""

    size: tuple[int, int] | None = None
    """Fix height and width of the canvas (pixels). Without: any."""

    batch_size: int | None = None
    """Fix the number of images per run. Without: any."""

    preprocess: bool = False
    """Put resizing and normalisation inside an .onnx or .xml: decoded images, 8-bit RGB, in."""

    opset: int = 20
    """Version of the operators of an .onnx, 17 to 23."""

    fp16: Literal["weights", "compute"] | None = None
    """Store the weights of an .onnx in float16 (`weights`: half the file), or compute convolutions and linear maps in it, too
    (`compute`: for GPUs and TensorRT); what is sensitive stays float32."""

    top_k: int | None = None
    """Put the choice of the best detections inside: this many scores, labels and boxes out. Without: all queries."""

    int8: str | None = None
    """Quantise an .onnx to 8 bits, with images of this dataset (as for training); says the AP before and after."""

    calibration_images: int = field(default=64, metadata=needs("int8"))
    """int8: how many training images the ranges are taken from."""

    dilation: bool = False
    """The weights are those of a DC5 model: official files do not say so themselves. Our own files do."""


def run(options: ExportOptions) -> None:
    """Export, compare, say how far the file is from the model."""
    from deformable_detr.detector import Detector
    from deformable_detr.export.half import halve_onnx
    from deformable_detr.export.quantize import check_dataset, quantize_onnx
    from deformable_detr.export.tensorrt import check_tensorrt

    if options.to == "tensorrt":
        if options.onnxruntime_web or options.fp16 == "weights" or options.opset not in (17, ExportOptions.opset):
            raise ValueError("--to tensorrt is opset 17 with --fp16 compute: leave out --opset, --fp16 and --onnxruntime-web")
        options = replace(options, grid_sample=False, fp16="compute", opset=17)
    output = Path(options.output)
    fixed = options.int8 or options.size or options.batch_size or options.fp16 or options.opset != ExportOptions.opset
    if options.to == "web" and (fixed or not options.padding_mask):
        raise ValueError(
            "--to web goes together with --grid-sample and --top-k alone: its file prepares images by itself, one at a time"
        )
    for name, wanted in (("int8", options.int8), ("fp16", options.fp16)):
        if wanted and output.suffix.lower() != ".onnx":
            raise ValueError(f"--{name} writes .onnx files, but OUTPUT is {output.name}")
    if options.int8 and options.fp16:
        raise ValueError("--int8 and --fp16 do not go together: an operation has one of the two")
    began = time.perf_counter()
    detector = Detector.load(options.weights, device="cpu", **({"dilation": True} if options.dilation else {}))
    if options.to == "web":
        _write_page(options, detector)
        return
    if options.int8:
        check_dataset(options.int8, detector.metadata)
    form = ("grid_sample", "padding_mask", "size", "batch_size", "preprocess", "top_k", "opset")
    difference = detector.export(output, **{name: getattr(options, name) for name in form})
    lines = [f"compared with the model: {difference}"]
    if options.int8:
        lines.append(str(quantize_onnx(output, options.int8, num_images=options.calibration_images)))
    if options.to == "tensorrt":
        check_tensorrt(output)
    if options.fp16:
        lines.append(halve_onnx(output, options.fp16))
    size = sum(file.stat().st_size for file in {output, output.with_suffix(".bin") if output.suffix == ".xml" else output})
    show(*lines, f"written: {output} ({size / 2**20:.1f} MiB, {time.perf_counter() - began:.0f} s)")


def _write_page(options: ExportOptions, detector: "Detector") -> None:
    from deformable_detr.export.web_page import export_web

    form: dict[str, Any] = {"grid_sample": options.grid_sample, "top_k": options.top_k}
    worst = export_web(detector.model, options.output, runtime=options.onnxruntime_web, **form)  # type: ignore[arg-type]
    show(f"compared with the model: {worst}", f"written: {options.output}; look at it: python -m http.server -d {options.output}")


COMMAND = Command("export", ExportOptions, run, EXAMPLES)
