"""What the commands that use a trained detector share: their options as dataclasses, and the log on the screen."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from rich.console import Console
from rich.logging import RichHandler

from deformable_detr.cli.train import ManualFormatter

if TYPE_CHECKING:
    from deformable_detr.inference import Predictor

Options = TypeVar("Options")
AnyPredictor = TypeVar("AnyPredictor", bound="Predictor")


@dataclass(frozen=True)
class DetectorOptions:
    """Where and how the network runs."""

    batch_size: int = 1
    """Images per forward pass. Larger is faster on a GPU; the results are the same."""

    device: str = "auto"
    """`auto` takes a GPU where there is one; else `cpu`, `cuda`, `cuda:1` or `mps`."""

    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Arithmetic of the network. `bf16` and `fp16` are faster on GPUs and cost very little accuracy; `auto` measures."""

    optimize: bool = True
    """Run the network in its fast form. `false`: the plain module, to compare with."""

    compile: bool = False
    """Compile the network: a minute for each size of image, then a little faster. Needs a C++ compiler, on a GPU Triton."""

    nms_iou: float | None = None
    """Drop detections that overlap a better one of their class by more than this IoU. Default: as stored with the weights."""

    top_k: int = 100
    """At most this many detections per image, the best ones."""

    dilation: bool = False
    """The weights are those of a DC5 model: official files do not say so themselves. Our own files do."""

    def load_settings(self) -> dict[str, Any]:
        """Keywords for `Detector.load`."""
        settings: dict[str, Any] = {
            "device": self.device,
            "precision": self.precision,
            "optimize": self.optimize,
            "compile": self.compile,
        }
        return settings | ({"dilation": True} if self.dilation else {})

    def set_up(self, predictor: AnyPredictor) -> AnyPredictor:
        """What is chosen once the weights are loaded, from whatever file."""
        if self.nms_iou is not None:
            predictor.nms_iou = self.nms_iou
        return predictor


def parse_options(
    kind: type[Options],
    argv: Sequence[str],
    *,
    command: str,
    usage: str,
    description: str,
    examples: str,
    arguments: Mapping[str, Mapping[str, Any]],
) -> Options:
    """Read a command line into a dataclass, whose attribute docstrings are the help.

    Args:
        kind: the dataclass.
        argv: what follows `deformable-detr COMMAND`. Hyphens in options do as well as underscores.
        command: its name.
        usage: the form of the whole line, without the program and the command.
        description: what the command does.
        examples: lines to copy.
        arguments: the fields of `kind` that are given by position or as several words, with their keywords for `add_argument`.

    Raises:
        SystemExit: after the help, with status 0.
        ValueError: an unknown option or a value of the wrong type; the message names it.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"deformable-detr {command}",
        usage=f"deformable-detr {command} {usage}",
        description=description,
        epilog=examples,
        formatter_class=ManualFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    for name, keywords in arguments.items():
        parser.add_argument(name, **keywords)
    parser.add_class_arguments(kind, skip={name.lstrip("-") for name in arguments}, as_group=False)
    try:
        parsed = parser.parse_args([_underscored(argument) for argument in argv])
    except ArgumentError as error:
        raise ValueError(f"{error} (deformable-detr {command} --help explains all options)") from error
    return kind(**{item.name: parsed[item.name] for item in fields(kind)})  # type: ignore[arg-type]


def log_to_screen() -> None:
    """Show log lines on standard error, coloured on a terminal."""
    handler = (
        RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
        if sys.stderr.isatty()
        else logging.StreamHandler(sys.stderr)
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], format="%(message)s")


def _underscored(argument: str) -> str:
    """`--batch-size=4` → `--batch_size=4`."""
    if not argument.startswith("--") or argument == "--":
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
