"""`deformable-detr dashboard`: the live page of a training."""

import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deformable_detr.cli.command import MAX_PORT, Command
from deformable_detr.cli.screen import show
from deformable_detr.schema import check_range

EXAMPLES = """\
  deformable-detr dashboard runs/first
  deformable-detr dashboard runs/first --port 8000
"""


@dataclass(frozen=True, kw_only=True)
class DashboardOptions:
    """Watch a training in the browser: loss and AP, the newest predictions beside the ground truth, each class, advice, and the
    time left. The page reads the run folder, so it can be opened beside any training, and after it; `train --dashboard` opens it
    together with the training. It listens on this machine alone; from elsewhere: ssh -L 6070:127.0.0.1:6070 MACHINE.
    """

    run: str
    """The run folder."""

    port: int | None = None
    """Port of the page. Without it: the first free one from 6070 on."""


def run(options: DashboardOptions) -> None:
    """Serve the page until Ctrl-C."""
    check_range(options, "port", 0, MAX_PORT)
    from deformable_detr.visualize.pages.dashboard import Dashboard

    if not Path(options.run).is_dir():
        raise FileNotFoundError(f"{options.run}: no such run folder (train writes one to its --output)")
    with suppress(KeyboardInterrupt), Dashboard(options.run, options.port) as dashboard:
        show(f"The dashboard is at {dashboard.address}   (Ctrl-C ends it)")
        threading.Event().wait()


COMMAND = Command("dashboard", DashboardOptions, run, EXAMPLES)
