"""`deformable-detr benchmark`: how fast the operator, the model, a training step and reading are here."""

from deformable_detr.cli.benchmark_options import BenchmarkOptions
from deformable_detr.cli.command import Command

DESCRIPTION = """\
Time a part of this package on this machine. WHAT is one of: op (multi-scale deformable attention alone, beside its classic
form), model (a forward pass, plain and optimised), train (a training step), data (reading images)."""

EXAMPLES = """\
  deformable-detr benchmark op
  deformable-detr benchmark op --device cuda --dtype bfloat16
  deformable-detr benchmark model --size 480x640 800x1066 --compile
  deformable-detr benchmark train --batch-size 2
  deformable-detr benchmark data --num-images 100
"""


def run(options: BenchmarkOptions) -> None:
    """Measure, write, show.

    Raises:
        ValueError: a number below 1, or a GPU where there is none.
    """
    for name in ("threads", "rounds", "batch_size", "num_images"):
        if (number := getattr(options, name)) is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    import torch

    from deformable_detr.inference.predictor import choose_device

    choose_device(options.device or "cpu")
    torch.set_num_threads(options.threads or torch.get_num_threads())
    if options.what == "op":
        from deformable_detr.cli.benchmark_operator import benchmark_operator

        benchmark_operator(options)
    else:
        from deformable_detr.cli.benchmark_detector import benchmark_detector

        benchmark_detector(options)


COMMAND = Command("benchmark", BenchmarkOptions, run, DESCRIPTION, EXAMPLES)
