"""What the documents claim about the code."""

import importlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deformable_detr.model import build_model
from deformable_detr.visualize.describe import describe

ARCHITECTURE = Path(__file__).parents[1] / "docs" / "architecture.md"


def test_data_path_table():
    """The table's rows are the shapes of a real forward pass."""
    model = build_model("r50-two-stage", pretrained_backbone=False)
    model.metadata = replace(model.metadata, eval_short_side=480)
    image = torch.randint(0, 255, (3, 480, 640), dtype=torch.uint8)
    expected = [(step.source, str(step)) for step in describe(model, image).steps]
    rows = re.findall(r"^\| `([^`]+)` \| (\[[^|]*→[^|]*\]) \|", ARCHITECTURE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert rows == expected


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([\w/]+\.py:[\w.]+)`", ARCHITECTURE.read_text(encoding="utf-8")))))
def test_named_functions_exist(name):
    file, _, function = name.partition(":")
    found = importlib.import_module("deformable_detr." + file.removesuffix(".py").replace("/", "."))
    for part in function.split("."):
        found = getattr(found, part)
    assert callable(found)
