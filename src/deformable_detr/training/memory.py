"""How many images fit: the search behind `batch_size: auto`, and advice where memory runs out.

A GPU raises an error when memory runs out, so there real steps of growing size are tried. Without a GPU the system would end the
process (or swap) before anything is raised, so the need is estimated: one real step with one image shows how many bytes autograd
keeps for the backward pass, and these grow in proportion to the batch. Gradients and optimiser state do not, and are counted once.
"""

import gc
import logging
from bisect import bisect_left
from dataclasses import replace
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from deformable_detr.config import RunConfig
from deformable_detr.criterion import SetCriterion
from deformable_detr.criterion.criterion import number_of_boxes
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.transforms import resized_size
from deformable_detr.model import DeformableDETR
from deformable_detr.structures import ImageBatch, Target
from deformable_detr.training.train_step import statistics_kept

logger = logging.getLogger(__name__)

SHARE_OF_MEMORY = 0.8
"""Usable share of the free memory: the rest is for the data loader, fragmentation, and other programs."""

WORKING_SHARE = 1.5
"""Peak memory of a step over what is kept for its backward pass; measured 1.2 to 1.4 on the CPU."""


class OutOfMemoryError(RuntimeError):
    """A training step does not fit into memory; the message says what helps."""


def out_of_memory(config: RunConfig, images: ImageBatch | None, error: BaseException) -> OutOfMemoryError:
    """The error to show instead of an allocator's: what was tried, and what makes it smaller, best first."""
    train, data = config.train, config.data
    ways = []
    if train.batch_size != 1:
        ways.append("--batch-size auto (finds what fits and keeps the images per step by accumulation)")
    if not train.gradient_checkpointing:
        ways.append("--gradient-checkpointing (less is kept, a slower step)")
    if train.precision == "fp32":
        ways.append("--precision bf16 (on a GPU)")
    ways.append(f"smaller images (--max-long-side below {data.max_long_side}, --train-short-sides), or a smaller --preset")
    size = f" of {len(images)} x {images.images.shape[-2]} x {images.images.shape[-1]} pixels" if images is not None else ""
    return OutOfMemoryError(
        f"a training step with a batch{size} does not fit into memory ({str(error).splitlines()[0]}). What helps, best first: "
        + "; ".join(ways)
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory, on whatever device."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's own allocator on the CPU
    )


def choose_batch_size(network: DeformableDETR, config: RunConfig, dataset: CocoDataset, accelerator: Accelerator) -> RunConfig:
    """Settle `batch_size: auto`: as many images of the largest training size as fit, and `accumulate` to go with it.

    Args:
        network: on its device.
        config: the run; returned as it is when its batch size is a number.
        dataset: of the training split; its sizes and object counts make the trial batch.
        accelerator: the smallest result of all processes counts.

    Raises:
        OutOfMemoryError: not even one image fits.
    """
    if config.train.batch_size != "auto":
        return config
    processes = accelerator.num_processes
    most = max(1, config.train.target_batch_size // processes)
    height, width = largest_canvas(config, dataset)
    trial = Trial(network, config, (height, width), int(dataset.objects_per_image().max()), accelerator)
    fitting = min(gather_object([trial.largest(most)]))
    if fitting == 0:
        raise out_of_memory(config, trial.batch(1)[0], MemoryError("tried with one image"))
    accumulate = max(1, round(config.train.target_batch_size / (fitting * processes)))
    logger.info(
        "batch_size auto: %d images of up to %d x %d pixels per pass, %d passes per step: %d images per step",
        *(fitting, height, width, accumulate, fitting * accumulate * processes),
    )
    return replace(config, train=replace(config.train, batch_size=fitting, accumulate=accumulate))


def largest_canvas(config: RunConfig, dataset: CocoDataset) -> tuple[int, int]:
    """(height, width) of the largest padded batch that training can meet; steps that are transposed have it the other way round."""
    short, long, divisor = max(config.data.train_short_sides), config.data.max_long_side, config.data.pad_size_divisor
    shapes = {(int(height), int(width)) for height, width in dataset.image_sizes()}
    if config.data.crop_short_sides:  # crops may be as narrow as they are allowed, in either direction
        low, high = config.data.crop_range
        before = [resized_size(height, width, max(config.data.crop_short_sides)) for height, width in shapes]
        shapes |= {(min(height, high), min(width, low)) for height, width in before}
        shapes |= {(min(height, low), min(width, high)) for height, width in before}
    resized = [resized_size(height, width, short, long) for height, width in shapes]
    height, width = (-(-max(size[axis] for size in resized) // divisor) * divisor for axis in (0, 1))
    return height, width


class Trial:
    """Forward and backward passes on made-up images, which leave the model and the random generators as they were.

    Args:
        network: on its device.
        config: the run.
        canvas: (height, width) of the images.
        num_objects: in each image.
        accelerator: gives device and precision.
    """

    def __init__(
        self, network: DeformableDETR, config: RunConfig, canvas: tuple[int, int], num_objects: int, accelerator: Accelerator
    ) -> None:
        self.network, self.canvas, self.num_objects, self.accelerator = network, canvas, num_objects, accelerator
        self.criterion = SetCriterion.from_config(network.metadata.model, config.loss, network.metadata.categories)
        self.ema = config.train.ema_decay > 0

    def batch(self, size: int) -> tuple[ImageBatch, list[Target]]:
        """`size` grey images, each with as many objects as the fullest image of the dataset."""
        device = self.accelerator.device
        boxes = torch.full((self.num_objects, 4), 0.5, dtype=torch.float32, device=device)
        labels = torch.zeros(self.num_objects, dtype=torch.int64, device=device)
        images = [torch.zeros(3, *self.canvas, dtype=torch.float32, device=device) for _ in range(size)]
        return ImageBatch.from_images(images), [Target(boxes, labels) for _ in range(size)]

    def _beside_weights(self) -> list[Tensor]:
        """As large as what a run keeps beside the weights and their gradients: two numbers per weight in the optimiser, the EMA."""
        trained = [value for value in self.network.parameters() if value.requires_grad]
        averaged = [*self.network.parameters(), *self.network.buffers()] if self.ema else []
        return [*trained, *trained, *averaged]

    def largest(self, most: int) -> int:
        """The largest batch size in [0, most] that fits, tried on a GPU; elsewhere only one image is, and what it keeps counted."""
        if self.accelerator.device.type == "cuda":
            return bisect_left(range(1, most + 1), True, key=self.too_large)
        gradients = [value for value in self.network.parameters() if value.requires_grad]
        weights = sum(value.nbytes for value in (*gradients, *self._beside_weights()))
        kept = self._kept_by(1)
        free = SHARE_OF_MEMORY * psutil.virtual_memory().available - weights
        return max(0, min(most, int(free / (WORKING_SHARE * kept))))

    def too_large(self, size: int) -> bool:
        """Whether a step with this batch size does not fit beside what else a run keeps."""
        reserved: list[Tensor] = []
        try:
            reserved += map(torch.empty_like, self._beside_weights())
            self._run(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return True
        finally:
            reserved.clear()
            self._clean()
        return False

    def _kept_by(self, size: int) -> float:
        """Bytes that are kept for the backward pass of a batch, weights not counted.

        Several saved tensors can be views of one storage, which occupies memory once: so storages are counted, by their address.
        """
        own = {value.untyped_storage().data_ptr() for value in self.network.state_dict().values()}
        kept: dict[int, int] = {}

        def pack(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return value

        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
                self._run(size)
        finally:
            self._clean()
        return float(sum(kept.values()))

    def _run(self, size: int) -> None:
        mode = self.network.training
        images, targets = self.batch(size)
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices), statistics_kept(self.network):
                with self.accelerator.autocast():
                    predictions = self.network.train()(images, targets)
                    losses = self.criterion(predictions, targets, number_of_boxes(targets, self.accelerator.device))
                self.criterion.weighted_sum(losses).backward()
        finally:
            self.network.train(mode)

    def _clean(self) -> None:
        self.network.zero_grad()
        gc.collect()
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()


def set_gradient_checkpointing(network: DeformableDETR, enabled: bool) -> None:
    """Make backbone, encoder and decoder recompute their activations in the backward pass instead of keeping them.

    Args:
        network: its attribute is changed in place.
        enabled: on or off.

    Raises:
        ValueError: timm has none for this backbone.
    """
    parts: list[nn.Module] = [network.encoder, network.decoder]
    for part in parts:
        part.gradient_checkpointing = enabled  # type: ignore[assignment]
    body: Any = network.backbone.body
    try:
        getattr(body, "model", body).set_grad_checkpointing(enabled)  # plain ViTs stand in a wrapper without this method
    except (AttributeError, AssertionError) as error:
        if enabled:
            raise ValueError(
                f"the backbone {network.metadata.model.backbone!r} has no gradient checkpointing in timm: "
                "choose another, or switch train.gradient_checkpointing off"
            ) from error
