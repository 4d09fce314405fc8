"""The notebook as it is kept; `make notebook` runs it."""

import json
from pathlib import Path

import yaml

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def test_the_notebook_is_kept_without_outputs_and_its_settings_can_be_replaced() -> None:
    content = json.loads((NOTEBOOKS / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    assert tags == [["skip-execution"], ["parameters"]] + [[]] * (len(cells) - 2)
    small = yaml.safe_load((NOTEBOOKS / "tiny.yaml").read_text(encoding="utf-8"))
    names: dict = {}
    exec("".join(cells[1]["source"]), names)
    assert {name: type(value) for name, value in small.items()} == {name: type(names[name]) for name in small}
