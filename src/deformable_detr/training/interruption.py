"""Stopping between two optimiser steps on Ctrl-C or a cluster's SIGTERM, so that the state can be saved first."""

import atexit
import logging
import multiprocessing
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
    ended by the loader, by themselves when the trainer is gone, and by :func:`end_workers_at_exit`.

    Args:
        worker: its number; the signature is that of a `worker_init_fn`.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def end_workers_at_exit() -> None:
    """End the workers that are left when this process exits, as after an error in the middle of an epoch.

    Python would send them a SIGTERM, which they leave to the trainer, and wait for ever.
    """
    atexit.unregister(_end_workers)  # once, however many runs there are
    atexit.register(_end_workers)


def _end_workers() -> None:
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call it an error
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
