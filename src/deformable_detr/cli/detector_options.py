"""What the commands that use a trained detector share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from deformable_detr.detector import Detector


@dataclass(frozen=True, kw_only=True)
class DetectorOptions:
    """Where and how the model runs."""

    weights: str
    """A run folder (its best weights), weights of any known format, or a file of `deformable-detr export`."""

    runtime: Literal["torch", "pt2", "onnx", "openvino"] | None = None
    """What runs the model. All but `torch` take a file of `deformable-detr export`, and build no PyTorch model. Default: chosen by
    the suffix of the weights."""

    batch_size: int = 1
    """Images per forward pass. Larger is faster on a GPU; the results are the same."""

    device: str = "auto"
    """`auto` takes a GPU where there is one; else `cpu`, `cuda`, `cuda:1` or `mps`."""

    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Arithmetic of the model. `bf16` and `fp16` are faster on GPUs, `bf16` on CPUs with AMX or AVX-512 BF16, and cost very little
    accuracy; `auto` measures."""

    optimize: bool = True
    """Run the model in its fast form; otherwise the plain module, to compare with."""

    compile: bool = False
    """Compile the model: a minute for each size of image, then a little faster. Needs a C++ compiler, on a GPU Triton."""

    nms_iou: float | None = None
    """Drop detections that overlap a better one of their class by more than this IoU. Default: as stored with the weights."""

    top_k: int | None = None
    """At most this many detections per image, the best ones. Default: as stored with the weights, 100 or 300."""

    dilation: bool = False
    """The weights are those of a DC5 model: official files do not say so themselves. Our own files do."""

    ema: bool | None = None
    """Where a file holds EMA weights beside those without averaging: take the first, or (`--no-ema`) the others. Default: what the
    file itself calls its model."""

    def open(self) -> "Detector":
        """The detector that the weights and the runtime ask for.

        Raises:
            ValueError: options of a PyTorch model for an exported file.
        """
        from deformable_detr.detector import Detector
        from deformable_detr.export import load_exported
        from deformable_detr.export.sessions import SUFFIXES

        runtime = self.runtime or SUFFIXES.get(Path(self.weights).suffix.lower(), "torch")
        if runtime == "torch":
            settings: dict[str, Any] = {name: getattr(self, name) for name in ("device", "precision", "optimize", "compile", "ema")}
            detector = Detector.load(self.weights, **settings, **({"dilation": True} if self.dilation else {}))
        else:
            given = {
                "precision": self.precision not in ("fp32", "auto"), "device": self.device not in ("auto", "cpu"),
                "compile": self.compile, "no-optimize": not self.optimize, "dilation": self.dilation, "ema": self.ema is not None,
            }  # fmt: skip
            if useless := [f"--{name}" for name, said in given.items() if said]:
                raise ValueError(
                    f"{self.weights} runs as it was exported, on the CPU or what {runtime} chooses: leave out {useless[0]}"
                )
            detector = Detector(load_exported(self.weights, runtime).model, device="cpu")
        if self.nms_iou is not None:
            detector.nms_iou = self.nms_iou
        return detector
