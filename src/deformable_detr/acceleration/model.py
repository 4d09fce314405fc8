"""The optimised form of a detector: called like the plain module, with the same predictions, and never with outdated weights."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from deformable_detr.acceleration.cuda_graphs import CudaGraphs
from deformable_detr.acceleration.low_precision import WithoutAutocast, low_precision_works
from deformable_detr.acceleration.network import fast_network
from deformable_detr.acceleration.options import PLAIN, InferenceOptions
from deformable_detr.acceleration.tracing import untouched
from deformable_detr.acceleration.watch import Watch
from deformable_detr.config import Metadata
from deformable_detr.model.deformable_detr import DeformableDETR
from deformable_detr.precision import Precision, autocast, autocast_dtype
from deformable_detr.structures import ImageBatch, Predictions

logger = logging.getLogger(__name__)


class InferenceModel(nn.Module):
    """A detector made fast for inference.

    It runs in inference mode and evaluation mode whatever the mode of `model`, so its outputs take no part in a gradient.
    Weights are those of `model`: before each call it is checked whether one has changed since (training, `load_state_dict`,
    `.to`, `weight.data.copy_`), a setting has (`norm.eps`), or a module or hook has come or gone (adapters, pruning,
    `model.neck = …`); what was derived from them is then derived anew. :class:`~deformable_detr.acceleration.watch.Watch` says what
    is noticed later than at the next call. Several threads may call it at the same time.

    Args:
        model: the plain module; a model of another type than `DeformableDETR` runs as it is.
        options: what is done.
        precision: arithmetic of the forward pass.
    """

    def __init__(self, model: nn.Module, options: InferenceOptions | None = None, precision: Precision = "fp32") -> None:
        super().__init__()
        autocast_dtype(precision)  # raises an error for an unknown one
        self.model = model
        self.options = InferenceOptions() if options is None else options
        self.precision: Precision = precision
        self._optimized: tuple[Watch, Callable[[ImageBatch], Predictions]] | None = None
        super().train(model.training)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is derived, for copies and files: a copy derives it from its own weights."""
        return vars(self) | {"_optimized": None}

    @property
    def metadata(self) -> Metadata:
        """Classes, image sizes and origin of the model."""
        return self.model.metadata  # pyright: ignore[reportReturnType]

    def train(self, mode: bool = True) -> Self:
        """Has no effect: the mode of the plain model stays as it is."""
        del mode
        return self

    def forward(self, images: ImageBatch | Sequence[Tensor]) -> Predictions:
        """Find the objects of a batch of images.

        Args:
            images: normalised float images `[3, h, w]` of any sizes, or an `ImageBatch`.

        Returns:
            With `options.answer_only` the last decoder layer alone, `logits` `[1, B, Q, K]` and `boxes` `[1, B, Q, 4]`; else as
            the plain model.

        Raises:
            ValueError: a pixel is NaN or infinite, on a CPU, where convolutions with a ReLU inside make zeros of NaN. On a GPU NaN
                comes out, as of the plain model.
        """
        batch = images if isinstance(images, ImageBatch) else ImageBatch.from_images(images)
        if batch.images.device.type == "cpu":
            _check_pixels(batch.images)
        was_training = [module for module in self.model.modules() if module.training] if self.model.training else []
        self.model.eval()
        try:
            with torch.inference_mode(), autocast(self.precision, batch.images.device):
                return self._run(batch)
        finally:
            for module in was_training:
                module.training = True

    def _run(self, batch: ImageBatch) -> Predictions:
        """On a GPU the check of the weights goes on while it computes with the weights as they were, and has the last word."""
        if self._optimized is None or batch.images.device.type == "cpu":
            return self._current()(batch)
        watch, network = self._optimized
        try:
            predictions = network(batch)
        except Exception:
            if watch.unchanged():
                raise
            return self._current()(batch)
        return predictions if watch.unchanged() else self._current()(batch)

    def _current(self) -> Callable[[ImageBatch], Predictions]:
        """The optimised model for the weights as they are now."""
        optimized = self._optimized
        if optimized is None or not optimized[0].unchanged():
            watch = Watch(self.model)  # before what is derived: a change in between is noticed the next time
            optimized = self._optimized = watch, self._build()
        return optimized[1]

    def _optimizable(self) -> bool:
        return type(self.model) is DeformableDETR and untouched(self.model) and self.options != PLAIN and not _has_any_global_hook()

    def _build(self) -> Callable[[ImageBatch], Predictions]:
        if not self._optimizable():
            if self.options.compile:
                logger.warning("compile=True has no effect: the %s runs as it is", type(self.model).__name__)
            return self.model
        options, model = self.options, cast(DeformableDETR, self.model)
        device = next(model.parameters()).device
        if self._lowers():
            network = WithoutAutocast(lambda: fast_network(model, options, low_precision=True), device)
        else:
            network = fast_network(model, options, inductor() if options.compile else None)
        return CudaGraphs(network) if options.cuda_graphs and device.type == "cuda" else network

    def _lowers(self) -> bool:
        weight = next(self.model.parameters())
        wanted = self.precision == "bf16" and self.options.packed_weights and not self.options.compile
        return wanted and weight.dtype == torch.float32 and low_precision_works(weight.device)


def _check_pixels(images: Tensor) -> None:
    if images.sum(dtype=torch.float32).isfinite():  # ten times as fast as asking each pixel
        return
    wrong = [place for place, image in enumerate(images) if not image.isfinite().all()]
    if wrong:
        raise ValueError(f"NaN or infinite pixels in {len(wrong)} of {len(images)} images of the batch, the first at {wrong[0]}")


def inductor() -> Callable[[Callable], Callable]:
    """`torch.compile` with the weights frozen into the program; what it cannot compile runs as it is, with a warning."""

    def compiled(function: Callable) -> Callable:
        from torch._dynamo.exc import TorchDynamoException  # a slow import

        fast = torch.compile(function, dynamic=False, options={"freezing": True})
        failed = False

        def run(*arguments: Tensor) -> object:
            nonlocal failed
            if failed:
                return function(*arguments)
            try:
                return fast(*arguments)
            except TorchDynamoException as error:
                failed = True
                reason = str(error).strip().splitlines()[0]
                logger.warning("cannot compile (%s); going on without. A C++ compiler is needed on a CPU, Triton on a GPU", reason)
                return function(*arguments)

        return run

    return compiled
