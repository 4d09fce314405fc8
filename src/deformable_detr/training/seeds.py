"""The same training with several seeds, one after the other: how good a detector becomes, and how much of that is chance."""

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from deformable_detr.config import RunConfig
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.files import write_json
from deformable_detr.settings import read_config, to_record
from deformable_detr.training.callbacks import Callback
from deformable_detr.training.preparation import FREE_TO_CHANGE, changed_settings
from deformable_detr.training.result import TrainResult
from deformable_detr.training.run_folder import RunFolder
from deformable_detr.training.run_log import SHOWN
from deformable_detr.training.state import latest_state
from deformable_detr.training.trainer import train

logger = logging.getLogger(__name__)

LENGTH = {"train.epochs", "train.steps", "train.seconds", "train.evaluate_every", "train.ema_decay", "optimizer.warmup_steps"}
LENGTH |= {"data.eval_short_side", "data.train_short_sides", "data.max_long_side"}
"""What a budget decides, and what a recipe makes depend on that."""


@dataclass(frozen=True)
class SeedsResult:
    """What several runs gave."""

    output_dir: Path
    """The folder of all of them."""

    runs: Mapping[int, TrainResult]
    """By seed."""

    def values(self, metric: str) -> list[float]:
        """A metric of the best weights of each run that has it."""
        found = [result.best_metrics.get(metric) for result in self.runs.values()]
        return [value for value in found if value is not None]

    def mean(self, metric: str) -> float | None:
        """Over the runs; None where none was evaluated."""
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def spread(self, metric: str) -> float | None:
        """The standard deviation over the runs (n - 1); None for fewer than two."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

    def table(self) -> Table:
        """One row per seed, and mean ± spread below."""
        table = Table(title=f"{len(self.runs)} seeds", title_justify="left", show_footer=True)
        table.add_column("seed", "mean ± spread")
        for metric, label in SHOWN.items():
            table.add_column(label, _with_spread(self.mean(metric), self.spread(metric)), justify="right")
        for seed, result in self.runs.items():
            table.add_row(str(seed), *(_number(result.best_metrics.get(metric)) for metric in SHOWN))
        return table

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the best metrics of each seed, their means and spreads."""
        return {
            "seeds": {str(seed): dict(result.best_metrics) for seed, result in self.runs.items()},
            "mean": {metric: self.mean(metric) for metric in SHOWN},
            "spread": {metric: self.spread(metric) for metric in SHOWN},
        }


def train_seeds(
    config: RunConfig,
    seeds: Sequence[int],
    dataset: DetectionDataset | None = None,
    *,
    callbacks: Callable[[], Sequence[Callback]] = list,
    show_progress: bool = True,
    train_one: Callable[..., TrainResult] = train,
) -> SeedsResult:
    """Train once with each seed, in `output_dir/seed-N`, and write `output_dir/seeds.json` after each.

    Called again with the same settings it goes on where it stopped: finished runs are not repeated, an interrupted one is resumed.

    Args:
        config: the run; its `seed` is replaced.
        seeds: one run for each.
        dataset: see :func:`~deformable_detr.training.trainer.train`.
        callbacks: makes those of one run; see there.
        show_progress: see there.
        train_one: does one run.

    Raises:
        ValueError: no seeds, one twice, or other settings than those of the runs that are there.
        FileExistsError: `output_dir` holds something else.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different numbers, at least one; not {list(seeds)}")
    config = _same_settings(config)
    folder = RunFolder(config.output_dir)
    folder.write_config(config)
    runs: dict[int, TrainResult] = {}
    for seed in seeds:
        own = RunFolder(folder.root / f"seed-{seed}")
        run = replace(config, output_dir=str(own.root), train=replace(config.train, seed=seed))
        logger.info("seed %d (%d of %d)", seed, len(runs) + 1, len(seeds))
        resume = latest_state(own.state) is not None
        runs[seed] = train_one(replace(run, resume=resume), dataset, callbacks=callbacks(), show_progress=show_progress)
        write_json(folder.root / "seeds.json", SeedsResult(folder.root, runs).to_dict(), indent=1)
    return SeedsResult(folder.root, runs)


def _same_settings(config: RunConfig) -> RunConfig:
    """The configuration with the length of the runs in the folder, where there are any: a budget, timed anew, gives another one."""
    folder = RunFolder(config.output_dir)
    if not folder.config.is_file():
        folder.check_unused()
        return config
    before = read_config(folder.config)
    if folder.log.is_file():
        raise FileExistsError(f"output_dir {folder.root} holds a single run; choose another --output for runs with several seeds")
    fixed = LENGTH | {"dataset", "weights", "train.nms_iou", "train.patience"}  # finished runs are not done again
    differing = changed_settings(_record(before), _record(config), FREE_TO_CHANGE - fixed)
    lengths = [text for text in differing if text.split()[0] in LENGTH]
    if differing != lengths or (lengths and None in (before.train.seconds, config.train.seconds)):
        raise ValueError(f"{folder.root} holds runs with other settings: {'; '.join(differing)}. Choose another --output")
    if lengths:
        logger.warning("all runs in %s are as long as the first: %s", folder.root, "; ".join(lengths))
    for name in LENGTH:
        group, _, key = name.partition(".")
        kept = {key: getattr(getattr(before, group), key)}
        config = replace(config, **{group: replace(getattr(config, group), **kept)})
    return config


def _record(config: RunConfig) -> dict[str, Any]:
    """With paths in one form."""
    paths = {name: str(Path(path).resolve()) for name in ("dataset", "weights") if (path := getattr(config, name)) is not None}
    return to_record(config) | paths


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _with_spread(mean: float | None, spread: float | None) -> str:
    return _number(mean) + ("" if spread is None else f" ± {spread:.3f}")
