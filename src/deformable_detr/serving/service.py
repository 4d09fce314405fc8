"""From a request to its detections: reading, decoding, the batch, the drawing; the event loop only waits."""

import asyncio
import io
import logging
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from PIL import Image
from starlette.requests import Request
from torch import Tensor

from deformable_detr.data.images import UPLOAD_FORMATS, ImageTooLargeError, read_image
from deformable_detr.inference.predictor import Predictor
from deformable_detr.ops.cpu import use_one_core_here
from deformable_detr.schema import check_range
from deformable_detr.serving.admission import Admission, Places
from deformable_detr.serving.batcher import Batcher, Outcome
from deformable_detr.serving.limits import Limits, RefusedError
from deformable_detr.serving.metrics import ServerMetrics
from deformable_detr.serving.responses import Detection, ImageResponse, ImageTimes, Settings
from deformable_detr.serving.uploads import Upload, read_uploads
from deformable_detr.visualize.drawing.detections import draw_detections

logger = logging.getLogger(__name__)
T = TypeVar("T")
JPEG_SIDE = 65500  # pixels
DrawingFormat = Literal["jpeg", "png"]


@dataclass(frozen=True, eq=False)
class Served:
    """One image with what was found in it."""

    name: str
    pixels: Tensor  # [3, H, W] uint8 RGB, upright
    outcome: Outcome
    decode_seconds: float

    def response(self) -> ImageResponse:
        """As JSON has it."""
        found, (height, width) = self.outcome.detections, self.pixels.shape[1:]
        columns = (found.data["class_name"], found.class_id, found.data["category_id"], found.confidence, found.xyxy)
        detections = [
            Detection(
                class_name=name,
                label=label,
                category_id=category_id,
                score=round(score, 5),
                box=tuple(round(value, 2) for value in box),
            )  # type: ignore[arg-type]
            for name, label, category_id, score, box in zip(*(column.tolist() for column in columns), strict=True)  # type: ignore[union-attr]
        ]
        times = ImageTimes(
            decode_ms=milliseconds(self.decode_seconds),
            wait_ms=milliseconds(self.outcome.wait_seconds),
            network_ms=milliseconds(self.outcome.network_seconds),
            batch_size=self.outcome.batch_size,
        )
        return ImageResponse(name=self.name, width=width, height=height, detections=detections, times=times)


def milliseconds(seconds: float) -> float:
    """To a hundredth."""
    return round(1e3 * seconds, 2)


class DetectionService:
    """Detects in the images of requests with one detector. Use it as an async context manager: it holds threads.

    Args are those of :func:`~deformable_detr.serving.app.create_app`.

    Raises:
        ValueError: a batch size or `top_k` below 1, or a time below 0.
    """

    def __init__(
        self, predictor: Predictor, *, limits: Limits, batch_size: int, max_wait: float, num_threads: int, top_k: int | None
    ) -> None:
        self.predictor = predictor
        self.limits = limits
        self.batch_size = batch_size
        self.max_wait = max_wait
        self.top_k = top_k
        check_range(self, "batch_size top_k", 1)  # the batcher is made when the server starts: too late to say why it does not
        check_range(self, "max_wait")
        self.places = Places(limits)
        self.metrics = ServerMetrics(lambda: self._batcher.num_waiting if self._batcher else 0, lambda: self.places.num_images)
        self._num_threads = num_threads
        self._batcher: Batcher | None = None

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self._batcher is not None

    async def __aenter__(self) -> "DetectionService":
        """Start the threads, and run one grey image through the model, so that the first client does not wait for it."""
        self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="images", initializer=use_one_core_here)
        try:
            grey = torch.full((3, *self.predictor.example_size), 128, dtype=torch.uint8, device="cpu")
            await asyncio.to_thread(self.predictor.predict, grey)
        except Exception as error:
            logger.warning("the model failed on a grey image, and may fail on others: %s", error)
        self._batcher = Batcher(
            self.predictor, batch_size=self.batch_size, max_wait=self.max_wait, on_batch=self.metrics.count_batch
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        """Finish what has been taken in."""
        batcher, self._batcher = self._batcher, None
        if batcher is not None:
            await asyncio.to_thread(batcher.close)
        self._pool.shutdown()

    async def detect(self, request: Request, settings: Settings, most: int | None = None) -> list[Served]:
        """Read a request's images and detect on them.

        Args:
            request: with its `admission`.
            settings: what the client asks for.
            most: as many images as make sense for it.

        Raises:
            RefusedError: the reason why there are no detections.
        """
        if not self.ready:
            raise RefusedError(
                503, "the server is not running: it starts and ends with the application's lifespan", {"Retry-After": "5"}
            )
        admission: Admission = request.scope["admission"]
        self._hold(admission, 1)  # before the body is read: a server that is full does not take in more
        self._check_classes(settings.classes)
        twice = [name for name in ("threshold", "top_k") if len(request.query_params.getlist(name)) > 1]
        if twice:
            raise RefusedError(422, f"{twice[0]}: given more than once")
        deadline = asyncio.get_running_loop().time() + self.limits.timeout
        uploads = await _until(deadline, read_uploads(request, self.limits), RefusedError(408, "the body came too slowly"))
        if most is not None and len(uploads) > most:
            raise RefusedError(422, f"one image is drawn per request, not {len(uploads)}; /detect takes several")
        self._hold(admission, len(uploads))
        late = RefusedError(504, f"not done within {self.limits.timeout:g} s; the server is too busy", {"Retry-After": "10"})
        work = asyncio.ensure_future(self._detect(uploads, settings))
        return await _until(deadline, _unless_gone(request, work), late)

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run what takes long beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def _hold(self, admission: Admission, num_images: int) -> None:
        if admission.hold(num_images):
            return
        inside = self.places.num_images
        seconds = (self._batcher.last_seconds if self._batcher else 1.0) * inside / self.batch_size
        wait = str(min(60, max(1, math.ceil(seconds))))  # when those who are inside now should be done
        raise RefusedError(503, f"the server is busy with {inside} images; try again in {wait} s", {"Retry-After": wait})

    def _check_classes(self, classes: list[str] | None) -> None:
        known = self.predictor.categories.names
        unknown = [name for name in classes or [] if name not in known]
        if unknown:
            raise RefusedError(422, f"unknown class {unknown[0][:100]!r}; this detector knows {', '.join(known)}")

    async def _detect(self, uploads: list[Upload], settings: Settings) -> list[Served]:
        """All images are decoded before the first is submitted: one that is bad costs no work of the model."""
        names = [upload.name for upload in uploads]
        decoded = await asyncio.gather(
            *(self.in_thread(_decode, upload, self.limits, self.predictor.metadata.bit_depth) for upload in uploads)
        )
        uploads.clear()  # the encoded form is not needed any more
        batcher = self._batcher
        if batcher is None:
            raise RefusedError(503, "the server is shutting down", {"Retry-After": "5"})
        others = self.places.num_images > len(decoded) + batcher.num_waiting
        futures = batcher.submit(
            [pixels for pixels, _ in decoded],
            threshold=settings.threshold, top_k=settings.top_k or self.top_k, classes=settings.classes, wait=others,
        )  # fmt: skip
        try:
            outcomes = await asyncio.gather(*map(asyncio.wrap_future, futures))
        except ValueError as error:  # such as a size that an exported file does not take
            raise RefusedError(422, str(error)) from None
        return [
            Served(name, pixels, outcome, seconds)
            for name, (pixels, seconds), outcome in zip(names, decoded, outcomes, strict=True)
        ]


def _decode(upload: Upload, limits: Limits, bit_depth: int) -> tuple[Tensor, float]:
    """The pixels, and the seconds that it took."""
    began = time.perf_counter()
    try:
        pixels = read_image(
            upload.content, name=upload.name, formats=UPLOAD_FORMATS, max_pixels=limits.max_pixels, bit_depth=bit_depth
        )
    except ImageTooLargeError as error:
        raise RefusedError(413, str(error)) from None
    except ValueError as error:
        raise RefusedError(422, str(error)) from None
    return pixels, time.perf_counter() - began


def drawing(served: Served, kind: DrawingFormat) -> bytes:
    """The content of a JPEG or PNG file: an image with what was found in it.

    Raises:
        RefusedError: an image too large for a JPEG.
    """
    drawn = Image.fromarray(draw_detections(served.pixels, served.outcome.detections))
    if kind == "jpeg" and max(drawn.size) > JPEG_SIDE:
        raise RefusedError(422, f"a JPEG has at most {JPEG_SIDE} pixels a side, not {max(drawn.size)}: ask with Accept: image/png")
    buffer = io.BytesIO()
    if kind == "jpeg":
        drawn.save(buffer, format="JPEG", quality=92, subsampling=0)
    else:
        drawn.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


async def _until(deadline: float, work: Awaitable[T], refusal: RefusedError) -> T:
    try:
        async with asyncio.timeout_at(deadline):
            return await work
    except TimeoutError:
        raise refusal from None


async def _unless_gone(request: Request, work: "asyncio.Future[T]") -> T:
    """Wait for `work`; cancel it when the client closes the connection first."""
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise RefusedError(499, "the client has gone")
        return work.result()
    finally:
        gone.cancel()
        work.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
