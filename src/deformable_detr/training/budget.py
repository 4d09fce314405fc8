"""A time for the whole run → steps, evaluations and image size, after a few real steps were timed on this machine.

    budget = start + steps x (seconds of a step) + evaluations x (seconds of an evaluation)

Evaluations are made at most so often that they take a tenth of it. With a recipe, the images become smaller where too few steps
would fit, and larger where more fit than are of use. Once the run has begun, `pace.py` holds it to the time.
"""

import gc
import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

from accelerate.utils import gather_object

from deformable_detr.acceleration.model import InferenceModel
from deformable_detr.config import RunConfig
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.process import without_warnings
from deformable_detr.recipes import EVALUATIONS, on_grid
from deformable_detr.training.batches import step_batches
from deformable_detr.training.pace import MOST_PASSES
from deformable_detr.training.processes import in_any_process, mean_over_processes
from deformable_detr.training.result import Position
from deformable_detr.training.time_left import WARM_UP, format_seconds
from deformable_detr.training.trainer import Trainer

logger = logging.getLogger(__name__)

EVALUATION_SHARE = 0.1
"""Largest share of the budget that evaluations may take, the one at the end aside."""

FEW_STEPS, MANY_STEPS = 600, 2000
"""Below so many steps of a recipe the images become smaller, above it larger (docs/recipes-measured.md has what either gives)."""

SMALLEST_SIDE = 128
"""Input size below which no budget goes (pixels)."""

TIMED_STEPS, TIMED_SECONDS = (6, 30), 12.0
"""How many steps are timed: at least, at most; and for how long, between these."""

TIMED_SHARE = 0.1
"""Share of the budget after which the timing of steps ends with fewer of them, though never without one: on a busy machine."""

TIMED_IMAGES = 8
"""Images on which the evaluation is timed."""

START = 5.0
"""Seconds that a run takes before its first step and after its last one, beside what is timed: opening files, writing weights."""


@dataclass(frozen=True)
class Speed:
    """What a run takes on this machine, in seconds."""

    step: float
    """An optimiser step, with reading the images."""

    evaluation: float
    """An evaluation of the whole validation split; 0 without one."""

    steps_per_epoch: int
    """Optimiser steps of one pass over the training images."""

    took: float = 0.0
    """Seconds that the timing itself took."""


@dataclass(frozen=True)
class Fit:
    """The run that fits into a budget."""

    steps: int
    """Optimiser steps."""

    evaluate_every: int
    """Epochs between evaluations."""

    seconds: float
    """How long it takes, as far as can be said before."""

    budget: float
    """How long it may take."""


def parse_budget(text: str) -> float:
    """`30m`, `1h30m`, `90s`, `1.5h` → seconds.

    Raises:
        ValueError: it is none of these, or no time at all.
    """
    found = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m(?:in)?)?(?:([\d.]+)s)?", text.strip().lower().replace(" ", ""))
    try:
        parts = [float(part or 0) for part in found.groups()] if found else []
    except ValueError:
        parts = []
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not seconds:
        raise ValueError(f"train.budget: {text!r} is no time; write 30m, 1h30m or 90s")
    return seconds


def fit(seconds: float, speed: Speed) -> Fit:
    """The longest run within a time.

    Args:
        seconds: that are left.
        speed: of this machine with these settings.
    """
    most = MOST_PASSES * speed.steps_per_epoch
    room = seconds - START - speed.evaluation
    steps = min(most, max(1, int(room / speed.step)))
    evaluations = min(EVALUATIONS, int(EVALUATION_SHARE * seconds / speed.evaluation)) if speed.evaluation else 0
    epochs = math.ceil(steps / speed.steps_per_epoch)
    every = max(1, math.ceil(epochs / max(1, evaluations)))
    between = (epochs - 1) // every
    steps = min(most, max(1, int((room - between * speed.evaluation) / speed.step)))
    between = (math.ceil(steps / speed.steps_per_epoch) - 1) // every
    return Fit(steps, every, START + steps * speed.step + (between + 1) * speed.evaluation, seconds)


def fit_run(
    config: RunConfig, resized: Callable[[int], RunConfig] | None, measure: Callable[[RunConfig], Speed]
) -> tuple[Fit, RunConfig]:
    """Time a few steps, and fit the run into its budget.

    Args:
        config: with a budget.
        resized: gives the run for another input size (the short side in pixels). None: the size stays.
        measure: times a run, with the same answer in all processes.

    Returns:
        The fit, and the run of the size that was chosen.

    Raises:
        ValueError: no time, or not even some steps fit into it.
    """
    budget = parse_budget(str(config.train.budget))
    logger.info("timing a few steps for a budget of %s", format_seconds(budget))
    speed = measure(config)
    spent = speed.took
    found = fit(budget - spent, speed)
    side = config.data.eval_short_side
    other = _other_side(found, speed, side) if resized is not None else side
    if resized is not None and other != side:
        config = resized(other)
        speed = measure(config)
        spent += speed.took
        found = fit(budget - spent, speed)
    if found.seconds + spent > 1.15 * budget:
        raise ValueError(
            f"a budget of {config.train.budget} is too short here: one step takes {speed.step:.1f} s and an evaluation "
            f"{speed.evaluation:.0f} s; give more time, or --steps"
        )
    logger.info(
        "a step takes %.2f s here at %d pixels, an evaluation %.0f s: %d steps (%d passes), evaluated every %d; about %s in all",
        *(speed.step, config.data.eval_short_side, speed.evaluation, found.steps),
        *(math.ceil(found.steps / speed.steps_per_epoch), found.evaluate_every, format_seconds(found.seconds + spent)),
    )
    return found, config


def _other_side(found: Fit, speed: Speed, side: int) -> int:
    """The input size at which a useful number of steps fits: the time of a step goes with the pixels."""
    useful = min(max(found.steps, FEW_STEPS), min(MANY_STEPS, MOST_PASSES * speed.steps_per_epoch))
    factor = min(1.35, max(0.6, math.sqrt(found.steps / useful)))
    return max(SMALLEST_SIDE, on_grid(side * factor))


def measure_speed(
    config: RunConfig, dataset: DetectionDataset | None = None, *, clock: Callable[[], float] = time.monotonic
) -> Speed:
    """Train for some steps and evaluate some images, on weights that are thrown away.

    In several processes all must call this, and get the same: the mean time of a step, and the longest of an evaluation.

    Args:
        config: the run.
        dataset: that of the run, opened; None opens it.
        clock: tells seconds.
    """
    began = clock()
    until = began + (TIMED_SHARE * parse_budget(str(config.train.budget)) if config.train.budget else math.inf)
    if config.weights is None:  # nor need a backbone's be fetched
        config = replace(config, model=replace(config.model, pretrained_backbone=False))
    with without_warnings(), TemporaryDirectory() as folder:  # what there is to say is said when the run itself begins
        trainer = Trainer(replace(config, output_dir=folder), dataset, callbacks=(), show_progress=False)
        step = _seconds_of_step(trainer, clock, until)
        evaluation = 0.0 if trainer.data.val is None else _seconds_of_evaluation(trainer, clock)
    gc.collect()  # the inference model's folded weights
    means = mean_over_processes({"step": step, "took": clock() - began}, trainer.accelerator)
    return Speed(means["step"], max(gather_object([evaluation])), trainer.steps_per_epoch, means["took"])


def _seconds_of_step(trainer: Trainer, clock: Callable[[], float], until: float) -> float:
    """The mean over some steps after the first ones, in which workers start and memory is laid out."""
    position, marks = Position(), []
    while True:
        for batches in step_batches(trainer.train_loader, position, trainer.config.train.accumulate):
            trainer.learner.step(batches, position.step)
            position.step += 1
            position.batch += len(batches)
            if position.step < WARM_UP:
                continue
            marks.append(clock())
            if in_any_process(_are_enough(marks, until), trainer.accelerator):  # else some would wait for the others' steps
                return (marks[-1] - marks[0]) / (len(marks) - 1)
        position = Position(position.step, position.epoch + 1)


def _are_enough(marks: list[float], until: float) -> bool:
    (least, most), steps = TIMED_STEPS, len(marks) - 1
    return steps >= most or (steps >= least and marks[-1] - marks[0] > TIMED_SECONDS) or (steps >= 1 and marks[-1] > until)


def _seconds_of_evaluation(trainer: Trainer, clock: Callable[[], float]) -> float:
    """Making the form in which evaluations run the network, and some images, extrapolated to this process's share."""
    loader: Any = trainer.validation.loader
    model = InferenceModel(trainer.result, precision=trainer.config.train.precision)
    marks, done = [clock()], 0
    for images, _ in loader:
        model(images.to(trainer.accelerator.device)).logits.cpu()  # a GPU is waited for
        marks.append(clock())
        done += len(images)
        if done >= TIMED_IMAGES:
            break
    if not done:  # fewer images than processes
        return 0.0
    first, others = marks[1] - marks[0], marks[-1] - marks[1]
    each = others / (done - done // (len(marks) - 1)) if len(marks) > 2 else first
    return first + each * len(loader.sampler)
