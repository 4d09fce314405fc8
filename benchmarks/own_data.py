"""Training on one's own images beside transformers, with equal steps or in equal time: several datasets and seeds, one table.

python benchmarks/own_data.py bccd sizes large --minutes 3 --pretrained-backbone resnet18.pth --output proof
python benchmarks/own_data.py bccd --steps 1270 --device cuda --jobs 6 --lr 2e-4 5e-4 1e-3 --pretrained-backbone resnet18.pth

For each dataset and seed: first ours, by `--recipe small-data` and `--budget 3m` or `--steps` alone. Then each peer, with the
images, sizes, augmentation, batches and EMA weights of that run, the same backbone weights, width and number of layers, a
plain loop with warm-up and cosine, for as many steps (`--equal steps`) or as many as fit into the seconds of our steps (`--equal
time`).
Seconds are those of the training steps with reading the images, evaluations left out: on a CPU of its own time, so start it with
OMP_NUM_THREADS=1; on a GPU as they pass, so `--equal time` there needs `--jobs 1` and nothing else on that GPU.

Lines in `proof/results.jsonl` are not computed again, so the command goes on where it stopped (delete the folder of a run of ours
that was cut off), and two of them with different datasets may run beside each other. The first seed tries every learning rate in
`--lr` for each peer and dataset, the others take the one with the best AP50.
Peers are measured with and without NMS, and the better one counts.
"""

import argparse
import fcntl
import json
import multiprocessing
import os
import statistics
import threading
import traceback
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from trained_peers import PEERS, PeerRun, clock, test_split

from deformable_detr.acceleration.model import InferenceModel
from deformable_detr.checkpoints.load import load_pretrained
from deformable_detr.config import RunConfig
from deformable_detr.data.loader import build_dataset, build_loader
from deformable_detr.evaluation.evaluate import evaluate
from deformable_detr.settings import read_config
from deformable_detr.training import Callback, train
from deformable_detr.training.budget import measure_speed
from deformable_detr.training.callbacks import Run, Step
from deformable_detr.training.recipe import plan_run

Row = dict[str, Any]


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=3.0, help="budget of our recipe (on a CPU of its own time)")
    length.add_argument("--steps", type=int, help="steps of our recipe, in place of a budget")
    parser.add_argument("--equal", choices=("time", "steps"), help="what peers get; by default what we were given")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--pretrained-backbone", type=Path, required=True, help="timm weights of a ResNet-18")
    parser.add_argument("--also", nargs="*", default=[], metavar="SETTING=VALUE", help="ours once more with each of these")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--lr", nargs="+", type=float, default=[2e-4], help="of the peers, all but the backbone (official: 2e-4)")
    parser.add_argument("--backbone-lr-scale", type=float, default=0.1, help="of the peers (official: 0.1)")
    parser.add_argument("--clip", type=float, default=0.1, help="largest gradient norm of the peers (official: 0.1)")
    parser.add_argument("--output", type=Path, default=Path("proof"))
    parser.add_argument("--only-table", action="store_true", help="of what was run already")
    parser.add_argument("--curves", type=Path, help="an image of AP50 over minutes (.png, .svg)")
    options = parser.parse_args()
    options.equal = options.equal or ("steps" if options.steps else "time")
    options.output.mkdir(parents=True, exist_ok=True)
    results = Results(options.output / "results.jsonl")
    failed = [] if options.only_table else run_missing(options, results)
    print(results.table())
    if options.curves:
        results.draw_curves(options.curves)
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {failed}")


def run_missing(options: argparse.Namespace, results: "Results") -> list[Row]:
    """Run what is missing, so many at a time, each in a process of its own; gives those that failed."""
    failed: list[Row] = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=spawn, initializer=end_with_parent) as pool:
        running: dict[Future[Row], Row] = {}
        while True:
            for key, ours in missing(options, results):
                if len(running) < options.jobs and key not in running.values() and key not in failed:
                    running[pool.submit(run, key, ours, options)] = key
            if not running:
                return failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key = running.pop(future)
                try:
                    results.add(key | future.result())
                except Exception:
                    print(f"{key} failed:\n{traceback.format_exc()}", flush=True)
                    failed.append(key)


def end_with_parent() -> None:
    """End this process when the command ends, however it does: a training would go on."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def missing(options: argparse.Namespace, results: "Results") -> Iterator[tuple[Row, Row | None]]:
    """The keys of the runs that can begin now, as they are wanted; of a peer's with the run of ours it follows."""
    length = f"{options.steps} steps" if options.steps else f"{options.minutes:g} min"
    common = {"device": options.device, "length": length}
    ours = [
        {"dataset": path.name, "system": "ours", "equal": None, "lr": None, "seed": seed, **common}
        for seed in options.seeds
        for path in options.datasets
    ]
    others = [key | {"system": f"ours, {setting}"} for setting in options.also for key in ours]
    yield from ((key, None) for key in [*ours, *others] if not results.find(key))
    for key in ours:
        done = results.find(key)
        for system in options.peers if done or _known_before(options) else ():
            theirs = key | {"system": system, "equal": options.equal}
            tried = [results.find(theirs | {"lr": lr, "seed": options.seeds[0]}) for lr in options.lr]
            measured = [row for row in tried if row]
            if key["seed"] == options.seeds[0]:
                rates = options.lr
            elif len(measured) < len(tried):
                continue  # the first seed has not tried them all yet
            else:
                rates = [max(measured, key=lambda row: row["ap50"])["lr"]]
            yield from ((theirs | {"lr": lr}, done) for lr in rates if not results.find(theirs | {"lr": lr}))


def _known_before(options: argparse.Namespace) -> bool:
    """Whether a peer's run is known without ours: its settings and its length."""
    return options.steps is not None and options.equal == "steps"


def run(key: Row, ours: Row | None, options: argparse.Namespace) -> Row:
    """One training, and what came out of it.

    Args:
        key: says which.
        ours: for a peer, the run of ours, if it is finished.
        options: of the command.
    """
    path = next(path for path in options.datasets if path.name == key["dataset"])
    folder = options.output / f"{path.name}-{key['length'].replace(' ', '')}-{key['seed']}"
    if key["system"].startswith("ours"):
        setting = key["system"].removeprefix("ours").removeprefix(", ")
        folder = folder.with_name("-".join([folder.name, *([setting.replace("=", "-")] if setting else [])]))
        return run_ours(recipe_config(path, folder, key["seed"], options, setting))
    known = _known_before(options)
    config = recipe_config(path, folder, key["seed"], options) if known else read_config(folder / "config.yaml")
    peer = PeerRun(key["system"], config, key["lr"], options.backbone_lr_scale, options.clip)
    if known:
        return peer.train(steps=options.steps)
    assert ours is not None
    return peer.train(steps=ours["steps"]) if options.equal == "steps" else peer.train(seconds=ours["seconds"])


class Results:
    """Rows of a file of JSON lines, to which several programs may add."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def find(self, key: Row) -> Row | None:
        """The row of a run, if it was made."""
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def add(self, row: Row) -> None:
        """Keep a row, and say it."""
        self.rows.append(row)
        with self.path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(row) + "\n")
        print({name: value for name, value in row.items() if name != "curve"}, flush=True)

    def table(self) -> str:
        """Mean ± standard deviation over the seeds, each system at its best learning rate."""
        lines = [
            "| dataset | device | length | system | equal | rate | seeds | steps | ms a step | AP | AP50 | test AP | test AP50 |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for key, rows in self._at_best_rate():
            means = [str(round(statistics.mean(row[name] for row in rows))) for name in ("steps", "step_ms")]
            measures = [_spread([row[name] for row in rows if name in row]) for name in ("ap", "ap50", "test_ap", "test_ap50")]
            cells = [*key, str(rows[0]["lr"] or "recipe"), str(len(rows)), *means, *measures]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def draw_curves(self, path: Path) -> None:
        """AP50 on val over the minutes of the steps: a panel for each dataset and length, a line for each run."""
        panels: dict[str, dict[str, list[Row]]] = defaultdict(dict)
        for (dataset, device, length, system, equal), rows in self._at_best_rate():
            if equal != "steps":
                panels[f"{dataset}, {length}, {device}"][system] = rows
        colors = {
            system: f"C{number}" for number, system in enumerate(sorted({name for panel in panels.values() for name in panel}))
        }
        across = min(3, len(panels))
        down = -(-len(panels) // across)
        figure = Figure(figsize=(4 * across, 3.2 * down), layout="constrained")
        for number, (title, systems) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(down, across, number)
            for system, rows in systems.items():
                for index, row in enumerate(rows):
                    seconds, _, ap50 = zip(*[(0, 0, 0), *row["curve"]], strict=True)
                    style = {"color": colors[system], "marker": ".", "linewidth": 1}
                    axes.plot([time / 60 for time in seconds], ap50, label=None if index else system, **style)
            axes.set(title=title, xlabel="minutes of training steps", ylabel="AP50 (val)", ylim=(0, 1))
            axes.grid(alpha=0.3)
            axes.legend()
        figure.savefig(path, dpi=100)

    def _at_best_rate(self) -> Iterator[tuple[tuple[str, ...], list[Row]]]:
        """For each (dataset, device, length, system, equal) the runs with its best rate of those that most seeds have."""
        runs: dict[tuple, dict[Any, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row in self.rows:
            key = tuple(str(row[name] or "") for name in ("dataset", "device", "length", "system", "equal"))
            runs[key][row["lr"]].append(row)
        for key, of_rate in sorted(runs.items()):
            yield key, max(of_rate.values(), key=lambda rows: (len(rows), statistics.mean(row["ap50"] for row in rows)))


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else ""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


@dataclass
class Clock(Callback):
    """Seconds of the steps alone, and the curve over them."""

    device: str
    times: list[float] = field(default_factory=list)
    curve: list[tuple[float, float, float]] = field(default_factory=list)
    _mark: float = 0.0

    def on_train_start(self, run: Run) -> None:
        """The first step begins."""
        self._now = clock(self.device)
        self._mark = self._now()

    def on_step(self, run: Run, step: Step) -> None:
        """A step with its images has ended."""
        now = self._now()
        self.times.append(now - self._mark)
        self._mark = now

    def on_evaluation(self, run: Run, metrics: Any) -> None:
        """The evaluation's own time does not count."""
        self.curve.append((round(sum(self.times), 1), round(metrics.ap or 0.0, 4), round(metrics.ap50 or 0.0, 4)))

    def on_checkpoint(self, run: Run, paths: Any) -> None:
        """Nor does that of writing files."""
        self._mark = self._now()


def recipe_config(dataset: Path, folder: Path, seed: int, options: argparse.Namespace, setting: str = "") -> RunConfig:
    """The settings of `deformable-detr train DATASET --recipe small-data` with `--steps`, or with `--budget`, which times steps.

    Args:
        dataset: its folder.
        folder: of the run.
        seed: of the run.
        options: of the command.
        setting: one more, as `name=value`.
    """
    on_cpu = options.device == "cpu"
    asked = {
        "dataset": str(dataset),
        "output_dir": str(folder),
        "recipe": "small-data",
        "train.seed": seed,
        "train.device": options.device,
        "data.num_workers": 0 if on_cpu else 1,
        "model.pretrained_backbone": str(options.pretrained_backbone),
    }
    asked |= {"train.steps": options.steps} if options.steps else {"train.budget": f"{60 * options.minutes:g}s"}
    asked |= {name: yaml.safe_load(value) for name, _, value in [setting.partition("=")] if name}
    measure = partial(measure_speed, clock=clock("cpu")) if on_cpu else measure_speed
    config, _ = plan_run(asked, measure=measure)
    if on_cpu:
        config = replace(config, train=replace(config.train, seconds=None))  # it would be held to seconds that pass
    return replace(config, model=replace(config.model, num_classes=num_classes(config)))


def num_classes(config: RunConfig) -> int:
    """Classes of the training split."""
    return len(build_dataset(config.dataset, "train", config.data, training=False).categories)


def run_ours(config: RunConfig) -> Row:
    """A training, with the numbers on the split `test` if there is one."""
    times = Clock(config.train.device)
    result = train(config, callbacks=[times], show_progress=False)
    ap, ap50 = (round(result.best_metrics[name] or 0.0, 4) for name in ("ap", "ap50"))
    spent = {"seconds": round(sum(times.times), 1), "step_ms": round(1000 * statistics.median(times.times), 1)}
    test = measure_test(config, result.best_weights)
    return {"steps": result.steps, **spent, "ap": ap, "ap50": ap50, **test, "curve": times.curve}


def measure_test(config: RunConfig, weights: Path) -> Row:
    """AP and AP50 of the best weights on the split `test`, if there is one."""
    train_data = build_dataset(config.dataset, "train", config.data, training=False)
    data = test_split(config, train_data)
    if data is None:
        return {}
    network = load_pretrained(weights).to(config.train.device)
    assert config.train.batch_size != "auto"
    loader = build_loader(data, training=False, batch_size=config.train.batch_size, num_workers=config.data.num_workers)
    metrics = evaluate(InferenceModel(network), loader, train_data.categories, data.ground_truth, device=config.train.device)
    return {"test_ap": round(metrics.ap or 0.0, 4), "test_ap50": round(metrics.ap50 or 0.0, 4)}


if __name__ == "__main__":
    main()
