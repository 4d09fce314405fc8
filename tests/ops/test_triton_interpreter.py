"""The Triton kernels without a GPU: their numbers in Triton's interpreter, and their compilation for a GPU that is not there."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
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


def test_a_compiled_kernel_is_kept_for_what_it_was_compiled_for():
    """Launched again with the same arguments; compiled anew for another type, alignment, flag or number of channels."""
    import torch

    from deformable_detr.ops import triton_kernels

    launches = []

    class Compiled:
        def __getitem__(self, grid):
            return lambda *arguments: launches.append(("again", grid, arguments))

    class Kernel:
        fn = "a kernel of this test"

        def __getitem__(self, grid):
            def compile(*arguments, num_warps):
                launches.append(("compiled", grid, arguments))
                return Compiled()

            return compile

    def launch(value, *flags):
        plan = triton_kernels._plan(1024, torch.Size((1, 30, 2, value.shape[-1])), torch.Size((1, 5, 2, 2, 4, 2)), 2)
        triton_kernels._launch(Kernel(), plan, (value,), *flags)
        return launches[-1]

    aligned = torch.zeros(60, 8)
    first = launch(aligned)
    assert first[0] == "compiled" and first[1] == (2, 1, 1)
    assert launch(aligned) == ("again", first[1], first[2])
    for other in (aligned.half(), torch.zeros(60 * 8 + 1)[1:].view(60, 8), torch.zeros(60, 16)):
        assert launch(other)[0] == "compiled"
        assert launch(other)[0] == "again"
    assert launch(aligned, True)[0] == "compiled"
    assert launch(aligned)[0] == "again"


def test_an_image_beyond_32_bits_is_refused():
    import torch

    from deformable_detr.ops import triton_kernels

    with pytest.raises(ValueError, match=r"2\^31"):
        triton_kernels._plan(1024, torch.Size((1, 9_000_000, 8, 32)), torch.Size((1, 300, 8, 4, 4, 2)), 2)
