"""Checks the Triton kernels on the CPU in Triton's interpreter; run by test_triton_interpreter.py, because the interpreter must be
chosen before Triton is imported. Prints the largest error of each case as JSON."""

import importlib.util
import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import torch

from deformable_detr.ops import available_backends, ms_deform_attn, ms_deform_attn_fused

spec = importlib.util.spec_from_file_location("ops_conftest", Path(__file__).with_name("conftest.py"))
assert spec is not None and spec.loader is not None
helpers = importlib.util.module_from_spec(spec)
sys.modules["ops_conftest"] = helpers
spec.loader.exec_module(helpers)


def triton_form(p):
    if p.reference is None:
        return ms_deform_attn(p.value, p.shapes, p.offsets, p.weights, backend="triton")
    return ms_deform_attn_fused(p.value, p.shapes, p.reference, p.offsets, p.weights, backend="triton")


def errors(dtype=torch.float32, **sizes) -> list[float]:
    problem = helpers.make_problem(**sizes)
    problem.value = problem.value.to(dtype)
    expected_leaves = problem.leaves(torch.float64)
    output = helpers.by_definition(expected_leaves)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    output.backward(grad.double())
    expected = [output.detach(), *(t.grad for t in expected_leaves.tensors())]
    found = helpers.gradients(triton_form, problem.leaves(), grad)
    assert found[0].dtype == dtype
    assert found[1].dtype == dtype
    return [helpers.largest_error(f, e) for f, e in zip(found, expected, strict=True)]


def main() -> None:
    small = {"shapes": [(4, 5), (2, 3)], "queries": 5, "heads": 2, "channels": 8}
    results = {f"reference {r}": errors(**small, reference=r) for r in (0, 2, 4)}
    odd = {"shapes": [(3, 4), (1, 1), (2, 2)], "queries": 18, "heads": 1, "channels": 5, "points": 3, "batch": 1}
    results |= {f"odd sizes {r}": errors(**odd, reference=r) for r in (0, 2, 4)}
    torch.use_deterministic_algorithms(True)
    results["deterministic 4"] = errors(**small, reference=4)
    few = {**small, "queries": 2, "batch": 1}
    results |= {f"deterministic {r}": errors(**few, reference=r) for r in (0, 2)}
    torch.use_deterministic_algorithms(False)
    low = {"bfloat16": errors(torch.bfloat16, **small), "float16": errors(torch.float16, **small, reference=4)}

    bad = helpers.make_problem(**small, reference=2)
    bad.offsets[0, 0] = float("nan")
    bad.offsets[0, 1] = float("inf")
    bad.offsets[0, 2] = 1e30
    output = triton_form(bad)
    results["far outside"] = [output[0, :3].abs().max().item(), 0.0 if output.isfinite().all() else 1.0]
    empty = helpers.make_problem(**{**small, "queries": 0})
    assert triton_form(empty).shape == (2, 0, 16)
    print(json.dumps({"float32": results, "low": low, "backends": available_backends()}))


if __name__ == "__main__":
    main()
