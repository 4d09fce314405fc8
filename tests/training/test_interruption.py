import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deformable_detr.config import DataConfig, RunConfig
from deformable_detr.training.preparation import build_accelerator, build_loaders, open_data

SCRIPT = """
import sys
from dataclasses import replace
from deformable_detr.presets import demo_run
from deformable_detr.training.preparation import build_accelerator, build_loaders, open_data

config = demo_run(sys.argv[1], "unused")
config = replace(config, train=replace(config.train, device="cpu", batch_size=2))
loader, _ = build_loaders(config, open_data(config), build_accelerator(config.train))
batches = iter(loader)
next(batches)
raise RuntimeError("in the middle of an epoch")
"""


def test_a_machine_of_one_core_has_one_worker_where_nobody_asked_for_more(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    monkeypatch.setattr("torch._utils.cpu_count", lambda: 1, raising=False)
    data = open_data(config)
    accelerator = build_accelerator(config.train)
    loader, _ = build_loaders(replace(config, data=DataConfig()), data, accelerator)
    assert loader.num_workers == 1
    with pytest.warns(UserWarning, match="will create 3 worker processes"):
        loader, _ = build_loaders(replace(config, data=DataConfig(num_workers=3)), data, accelerator)
    assert loader.num_workers == 3


@pytest.mark.slow
def test_an_error_in_the_middle_of_an_epoch_ends_the_program_and_its_workers(dataset: Path) -> None:
    """The workers pass over the signals of a terminal or a cluster; Python must not wait for them for ever."""
    command = [sys.executable, "-c", SCRIPT, str(dataset)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1] == "RuntimeError: in the middle of an epoch"
