import json

import pytest

from deformable_detr.cli import benchmark_operator as command
from deformable_detr.cli.__main__ import main
from deformable_detr.ops.benchmark import Case


def test_table_and_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "CASES", (Case("tiny", height=64, width=64, queries=3), Case("other", height=64, width=64)))
    monkeypatch.chdir(tmp_path)
    threads = command.torch.get_num_threads()
    arguments = [
        "benchmark",
        "op",
        "--device",
        "cpu",
        "--rounds",
        "1",
        "--no-memory",
        "--case",
        "tiny",
        "--only",
        "cpu",
    ]
    assert main(arguments) == 0
    assert command.torch.get_num_threads() == threads
    report = json.loads((tmp_path / "runs" / "benchmark-op.json").read_text())  # as the help says
    assert {result["case"] for result in report["results"]} == {"tiny"}
    assert report["results"][0]["implementation"] == "classic"
    assert report["machine"]["threads"] == threads
    assert "tiny: 64x64, float32" in capsys.readouterr().out


def test_unknown_choice(capsys):
    assert main(["benchmark", "everything"]) == 2
    assert "WHAT: expected one of 'op', 'model', 'train', 'data', got 'everything'" in capsys.readouterr().err
    assert main(["benchmark", "op", "--case", "tine"]) == 2
    assert "unknown case 'tine'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["threads", "rounds", "batch-size", "num-images"])
def test_numbers_that_make_no_sense(option, capsys):
    assert main(["benchmark", "op", f"--{option}", "0"]) == 2
    assert f"{option.replace('-', '_')} must be at least 1, not 0" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["op", "model", "train"])
def test_a_gpu_that_is_not_there(what, monkeypatch, capsys):
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    assert main(["benchmark", what, "--device", "cuda"]) == 2
    assert "PyTorch sees no CUDA GPU" in capsys.readouterr().err
