"""The whole detector beside transformers' Deformable DETR: inference and a training step, interleaved in one process.

    python benchmarks/detector.py --threads 2 --rounds 3

Both have the same architecture (R50) and random weights. A training step is forward, matching, losses of all layers and
backward, with the backbone's last three stages trainable in both, batch norms fixed, dropout 0. Medians; JSON beside the table.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

import deformable_detr as dd
from deformable_detr.ops import use_backend

Run = Callable[[], object]
CLASSES = 91
OBJECTS = 8


def transformers_model() -> torch.nn.Module:
    """Theirs, with the same parts of the backbone learning."""
    config = DeformableDetrConfig(
        use_pretrained_backbone=False, num_labels=CLASSES, dropout=0.0, auxiliary_loss=True, disable_custom_kernels=True
    )
    model = DeformableDetrForObjectDetection(config)
    for name, parameter in model.named_parameters():
        if "backbone" in name:
            parameter.requires_grad_(any(stage in name for stage in ("layer2", "layer3", "layer4")))
    return model


def inference_runs(height: int, width: int) -> dict[str, Run]:
    """One picture through each network."""
    theirs = transformers_model().eval()
    ours = dd.build_model("r50", num_classes=CLASSES, pretrained_backbone=False).eval()
    images = torch.randn(1, 3, height, width)

    def run_reference() -> None:
        with use_backend("reference"):
            ours(list(images))

    runs = {
        "transformers": lambda: theirs(pixel_values=images),
        "ours, reference operator": run_reference,
        "ours": lambda: ours(list(images)),
    }
    return {name: torch.inference_mode()(run) for name, run in runs.items()}


def training_runs(height: int, width: int, batch: int) -> dict[str, Run]:
    """One training step of each, without the optimiser."""
    theirs = transformers_model().train()
    ours = dd.build_model("r50", num_classes=CLASSES, pretrained_backbone=False, dropout=0.0).train()
    criterion = dd.SetCriterion(num_classes=CLASSES)
    images = torch.randn(batch, 3, height, width)
    boxes = [torch.rand(OBJECTS, 4) * 0.2 + 0.4 for _ in range(batch)]
    labels = [torch.randint(CLASSES, (OBJECTS,)) for _ in range(batch)]
    targets = [dd.Target(boxes=b, labels=c) for b, c in zip(boxes, labels, strict=True)]
    their_labels = [{"boxes": b, "class_labels": c} for b, c in zip(boxes, labels, strict=True)]

    def step_theirs() -> None:
        theirs(pixel_values=images, labels=their_labels).loss.backward()
        theirs.zero_grad()

    def step_ours() -> None:
        criterion.weighted_sum(criterion(ours(list(images)), targets)).backward()
        ours.zero_grad()

    def step_reference() -> None:
        with use_backend("reference"):
            step_ours()

    return {"transformers": step_theirs, "ours, reference operator": step_reference, "ours": step_ours}


def interleaved(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, taken in turn, so that a drifting machine treats all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(rounds + 1):  # the first warms up
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if round_number:
                times[name].append(time.perf_counter() - began)
    return times


def main() -> None:
    """Measure all cases; print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default="runs/benchmark-detector.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cases: dict[str, Callable[[], dict[str, Run]]] = {
        "inference, 480 x 640, batch 1": lambda: inference_runs(480, 640),
        "inference, 800 x 1066, batch 1": lambda: inference_runs(800, 1066),
        "training step, 480 x 640, batch 2": lambda: training_runs(480, 640, 2),
    }
    table = Table(
        "case", "who", title=f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {options.threads} threads"
    )
    for heading in ("median s", "faster than transformers"):
        table.add_column(heading, justify="right")
    report = {"torch": torch.__version__, "threads": options.threads, "cases": {}}
    for case, build in cases.items():
        times = interleaved(build(), options.rounds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        report["cases"][case] = {"seconds": times, "median": medians}
        for name, median in medians.items():
            table.add_row(case, name, f"{median:.2f}", f"{medians['transformers'] / median:.2f}x")
        table.add_section()
    Console().print(table)
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
