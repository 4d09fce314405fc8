"""The batches of an epoch, grouped into optimiser steps; the loader is started anew where one of its workers has died."""

import logging
import multiprocessing
from collections.abc import Iterator
from itertools import islice

from torch.utils.data import DataLoader

from deformable_detr.data.loader import AS_SET, Allowed
from deformable_detr.training.processes import MAIN_GUARD
from deformable_detr.training.result import Position
from deformable_detr.training.state import random_state_kept
from deformable_detr.training.train_step import Batch

logger = logging.getLogger(__name__)

MOST_RESTARTS = 3
"""Largest number of dead workers within one epoch that are replaced."""

ADVICE = (
    "A worker that reads images was ended from outside, mostly because memory ran out: lower data.num_workers or the sizes of "
    "the images; in a container give /dev/shm more room"
)


class DeadWorkerError(RuntimeError):
    """The workers that read images die again and again; the message says what helps."""


def step_batches(loader: DataLoader, position: Position, accumulate: int, allowed: Allowed = AS_SET) -> Iterator[list[Batch]]:
    """The batches that are left of an epoch, `accumulate` at a time; the last group may be smaller.

    Args:
        loader: of the training split.
        position: progress of the run; it must be advanced between two groups, because a restart continues from it.
        accumulate: batches per optimiser step.
        allowed: what may be done to the images of this epoch beside the dataset's transform.

    Raises:
        DeadWorkerError: more than :data:`MOST_RESTARTS` times.
    """
    for restart in range(MOST_RESTARTS + 1):
        try:
            yield from _groups(loader, position, accumulate, allowed)
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            loader._iterator = None  # the persistent workers, of which one is gone
            if "killed by signal" not in f"{error} {error.__cause__}" and multiprocessing.get_start_method() != "fork":
                raise DeadWorkerError(f"a worker that reads images could not start ({error}). Probably {MAIN_GUARD}") from error
            if restart == MOST_RESTARTS:
                raise DeadWorkerError(f"{MOST_RESTARTS + 1} workers died in one epoch ({error}). {ADVICE}") from error
            logger.warning("%s. Going on after step %d with new workers", ADVICE, position.step)


def _groups(loader: DataLoader, position: Position, accumulate: int, allowed: Allowed) -> Iterator[list[Batch]]:
    loader.sampler.set_epoch(position.epoch, position.batch, allowed)  # type: ignore[attr-defined]
    with random_state_kept():
        batches = iter(loader)  # draws a seed for its workers, which must not change what the next steps draw
    while together := list(islice(batches, accumulate)):
        yield together
