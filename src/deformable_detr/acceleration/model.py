"""The optimised form of a detector: called like the plain module, with the same predictions, and never with outdated weights."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from deformable_detr.acceleration.cuda_graphs import CudaGraphs
from deformable_detr.acceleration.low_precision import WithoutAutocast, packed_weights_work
from deformable_detr.acceleration.network import fast_network
from deformable_detr.acceleration.options import PLAIN, InferenceOptions
from deformable_detr.acceleration.tracing import untouched
from deformable_detr.config import Metadata
from deformable_detr.model.deformable_detr import DeformableDETR
from deformable_detr.precision import Precision, autocast, autocast_dtype
from deformable_detr.structures import ImageBatch, Predictions

logger = logging.getLogger(__name__)


class InferenceModel(nn.Module):
    """A detector made fast for inference.

    It runs in inference mode and evaluation mode whatever the mode of `model`, so its outputs take no part in a gradient.
    Weights are those of `model`: before each call it is checked whether one has changed since (training, `load_state_dict`,
    `.to`, `weight.data.copy_`), or a module or hook has come or gone (adapters, pruning, `model.neck = …`); what was derived from
    them is then derived anew. Several threads may call it at the same time.

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
        self._optimized: tuple[tuple, Callable[[ImageBatch], Predictions], _Contents, list] | None = None
        super().train(model.training)

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
        """
        batch = images if isinstance(images, ImageBatch) else ImageBatch.from_images(images)
        was_training = [module for module in self.model.modules() if module.training] if self.model.training else []
        self.model.eval()
        try:
            with torch.inference_mode(), autocast(self.precision, batch.images.device):
                return self._current()(batch)
        finally:
            for module in was_training:
                module.training = True

    def _current(self) -> Callable[[ImageBatch], Predictions]:
        """The optimised model for the weights as they are now."""
        state = tuple(_fingerprint(self.model))
        optimized = self._optimized
        if optimized is None or state != optimized[0] or not optimized[2].unchanged():
            named = [*self.model.modules(), *self.model.parameters(), *self.model.buffers()]  # kept, so that no id is used anew
            contents = _Contents(self.model)  # before what is derived: a change in between is noticed the next time
            optimized = self._optimized = state, self._build(), contents, named
        return optimized[1]

    def _optimizable(self) -> bool:
        return type(self.model) is DeformableDETR and untouched(self.model) and self.options != PLAIN and not _has_any_global_hook()

    def _build(self) -> Callable[[ImageBatch], Predictions]:
        if not self._optimizable():
            return self.model
        options, model = self.options, cast(DeformableDETR, self.model)
        if self._packs_weights():
            return WithoutAutocast(lambda: fast_network(model, options, low_precision=True))
        network = fast_network(model, options, inductor() if options.compile else None)
        device = next(model.parameters()).device
        return CudaGraphs(network) if options.cuda_graphs and device.type == "cuda" else network

    def _packs_weights(self) -> bool:
        weight = next(self.model.parameters())
        wanted = self.precision == "bf16" and self.options.packed_weights and not self.options.compile
        return wanted and weight.dtype == torch.float32 and weight.device.type == "cpu" and packed_weights_work()


class _Contents:
    """What is in the weights, by some of their numbers: a change through `weight.data`, through NumPy, or of tensors that were made
    in inference mode leaves no other trace.

    Args:
        model: whose parameters and buffers are looked at.
    """

    def __init__(self, model: nn.Module) -> None:
        everything = (*model.parameters(), *model.buffers())
        plain = [tensor.detach() for tensor in everything if type(tensor) in (Tensor, nn.Parameter)]
        weights = [tensor for tensor in plain if tensor.is_floating_point() and tensor.itemsize > 1]  # 8-bit floats join no others
        self.weights = [tensor for tensor in weights if tensor.device == weights[0].device]
        self.on_cpu = bool(weights) and weights[0].device.type == "cpu"
        if self.on_cpu:
            self.weights = [_thinned(tensor) for tensor in self.weights]
        self.then = self._read()

    def unchanged(self) -> bool:
        """Whether they are what they were when this object was made."""
        now = self._read()
        return torch.equal(now, self.then) or bool(((now == self.then) | (now.isnan() & self.then.isnan())).all())

    def _read(self) -> Tensor:
        if not self.weights:
            return torch.zeros(0, dtype=torch.float32, device="cpu")
        # a GPU reads all of them faster than it collects some
        return torch.cat(self.weights) if self.on_cpu else torch.stack(torch._foreach_norm(self.weights))


def _thinned(tensor: Tensor) -> Tensor:
    """A view of all numbers of a small tensor, of about 256 that are spread over the rows and columns of a large one."""
    dense = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    run = 1
    for stride, size in dense:
        if size > 1 and stride != run:
            return tensor.reshape(-1)[:0]  # with gaps: no parameter of ours
        run *= size
    step = tensor.numel() // 256 | 1 if tensor.numel() > 1024 else 1  # odd, so that it does not stay in some columns
    return tensor.as_strided([-(-tensor.numel() // step)], [step])


def _fingerprint(model: nn.Module) -> Iterator[tuple]:
    """Changes with every in-place write to a weight, with every weight or module that is put in the place of another, and with
    every hook and every other change by which a call of a module becomes more than its class's forward pass."""
    yield (bool(_has_any_global_hook()),)
    for module in model.modules():
        yield id(module), type(module), untouched(module)
        for store in (module._parameters, module._buffers):
            for tensor in store.values():
                if tensor is not None:
                    yield id(tensor), tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


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
