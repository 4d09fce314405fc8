"""Everything before the first step: devices, data, model, and whether a saved state belongs to the run."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast
from zlib import crc32

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch.utils.data import DataLoader

from deformable_detr.categories import Categories
from deformable_detr.checkpoints.load import load_pretrained
from deformable_detr.config import DataConfig, Metadata, RunConfig, TrainConfig
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.dataset import DetectionDataset, open_dataset
from deformable_detr.data.doctor.examine import quick_check
from deformable_detr.data.findings import REPLACED
from deformable_detr.data.loader import build_dataset, build_loader, read_split
from deformable_detr.data.unused import summarise_unused
from deformable_detr.model import DeformableDETR, build_model
from deformable_detr.model.adapters import add_adapters
from deformable_detr.schema import check_number
from deformable_detr.settings import flatten, to_record
from deformable_detr.training.interruption import end_workers_at_exit, leave_signals_to_trainer
from deformable_detr.training.memory import set_gradient_checkpointing

logger = logging.getLogger(__name__)

MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}

FREE_TO_CHANGE = {
    *("dataset", "preset", "output_dir", "weights", "resume", "model.num_classes", "model.pretrained_backbone"),
    *("data.num_workers", "train.epochs", "train.steps", "train.seconds", "train.evaluate_every", "train.log_every"),
    *("train.checkpoint_every", "train.device", "train.patience", "train.on_non_finite", "train.gradient_checkpointing"),
    *("recipe", "train.target_batch_size", "train.nms_iou", "train.logger"),
}
"""Settings that a resumed run may have otherwise than before: the steps already done would have been the same."""


@dataclass(frozen=True)
class RunData:
    """The opened splits of a dataset."""

    train: CocoDataset
    val: CocoDataset | None


def check_train_config(config: TrainConfig) -> None:
    """Check that the numbers are valid, before anything slow happens.

    Raises:
        ValueError: the message names the setting.
    """
    least = dict.fromkeys(("epochs", "batch_size", "accumulate", "target_batch_size", "log_every"), 1)
    least |= dict.fromkeys(("evaluate_every", "checkpoint_every", "patience"), 0)
    for name, smallest in least.items():
        if (value := getattr(config, name)) != "auto":
            check_number(f"train.{name}", value, smallest)
    if config.batch_size == "auto" and config.accumulate != 1:
        raise ValueError("train.batch_size auto sets train.accumulate by itself: give train.target_batch_size instead")
    if config.steps is not None and config.steps < 1:
        raise ValueError(f"train.steps must be at least 1, or null to count in epochs; not {config.steps}")
    if config.seconds is not None and config.seconds <= 0:
        raise ValueError(f"train.seconds must be above 0, or null for a fixed number of steps; not {config.seconds}")
    if config.nms_iou is not None and not 0 < config.nms_iou <= 1:
        raise ValueError(f"train.nms_iou must lie in (0, 1], or be null for no suppression; not {config.nms_iou}")
    if config.precision not in MIXED_PRECISION:
        raise ValueError(f"unknown train.precision {config.precision!r}; known are {', '.join(MIXED_PRECISION)}")


_SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")
"""What `accelerate config` may have asked for, as `ACCELERATE_USE_…`, and what the trainer is not made for: EMA weights,
checkpoints and the groups of the optimiser take it that every process has the whole model."""


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Devices, precision and processes, as started by `accelerate launch`, torchrun, or alone.

    Raises:
        ValueError: a device that is not there, fp16 without a GPU, or a model that is to be shared out over processes.
    """
    sharded = [name for name in _SHARDED if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true", "yes", "on")]
    if sharded:
        raise ValueError(
            f"accelerate is set to {sharded[0]} (ACCELERATE_USE_{sharded[0]}), but here every process holds the whole model, which "
            "is small (tens of millions of parameters): choose data parallelism in `accelerate config`, or start with torchrun"
        )
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if config.device != "auto" and not available.get(config.device, False):
        present = ", ".join(name for name, there in available.items() if there)
        reason = "not available here" if config.device in available else "unknown"
        raise ValueError(f"train.device {config.device!r} is {reason}; choose auto, {present}")
    cpu = config.device == "cpu" or not (available["cuda"] or available["mps"])
    if config.precision == "fp16" and cpu:
        raise ValueError("train.precision fp16 needs a GPU; on the CPU take fp32 or bf16")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run of this process may have had another precision
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    return Accelerator(cpu=cpu, mixed_precision=MIXED_PRECISION[config.precision], kwargs_handlers=[ddp])


def open_data(config: RunConfig, dataset: DetectionDataset | None = None) -> RunData:
    """Read both splits; a dataset without a validation split is trained on without evaluation, and a warning says so.

    Args:
        config: the run.
        dataset: that of the run, opened; None opens it.

    Raises:
        FileNotFoundError: no training split, or its images are missing.
        ValueError: a damaged annotation file, or errors found by the quick check; see `deformable-detr doctor`.
    """
    dataset = open_dataset(dataset or config.dataset)
    train = build_dataset(dataset, config.data.train_split, config.data, training=True)
    names = [config.data.train_split]
    val = None
    try:
        split = dataset.split(config.data.val_split)
        reason = None if len(split.paths) else f"{dataset.path}: no image in the split {config.data.val_split!r}"
        if reason is not None:
            split.found.raise_first(split.annotations.path, but=("no-images",))  # a damaged file is not an empty one
    except FileNotFoundError as error:
        reason = str(error)
    if reason is None:
        val = build_dataset(dataset, config.data.val_split, config.data, training=False, categories=train.categories)
        names.append(config.data.val_split)
    else:
        logger.warning("training without evaluation, so no best weights are chosen: %s", reason)
    _check_data(config, dataset, names)
    if config.data.single_class:
        logger.info("all classes of %s are one: %s", dataset.path, train.categories.names[0])
    if summary := summarise_unused(dataset.unused()):
        logger.warning("%s: files that are not used: %s (`deformable-detr doctor` lists them)", dataset.path, summary)
    return RunData(train, val)


def _check_data(config: RunConfig, dataset: DetectionDataset, names: Sequence[str]) -> None:
    """Log what is doubtful about the splits of these names, and stop at what would spoil the training."""
    errors, skips = [], config.data.on_bad_image == "skip"
    splits = [read_split(dataset, name, config.data) for name in names]
    for finding in quick_check(splits, config.model.num_queries):
        replaced = finding.code in REPLACED and finding.split == splits[0].name
        borne = skips and replaced  # not in validation, which leaves no image out
        if finding.severity == "error" and not borne:
            errors.append(str(finding))
        else:
            logger.warning("dataset: %s; %s", finding, finding.kind.advice)
    if errors:
        raise ValueError(f"{'; '.join(errors)}. `deformable-detr doctor {config.dataset}` shows all of it and can repair a copy")


def build_loaders(config: RunConfig, data: RunData, accelerator: Accelerator) -> tuple[DataLoader, DataLoader | None]:
    """This process's batches for training and, where there is a validation split, for evaluation."""

    workers = config.data.num_workers
    if workers == DataConfig.num_workers:  # nobody has chosen so many, of which torch warns on a machine with fewer cores
        workers = min(workers, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

    def loader(dataset: CocoDataset, training: bool) -> DataLoader:
        batches = build_loader(
            dataset,
            batch_size=cast(int, config.train.batch_size),  # `auto` has been settled
            training=training,
            num_workers=workers,
            seed=config.train.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            pad_size_divisor=config.data.pad_size_divisor if training else 1,
        )
        batches.worker_init_fn = leave_signals_to_trainer
        return batches

    end_workers_at_exit()
    return loader(data.train, True), loader(data.val, False) if data.val is not None else None


def build_network(
    config: RunConfig, categories: Categories, *, resumed: bool, device: torch.device | str = "cpu"
) -> DeformableDETR:
    """The model with as many classes as the dataset has, fresh or from `config.weights`, as it is trained.

    Args:
        config: the run.
        categories: of the training split.
        resumed: whether a saved state replaces all weights, so that none need to be fetched.
        device: where it goes.
    """
    if config.optimizer.lora and config.weights is None:
        raise ValueError("optimizer.lora trains beside fixed weights: name those of a trained detector (--weights)")
    if config.weights is not None and not resumed:
        network = load_pretrained(config.weights, classes=categories)
        _report_other_network(config, network)
        model_config = network.metadata.model
    else:
        model_config = replace(config.model, num_classes=len(categories))
        network = build_model(replace(model_config, pretrained_backbone=False) if resumed else model_config)
    inputs = config.data.input_settings()
    network.metadata = Metadata(model=model_config, categories=categories, nms_iou=config.train.nms_iou, **inputs)
    if config.optimizer.lora:
        add_adapters(network, config.optimizer.lora)
    set_gradient_checkpointing(network, config.train.gradient_checkpointing)
    return network.to(device).to(memory_format=torch.channels_last)  # the convolutions' faster layout


def _report_other_network(config: RunConfig, network: DeformableDETR) -> None:
    """Log where the model of the weights file, and what it wants of images, differ from the settings."""
    wanted, found = to_record(config.model), to_record(network.metadata.model)
    other = {name: found[name] for name in wanted if wanted[name] != found[name]}
    for name in ("num_classes", "pretrained_backbone"):
        other.pop(name, None)
    if other:
        logger.warning("the network is that of %s, not of the settings under `model`: %s", config.weights, other)
    for name in ("mean", "std", "bit_depth"):
        learned, used = getattr(network.metadata, name), getattr(config.data, name)
        if not np.allclose(learned, used, atol=1e-3):
            text = "%s has learned from images with data.%s %s; in this run it is %s, so that it sees other numbers: give the same"
            logger.warning(text, config.weights, name, learned, used)


def check_same_run(config: RunConfig, saved: Mapping[str, Any], data: RunData, processes: int) -> None:
    """Check that a saved state can be continued with these settings exactly.

    Args:
        config: of the run that is to go on.
        saved: the state that was read.
        data: the opened dataset.
        processes: how many train together now.

    Raises:
        ValueError: the message names what differs.
    """
    differing = changed_settings(saved["config"], to_record(config))
    if changed := changed_contents(saved.get("contents", {}), contents_of(data)):
        text = "%s has changed since the state of the run was saved, and the steps to come go by what is there now: %s"
        logger.warning(text, config.dataset, "; ".join(changed))
    if saved["processes"] != processes:
        differing.append(f"the number of processes was {saved['processes']}, is {processes}")
    if saved["dataset"] != describe_data(data):
        differing.append(f"the dataset was {saved['dataset']}, is {describe_data(data)}")
    if differing:
        raise ValueError(
            f"the run in {config.output_dir} cannot go on exactly with other settings: {'; '.join(differing)}. "
            "Resume with the old settings, or start a new run from its weights (--weights) in another --output-dir"
        )


def changed_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = frozenset(FREE_TO_CHANGE)
) -> list[str]:
    """What differs between two configurations as records, beside what is free to: a sentence for each setting.

    What `before` lacks is newer than that record, and was as it is by default.
    """
    old, new = flatten(to_record(RunConfig(dataset=""))) | flatten(before), flatten(now)
    return [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
        and name not in free
        and not (new["weights"] is not None and name.startswith("model."))  # the weights file decided about the model
    ]


def contents_of(data: RunData) -> dict[str, dict[str, int]]:
    """Checksums of the splits: of what a resumed run may find changed without being another one. Files are not read."""
    splits = {"training": data.train, "validation": data.val}
    return {name: _checksums(split) for name, split in splits.items() if split is not None}


def changed_contents(before: Mapping[str, Mapping[str, int]], now: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What differs between two results of :func:`contents_of`, in words; splits that are new or gone are left out."""
    changed = []
    for name in before.keys() & now.keys():
        other = [what for what, checksum in now[name].items() if before[name].get(what, checksum) != checksum]
        changed += [f"{name} {what}" for what in (["images"] if "images" in other else other)]
    return sorted(changed)


def _checksums(split: CocoDataset) -> dict[str, int]:
    names = np.array([crc32(split.image_path(index).name.encode("utf-8", "surrogateescape")) for index in range(len(split))])
    images = _mixed(np.column_stack((names, split.image_sizes())))
    owners = np.repeat(images, split.objects_per_image())
    objects = _mixed(np.column_stack((owners, split.labels(), split.boxes().view(np.uint32))))
    return {
        "images": crc32(np.sort(images).tobytes()),
        "order of the images": crc32(images.tobytes()),
        "boxes or their classes": crc32(np.sort(objects).tobytes()),
    }


def _mixed(rows: np.ndarray) -> np.ndarray:
    """`[N, C]` whole numbers → `[N]`: one for each row, other ones for other rows."""
    factors = np.array([pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(1, rows.shape[1] + 1)], dtype=np.uint64)
    return (rows.astype(np.uint64) * factors).sum(axis=1, dtype=np.uint64)


def describe_data(data: RunData) -> dict[str, Any]:
    """What must be the same in a resumed run."""
    return {"training images": len(data.train), "classes": list(data.train.categories.names)}
