"""`deformable-detr benchmark model|train` beside the Deformable DETR of others: the same weights, taking turns in one process.

    python benchmarks/detector_peers.py model --compile --output model.json
    python benchmarks/detector_peers.py train --output train.json
    python benchmarks/detector_peers.py model --device cuda --compile --output gpu.json

Takes the options of `benchmark model` and `benchmark train`; presets are those that transformers can express. Ratios are to
transformers, and so are differences between scores. LibreYOLO, which has the paper's five variants and does not train them, is
beside it where it is installed.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import DeformableDetrForObjectDetection

from deformable_detr.checkpoints import huggingface, official
from deformable_detr.checkpoints.report import Report
from deformable_detr.cli import benchmark_detector
from deformable_detr.cli.__main__ import main as command_line
from deformable_detr.inference import benchmark
from deformable_detr.inference.benchmark import CLASSES, Case, Peers, Run, fresh_model, let_learn, make_targets, random_images
from deformable_detr.precision import Precision, autocast

LIBREYOLO = importlib.util.find_spec("libreyolo") is not None
LIBREYOLO_SIZES = {
    "r50-single-scale": "r50ss",
    "r50-single-scale-dc5": "r50ssdc5",
    "r50": "r50",
    "r50-refine": "r50refine",
    "r50-two-stage": "r50twostage",
}


def save(case: Case, folder: Path) -> None:
    """Write our random weights as the others read them: transformers' outputs are compared with ours on the way."""
    model = fresh_model(case)
    huggingface.write(folder, model, Report("native"))
    if LIBREYOLO:
        official.write(folder / "official.pth", model, Report("native"))


def transformers_run(case: Case, folder: Path, *, precision: Precision = "fp32", compile: bool = False) -> Run:
    """One forward pass, or one training step without the optimiser."""
    network = DeformableDetrForObjectDetection.from_pretrained(folder, auxiliary_loss=True, disable_custom_kernels=True)
    network.to(case.device)  # pyright: ignore[reportArgumentType]
    images = random_images(case)
    model: Any = torch.compile(network) if compile else network
    if case.kind == "model":
        network.eval()

        def run() -> torch.Tensor:
            with torch.inference_mode(), autocast(precision, case.device):
                return model(pixel_values=images).logits.float()

        return run
    let_learn(network.train())
    labels = [{"boxes": target.boxes, "class_labels": target.labels} for target in make_targets(case)]

    def step() -> None:
        with autocast(precision, case.device):
            loss = model(pixel_values=images, labels=labels).loss
        loss.backward()
        network.zero_grad()

    return step


def libreyolo_run(case: Case, folder: Path) -> Run:
    """One forward pass of LibreYOLO's network, by itself: its own `predict` makes every image 800 pixels square."""
    kind = importlib.import_module("libreyolo.models.deformable_detr.nn").LibreDeformableDETRModel
    network = kind(size=LIBREYOLO_SIZES[case.preset], nc=CLASSES)
    network.load_state_dict(torch.load(folder / "official.pth", weights_only=False)["model"])
    network.to(case.device).eval()
    images = random_images(case)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return network(images)["pred_logits"]

    return run


def with_original_kernel(case: Case, folder: Path) -> Run:
    """transformers' model with the original's CUDA kernel in place of its own attention, from torch-ms-deform-attn."""
    function = importlib.import_module("torch_ms_deform_attn").MSDeformAttnFunction
    from transformers.models.deformable_detr import modeling_deformable_detr as modeling

    def attend(self: Any, value: Any, sizes: Any, _: Any, starts: Any, locations: Any, weights: Any, step: int) -> torch.Tensor:
        return function.apply(value, sizes, starts, locations, weights, step)

    kind: Any = modeling.MultiScaleDeformableAttention
    plain = kind.forward
    run = transformers_run(case, folder)

    def patched() -> Any:
        kind.forward = attend
        try:
            return run()
        finally:
            kind.forward = plain

    return patched


BUILDERS: dict[str, Callable[[Case, Path], Run]] = {"transformers": transformers_run}
if LIBREYOLO and "train" not in sys.argv:
    BUILDERS["LibreYOLO"] = libreyolo_run
if "cuda" in sys.argv:
    BUILDERS["transformers bf16"] = partial(transformers_run, precision="bf16")
    if importlib.util.find_spec("torch_ms_deform_attn"):
        BUILDERS["transformers, original CUDA kernel"] = with_original_kernel
    if "--compile" in sys.argv:
        BUILDERS["transformers compiled"] = partial(transformers_run, compile=True)
        BUILDERS["transformers compiled bf16"] = partial(transformers_run, compile=True, precision="bf16")
PEERS = Peers(BUILDERS, save, command=(sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--memory-of"))


def main(arguments: list[str]) -> int:
    """Measure one peer's memory for the process that asks, or run the command with all of them."""
    if arguments[:1] == ["--memory-of"]:
        benchmark.main(arguments[1], PEERS)
        return 0
    benchmark_detector.PEERS = PEERS
    return command_line(["benchmark", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
