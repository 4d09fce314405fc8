"""What a training step of small networks costs, and where the time goes: presets interleaved in one process, generated images.

OMP_NUM_THREADS=1 python benchmarks/training_step.py demo demo-fast --steps 40 --model num_classes=4
OMP_NUM_THREADS=1 python benchmarks/training_step.py r18-two-stage r18-fast --steps 10 --size 256 --batch-size 2 \
    --model num_classes=3 hidden_dim=128 num_encoder_layers=2 num_decoder_layers=3 num_queries=100

The first is the demo, the second a network of the recipe small-data.
CPU time of this process, medians and minima: on a machine with other work, its wall time says little.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch
from accelerate import Accelerator

from deformable_detr import DeformableDETR, ImageBatch, SetCriterion, Target, build_model, build_optimizer
from deformable_detr.presets import demo_run, model_preset
from deformable_detr.training import train_step

WARM_UP = 6


def main() -> None:
    """Time whole steps and, in steps of their own, their parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="+", help="the first one is what the others are compared with")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--size", type=int, default=128, help="of the images, pixels")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--model", nargs="*", default=[], metavar="SETTING=NUMBER", help="settings that are not the presets'")
    options = parser.parse_args()
    model = {name: int(number) for name, _, number in (setting.partition("=") for setting in options.model)}
    torch.manual_seed(0)
    steps = {preset: Step(preset, options.size, options.batch_size, **model) for preset in options.presets}
    for step in steps.values():
        for _ in range(WARM_UP):
            step.whole()
    whole: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.steps):
        for preset, step in steps.items():
            began = time.process_time()
            step.whole()
            whole[preset].append(time.process_time() - began)
            step.parts()
    for preset, step in steps.items():
        ratio = median(whole[preset]) / median(whole[options.presets[0]])
        print(f"{preset}: {_milliseconds(whole[preset])} = {ratio:.2f} x {options.presets[0]}")
        for part, times in step.times.items():
            print(f"    {part:10} {_milliseconds(times)}")


class Step:
    """One network with its optimiser and a batch."""

    def __init__(self, preset: str, size: int, batch_size: int, **overrides: int) -> None:
        settings = demo_run("", "").optimizer
        model = model_preset(preset, pretrained_backbone=False, **overrides)
        self.criterion = SetCriterion.from_config(model)
        self.accelerator, self.clip = Accelerator(cpu=True), settings.clip_grad_norm
        network = build_model(model).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.network: DeformableDETR
        self.network, self.optimizer = self.accelerator.prepare(network, build_optimizer(network, lr=settings.lr))
        self.images = ImageBatch.from_images([torch.randn(3, size, size) for _ in range(batch_size)])
        self.targets = [_target(2 + image % 4, model.num_classes) for image in range(batch_size)]
        self.times: dict[str, list[float]] = defaultdict(list)

    def whole(self) -> None:
        """A step as in a run."""
        train_step(self.network, self.criterion, self.optimizer, [(self.images, self.targets)], self.accelerator, self.clip)

    def parts(self) -> None:
        """The same, taken apart; `losses` has the matching in it."""
        with self._timed("forward"):
            predictions = self.network(self.images, self.targets)
        with torch.no_grad(), self._timed("matching"):
            self.criterion.match(predictions, self.targets)
        with self._timed("losses"):
            loss = self.criterion.weighted_sum(self.criterion(predictions, self.targets))
        with self._timed("backward"):
            loss.backward()
        with self._timed("optimiser"):
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.times[part].append(time.process_time() - began)


def _target(objects: int, num_classes: int) -> Target:
    boxes = torch.cat((torch.rand(objects, 2) * 0.6 + 0.2, torch.rand(objects, 2) * 0.2 + 0.05), dim=1)
    return Target(boxes, torch.randint(num_classes, (objects,)))


def _milliseconds(times: list[float]) -> str:
    return f"{1000 * median(times):6.1f} ms (at least {1000 * min(times):.1f})"


if __name__ == "__main__":
    main()
