import functools
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from deformable_detr.cli import benchmark_detector
from deformable_detr.cli.__main__ import main
from deformable_detr.inference import benchmark

PEERS_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "detector_peers.py"
SMALL = ["--preset", "tiny", "--size", "96x96", "--rounds", "1"]


def results_of(path):
    return {result["implementation"]: result for result in json.loads(path.read_text())["results"]}


@pytest.mark.parametrize("what", ["model", "train"])
def test_table_and_json(what, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # not needed
    output = tmp_path / "deep" / "model.json"
    assert main(["benchmark", what, *SMALL, "--no-memory", "--output", str(output)]) == 0
    results = results_of(output)
    assert list(results) == benchmark.implementations(what)
    assert results["plain module"]["ratio"] == 1
    if what == "model":
        assert results["optimised"]["error"] < 1e-5
    assert f"{what}, 96 x 96" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["model", "train"])
def test_beside_transformers(what, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_detector, "PEERS", benchmark.NO_PEERS)  # the script replaces it
    monkeypatch.setitem(sys.modules, "libreyolo", None)  # where it is installed: it has R50 alone
    build = functools.partial(benchmark.build_model, backbone="resnet18", backbone_options={})  # what transformers can express
    monkeypatch.setattr(benchmark, "build_model", build)
    spec = importlib.util.spec_from_file_location("detector_peers", PEERS_SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main([what, *SMALL, "--no-memory", "--output", str(tmp_path / "peers.json")]) == 0
    results = results_of(tmp_path / "peers.json")
    assert list(results) == ["transformers", *benchmark.implementations(what)]
    assert results["transformers"]["ratio"] == 1
    if what == "model":
        assert all(result["error"] < 1e-5 for name, result in results.items() if "bf16" not in name)


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "low_precision_works", lambda device: False)  # one form is enough
    assert main(["benchmark", "train", *SMALL, "--output", str(tmp_path / "train.json")]) == 0
    memory = results_of(tmp_path / "train.json")["plain module"]["memory"]
    if memory is None:
        pytest.skip("only Linux says what a process's peak was")
    model = benchmark.fresh_model(benchmark.Case("train", 96, 96, 2, "tiny"))
    assert memory > 4 * sum(parameter.numel() for parameter in model.parameters())


def test_data(tmp_path):
    output = tmp_path / "data.json"
    arguments = ["--size", "48x64", "--num-images", "2", "--preset", "tiny", "--rounds", "1", "--output", str(output)]
    assert main(["benchmark", "data", *arguments]) == 0
    results = json.loads(output.read_text())["results"]
    assert [result["implementation"] for result in results] == [
        "network alone",
        "predict on the folder",
        "reading, one thread",
        "for training, 2 workers",
    ]
    assert all(result["seconds"] > 0 for result in results)


def test_a_size_that_is_none(capsys):
    assert main(["benchmark", "model", "--size", "big"]) == 2
    assert "--size takes HEIGHTxWIDTH" in capsys.readouterr().err
