"""`deformable-detr benchmark model|train` beside transformers' Deformable DETR: the same weights, taking turns in one process.

    python benchmarks/detector_peers.py model --compile --output model.json
    python benchmarks/detector_peers.py train --output train.json

Takes the options of `benchmark model` and `benchmark train`; presets are those that transformers can express. Ratios are to
transformers, and so are differences between scores.
"""

import sys
from pathlib import Path

import torch
from transformers import DeformableDetrForObjectDetection

from deformable_detr.checkpoints import huggingface
from deformable_detr.checkpoints.report import Report
from deformable_detr.cli import benchmark_detector
from deformable_detr.cli.__main__ import main as command_line
from deformable_detr.inference import benchmark
from deformable_detr.inference.benchmark import Case, Peers, Run, fresh_model, let_learn, make_targets, random_images


def save(case: Case, folder: Path) -> None:
    """Write our random weights as transformers' folder, whose outputs are compared with ours on the way."""
    huggingface.write(folder, fresh_model(case), Report("native"))


def transformers_run(case: Case, folder: Path) -> Run:
    """One forward pass, or one training step without the optimiser."""
    model = DeformableDetrForObjectDetection.from_pretrained(folder, auxiliary_loss=True, disable_custom_kernels=True)
    images = random_images(case)
    if case.kind == "model":
        model.eval()
        return torch.inference_mode()(lambda: model(pixel_values=images).logits)
    let_learn(model.train())
    labels = [{"boxes": target.boxes, "class_labels": target.labels} for target in make_targets(case)]

    def step() -> None:
        model(pixel_values=images, labels=labels).loss.backward()
        model.zero_grad()

    return step


PEERS = Peers(
    {"transformers": transformers_run},
    save,
    command=(sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--memory-of"),
)


def main(arguments: list[str]) -> int:
    """Measure one peer's memory for the process that asks, or run the command with all of them."""
    if arguments[:1] == ["--memory-of"]:
        benchmark.main(arguments[1], PEERS)
        return 0
    benchmark_detector.PEERS = PEERS
    return command_line(["benchmark", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
