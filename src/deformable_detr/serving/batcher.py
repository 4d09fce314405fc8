"""Dynamic batching: images of many requests go through the model together, on one thread of their own."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import supervision as sv
from torch import Tensor

from deformable_detr.inference.predictor import Predictor
from deformable_detr.inference.sources import InputImage
from deformable_detr.schema import check_range


@dataclass(frozen=True, eq=False)
class Outcome:
    """What has been found in one image, and how long it took."""

    detections: sv.Detections
    """Highest score first."""

    wait_seconds: float
    """From submission until its batch began."""

    network_seconds: float
    """That the batch took, resizing and scores included."""

    batch_size: int
    """Images in the batch."""


@dataclass(frozen=True, eq=False)
class _Job:
    pixels: Tensor
    threshold: float | None
    top_k: int
    classes: tuple[str, ...] | None
    patience: float
    future: Future[Outcome] = field(default_factory=Future)
    submitted: float = field(default_factory=time.perf_counter)


class Batcher:
    """Gathers images and detects on them in batches.

    A batch begins when `batch_size` images wait, or when the oldest has waited `max_wait` seconds, or at once if nobody else is
    expected. Images of different settings share a batch; each gets exactly what it would get alone.

    Args:
        predictor: the detector; only the worker thread calls it.
        batch_size: at most this many images per forward pass.
        max_wait: seconds that an image waits for company at most. 0: take what is there.
        on_batch: called by the worker with the size and the seconds of each batch.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        batch_size: int = 4,
        max_wait: float = 0.005,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self.predictor = predictor
        self.batch_size = batch_size
        self.max_wait = max_wait
        check_range(self, "batch_size", 1)
        check_range(self, "max_wait")
        self.last_seconds = 0.0
        self._on_batch = on_batch
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._worker = threading.Thread(target=self._work, name="network", daemon=True)
        self._worker.start()

    def submit(
        self,
        images: Sequence[Tensor],
        *,
        threshold: float | None,
        top_k: int | None,
        classes: Sequence[str] | None = None,
        wait: bool = True,
    ) -> list[Future[Outcome]]:
        """Put images in the queue, all at once; cancel a future to take its image out again.

        Settings are those of :meth:`~deformable_detr.inference.predictor.Predictor.predict`; classes must be known to the detector.

        Args:
            images: each `[3, H, W]` uint8 RGB; not copied, so they must stay as they are until their futures are done.
            wait: False where no others are expected, so that waiting for company would be in vain.

        Raises:
            RuntimeError: the batcher is closed.
        """
        top_k = self.predictor.metadata.model.max_detections if top_k is None else top_k
        chosen = None if classes is None else tuple(classes)
        jobs = [_Job(pixels, threshold, top_k, chosen, self.max_wait if wait else 0.0) for pixels in images]
        with self._changed:
            if self._closing:
                raise RuntimeError("the server is shutting down")
            self._waiting += jobs
            self._changed.notify()
        return [job.future for job in jobs]

    @property
    def num_waiting(self) -> int:
        """Images whose batch has not begun."""
        return len(self._waiting)

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._worker.join()

    def _work(self) -> None:
        while jobs := self._gather():
            running = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if running:
                self._run(running)

    def _gather(self) -> list[_Job]:
        """The next batch; empty when all is done and the batcher is closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if self._waiting:
                patience = self._waiting[0].submitted + self._waiting[0].patience - time.perf_counter()
                self._changed.wait_for(lambda: len(self._waiting) >= self.batch_size or self._closing, max(0.0, patience))
            return [self._waiting.popleft() for _ in range(min(self.batch_size, len(self._waiting)))]

    def _run(self, jobs: list[_Job]) -> None:
        began = time.perf_counter()
        try:
            found = self._detect(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:  # one image must not spoil those of its neighbours
                self._run([job])
            return
        self.last_seconds = time.perf_counter() - began
        self._on_batch(len(jobs), self.last_seconds)
        for job, detections in zip(jobs, found, strict=True):
            job.future.set_result(Outcome(detections, began - job.submitted, self.last_seconds, len(jobs)))

    def _detect(self, jobs: list[_Job]) -> list[sv.Detections]:
        """One forward pass with the most generous of all settings, cut down to those of each image.

        With NMS, one for all images of the same settings: what it drops depends on how many detections it looks at.
        """
        if self.predictor.nms_iou is not None:
            found: dict[int, sv.Detections] = {}
            for top_k, classes in dict.fromkeys((job.top_k, job.classes) for job in jobs):
                alike = [job for job in jobs if (job.top_k, job.classes) == (top_k, classes)]
                found |= zip(map(id, alike), self._forward(alike, top_k, classes), strict=True)
            return [found[id(job)] for job in jobs]
        top_k = max(job.top_k for job in jobs)
        if any(job.classes is not None for job in jobs):  # the best of one class can have any rank among all classes
            model = self.predictor.metadata.model
            top_k = max(top_k, model.num_queries * model.num_classes)
        return self._forward(jobs, top_k, None)

    def _forward(self, jobs: list[_Job], top_k: int, classes: tuple[str, ...] | None) -> list[sv.Detections]:
        threshold = min(float(self.predictor.score_limits(job.threshold).min()) for job in jobs)
        images = [InputImage(f"image {index}", job.pixels) for index, job in enumerate(jobs)]
        results = self.predictor.iterate(images, threshold, batch_size=len(jobs), top_k=top_k, classes=classes)
        return [self._chosen(job, result.detections) for job, result in zip(jobs, results, strict=True)]

    def _chosen(self, job: _Job, detections: sv.Detections) -> sv.Detections:
        """As the predictor does: the best of the classes, and of these those from the thresholds on."""
        limits = self.predictor.score_limits(job.threshold).numpy()
        wanted = job.classes is None or np.isin(detections.data["class_name"], job.classes)
        best = np.flatnonzero(np.broadcast_to(wanted, len(detections)))[: job.top_k]
        found: sv.Detections = detections[best]  # pyright: ignore[reportAssignmentType]
        return found[np.asarray(found.confidence) >= limits[found.class_id]]  # pyright: ignore[reportReturnType]
