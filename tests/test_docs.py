"""What the documents claim about the code."""

import importlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deformable_detr.model import build_model
from deformable_detr.visualize.inside.description import describe

ROOT = Path(__file__).parents[1]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
TOURS = [ROOT / "docs" / name for name in ("inside.md", "inside.zh.md")]


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


@pytest.mark.parametrize("tour", TOURS, ids=lambda path: path.name)
def test_tour_names_what_there_is(tour):
    """Files and figures that the tour names exist, and so do the names that its code imports."""
    text = tour.read_text(encoding="utf-8")
    for name in set(re.findall(r"`((?:data|model|ops|criterion)/\w+\.py|structures\.py|postprocessing\.py)", text)):
        assert (ROOT / "src" / "deformable_detr" / name).is_file(), name
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(figures) == len(set(figures)) == 19
    for name in figures:
        assert (tour.parent / name).is_file(), name
    for module, names in re.findall(r"^from (deformable_detr[\w.]*) import (.+)$", text, flags=re.MULTILINE):
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), name


def test_translation_keeps_code_formulas_and_figures():
    """The Chinese tour says the same: only prose is translated."""
    english, chinese = (path.read_text(encoding="utf-8") for path in TOURS)
    for pattern in (r"```.*?```", r"\$\$.*?\$\$", r"\]\((images[^)]+)\)", r"^## \d+"):
        found = [re.findall(pattern, text, flags=re.DOTALL | re.MULTILINE) for text in (english, chinese)]
        assert found[0] == found[1], pattern
