"""What the documents claim about the code."""

import ast
import importlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deformable_detr.cli.command import spelled
from deformable_detr.cli.commands import COMMANDS, find_command
from deformable_detr.model import build_model
from deformable_detr.visualize.inside.description import describe

ROOT = Path(__file__).parents[1]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
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


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_code_imports_what_there_is(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deformable_detr"):
                module = importlib.import_module(str(node.module))
                assert [name.name for name in node.names if not hasattr(module, name.name)] == [], ast.unparse(node)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_have_the_options_that_they_are_called_with(page):
    calls = re.findall(rf"deformable[-_]detr ((?:{'|'.join(COMMANDS)})\b[^\n`|]*)", page.read_text(encoding="utf-8"))
    for words in (re.split(r"\s#|\s{3}|;", call)[0].split() for call in calls):
        known = find_command(words[0]).parser()._option_string_actions
        unknown = [word for word in spelled(words) if word.startswith("--") and word.partition("=")[0].rstrip("),.:") not in known]
        assert unknown == [], words


@pytest.mark.parametrize("tour", TOURS, ids=lambda path: path.name)
def test_tour_names_what_there_is(tour):
    """Files and figures that the tour names exist."""
    text = tour.read_text(encoding="utf-8")
    for name in set(re.findall(r"`((?:data|model|ops|criterion)/\w+\.py|structures\.py|postprocessing\.py)", text)):
        assert (ROOT / "src" / "deformable_detr" / name).is_file(), name
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(figures) == len(set(figures)) == 19
    for name in figures:
        assert (tour.parent / name).is_file(), name


def test_translation_keeps_code_formulas_and_figures():
    """The Chinese tour says the same: only prose is translated."""
    english, chinese = (path.read_text(encoding="utf-8") for path in TOURS)
    for pattern in (r"```.*?```", r"\$\$.*?\$\$", r"\]\((images[^)]+)\)", r"^## \d+"):
        found = [re.findall(pattern, text, flags=re.DOTALL | re.MULTILINE) for text in (english, chinese)]
        assert found[0] == found[1], pattern
