"""The folder of a run: the path of each file, the configuration, and the log (JSON lines, CSV, TensorBoard)."""

import csv
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from deformable_detr.checkpoints.adapters import save_adapter
from deformable_detr.checkpoints.native import save_weights
from deformable_detr.config import Metadata, RunConfig
from deformable_detr.evaluation.metrics import without_nan
from deformable_detr.files import atomic_file, check_place, write_text
from deformable_detr.model import DeformableDETR
from deformable_detr.settings import to_yaml
from deformable_detr.training.state import latest_state
from deformable_detr.version import __version__

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


class RunFolder:
    """Names and makes the files of one run."""

    def __init__(self, root: str | Path) -> None:
        """Nothing is made yet.

        Args:
            root: the run's `output_dir`.
        """
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.log = self.root / "log.jsonl"
        self.metrics = self.root / "metrics.csv"
        self.progress = self.root / "progress.json"
        self.samples = self.root / "samples"
        self.state = self.root / "state"
        self.non_finite = self.root / "non_finite"
        self.best_weights = self.root / "weights" / "best.safetensors"
        self.last_weights = self.root / "weights" / "last.safetensors"
        self.loss_curve = self.root / "loss.png"
        self.metrics_curve = self.root / "ap.png"

    def check_unused(self) -> None:
        """Check that a new run may write here.

        Raises:
            FileExistsError: the folder holds something already.
            NotADirectoryError: it is a file.
            OSError: nothing can be written there.
        """
        if self.root.exists() and not self.root.is_dir():
            raise NotADirectoryError(f"output_dir {self.root} is a file; choose a folder")
        if self.root.is_dir() and any(self.root.iterdir()):
            what = "a run already" if self.config.is_file() else "files already"
            raise FileExistsError(f"output_dir {self.root} holds {what}; continue it with --resume, or choose another --output")
        check_place(self.root)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes from training here while the block lasts: a run that is resumed while it goes on loses both.

        A lock of the system, which ends with this process. Where there is none (Windows, some network folders) nobody is kept off.

        Raises:
            FileExistsError: another process is at it.
        """
        if fcntl is None:
            yield
            return
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / "lock").open("a") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise FileExistsError(f"a run goes on in {self.root}, in another process: end it first, or wait for it") from None
            except OSError as error:
                logger.debug("no lock on %s: %s", self.root, error)
            try:
                yield
            finally:
                with suppress(OSError):
                    Path(file.name).unlink()

    def write_config(self, config: RunConfig) -> None:
        """Write config.yaml: every setting as used, to be read again with `--config`; how the run was called goes without."""
        header = f"# Every setting of this run, as used by deformable-detr {__version__}. Repeat it with:\n"
        header += "#   deformable-detr train --config config.yaml --output ANOTHER_FOLDER\n"
        write_text(self.config, header + to_yaml(replace(config, resume=False)))

    def append_log(self, record: Mapping[str, Any]) -> None:
        """Add one line to log.jsonl."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(_line(record))

    def read_log(self) -> list[dict[str, Any]]:
        """All records of log.jsonl; lines that were cut off by a crash, or that somebody else wrote, are left out."""
        records = []
        if self.log.is_file():
            for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):
                    records.append(json.loads(line))
        return [record for record in records if isinstance(record, dict) and {"kind", "step"} <= record.keys()]

    def rewind_log(self, step: int, evaluated: bool) -> None:
        """Drop what was logged after the state that a run goes on from.

        Args:
            step: finished steps of that state.
            evaluated: whether the evaluation at that step belongs to it.
        """
        kept = [
            record
            for record in self.read_log()
            if record["step"] < step or (record["step"] == step and (evaluated or record["kind"] != "evaluation"))
        ]
        write_text(self.log, "".join(map(_line, kept)))

    def write_weights(self, model: DeformableDETR, metadata: Metadata, *, best: bool, base: str | None, at_end: bool) -> list[Path]:
        """Write the last weights and, where they are, the best ones; the files that were written.

        Args:
            model: its weights.
            metadata: to be stored.
            best: whether they are the best so far.
            base: the weights beside which the model's adapters are trained; they alone are written, too, to a folder beside each.
            at_end: whether these are the last ones of the run; before, what cannot be written is an error line.

        Raises:
            OSError: at the end the disk is full or cannot be written.
        """
        paths = [self.last_weights, *([self.best_weights] if best else [])]
        for path in paths:
            try:
                save_weights(path, model, metadata=metadata)
                if base is not None:
                    save_adapter(path.with_name(f"{path.stem}-adapter"), model, metadata, base)
            except OSError as error:
                text = f"the weights could not be written to {path} ({error}): is the disk full?"
                if not at_end:
                    logger.error("%s The run goes on", text)
                    return []
                state = latest_state(self.state)
                advice = f"{state} is kept: make room, then --resume" if state else "no state could be saved either: make room"
                raise OSError(f"{text} These are the last ones of the run; {advice}") from error
        return paths

    def write_metrics(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write metrics.csv: one row per evaluation."""
        columns = list(dict.fromkeys(name for row in history for name in row))
        with atomic_file(self.metrics) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(history)


def _line(record: Mapping[str, Any]) -> str:
    """A line of JSON. Infinite gradients, which fp16 has as long as its loss scale is too high, have no form there: null."""
    return json.dumps(without_nan(record)) + "\n"


@contextmanager
def files_are_a_bonus() -> Iterator[None]:
    """Let a training go on where a file that it could do without, such as a curve, cannot be written; an error line says so."""
    try:
        yield
    except OSError as error:
        logger.error("could not be written: %s. The run goes on", error)
