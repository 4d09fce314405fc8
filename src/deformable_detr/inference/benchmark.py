"""The whole detector beside its peers, taking turns in one process: inference, a training step, memory, and reading images."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from deformable_detr.acceleration.model import InferenceModel
from deformable_detr.acceleration.options import InferenceOptions
from deformable_detr.checkpoints import load_pretrained
from deformable_detr.config import DataConfig
from deformable_detr.criterion import SetCriterion
from deformable_detr.data.loader import build_dataset, build_loader
from deformable_detr.data.transforms import eval_transform
from deformable_detr.inference.predictor import Predictor
from deformable_detr.inference.sources import InputImage
from deformable_detr.structures import Target

Run = Callable[[], Any]
PEER = "transformers"
OBJECTS = 8
LEARNING_STAGES = ("layer2", "layer3", "layer4")


@dataclass(frozen=True)
class Case:
    """What is measured: `model` is one forward pass, `train` one step without the optimiser."""

    kind: str
    height: int
    width: int
    batch: int = 1

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.kind}, {self.height} x {self.width}, batch {self.batch}"


@dataclass
class Measurement:
    """One implementation on one case: medians in seconds, bytes at the peak, largest difference from the peer's scores."""

    case: str
    implementation: str
    seconds: float
    first_call: float
    images_per_second: float
    ratio: float | None = None
    memory: int | None = None
    error: float | None = None


def implementations(kind: str, *, compile: bool = False) -> list[str]:
    """What can be measured here; the peer first where it is installed."""
    ours = ["plain module"] if kind == "train" else ["plain module", "optimised", *(["compiled"] if compile else [])]
    try:
        import transformers  # noqa: F401
    except ImportError:
        return ours
    return [PEER, *ours]


def save_peer(folder: str | Path) -> Path:
    """A Deformable DETR (R50, 91 classes) of transformers with random weights, in its own format, for all sides to load."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    torch.manual_seed(0)
    settings: dict[str, Any] = {"use_pretrained_backbone": False, "num_labels": 91, "dropout": 0.0, "auxiliary_loss": True}
    config = DeformableDetrConfig(**settings, disable_custom_kernels=True)
    DeformableDetrForObjectDetection(config).save_pretrained(folder)
    return Path(folder)


def build(name: str, case: Case, weights: Path) -> Run:
    """One forward pass, which gives scores, or one training step of an implementation on a random image."""
    torch.manual_seed(0)
    images = torch.randn(case.batch, 3, case.height, case.width)
    if name == PEER:
        return _peer_run(case, images, weights)
    model = load_pretrained(weights)
    if case.kind == "train":
        return _training_step(model, case, images)
    model.eval()
    fast: nn.Module = model if name == "plain module" else InferenceModel(model, InferenceOptions(compile=name == "compiled"))
    return torch.inference_mode()(lambda: fast(list(images)).logits[-1])


def _peer_run(case: Case, images: torch.Tensor, weights: Path) -> Run:
    from transformers import DeformableDetrForObjectDetection

    model = DeformableDetrForObjectDetection.from_pretrained(weights)
    if case.kind == "model":
        model.eval()
        return torch.inference_mode()(lambda: model(pixel_values=images).logits)
    _let_learn(model.train())
    labels = [{"boxes": target.boxes, "class_labels": target.labels} for target in _targets(case)]

    def step() -> None:
        model(pixel_values=images, labels=labels).loss.backward()
        model.zero_grad()

    return step


def _training_step(model: nn.Module, case: Case, images: torch.Tensor) -> Run:
    criterion, targets = SetCriterion(91), _targets(case)
    _let_learn(model.train())
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    def step() -> None:
        criterion.weighted_sum(criterion(model(list(images)), targets)).backward()
        model.zero_grad()

    return step


def _let_learn(model: nn.Module) -> None:
    """The same parts of the backbone learn in all."""
    for name, parameter in model.named_parameters():
        if "backbone" in name:
            parameter.requires_grad_(any(stage in name for stage in LEARNING_STAGES))


def _targets(case: Case) -> list[Target]:
    generator = torch.Generator().manual_seed(0)
    return [
        Target(
            boxes=torch.rand(OBJECTS, 4, generator=generator) * 0.2 + 0.4,
            labels=torch.randint(91, (OBJECTS,), generator=generator),
        )
        for _ in range(case.batch)
    ]


def measure(case: Case, names: Sequence[str], *, rounds: int = 3, memory: bool = True) -> list[Measurement]:
    """All implementations on one case, taking turns.

    Args:
        case: what to compute.
        names: out of `implementations`; the first one is what the others are compared with.
        rounds: how often each one runs; the median counts.
        memory: also start a process for each one that measures its peak memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = save_peer(folder)
        runs = {name: build(name, case, weights) for name in names}
        results, outputs = [], []
        for name, run in runs.items():
            first, output = _clock(run)
            outputs.append(output)
            results.append(Measurement(case.name, name, 0.0, first, 0.0))
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, run in runs.items():
                times[name].append(_clock(run)[0])
        for result, output in zip(results, outputs, strict=True):
            result.seconds = statistics.median(times[result.implementation])
            result.images_per_second = case.batch / result.seconds
            result.ratio = results[0].seconds / result.seconds
            if case.kind == "model":
                result.error = float((output.sigmoid() - outputs[0].sigmoid()).abs().max())
            if memory:
                result.memory = _peak_in_own_process(case, result.implementation, weights)
    return results


def _clock(run: Run) -> tuple[float, Any]:
    began = time.perf_counter()
    output = run()
    return time.perf_counter() - began, output


def _peak_in_own_process(case: Case, name: str, weights: Path) -> int | None:
    task = json.dumps({"case": asdict(case), "name": name, "weights": str(weights), "threads": torch.get_num_threads()})
    command = [sys.executable, "-W", "ignore", "-m", "deformable_detr.inference.benchmark", task]
    run = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    if run.returncode != 0:
        raise RuntimeError(f"measuring the memory of {name!r} failed: {run.stderr.strip()[-500:]}")
    return json.loads(run.stdout.strip().splitlines()[-1])


def peak(case: Case, name: str, weights: Path) -> int | None:
    """Bytes at the peak of one run in this process, weights included, above what it had before; None where unknown."""
    try:
        before = _status("VmRSS")
    except OSError:  # not Linux
        return None
    run = build(name, case, weights)
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field + ":")).split()[1])


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
    from deformable_detr.model import build_model

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
        first = {name: _clock(run)[0] for name, run in runs.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                times[name].append(_clock(run)[0])
    title = f"data, {images} images of {height} x {width}, {preset}"
    seconds = {name: statistics.median(found) / images for name, found in times.items()}
    alone = seconds["network alone"]
    return [Measurement(title, name, s, first[name], 1 / s, alone / s) for name, s in seconds.items()]


def _write_noise(folder: Path, images: int, height: int, width: int) -> list[Path]:
    """A COCO dataset of JPEG files, with one object each, in its split `train`."""
    generator = np.random.default_rng(0)
    (folder / "train").mkdir()
    paths = [folder / "train" / f"{index}.jpg" for index in range(images)]
    for path in paths:
        coarse = generator.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(path, quality=90)
    box = [width / 4, height / 4, width / 2, height / 2]
    record = {
        "images": [{"id": i, "file_name": path.name, "width": width, "height": height} for i, path in enumerate(paths)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": box, "iscrowd": 0} for i in range(images)],
        "categories": [{"id": 1, "name": "noise"}],
    }
    (folder / "train" / "_annotations.coco.json").write_text(json.dumps(record))
    return paths


def _main(task: str) -> None:
    asked = json.loads(task)
    torch.set_num_threads(asked["threads"])
    sys.stdout.write(json.dumps(peak(Case(**asked["case"]), asked["name"], Path(asked["weights"]))) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1])
