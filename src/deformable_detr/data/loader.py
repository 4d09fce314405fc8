"""Dataset → batches: which images, in which order, on which process; the only file of `data` that sees a config.

The order depends on (seed, epoch) alone, what is done to an image (also which others are mixed into it) on (seed, epoch, image)
alone, and what is done to the images of a step together on (seed, epoch, step) alone: not on the number of workers, nor on where
in the epoch one starts. Step s of W processes with B images each takes the images [s·W·B, (s+1)·W·B) of the epoch's order, B to
each process: the same images as one process with W·B. The samplers do this themselves, so the loader must not be passed through
`accelerator.prepare`, which would divide the images again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import compress
from numbers import Integral
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from deformable_detr.categories import Categories
from deformable_detr.config import DataConfig
from deformable_detr.data.coco import CocoDataset, SampleKey
from deformable_detr.data.dataset import DetectionDataset, Split, open_dataset
from deformable_detr.data.mixing import Mixing
from deformable_detr.data.transforms import eval_transform, train_transform
from deformable_detr.schema import check_number, plain_numbers
from deformable_detr.structures import ImageBatch, Target


def build_dataset(
    dataset: str | Path | DetectionDataset, split: str, config: DataConfig, training: bool, categories: Categories | None = None
) -> CocoDataset:
    """The images of one split of a dataset, with augmentation for training and plain resizing else.

    Args:
        dataset: the folder, or the opened dataset; see :func:`~deformable_detr.data.dataset.open_dataset`.
        split: such as `train`, `val`, `val2017`.
        config: sizes, augmentation, normalisation.
        training: whether the images are augmented.
        categories: the classes to map to: those of the training set or the model. None takes the file's own.

    Raises:
        FileNotFoundError: folder, split, annotation file or images are missing.
        ValueError: the annotation file is damaged, or has categories that `categories` lacks.
    """
    transform = (
        train_transform(
            train_short_sides=config.train_short_sides,
            crop_short_sides=config.crop_short_sides,
            crop_range=config.crop_range,
            max_long_side=config.max_long_side,
            mean=config.mean,
            std=config.std,
            horizontal_flip=config.horizontal_flip,
            vertical_flip=0.0 if config.vertical_flip == "auto" else config.vertical_flip,
            color_jitter=config.color_jitter,
            scale_jitter=config.scale_jitter,
        )
        if training
        else eval_transform(config.eval_short_side, config.max_long_side, config.mean, config.std)
    )
    return CocoDataset(
        read_split(dataset, split, config),
        transform,
        mixing=Mixing(config.mosaic, config.copy_paste, config.mixup) if training else None,
        turns={"transpose": config.transpose} if training and config.transpose != "auto" else {},
        categories=categories,
        training=training,
        on_bad_image=config.on_bad_image if training else "stop",
        bit_depth=config.bit_depth,
    )


def read_split(dataset: str | Path | DetectionDataset, split: str, config: DataConfig) -> Split:
    """One part of a dataset with the classes that a run is to learn; arguments and errors as of :func:`build_dataset`."""
    found = open_dataset(dataset).split(split)
    return replace(found, annotations=found.annotations.single_class()) if config.single_class else found


def build_loader(
    dataset: CocoDataset,
    *,
    batch_size: int,
    training: bool,
    num_workers: int = 0,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    pad_size_divisor: int = 1,
) -> DataLoader:
    """Batches of a dataset for this process: `(ImageBatch, list[Target])`.

    For training, call `loader.sampler.set_epoch(epoch)` before each epoch, see :class:`TrainingSampler`; `len(loader)` is the
    number of batches of a whole epoch. For evaluation every image comes exactly once, so processes may differ by an
    image or a batch.

    Args:
        dataset: what to read.
        batch_size: images per batch of this process.
        training: shuffled whole batches; else the dataset's order, to the last image.
        num_workers: processes that read images; 0 reads in this process.
        seed: of the order and the augmentation.
        rank: this process, from torch.distributed when None.
        world_size: number of processes, from torch.distributed when None.
        pad_size_divisor: height and width of each batch's canvas become multiples of this.

    Raises:
        ValueError: a batch size below 1, or a rank that is not in [0, world_size).
        TypeError: `batch_size` or `num_workers` is no whole number.
    """
    batch_size, num_workers = plain_numbers("a whole number", Integral, int, batch_size=batch_size, num_workers=num_workers)
    check_number("batch_size", batch_size, 1)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = (torch.distributed.get_rank() if distributed else 0) if rank is None else rank
    world_size = (torch.distributed.get_world_size() if distributed else 1) if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, {world_size}), not {rank}")
    sampler = (
        TrainingSampler(len(dataset), batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, turns=dataset.turns)
        if training
        else range(rank, len(dataset), world_size)  # together each image exactly once
    )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=partial(collate, pad_size_divisor=pad_size_divisor),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=training and num_workers > 0,
        generator=torch.Generator().manual_seed(seed),  # else an iteration would draw from the global one
    )


def collate(samples: Sequence[tuple[Tensor, Target]], pad_size_divisor: int = 1) -> tuple[ImageBatch, list[Target]]:
    """Pad the images of several samples to one canvas; the data loader's `collate_fn`.

    Args:
        samples: pairs of a normalised image `[3, h, w]` and its target.
        pad_size_divisor: height and width of the canvas become multiples of this.

    Returns:
        The batch, with the targets' image ids, and the targets in the same order. Their boxes stay relative to each image's
        own size, not to the padded canvas.
    """
    images, targets = [image for image, _ in samples], [target for _, target in samples]
    return ImageBatch.from_images(images, [target.image_id for target in targets], pad_size_divisor), targets


class Allowed(NamedTuple):
    """What may be done to the images of an epoch beside the dataset's transform."""

    mixing: bool = True
    """Whether other images may be mixed into them, where the dataset is set to."""

    turns: tuple[str, ...] = ()
    """Those of :data:`~deformable_detr.data.transforms.TURNS` that every second step goes through, too, each by its own chance."""


AS_SET = Allowed()
"""What the settings say and nothing that is found out."""


class TrainingSampler(Sampler[SampleKey]):
    """This process's share of a shuffled epoch, with a seed for each image.

    The images that do not fill the last batch of all processes are left out: other ones in every epoch. A dataset smaller
    than one such batch is repeated until it fills it.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        turns: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.length, self.batch_size, self.seed, self.turns = length, batch_size, seed, turns
        self.rank, self.world_size = rank, world_size
        self.batches = max(1, length // (batch_size * world_size))
        self.epoch, self.skip_batches, self.allowed = 0, 0, AS_SET

    def set_epoch(self, epoch: int, skip_batches: int = 0, allowed: Allowed = AS_SET) -> None:
        """Choose the epoch that the next iteration goes through.

        Args:
            epoch: from 0.
            skip_batches: number of its first batches that are left out without reading them.
            allowed: what may be done to its images beside the dataset's transform.

        Raises:
            ValueError: the epoch has fewer batches than are to be left out.
        """
        if not 0 <= skip_batches <= self.batches:
            raise ValueError(f"skip_batches must be in [0, {self.batches}], the batches of an epoch, not {skip_batches}")
        self.epoch, self.skip_batches, self.allowed = epoch, skip_batches, allowed

    def __iter__(self) -> Iterator[SampleKey]:
        generator = torch.Generator().manual_seed(_mixed_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator, dtype=torch.int64, device="cpu")
        step = self.batch_size * self.world_size
        order = order.repeat(-(-step // self.length))[: self.batches * step] if self.length < step else order[: self.batches * step]
        mine = order.view(self.batches, self.world_size, self.batch_size)[self.skip_batches :, self.rank]  # [batches, B]
        chances = {**self.turns, **dict.fromkeys(self.allowed.turns, 0.5)}
        drawn = torch.rand(self.batches, len(chances), generator=generator, dtype=torch.float32, device="cpu").numpy()
        chosen = drawn[self.skip_batches :] < np.array(list(chances.values()))
        for indices, choice in zip(mine.tolist(), chosen.tolist(), strict=True):
            for index in indices:
                seed, turns = _mixed_seed(self.seed, self.epoch, index), tuple(compress(chances, choice))
                yield SampleKey(index, seed, self.allowed.mixing, turns)

    def __len__(self) -> int:
        return self.batches * self.batch_size


def _mixed_seed(*numbers: int) -> int:
    """One 64-bit seed of several numbers, without visible relation between neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
