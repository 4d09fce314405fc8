"""No tensor of the network or of the operator has the type or the device that the process happens to have as its default."""

import ast
from pathlib import Path

import pytest

import deformable_detr

PACKAGE = Path(deformable_detr.__file__).parent
ROOMS = ("ops", "model", "structures.py", "boxes.py", "postprocessing.py")
FACTORIES = {
    *("empty", "zeros", "ones", "full", "eye", "arange", "linspace", "logspace", "tensor", "as_tensor", "scalar_tensor"),
    *("rand", "randn", "randint", "randperm", "normal", "empty_strided", "tril_indices", "triu_indices"),
}


def sources():
    for room in ROOMS:
        path = PACKAGE / room
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def unnamed(code: str) -> list[int]:
    """The lines of factory calls without dtype or device; parameters of modules follow the defaults, as those of torch.nn do."""
    tree = ast.parse(code)
    parameters = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("nn.Parameter", "torch.nn.Parameter")
        for inner in ast.walk(node)
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "torch"
        and node.func.attr in FACTORIES
        and node not in parameters
        and not {"dtype", "device"} <= {keyword.arg for keyword in node.keywords}
    ]


@pytest.mark.parametrize("path", list(sources()), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_factory_call_names_dtype_and_device(path):
    assert unnamed(path.read_text()) == [], f"{path}: name dtype and device in these lines"


def test_the_check_sees_what_it_looks_for():
    code = """
torch.empty(3)
torch.zeros(2, dtype=torch.float32)
torch.arange(4, device=x.device)
torch.full((1,), 2.0, dtype=torch.float32, device="cpu")
nn.Parameter(torch.randn(3))
torch.empty_like(x)
"""
    assert unnamed(code) == [2, 3, 4]
