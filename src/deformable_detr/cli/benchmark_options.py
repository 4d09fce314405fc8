"""The options of `deformable-detr benchmark`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Options of the command."""

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
