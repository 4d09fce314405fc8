import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from deformable_detr.config import RunConfig
from deformable_detr.training.run_folder import RunFolder
from deformable_detr.training.trainer import train


def test_two_processes_train_like_one_with_twice_the_batch(config: RunConfig, tmp_path: Path) -> None:
    """The same pictures make each step, gradients and box counts are averaged, both share the evaluation."""
    config = replace(
        config,
        # all that depends on the composition of a batch: statistics, dropout, padding; Adam would amplify rounding at lr 1e-3
        model=replace(config.model, freeze_batch_norm=True, dropout=0.0),
        data=replace(config.data, train_short_sides=(64,)),
        optimizer=replace(config.optimizer, lr=1e-4),
        train=replace(config.train, epochs=1, evaluate_every=1, batch_size=4),
    )
    one = train(replace(config, output_dir=str(tmp_path / "one")))

    folder = RunFolder(tmp_path / "two")
    shared = tmp_path / "config"
    RunFolder(shared).write_config(replace(config, train=replace(config.train, batch_size=2), output_dir=str(folder.root)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "deformable_detr", "train", "--config", str(shared / "config.yaml")]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    first, second = load_file(one.last_weights), load_file(folder.last_weights)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-5, msg=name)
    metrics = [
        [record for record in RunFolder(root).read_log() if record["kind"] == "evaluation"][-1]
        for root in (one.output_dir, folder.root)
    ]
    assert metrics[0]["num_images"] == metrics[1]["num_images"] == 4
    losses = [
        [record for record in RunFolder(root).read_log() if record["kind"] == "train"][-1] for root in (one.output_dir, folder.root)
    ]
    assert losses[0]["step"] == losses[1]["step"] == 2
    for name in ("loss", "loss_class", "loss_bbox_0", "loss_giou_enc", "grad_norm"):
        assert abs(losses[0][name] - losses[1][name]) < 1e-4 * abs(losses[0][name]), name
