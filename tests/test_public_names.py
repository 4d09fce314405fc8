"""The package's front door: every public name is what it says, whatever was imported before."""

import importlib
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import deformable_detr as dd


def test_names_hold_after_all_modules_are_imported():
    for module in pkgutil.walk_packages(dd.__path__, "deformable_detr."):
        if "._" not in module.name:  # neither __main__ nor the compiled kernels
            importlib.import_module(module.name)
    for name in dd.__all__:
        thing = getattr(dd, name)
        assert isinstance(thing, str | ModuleType) or callable(thing), f"dd.{name} is {thing!r}"
    assert sorted(dd.__all__, key=str.lower) == sorted(dir(dd), key=str.lower)


def test_rooms_are_reached_through_the_package():
    code = "import deformable_detr as dd; dd.presets.MODEL_PRESETS, dd.ops.ms_deform_attn, dd.visualize.look_inside, dd.data"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_room_says_what_it_offers():
    for module in pkgutil.iter_modules(dd.__path__, "deformable_detr."):
        if module.ispkg and module.name != "deformable_detr.cli":
            room = importlib.import_module(module.name)
            assert room.__all__ == sorted(room.__all__), module.name
            assert all(hasattr(room, name) for name in room.__all__), module.name


def test_types_are_shipped():
    assert (Path(dd.__path__[0]) / "py.typed").is_file()
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert "py.typed" in settings["tool"]["setuptools"]["package-data"]["deformable_detr"]


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'Detectr'"):
        dd.Detectr  # noqa: B018


def test_import_is_light():
    """`import deformable_detr` and the command line's help must not wait for torch."""
    code = "import sys, deformable_detr, deformable_detr.cli.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
