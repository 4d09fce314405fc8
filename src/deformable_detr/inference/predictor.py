"""Prediction on images: files, folders or arrays in, `supervision.Detections` in the images' own pixels out.

The model itself takes prepared tensors; the steps around it — reading, resizing, batching, scores, class names — are here.
"""

import logging
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, Unpack, overload

import numpy as np
import supervision as sv
import torch
from PIL import Image
from torch import Tensor, nn

from deformable_detr.acceleration.model import InferenceModel
from deformable_detr.acceleration.options import PLAIN, InferenceOptions, fastest_precision
from deformable_detr.categories import Categories
from deformable_detr.config import DEFAULT_THRESHOLD, Metadata
from deformable_detr.data.transforms import eval_transform
from deformable_detr.inference.sources import ImageLike, InputImage, Source, is_single, open_source
from deformable_detr.inference.tiles import Tiling, iterate_tiled
from deformable_detr.keywords import PredictionOptions
from deformable_detr.ops.cpu import use_one_core_here
from deformable_detr.pipeline import ordered_map
from deformable_detr.postprocessing import postprocess
from deformable_detr.precision import Precision
from deformable_detr.schema import check_number, plain_numbers
from deformable_detr.structures import ImageBatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Result:
    """What :meth:`Predictor.iterate` yields for each image."""

    name: str
    """The path, or `image 3` for the fourth image of a list."""

    pixels: Tensor
    """`[3, H, W]` uint8 RGB, upright: the pixels that the boxes refer to; a copy of an array that was given."""

    detections: sv.Detections
    """Highest score first; see :meth:`Predictor.predict`."""

    path: Path | None = None
    """The file, where there is one."""

    full_size: tuple[int, int] | None = None
    """(height, width) of the image where `pixels` are a reduced form of it: of one that is too large to be decoded."""

    @property
    def image(self) -> np.ndarray:
        """The pixels as `[H, W, 3]` uint8 RGB."""
        return np.ascontiguousarray(self.pixels.permute(1, 2, 0).numpy())

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the image, to which the boxes refer."""
        return self.full_size or (self.pixels.shape[1], self.pixels.shape[2])

    @property
    def shown(self) -> sv.Detections:
        """The detections in pixels of :attr:`image`, for drawing: others than :attr:`detections` only where it is reduced."""
        height, width = self.image_size
        scale = np.tile((self.pixels.shape[2] / width, self.pixels.shape[1] / height), 2).astype(np.float32)
        return replace(self.detections, xyxy=self.detections.xyxy * scale)


class Predictor:
    """Runs a detector on images.

    ```python
    predictor.predict("street.jpg")                          # one image → supervision.Detections
    predictor.predict("photos/", threshold=0.3, batch_size=8)  # many → a list
    for result in predictor.iterate("photos/**/*.jpg"):      # very many → one after the other
        print(result.name, result.detections.data["class_name"])
    for frame in iterate_video(predictor, "street.mp4"): ...  # of inference.video: a video, a camera
    predictor.predict("aerial.tif", tiles=640)               # small objects in a large image: tile by tile
    ```

    Args:
        model: a detector with `.metadata` (class names, image sizes); it is moved to `device` and set to evaluation mode.
        device: `auto` takes a GPU where there is one; else any torch device.
        precision: arithmetic of the model: `fp32`, or `bf16`/`fp16` autocast; `auto` measures what is fastest here.
        options: how the model is made fast; see :meth:`optimize`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: str | torch.device = "auto",
        precision: Precision | Literal["auto"] = "fp32",
        options: InferenceOptions | None = None,
    ):
        self.device = choose_device(device)
        if not isinstance(getattr(model, "metadata", None), Metadata):
            inside = "; take the one inside it (`.module`)" if hasattr(model, "module") else ""
            raise TypeError(f"a {type(model).__name__} has no `metadata` (classes, image sizes), as a detector has{inside}")
        self.model = model.to(self.device).eval()
        self.nms_iou = self.metadata.nms_iou  # may be changed; see `postprocess`
        self.optimize(options, precision=precision)

    def to(self, device: str | torch.device) -> Self:
        """Move the detector to another device.

        Args:
            device: as for the class.

        Returns:
            This detector.

        Raises:
            ValueError: there is no such device.
        """
        self.device = choose_device(device)
        self.model.to(self.device)
        return self.optimize(self._inference_model.options)

    def optimize(
        self,
        options: InferenceOptions | bool | None = None,
        *,
        precision: Precision | Literal["auto"] | None = None,
        **changes: Any,
    ) -> Self:
        """Choose how the model is made fast; without a call it is, with the defaults of `InferenceOptions`.

        :attr:`model` stays the plain module. :attr:`inference_model` is the fast one, called in the same way, which `predict` and
        `evaluate` use; it follows every change of the weights.

        Args:
            options: all switches; None takes the defaults, False none of them.
            precision: see the class; None leaves it.
            changes: single switches, such as `compile=True`.

        Returns:
            This detector.

        Raises:
            ValueError: an unknown precision.
            TypeError: an unknown switch.
        """
        if options is None or isinstance(options, bool):
            options = PLAIN if options is False else InferenceOptions()
        if precision is not None:
            as_it_is = getattr(self.model, "fixed_precision", False)  # an exported file
            if as_it_is and precision not in ("fp32", "auto"):
                logger.warning("precision=%r has no effect: an exported file computes as it was written", precision)
            chosen = "fp32" if as_it_is and precision == "auto" else precision
            self.precision: Precision = fastest_precision(self.device) if chosen == "auto" else chosen
        self._inference_model = InferenceModel(self.model, replace(options, **changes), self.precision)
        return self

    @property
    def inference_model(self) -> InferenceModel:
        """The optimised model: an `ImageBatch` or a list of images in, `Predictions` of the last layer out."""
        if self._inference_model.model is not self.model:  # another model has replaced it
            self._inference_model = InferenceModel(self.model, self._inference_model.options, self.precision)
        return self._inference_model

    @property
    def metadata(self) -> Metadata:
        """Classes, image sizes and origin of the model."""
        return self.model.metadata  # pyright: ignore[reportReturnType]

    @property
    def categories(self) -> Categories:
        """The classes; named `class 0`, `class 1` … where the weights came without names."""
        return self.metadata.named_categories

    @property
    def example_size(self) -> tuple[int, int]:
        """(height, width) of an image that the model takes as it is: of a file for one size, that size."""
        short_side = self.metadata.eval_short_side
        return getattr(self.model, "image_size", None) or (short_side, short_side * 4 // 3)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; the label of a detection is an index into them."""
        return self.categories.names

    @overload
    def predict(
        self, source: str | Path, threshold: float | None = None, **options: Unpack[PredictionOptions]
    ) -> Any: ...  # whether a path is one image or a folder is known when it is read
    @overload
    def predict(  # pyright: ignore[reportOverlappingOverload]  (an open file gives bytes one after the other, too)
        self,
        source: bytes | BinaryIO | Image.Image | np.ndarray | Tensor,
        threshold: float | None = None,
        **options: Unpack[PredictionOptions],
    ) -> sv.Detections: ...
    @overload
    def predict(
        self, source: Iterable[ImageLike], threshold: float | None = None, **options: Unpack[PredictionOptions]
    ) -> list[sv.Detections]: ...
    def predict(self, source: Source, threshold: float | None = None, **options: Unpack[PredictionOptions]) -> Any:
        """Detect objects in one image or in many.

        Args:
            source: a file (its path, its content as bytes, or opened in binary form), a PIL image, a numpy array (uint8
                `[H, W, 3]`, **RGB**: for OpenCV's BGR pass `image[..., ::-1]`) or a torch tensor (uint8 `[3, H, W]`, RGB) for one
                image; a folder, a glob pattern or an iterable for many.
            threshold: keep detections whose score is at least this, in [0, 1]. None: the thresholds that are stored with the
                weights, one per class (`metadata.thresholds`), else 0.5.
            options: `batch_size`, `top_k`, `classes`, `nms_iou`, `on_error`, `num_threads`, `tiles`, `tile_overlap`, `bit_depth`;
                see
                :class:`~deformable_detr.keywords.PredictionOptions`.

        Returns:
            `supervision.Detections` for one image, a list of them (in the order of the images) for many. `xyxy` are pixels of
            the upright image, clipped to it; `confidence` the scores, highest first; `class_id` the model's **label** 0 … K−1;
            `data["class_name"]` the name; `data["category_id"]` the id in the dataset that the detector was trained on. For files
            `metadata` holds `path` and `image_size` (height, width).

        Raises:
            FileNotFoundError: a path, folder or pattern leads to no image.
            ValueError: an unreadable image, an unknown class, a setting out of range.
            TypeError: an unknown setting, or one of the wrong type.
            FloatingPointError: the model gave non-finite scores or boxes.
        """
        single = is_single(source)
        if single and options.get("on_error") == "skip":
            options["on_error"] = "raise"
        found = [result.detections for result in self.iterate(source, threshold, **options)]
        return found[0] if single else found

    def iterate(
        self,
        source: Source,
        threshold: float | None = None,
        *,
        batch_size: int = 1,
        top_k: int | None = None,
        classes: str | Sequence[str] | None = None,
        nms_iou: float | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        num_threads: int = 2,
        tiles: int | None = None,
        tile_overlap: float | None = None,
        bit_depth: int | None = None,
    ) -> Generator[Result, None, None]:
        """Like :meth:`predict`, one :class:`Result` after the other: for very many images, or an endless stream.

        The next images are read and resized by threads while the model works; only a few are in memory at a time. What an iterator
        gives may be used again once the next item is asked for (one array for all frames of a camera): arrays and tensors are
        copied, PIL images and open files read at once. Files that are given by their path are read later.
        """
        limits = self.score_limits(threshold)
        top_k = self.metadata.model.max_detections if top_k is None else top_k
        bit_depth = self.metadata.bit_depth if bit_depth is None else bit_depth
        whole = {"batch_size": batch_size, "top_k": top_k, "num_threads": num_threads, "bit_depth": bit_depth, "tiles": tiles}
        batch_size, most, num_threads, depth, tiles = plain_numbers("a whole number", Integral, int, **whole)
        nms_iou, tile_overlap = plain_numbers("a number", Real, float, nms_iou=nms_iou, tile_overlap=tile_overlap)
        for name, number in (("batch_size", batch_size), ("top_k", most), ("num_threads", num_threads)):
            check_number(name, number, 1)
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
        if nms_iou is not None and not 0 < nms_iou <= 1:
            raise ValueError(f"nms_iou must lie in (0, 1], not {nms_iou}")
        if not 8 <= depth <= 16:
            raise ValueError(f"bit_depth must lie in [8, 16], not {depth}")
        if tiles is None and tile_overlap is not None:
            raise ValueError(
                f"tile_overlap={tile_overlap} is for tiles, which were not asked for: give their size, such as tiles=640"
            )
        labels = self._labels_of(classes)
        images = open_source(source, bit_depth=depth)

        def whole_images(images: Iterable[InputImage], on_error: str) -> Generator[Result, None, None]:
            with closing(self._prepare(images, on_error, 2 * batch_size + num_threads, num_threads)) as prepared:
                while batch := list(islice(prepared, batch_size)):
                    for item, found in zip(batch, self._detect(batch, most, labels, nms_iou), strict=True):
                        yield self._result(item, found, limits)

        if tiles is None:
            return whole_images(images, on_error)
        tiling = Tiling(tiles) if tile_overlap is None else Tiling(tiles, tile_overlap)
        return iterate_tiled(partial(whole_images, on_error="raise"), images, tiling, on_error=on_error, top_k=most)

    def score_limits(self, threshold: float | None = None) -> Tensor:
        """`[K]` the score from which on a detection of each label is kept.

        Args:
            threshold: the same for all; None as for :meth:`predict`.

        Raises:
            ValueError: it is not in [0, 1].
            TypeError: it is not a number.
        """
        (threshold,) = plain_numbers("a number in [0, 1]", Real, float, threshold=threshold)
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], not {threshold}")
        if threshold is None and self.metadata.thresholds is not None:
            return torch.tensor(self.metadata.thresholds, dtype=torch.float32, device="cpu")
        lowest = DEFAULT_THRESHOLD if threshold is None else threshold
        return torch.full((len(self.categories),), lowest, dtype=torch.float32, device="cpu")

    def _prepare(
        self, sources: Iterable[InputImage], on_error: str, window: int, num_threads: int
    ) -> Generator["_Prepared", None, None]:
        """Read and resize in threads, `window` sources ahead, in order."""
        metadata = self.metadata
        transform = eval_transform(metadata.eval_short_side, metadata.max_long_side, metadata.mean, metadata.std)

        def prepare(source: InputImage) -> _Prepared:
            pixels = source.read()
            return _Prepared(source, pixels, transform(pixels, None)[0])

        pairs = ordered_map(prepare, sources, num_threads=num_threads, limit=window, name="read", initializer=use_one_core_here)
        with closing(pairs):
            for source, future in pairs:
                try:
                    item = future.result()
                except (OSError, ValueError) as error:
                    if on_error == "raise":
                        raise
                    logger.warning("skipped %s: %s", source.name, error)
                else:
                    yield item

    @torch.inference_mode()
    def _detect(
        self, batch: Sequence["_Prepared"], top_k: int, labels: list[int] | None, nms_iou: float | None
    ) -> list[dict[str, Tensor]]:
        """Scores, labels and boxes (xyxy, pixels of the original image) of one batch, on the CPU."""
        if self.model.training:
            self.model.eval()  # and not at every call, which takes a millisecond: the inference model sees to the submodules
        names = [item.source.name for item in batch]
        images = ImageBatch.from_images([item.image for item in batch], names).to(self.device)
        predictions = self.inference_model(images)
        if labels is not None:
            predictions = replace(predictions, logits=predictions.logits[..., labels])
        sizes = [(item.pixels.shape[1], item.pixels.shape[2]) for item in batch]
        found = postprocess(predictions, sizes, top_k, clip=True, nms_iou=self.nms_iou if nms_iou is None else nms_iou)
        for name, one in zip(names, found, strict=True):
            if not (one["scores"].isfinite().all() and one["boxes"].isfinite().all()):
                hint = "" if self.precision == "fp32" else f"; try precision='fp32' instead of {self.precision!r}"
                raise FloatingPointError(f"the model gave non-finite scores or boxes for {name}{hint}")
            if labels is not None:
                one["labels"] = torch.tensor(labels, dtype=torch.int64, device=one["labels"].device)[one["labels"]]
        return [{key: value.cpu() for key, value in one.items()} for one in found]

    def _result(self, item: "_Prepared", found: dict[str, Tensor], limits: Tensor) -> Result:
        height, width = item.pixels.shape[1:]
        keep = found["scores"] >= limits[found["labels"]]
        labels = found["labels"][keep].numpy()
        path = item.source.path
        detections = sv.Detections(
            xyxy=found["boxes"][keep].numpy(),
            confidence=found["scores"][keep].numpy(),
            class_id=labels,
            data={
                "class_name": np.asarray(self.categories.names, dtype=str)[labels],
                "category_id": np.asarray(self.categories.ids, dtype=np.int64)[labels],
            },
            metadata={"path": str(path), "image_size": (height, width)} if path else {},
        )
        return Result(item.source.name, item.pixels, detections, path)

    def _labels_of(self, classes: str | Sequence[str] | None) -> list[int] | None:
        if classes is None:
            return None
        wanted = [classes] if isinstance(classes, str) else list(classes)
        names = self.categories.names
        unknown = [name for name in wanted if name not in names]
        if unknown or not wanted:
            raise ValueError(f"unknown class {unknown}; this detector knows {', '.join(names)}")
        return [label for label, name in enumerate(names) if name in wanted]


@dataclass(frozen=True, eq=False)
class _Prepared:
    source: InputImage
    pixels: Tensor  # [3, H, W] uint8, as read
    image: Tensor  # [3, h, w] float, resized and normalised


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """`auto` → CUDA (each process that torchrun starts its own GPU), else MPS, else the CPU; or any torch device.

    Raises:
        ValueError: no such device, or a GPU is asked for where there is none.
    """
    if str(device) != "auto":
        try:
            chosen = torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"unknown device {device!r}: use auto, cpu, cuda, cuda:1 or mps") from error
        if chosen.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {str(device)!r} was asked for, but PyTorch sees no CUDA GPU; use 'auto' or 'cpu'")
        try:
            torch.zeros(1, dtype=torch.float32, device=chosen).item()
        except Exception as error:  # each kind of device raises its own: no such number, not built in, no memory to read
            reason = str(error).partition("\n")[0]
            raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); use 'auto' or 'cpu'") from error
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
