"""Stopping between two optimiser steps on Ctrl-C or a cluster's SIGTERM, so that the state can be saved first."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Self

logger = logging.getLogger(__name__)


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped from outside; its state is saved, and the message says how to go on."""


class StopRequest:
    """While active, the first SIGINT or SIGTERM only sets `requested`; the second acts as usual."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        logger.warning("stopping after this step, to save the state; interrupt again to stop at once without saving")
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()


def leave_signals_to_trainer(worker: int) -> None:
    """Make a data loader's worker outlive the signals that a terminal or a cluster sends to all processes of a run.

    A worker that dies raises an error in the trainer, in the middle of whatever that does, such as saving the state. Workers are
    ended by the loader, and by themselves when the trainer is gone.

    Args:
        worker: its number; the signature is that of a `worker_init_fn`.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
