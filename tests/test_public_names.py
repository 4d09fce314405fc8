"""The package's front door: every public name is what it says, whatever was imported before."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import deformable_detr as dd


def test_names_hold_after_all_modules_are_imported():
    for module in pkgutil.walk_packages(dd.__path__, "deformable_detr."):
        if "._" not in module.name:  # neither __main__ nor the compiled kernels
            importlib.import_module(module.name)
    for name in dd.__all__:
        thing = getattr(dd, name)
        assert isinstance(thing, str) or callable(thing), f"dd.{name} is {thing!r}"
    assert sorted(dd.__all__, key=str.lower) == sorted(dir(dd), key=str.lower)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'Detectr'"):
        dd.Detectr  # noqa: B018


def test_import_is_light():
    """`import deformable_detr` and the command line's help must not wait for torch."""
    code = "import sys, deformable_detr, deformable_detr.cli.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
