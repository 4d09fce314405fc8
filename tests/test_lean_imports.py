"""Lean imports of large libraries: each case is a process of its own, in which nothing is imported yet."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deformable_detr import Detector, build_model

FRESH = """
import gc
import sys
import deformable_detr
import torch
from importlib.util import find_spec

disable = torch.compiler.disable
sys.path.insert(0, sys.argv[1])
assert "broken" in find_spec("timm").loader.get_source("timm"), "a spec without import"
try:
    import timm
except RuntimeError as error:
    assert str(error) == "broken"
else:
    raise AssertionError("it is broken")
assert not {"timm", "torch._dynamo"} & set(sys.modules) and torch.compiler.disable is disable and gc.isenabled()
sys.path.pop(0)

gc.disable()
detector = deformable_detr.Detector.load(sys.argv[2], device="cpu")
detector.predict(torch.zeros(3, 64, 64, dtype=torch.uint8).numpy().transpose(1, 2, 0))
assert not {"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules), "predicting loaded the compiler"
assert not {"scipy.interpolate", "scipy.optimize", "scipy.sparse", "scipy.spatial", "av"} & set(sys.modules), "not for images"
assert torch.compiler.disable is disable and not gc.isenabled(), "what was switched off before stays off"

import timm, torchvision
from torchvision import tv_tensors
from torchvision.transforms import v2

for library in (timm, torchvision):  # where their files are is found as ever
    assert library.__spec__.loader is library.__loader__ and library.__loader__.get_source(library.__name__)

image = tv_tensors.Image(torch.arange(12.0).view(3, 2, 2))
flip = v2.RandomHorizontalFlip(1.0)
assert type(flip(image)) is tv_tensors.Image and "torch._dynamo" not in sys.modules

compiled = torch.compile(lambda x: flip(x) + 1, backend="eager")
assert torch.equal(compiled(image), image.flip(-1) + 1)
assert hasattr(torch._dynamo, "config") and sys.modules["torch._dynamo"] is torch._dynamo
assert type(flip(image)) is tv_tensors.Image

roi_align = sys.modules["torchvision.ops.roi_align"]
assert roi_align.is_compile_supported("cpu") is torch._dynamo.utils.is_compile_supported("cpu")
boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 2).eq(1).all()

import numpy
import supervision

line = numpy.array([[0.0, 1, 2, 3, 4], [0.0, 2, 1, 4, 3]])
curve, _ = supervision.annotators.core.splprep(line, s=0, u=line[0])
assert numpy.allclose(supervision.annotators.core.splev(line[0], curve), line)
import scipy.interpolate
assert supervision.annotators.core.splev is not scipy.interpolate.splev and callable(scipy.interpolate.interp1d)
"""

LIBRARY = """
import torch

started, seen = torch.compiler.disable, []

@torch.compiler.disable
def marked(x):
    "What it does."
    seen.append(torch.compiler.is_compiling())
    return x + 1

class Kept:
    @torch.compiler.disable(recursive=True, reason="with arguments")
    def method(self, x):
        return x + 2
"""

MARKS = """
import gc
import sys
import deformable_detr
import torch
from deformable_detr.cli.__main__ import end_quickly

end_quickly()
assert gc.get_freeze_count() > 100_000, "Python looks for garbage at the end"
gc.unfreeze()
import timm

assert timm.started is not torch.compiler.disable, "the import was not watched"
assert timm.marked.__doc__ == "What it does." and timm.marked(1) == 2 and timm.Kept().method(1) == 3
assert "torch._dynamo" not in sys.modules
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
compiled = torch.compile(lambda x: timm.marked(x * 2) * 3, backend=backend)
for _ in range(2):
    assert compiled(torch.tensor([1.0])).item() == 9
assert timm.seen == [False] * 3, "a function that is not to be compiled was"
assert len(graphs) == 2, "before and behind it"
end_quickly()  # Triton, which comes with the compiler where it is installed, would say on stderr what is left
"""

ASKS = """
import torch
import torch._dynamo
import torchvision

limit = torch._dynamo.config.recompile_limit
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
"""

REAL = """
import sys
import deformable_detr
import timm
import torch

assert sys.modules["torch._dynamo"] is torch._dynamo and timm.limit == torch._dynamo.config.recompile_limit
assert timm.TorchDynamoException is torch._dynamo.exc.TorchDynamoException and timm.counters is torch._dynamo.utils.counters
"""


def run(code: str, *arguments: object, path: Path | None = None) -> None:
    places = [str(path)] if path else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*places, *filter(None, [os.environ.get("PYTHONPATH")])])}
    command = [sys.executable, "-W", "error::ImportWarning", "-c", code, *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr
    assert "leaked" not in found.stderr


def test_predicting_does_without_the_compiler_which_works_when_it_is_wanted(tmp_path: Path) -> None:
    model = build_model("demo", num_classes=2, pretrained_backbone=False)
    Detector(model, device="cpu").save(tmp_path / "model.safetensors")
    (tmp_path / "timm.py").write_text("raise RuntimeError('broken')")
    run(FRESH, tmp_path, tmp_path / "model.safetensors")


@pytest.mark.parametrize(("library", "code"), [(LIBRARY, MARKS), (ASKS, REAL)])
def test_a_library_gets_what_it_asks_of_the_compiler(tmp_path: Path, library: str, code: str) -> None:
    (tmp_path / "timm.py").write_text(library)
    run(code, path=tmp_path)


LATER = """
from scipy import interpolate
from scipy.interpolate import splev
from scipy.spatial import cKDTree
at_once = cKDTree([[0.0], [5.0]]).query([4.0])[1]  # called while it is imported
from scipy.spatial.distance import cdist  # a part
other = interpolate.interp1d  # nothing that is imported later
"""

PARTS = """
import deformable_detr
import supervision
import numpy
import scipy.interpolate
import scipy.spatial

assert supervision.cdist is scipy.spatial.distance.cdist and supervision.other is scipy.interpolate.interp1d
assert supervision.splev is not scipy.interpolate.splev and supervision.interpolate.splrep is scipy.interpolate.splrep
points = numpy.array([[0.0, 0.0], [5.0, 5.0]])
assert supervision.cKDTree(points).query([4.0, 4.0])[1] == 1 and supervision.at_once == 1
"""


def test_a_library_gets_what_it_asks_of_scipy(tmp_path: Path) -> None:
    (tmp_path / "supervision.py").write_text(LATER)
    run(PARTS, path=tmp_path)


NANOBIND = """
from contextlib import suppress

with suppress(ImportError):
    import triton._C.libtriton
"""

KEPT = """
import gc
import sys
from deformable_detr.cli.__main__ import main

sys.argv = ["deformable-detr", "predict", "nothing.safetensors", "nothing.jpg"]
assert main() == 2
assert gc.get_freeze_count() > 100_000, "Python looks for garbage among what was imported"
import accelerate  # what it loads is kept, too, but nanobind would report it at the end
"""


def test_a_command_keeps_what_it_imports(tmp_path: Path) -> None:
    (tmp_path / "accelerate.py").write_text(NANOBIND)
    run(KEPT, path=tmp_path)
