import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from deformable_detr.cli.__main__ import main
from deformable_detr.inference import benchmark


@pytest.fixture
def small_peer(monkeypatch):
    """The peer's network with a small backbone and two layers, instead of its R50."""

    def save(folder):
        inherited: dict[str, Any] = {"num_labels": 91}  # settings of every transformers model, and of every backbone
        inherited |= {"backbone": "resnet18", "use_timm_backbone": True, "use_pretrained_backbone": False}
        config = transformers.DeformableDetrConfig(
            **inherited,
            num_queries=9,
            d_model=64,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            encoder_layers=2,
            decoder_layers=2,
            dropout=0.0,
            auxiliary_loss=True,
        )
        transformers.DeformableDetrForObjectDetection(config).save_pretrained(folder)
        return Path(folder)

    monkeypatch.setattr(benchmark, "save_peer", save)


@pytest.mark.usefixtures("small_peer")
@pytest.mark.parametrize("what", ["model", "train"])
def test_table_and_json(what, tmp_path, capsys):
    output = tmp_path / "deep" / "model.json"
    assert main(["benchmark", what, "--size", "96x96", "--rounds", "1", "--no-memory", "--output", str(output)]) == 0
    results = {result["implementation"]: result for result in json.loads(output.read_text())["results"]}
    assert list(results) == benchmark.implementations(what)
    assert results["transformers"]["ratio"] == 1
    if what == "model":
        assert all(result["error"] < 1e-5 for result in results.values())
    assert f"{what}, 96 x 96" in capsys.readouterr().out


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
