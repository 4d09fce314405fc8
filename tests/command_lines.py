"""What command lines of `train` come to."""

from collections.abc import Sequence

from deformable_detr.cli.train import COMMAND
from deformable_detr.config import RunConfig


def parse_config(argv: Sequence[str]) -> RunConfig:
    """The configuration of a run from its command line; see :meth:`~deformable_detr.cli.command.Command.parse`."""
    return COMMAND.parse(argv).run.config
