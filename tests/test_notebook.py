"""The notebook, cell by cell, with a small network and few images; only the cell that installs the package is left out."""

import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"
SMALL = """
images = {"train": 4, "valid": 2}
settings = {"preset": "tiny", "num_encoder_layers": 1, "num_decoder_layers": 1, "num_feature_levels": 2, "num_queries": 4}
settings |= {"backbone_options": {"layers": [1, 1, 1, 1]}}  # half of a ResNet-18
settings |= {"epochs": 1, "train_short_sides": (64,), "eval_short_side": 64, "max_long_side": 96, "num_workers": 0, "device": "cpu"}
"""


def test_quickstart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["metadata"].get("tags", [])[:1] for cell in cells[:2]] == [["install"], ["settings"]]
    assert all(cell["outputs"] == [] for cell in cells)
    names: dict = {}
    for source in [SMALL, *("".join(cell["source"]) for cell in cells[2:])]:
        exec(source, names)
    assert names["metrics"].num_images == 2
    assert (tmp_path / "detector.onnx").is_file()
    assert (tmp_path / "runs" / "first" / "weights" / "best.safetensors").is_file()
    assert (tmp_path / "why.html").is_file()
