"""`deformable-detr convert`: weights of other projects → ours, and back."""

from dataclasses import dataclass
from typing import Any, Literal

from deformable_detr.cli.command import Command
from deformable_detr.cli.screen import show

EXAMPLES = """\
  deformable-detr convert r50_deformable_detr-checkpoint.pth r50.safetensors                  official → ours
  deformable-detr convert runs/first my_detector --to huggingface                             a folder for transformers
  deformable-detr convert runs/first my_detector.pth --to mmdet
  deformable-detr convert dc5.pth dc5.safetensors --dilation                                  a DC5 model must be called one
  deformable-detr convert hf://owner/name weights.pth --to official --classes coco91
"""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Convert weights of Deformable DETR between projects. What SOURCE is, its file says itself: our own .safetensors or run
    folder, the official .pth, mmdetection 3.x or 2.x, detrex, a transformers folder, or the name of a model on the Hugging
    Face hub. Nothing in a pickled file is executed. At the end stands what became of every tensor.
    """

    source: str
    """The weights: a file, a folder, or hf://owner/name."""

    output: str
    """The file to write; for huggingface a folder."""

    to: Literal["native", "official", "mmdet", "huggingface"] = "native"
    """Layout to write: ours, that of the original code, of mmdetection 3.x, or of transformers."""

    classes: Literal["auto", "keep", "coco80", "coco91"] = "auto"
    """COCO models: `coco80` and `coco91` change the layout of the classes; `auto`: to the one that the target's code works with."""

    neck_bias: bool = True
    """mmdet: keep the neck's biases, which need neck.bias=True in its config; otherwise drop them and say what that changes."""

    dilation: bool | None = None
    """The source is a DC5 model: its tensors do not show it."""

    num_heads: int | None = None
    """Attention heads of the source, if they are not 8 (or what the file states): its tensors do not show them."""

    num_queries: int | None = None
    """Queries of a two-stage source, if they are not 300 (or what the file states): its tensors do not show them."""

    ema: bool | None = None
    """Where the source holds EMA weights beside those without averaging: take the first, or (`--no-ema`) the others. Default: what
    the file itself calls its model."""

    revision: str | None = None
    """Version (branch, tag or commit) of a model on the hub."""

    overwrite: bool = False
    """Replace an existing target."""

    def load_settings(self) -> dict[str, Any]:
        """Keywords for `load_pretrained`."""
        names = ("dilation", "num_heads", "num_queries", "ema", "revision")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def run(options: ConvertOptions) -> None:
    """Convert, and say what became of every tensor."""
    from deformable_detr.checkpoints.convert import convert

    report = convert(
        options.source,
        options.output,
        options.to,
        classes=options.classes,
        neck_bias=options.neck_bias,
        overwrite=options.overwrite,
        **options.load_settings(),
    )
    show(str(report), f"written: {options.output}")


COMMAND = Command("convert", ConvertOptions, run, EXAMPLES)
