"""The Triton kernels without a GPU: their numbers in Triton's interpreter, and their compilation for a GPU that is not there."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_numbers_in_the_interpreter():
    script = Path(__file__).with_name("triton_interpreter.py")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=3600, check=False)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout.strip().splitlines()[-1])
    assert "triton" in report["backends"]
    for case, errors in report["float32"].items():
        assert max(errors) < 2e-6, case
    # output and the gradient of value have the low precision of value; the geometry's gradients are float32
    for case, unit in (("bfloat16", 2**-7), ("float16", 2**-10)):
        assert max(report["low"][case][:2]) < unit
        assert max(report["low"][case][2:]) < 1e-5


@pytest.mark.parametrize("reference", [0, 2])
def test_compiles_for_a_gpu(reference):
    """Down to machine code for compute capability 9.0 with the assembler that Triton brings along."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile

        from deformable_detr.ops import triton_kernels

        constants = {"R": reference, "LEVELS": 4, "POINTS": 4, "BLOCK_D": 32, "BLOCK_N": 16, "BLOCK_Q": 2}
        flags = {"WITH_REFERENCE": bool(reference), "DETERMINISTIC": False}
        floats = ["*fp32"] * 3
        forward = ["*bf16", "*i32", *floats, "*bf16", *["i32"] * 5]
        backward = ["*bf16", "*bf16", "*i32", *floats, *["*fp32"] * 5, *["i32"] * 5]
        cases = (
            (triton_kernels._forward_kernel, forward, constants),
            (triton_kernels._backward_kernel, backward, constants | flags),
        )
        for kernel, types, constexprs in cases:
            remaining = iter(types)
            signature = {name: "constexpr" if name in constexprs else next(remaining) for name in kernel.arg_names}
            source = ASTSource(
                fn=kernel, signature=signature, constexprs={(kernel.arg_names.index(n),): v for n, v in constexprs.items()}
            )
            assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
