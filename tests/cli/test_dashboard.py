import re
from types import SimpleNamespace
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from deformable_detr.cli.__main__ import main
from deformable_detr.cli.dashboard import COMMAND, DashboardOptions
from deformable_detr.cli.train import COMMAND as TRAIN


def test_options(tmp_path):
    assert COMMAND.parse(["runs/a", "--port", "8000"]) == DashboardOptions(run="runs/a", port=8000)
    assert TRAIN.parse(["my_data", "--dashboard"]).dashboard
    assert not TRAIN.parse(["my_data"]).dashboard


def test_no_such_run(tmp_path, capsys):
    assert main(["dashboard", str(tmp_path / "nowhere")]) == 2
    assert "no such run folder" in capsys.readouterr().err
    assert main(["dashboard", str(tmp_path), "--port", "70000"]) == 2
    assert "port must be in [0, 65535], not 70000" in capsys.readouterr().err


@pytest.mark.parametrize("fails", [False, True])
def test_a_training_serves_it_as_long_as_it_lasts(fails, tmp_path, monkeypatch, capsys):
    addresses = []

    def train(config, dataset, callbacks):
        addresses.extend(re.findall(r"http://\S+", capsys.readouterr().out))
        assert urlopen(addresses[0]).status == 200
        if fails:
            raise ValueError("no training")
        return SimpleNamespace(steps=3, best_metrics={}, best_weights="best", output_dir=config.output_dir)

    monkeypatch.setattr("deformable_detr.training.train", train)
    assert main(["train", str(tmp_path / "data"), "--output", str(tmp_path / "run"), "--dashboard"]) == (2 if fails else 0)
    with pytest.raises(URLError):
        urlopen(addresses[0])
