"""`deformable-detr benchmark`: how fast the operator, the model, a training step and reading are here."""

from dataclasses import dataclass
from typing import Literal

from deformable_detr.cli.command import Command
from deformable_detr.cli.screen import Finish
from deformable_detr.schema import check_range

EXAMPLES = """\
  deformable-detr benchmark op
  deformable-detr benchmark op --device cuda --dtype bfloat16
  deformable-detr benchmark model --size 480x640 800x1066 --compile
  deformable-detr benchmark train --batch-size 2
  deformable-detr benchmark data --num-images 100
"""


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Time a part of this package on this machine. WHAT is one of: op (multi-scale deformable attention alone, beside its classic
    form), model (a forward pass, plain and optimised), train (a training step), data (reading images).
    """

    what: Literal["op", "model", "train", "data"]
    """op, model, train or data."""

    output: str | None = None
    """The JSON file. Default: runs/benchmark-WHAT.json."""

    threads: int | None = None
    """CPU threads. Default: as many as torch takes."""

    rounds: int | None = None
    """Interleaved runs, whose median counts. Default: 7 for op (five times as many for its decoder cases), else 3."""

    memory: bool = True
    """op, model, train: measure peak memory, too, in processes of their own."""

    size: list[str] | None = None
    """model, train, data: HEIGHTxWIDTH of the images, one or several. Default: 800x1066 and 480x640 for model, else 480x640."""

    batch_size: int | None = None
    """model, train: images at once. Default: 1 for model, 2 for train."""

    compile: bool = False
    """model: measure the compiled model as well."""

    num_images: int = 24
    """data: how many images."""

    preset: str | None = None
    """model, train, data: the model that is measured. Default: demo for data, else r50."""

    device: Literal["cpu", "cuda"] | None = None
    """op, model, train: where to compute. Default: for op the GPU where there is one, else the CPU."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """op: of the values."""

    case: list[str] | None = None
    """op: only these cases."""

    only: list[str] | None = None
    """op, model, train: only implementations with one of these words in their names, and the first one."""

    def chosen(self, names: list[str]) -> list[str]:
        """Those of these implementations that are to be measured."""
        return [name for name in names if not self.only or name == names[0] or any(part in name for part in self.only)]


def run(options: BenchmarkOptions) -> None:
    """Measure, write, show."""
    check_range(options, "threads rounds batch_size num_images", 1)
    import torch

    from deformable_detr.files import write_json
    from deformable_detr.inference.predictor import choose_device

    choose_device(options.device or "cpu")
    torch.set_num_threads(options.threads or torch.get_num_threads())
    if options.what == "op":
        from deformable_detr.cli.benchmark_operator import benchmark_operator

        report = benchmark_operator(options)
    else:
        from deformable_detr.cli.benchmark_detector import benchmark_detector

        report = benchmark_detector(options)
    with Finish() as finish:
        finish.write(options.output or f"runs/benchmark-{options.what}.json", lambda path: write_json(path, report, indent=1))


COMMAND = Command("benchmark", BenchmarkOptions, run, EXAMPLES)
