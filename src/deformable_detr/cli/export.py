"""`deformable-detr export`: a detector as a file for other programs, checked against the model."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from deformable_detr.cli.options import log_to_screen, parse_options

DESCRIPTION = """\
Write a detector to a file that runs without this package. The suffix of OUT says what is written: .pt2 (torch.export),
.onnx, or .xml (OpenVINO, with a .bin beside it). The file is run at once on drawn scenes of several sizes and batches, and
is kept only if its scores and boxes are those of the PyTorch model. Class names and image sizes are inside."""

EXAMPLES = """\
examples:
  deformable-detr export runs/first detector.onnx                             any batch and size
  deformable-detr export runs/first detector.onnx --grid_sample false         gather and arithmetic instead of GridSample
  deformable-detr export runs/first detector.onnx --top_k 100                 scores, labels and boxes out
  deformable-detr export runs/first detector.onnx --preprocess true --top_k 100     8-bit images in
  deformable-detr export runs/first detector.xml --size 800 1066 --batch_size 1     fixed
  deformable-detr export runs/first detector.pt2
  deformable-detr export runs/first detector.onnx --int8 my_data              quantised, with its AP before and after
  deformable-detr predict detector.onnx photos/ --runtime onnx                run it
"""


@dataclass(frozen=True)
class ExportOptions:
    """Options of the command."""

    weights: str = ""
    """The detector."""

    out: str = ""
    """The file to write."""

    grid_sample: bool = True
    """`false`: gather and arithmetic in place of GridSample, for runtimes where that is slow or wrong."""

    padding_mask: bool = True
    """Take a mask that says where the images of a batch are padded. `false`: images of one size only, one input."""

    size: list[int] | None = None
    """Fix height and width of the canvas (pixels). Without: any."""

    batch_size: int | None = None
    """Fix the number of images per run. Without: any."""

    preprocess: bool = False
    """Put resizing and normalisation inside an .onnx or .xml: decoded images, 8-bit RGB, in."""

    top_k: int | None = None
    """Put the choice of the best detections inside: this many scores, labels and boxes out. Without: all queries."""

    int8: str | None = None
    """Quantise an .onnx to 8 bits, with images of this dataset (as for training); says the AP before and after."""

    calibration_images: int = 64
    """int8: how many training images the ranges are taken from."""

    dilation: bool = False
    """The weights are those of a DC5 model: official files do not say so themselves. Our own files do."""

    def form(self) -> dict[str, Any]:
        """Keywords for `export_model`."""
        names = ("grid_sample", "padding_mask", "batch_size", "preprocess", "top_k")
        return {name: getattr(self, name) for name in names} | {"size": tuple(self.size) if self.size else None}


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: what follows `deformable-detr export`.

    Returns:
        The exit status.
    """
    options = parse_options(
        ExportOptions,
        argv,
        command="export",
        usage="WEIGHTS OUT [--grid_sample false] [--top_k NUMBER] [options]",
        description=DESCRIPTION,
        examples=EXAMPLES,
        arguments={
            "weights": {"help": "A run folder (its best weights), or a weights file of any known format."},
            "out": {"metavar": "OUT", "help": "The file to write: .pt2, .onnx or .xml."},
            "--size": {
                "nargs": 2,
                "type": int,
                "default": None,
                "help": "Fix height and width of the canvas (pixels). Without: any.",
            },
        },
    )

    from deformable_detr.detector import Detector
    from deformable_detr.export.quantize import check_dataset, quantize_onnx

    log_to_screen()
    out, console = Path(options.out), Console()
    if options.int8 and out.suffix.lower() != ".onnx":
        raise ValueError(f"--int8 writes .onnx files, but OUT is {out.name}")
    began = time.perf_counter()
    settings: dict[str, Any] = {"dilation": True} if options.dilation else {}
    detector = Detector.load(options.weights, device="cpu", **settings)
    if options.int8:
        check_dataset(options.int8, detector.metadata)
    difference = detector.export(out, **options.form())
    lines = [f"compared with the model: {difference}"]
    if options.int8:
        lines.append(str(quantize_onnx(out, options.int8, num_images=options.calibration_images)))
    size = sum(file.stat().st_size for file in {out, out.with_suffix(".bin") if out.suffix == ".xml" else out})
    lines.append(f"written: {out} ({size / 2**20:.1f} MiB, {time.perf_counter() - began:.0f} s)")
    console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
    return 0
