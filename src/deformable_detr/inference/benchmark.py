"""Side-by-side measurements of the whole detector, taking turns in one process: inference, a training step, memory, reading.

Implementations of others come in as :class:`Peers`: `benchmarks/detector_peers.py` has them.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from deformable_detr.acceleration.low_precision import low_precision_works
from deformable_detr.acceleration.model import InferenceModel
from deformable_detr.acceleration.options import InferenceOptions
from deformable_detr.config import DataConfig
from deformable_detr.criterion import SetCriterion
from deformable_detr.data.layout import add_box, add_image, empty_record
from deformable_detr.data.loader import build_dataset, build_loader
from deformable_detr.data.transforms import eval_transform
from deformable_detr.files import write_json
from deformable_detr.inference.predictor import Predictor
from deformable_detr.inference.sources import InputImage
from deformable_detr.model import DeformableDETR, build_model
from deformable_detr.ops.benchmark import clock, measured_elsewhere, median_times, process_memory, reset_peak
from deformable_detr.precision import Precision, autocast
from deformable_detr.structures import Target

Run = Callable[[], Any]
CLASSES = 91
OBJECTS = 8

FORMS: dict[str, tuple[InferenceOptions | None, Precision]] = {
    "plain module": (None, "fp32"),
    "optimised": (InferenceOptions(), "fp32"),
    "compiled": (InferenceOptions(compile=True), "fp32"),
    "CUDA graphs": (InferenceOptions(cuda_graphs=True), "fp32"),
    "compiled, CUDA graphs": (InferenceOptions(compile=True, cuda_graphs=True), "fp32"),
    "bf16": (InferenceOptions(), "bf16"),
    "bf16, CUDA graphs": (InferenceOptions(cuda_graphs=True), "bf16"),
    "bf16, compiled, CUDA graphs": (InferenceOptions(compile=True, cuda_graphs=True), "bf16"),
}
"""What this package has: switches (None: the module as it is; in training they do not count) and arithmetic."""

LEARNING_STAGES = ("layer2", "layer3", "layer4")


@dataclass(frozen=True)
class Case:
    """What is measured: `model` is one forward pass, `train` one step without the optimiser."""

    kind: str
    height: int
    width: int
    batch: int = 1
    preset: str = "r50"
    device: str = "cpu"

    @property
    def name(self) -> str:
        """For tables."""
        where = "" if self.device == "cpu" else f", {self.device}"
        return f"{self.kind}, {self.height} x {self.width}, batch {self.batch}, {self.preset}{where}"


@dataclass
class Measurement:
    """One implementation on one case: medians in seconds, bytes at the peak, largest difference from the first one's scores."""

    case: str
    implementation: str
    seconds: float
    first_call: float
    images_per_second: float
    ratio: float | None = None
    memory: int | None = None
    error: float | None = None


@dataclass(frozen=True)
class Peers:
    """Implementations of others.

    Args:
        builders: name → function of a case and the folder of weights that returns what is timed: for `model` it gives logits.
        save: writes the weights of :func:`fresh_model` into a folder, for the builders to read.
        command: a command line that calls :func:`main` with these peers, to which a task is appended.
    """

    builders: Mapping[str, Callable[[Case, Path], Run]] = field(default_factory=dict)
    save: Callable[[Case, Path], object] = lambda case, folder: None
    command: Sequence[str] = (sys.executable, "-W", "ignore", "-m", "deformable_detr.inference.benchmark")


NO_PEERS = Peers()


def implementations(kind: str, *, device: str = "cpu", compile: bool = False, peers: Peers = NO_PEERS) -> list[str]:
    """What can be measured: peers first, then this package; in bfloat16 where this device has it in hardware."""
    ours = [name for name, (options, _) in FORMS.items() if kind == "model" or options is None or name == "bf16"]
    if device == "cpu":
        ours = [name for name in ours if "CUDA" not in name]
    if not compile:
        ours = [name for name in ours if "compiled" not in name]
    if not low_precision_works(torch.device(device)):
        ours = [name for name in ours if "bf16" not in name]
    return [*peers.builders, *ours]


def fresh_model(case: Case) -> DeformableDETR:
    """The model of a case, with the same random weights each time, and without dropout."""
    torch.manual_seed(0)
    return build_model(case.preset, num_classes=CLASSES, pretrained_backbone=False, dropout=0.0).to(case.device)


def random_images(case: Case) -> torch.Tensor:
    """The input `[B, 3, H, W]` of all implementations."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(case.batch, 3, case.height, case.width, generator=generator, dtype=torch.float32, device="cpu")
    return images.to(case.device)


def _build(name: str, case: Case, weights: Path, peers: Peers) -> Run:
    """One forward pass, which gives logits, or one training step of an implementation."""
    if name in peers.builders:
        return peers.builders[name](case, weights)
    model, images = fresh_model(case), random_images(case)
    options, precision = FORMS[name]
    if case.kind == "train":
        return _training_step(model, case, images, precision)
    model.eval()
    fast: nn.Module = model if options is None else InferenceModel(model, options, precision)
    return torch.inference_mode()(lambda: fast(list(images)).logits[-1])


def _training_step(model: DeformableDETR, case: Case, images: torch.Tensor, precision: Precision) -> Run:
    criterion, targets = SetCriterion(CLASSES), make_targets(case)
    let_learn(model.train())

    def step() -> None:
        with autocast(precision, case.device):
            predictions = model(list(images))
        criterion.weighted_sum(criterion(predictions, targets)).backward()
        model.zero_grad()

    return step


def let_learn(model: nn.Module) -> None:
    """The same parts of the backbone learn in all."""
    for name, parameter in model.named_parameters():
        if "backbone" in name:
            parameter.requires_grad_(any(stage in name for stage in LEARNING_STAGES))


def make_targets(case: Case) -> list[Target]:
    """The ground truth of all implementations: some objects in each image."""
    generator = torch.Generator().manual_seed(0)
    return [
        Target(
            boxes=torch.rand(OBJECTS, 4, generator=generator, dtype=torch.float32, device="cpu") * 0.2 + 0.4,
            labels=torch.randint(CLASSES, (OBJECTS,), generator=generator, dtype=torch.int64, device="cpu"),
        ).to(case.device)
        for _ in range(case.batch)
    ]


def measure(
    case: Case, names: Sequence[str], *, rounds: int = 3, memory: bool = True, peers: Peers = NO_PEERS
) -> list[Measurement]:
    """All implementations on one case, taking turns.

    Args:
        case: what to compute.
        names: out of `implementations`; the first one is what the others are compared with.
        rounds: how often each one runs; the median counts.
        memory: also start a process for each one that measures its peak memory; on a GPU it is that of the first run here.
        peers: implementations of others.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder)
        peers.save(case, weights)
        runs: dict[str, Run] = {}
        results, outputs = [], []
        for name in names:
            before = None if case.device == "cpu" else reset_peak(case.device)
            runs[name] = _build(name, case, weights, peers)
            first, output = clock(runs[name], case.device)
            outputs.append(output)
            peak = None if before is None else torch.cuda.max_memory_allocated() - before
            results.append(Measurement(case.name, name, 0.0, first, 0.0, memory=peak))
        times = median_times(runs, rounds, case.device)
        for result, output in zip(results, outputs, strict=True):
            result.seconds = times[result.implementation]
            result.images_per_second = case.batch / result.seconds
            result.ratio = results[0].seconds / result.seconds
            if case.kind == "model":
                result.error = float((output.sigmoid() - outputs[0].sigmoid()).abs().max())
            if memory and case.device == "cpu":
                task = {"case": asdict(case), "name": result.implementation, "weights": str(weights)}
                result.memory = measured_elsewhere(peers.command, task)
    return results


def _peak(case: Case, name: str, weights: Path, peers: Peers) -> int | None:
    """Bytes at the peak of one run in this process, weights included, above what it had before; None where unknown."""
    before = reset_peak("cpu")
    if before is None:
        return None
    run = _build(name, case, weights, peers)
    reset_peak("cpu")
    run()
    return process_memory("VmHWM") - before


def measure_data(
    *, images: int = 24, height: int = 480, width: int = 640, preset: str = "demo", num_threads: int = 2, rounds: int = 3
) -> list[Measurement]:
    """Do images come fast enough? The model alone, `predict` on a folder of JPEG files, and reading them alone.

    All at the official sizes: the short side 800 pixels for prediction, the official augmentation for training. What `predict`
    takes beyond the model alone is what reading costs it; on a CPU both share the cores.

    Args:
        images: how many files are made, of noise.
        height: of each, in pixels.
        width: of each, in pixels.
        preset: whose model is used; the small `demo` is the hardest case for the reader.
        num_threads: threads that read for `predict`, and processes that read for training.
        rounds: how often each one runs, taking turns; the median counts. Ratios are to the model alone.
    """
    predictor = Predictor(build_model(preset, num_classes=3, pretrained_backbone=False), device="cpu")
    metadata = predictor.metadata
    transform = eval_transform(metadata.eval_short_side, metadata.max_long_side, metadata.mean, metadata.std)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = _write_noise(folder, images, height, width)
        ready = [transform(InputImage(str(path), path).read(), None)[0] for path in paths[:1]]
        dataset = build_dataset(folder, "train", DataConfig(), training=True)
        loader = build_loader(dataset, batch_size=1, training=True, num_workers=num_threads)
        runs: dict[str, Run] = {
            "network alone": lambda: [predictor.inference_model(ready) for _ in paths],
            "predict on the folder": lambda: predictor.predict(folder / "train", num_threads=num_threads),
            "reading, one thread": lambda: [transform(InputImage(str(path), path).read(), None) for path in paths],
            f"for training, {num_threads} workers": lambda: list(loader),
        }
        first = {name: clock(run)[0] for name, run in runs.items()}
        times = median_times(runs, rounds)
    title = f"data, {images} images of {height} x {width}, {preset}"
    seconds = {name: found / images for name, found in times.items()}
    alone = seconds["network alone"]
    return [Measurement(title, name, s, first[name], 1 / s, alone / s) for name, s in seconds.items()]


def _write_noise(folder: Path, images: int, height: int, width: int) -> list[Path]:
    """A COCO dataset of JPEG files, with one object each, in its split `train`."""
    generator = np.random.default_rng(0)
    (folder / "train").mkdir()
    paths = [folder / "train" / f"{index}.jpg" for index in range(images)]
    record = empty_record({1: "noise"})
    for path in paths:
        coarse = generator.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(path, quality=90)
        add_image(record, path.name, (height, width))
        add_box(record, 1, (width / 4, height / 4, width * 3 / 4, height * 3 / 4))
    write_json(folder / "train" / "_annotations.coco.json", record)
    return paths


def main(task: str, peers: Peers = NO_PEERS) -> None:
    """Measure the memory of one implementation on one case in this process, and print it as JSON."""
    asked = json.loads(task)
    found = _peak(Case(**asked["case"]), asked["name"], Path(asked["weights"]), peers)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
