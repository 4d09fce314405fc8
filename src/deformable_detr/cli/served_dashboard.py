"""`train --dashboard`: the live page, served as long as the run lasts."""

from deformable_detr.cli.screen import show
from deformable_detr.training.callbacks import Callback, Run
from deformable_detr.visualize.pages.dashboard import Dashboard


class ServedDashboard(Callback):
    """Serves the page of the run at an address of this machine, which is shown; for one process of a run."""

    def on_train_start(self, run: Run) -> None:
        """Begin to serve, and say where."""
        self.dashboard = Dashboard(run.folder.root)
        show(f"The dashboard is at {self.dashboard.address}")

    def on_train_end(self, run: Run) -> None:
        """The page ends with the run; `deformable-detr dashboard` shows it again."""
        self.dashboard.close()
