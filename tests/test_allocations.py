"""No tensor of the package has the type or the device that the process happens to have as its default."""

import ast
from pathlib import Path

import pytest

import deformable_detr

PACKAGE = Path(deformable_detr.__file__).parent
FACTORIES = {
    *("empty", "zeros", "ones", "full", "eye", "arange", "linspace", "logspace", "tensor", "as_tensor", "scalar_tensor"),
    *("rand", "randn", "randint", "randperm", "normal", "empty_strided", "tril_indices", "triu_indices"),
}


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
        and not any(keyword.arg is None for keyword in node.keywords)  # **names_of_both
        and not {"dtype", "device"} <= {keyword.arg for keyword in node.keywords}
    ]


def test_every_factory_call_names_dtype_and_device():
    found = [f"{path.relative_to(PACKAGE)}:{line}" for path in sorted(PACKAGE.rglob("*.py")) for line in unnamed(path.read_text())]
    assert found == [], "name dtype and device in these lines"


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


def test_images_and_boxes_of_torchvision_name_their_device():
    """Made of a tensor, they move it to the default device."""
    calls = [
        (path.name, node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("tv_tensors.Image", "tv_tensors.BoundingBoxes")
    ]
    assert len(calls) > 1
    assert [(name, node.lineno) for name, node in calls if "device" not in {keyword.arg for keyword in node.keywords}] == []


@pytest.mark.parametrize("call", ["torch.FloatTensor(", "torch.Tensor(", ".set_default_"])
def test_no_older_way_around_it(call):
    assert [str(path) for path in sorted(PACKAGE.rglob("*.py")) if call in path.read_text()] == []
