"""Communication between the processes of one run."""

import multiprocessing
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

MAIN_GUARD = (
    "where processes are started afresh (Windows, macOS), each of them runs the script again: put the call that trains below "
    '`if __name__ == "__main__":`'
)


def refuse_in_starting_process() -> None:
    """Check that this is not a starting worker, which would train like its parent instead of reading images for it.

    Raises:
        RuntimeError: it is; the message says what the script lacks.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself asks it
        raise RuntimeError(f"a worker of a training has begun to train: {MAIN_GUARD}")


def mean_over_processes(values: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """The mean of each number; every process must call this with the same names."""
    if accelerator.num_processes == 1:
        return values
    local = torch.tensor(list(values.values()), dtype=torch.float32, device=accelerator.device)
    return dict(zip(values, cast(Tensor, accelerator.reduce(local, "mean")).tolist(), strict=True))


def in_any_process(condition: bool, accelerator: Accelerator) -> bool:
    """Whether a condition holds in any process; every process must call this and gets the same result."""
    if accelerator.num_processes == 1:
        return condition
    flag = torch.tensor(float(condition), dtype=torch.float32, device=accelerator.device)
    return bool(cast(Tensor, accelerator.reduce(flag, "sum")) > 0)
