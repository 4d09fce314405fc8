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
