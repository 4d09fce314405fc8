"""`deformable-detr train`: settings from a preset, a YAML file and the command line, then a training run."""

import difflib
import logging
import os
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, set_parsing_settings
from rich.console import Console
from rich.logging import RichHandler

from deformable_detr.config import RunConfig
from deformable_detr.presets import MODEL_PRESETS, model_preset
from deformable_detr.recipes import PRESETS

if TYPE_CHECKING:
    from deformable_detr.training import TrainResult

USAGE = "deformable-detr train DATASET [--preset NAME] [--config FILE] [--output_dir FOLDER] [options]"

DESCRIPTION = """\
Train Deformable DETR on a dataset of your own: COCO, YOLO or Pascal VOC, recognised by itself.

In COCO's form DATASET is a folder with annotations/instances_train.json and annotations/instances_val.json, and the images in
train/ and val/. COCO itself (with years in the names) and exports of Roboflow work as they are.

Everything goes to --output_dir: weights/best.safetensors and weights/last.safetensors, config.yaml, log.jsonl,
metrics.csv, TensorBoard events, curves and sample images, and the state to resume from.

Settings are taken, each overriding the one before, from the defaults below, --preset (settings of the network),
--config (a YAML file; the config.yaml of a run folder repeats that run), and the options."""

EPILOG = """\
presets:
  {presets}

short forms:
  The group may be left out where the name is unique: --epochs 12 is --train.epochs 12, --lr 1e-4 is --optimizer.lr 1e-4.
  Hyphens do as well as underscores. Lists: --train_short_sides "[480, 512, 544]". Nothing: --steps null.

examples:
  deformable-detr train my_data --preset r50-two-stage --epochs 50 --output_dir runs/first
  deformable-detr train my_data --weights r50_deformable_detr.pth --epochs 12 --lr 1e-4      from official weights
  deformable-detr train my_data --recipe small-data                          a few hundred images, ImageNet backbone
  deformable-detr train my_data --recipe finetune --weights r50_two_stage.pth     the same, from a trained detector
  deformable-detr train my_data --batch_size auto                            as many images at once as fit
  deformable-detr train my_data --batch_size 1 --accumulate 8 --precision bf16               little GPU memory
  deformable-detr train my_data --config configs/own-data.yaml --num_queries 100             a recipe, one value changed
  deformable-detr train --resume --output_dir runs/first                                     after Ctrl-C or a crash
  deformable-detr train my_data --preset r50-refine --print_config                           all settings as YAML
  accelerate launch --num_processes 8 -m deformable_detr train coco --config configs/r50-refine.yaml
"""


ALIASES = {"model.weights": "weights"}
"""Other names of settings: the weights belong to the run, but are looked for beside the network."""


class ManualFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Options with type and default; description and examples as they are written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("width", 116)
        kwargs.setdefault("max_help_position", 30)
        super().__init__(*args, **kwargs)


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: what follows `deformable-detr train`.

    Returns:
        The exit status.
    """
    config = parse_config(argv)

    from torch import distributed

    from deformable_detr.training import train
    from deformable_detr.visualize.drawing.samples import draw_samples

    first_process = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if first_process else logging.ERROR, handlers=[_log_handler()], format="%(message)s")
    result = train(config, draw_samples=draw_samples)
    if distributed.is_initialized():
        distributed.destroy_process_group()
    if first_process:
        _print_result(result)
    return 0


def _print_result(result: "TrainResult") -> None:
    """Where everything is, and how good it is."""
    lines = [f"Finished after {result.steps} steps."]
    if result.best_metrics:
        numbers = {label: result.best_metrics[name] or 0.0 for name, label in (("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75"))}
        lines.append("Best: " + "  ".join(f"{label} {value:.3f}" for label, value in numbers.items()))
    lines += [f"Weights: {result.best_weights}", f"Log, curves and samples: {result.output_dir}"]
    Console().print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)


def parse_config(argv: Sequence[str]) -> RunConfig:
    """The whole configuration of a run from its command line.

    Args:
        argv: what follows `deformable-detr train`.

    Raises:
        SystemExit: after the help, with status 0.
        ValueError: an unknown setting, preset, or a value of the wrong type; the message names it.
        FileNotFoundError: the YAML file is missing.
    """
    arguments = [canonical(argument) for argument in argv]
    arguments = _resume_as_flag(arguments)
    config_file, arguments = _take(arguments, "--config")
    if config_file is None and "--resume=true" in arguments:
        config_file = _config_of_run(arguments)
    parser = build_parser(_preset(arguments, config_file))
    if config_file is not None:
        arguments = [f"--config={config_file}", *arguments]  # first, so that the options override it
    if _names(arguments, "--train.epochs") and not _names(arguments, "--train.steps"):
        arguments.append("--train.steps=null")  # epochs asked for here count, even where the file counts in steps
    config = _parse(parser, arguments)
    if config.recipe is None or config.resume:
        return config
    from deformable_detr.training.recipe import settings_of_recipe

    parser.set_defaults(settings_of_recipe(config))
    return _parse(parser, arguments)


def _parse(parser: ArgumentParser, arguments: list[str]) -> RunConfig:
    try:
        return _run_config(parser.parse_args(arguments).as_dict())
    except ArgumentError as error:
        raise ValueError(_explained(str(error))) from error


def build_parser(preset: str = "r50") -> ArgumentParser:
    """The options: one for each field of the configuration, with the preset's values as defaults under `model`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="deformable-detr train",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=EPILOG.format(presets=", ".join(MODEL_PRESETS)),
        formatter_class=ManualFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings, nested by group.")
    parser.add_class_arguments(RunConfig, as_positional=True)
    model = {f"model.{name}": value for name, value in model_preset(preset).to_dict().items()}
    parser.set_defaults({"preset": preset, **model})
    return parser


def canonical(argument: str) -> str:
    """`--batch-size=4` → `--train.batch_size=4`; what is no option or has no unique meaning stays as it is."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    name = name[2:].replace("-", "_")
    name = ALIASES.get(name, name)
    fitting = [full for full in _settings() if full.rpartition(".")[2] == name]
    if name not in _settings() and len(fitting) == 1:
        name = fitting[0]
    return f"--{name}{equals}{value}"


def _settings() -> list[str]:
    """All settings by their full names, such as `output_dir` and `train.epochs`."""
    names = []
    for item in fields(RunConfig):
        if is_dataclass(item.type):
            names += [f"{item.name}.{inner.name}" for inner in fields(item.type)]
        else:
            names.append(item.name)
    return names


def _resume_as_flag(arguments: list[str]) -> list[str]:
    """`--resume` alone, or with its value behind it → `--resume=true`."""
    if "--resume" not in arguments:
        return arguments
    at = arguments.index("--resume")
    value, rest = "true", arguments[at + 1 :]
    if rest[:1] in (["true"], ["false"]):
        value, rest = rest[0], rest[1:]
    return [*arguments[:at], f"--resume={value}", *rest]


def _take(arguments: list[str], option: str) -> tuple[str | None, list[str]]:
    """The (last) value of an option, and the arguments without it."""
    found, rest, position = None, [], 0
    while position < len(arguments):
        name, equals, value = arguments[position].partition("=")
        position += 1
        if name != option:
            rest.append(arguments[position - 1])
            continue
        if not equals:
            if position == len(arguments):
                raise ValueError(f"{option} needs a value")
            value = arguments[position]
            position += 1
        found = value
    return found, rest


def _names(arguments: list[str], option: str) -> bool:
    return any(argument.partition("=")[0] == option for argument in arguments)


def _config_of_run(arguments: list[str]) -> str | None:
    """The config.yaml of the run folder that is to be resumed."""
    folder = _take(arguments, "--output_dir")[0] or RunConfig(dataset="").output_dir
    path = Path(folder) / "config.yaml"
    return str(path) if path.is_file() else None


def _preset(arguments: list[str], config_file: str | None) -> str:
    """The preset named on the command line, else in the YAML file, else the default one."""
    named = _take(arguments, "--preset")[0]
    recipe = _take(arguments, "--recipe")[0]
    if named is None and config_file is not None:
        path = Path(config_file)
        if not path.is_file():
            raise FileNotFoundError(f"--config {path}: no such file")
        try:
            record = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"--config {path} is not valid YAML: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"--config {path} holds no settings; expected lines such as `output_dir: runs/first`")
        named, recipe = record.get("preset"), recipe or record.get("recipe")
    return PRESETS.get(str(recipe), RunConfig(dataset="").preset) if named is None else str(named)


def _explained(message: str) -> str:
    """The parser's message in plain words, with the setting that was probably meant."""
    message = " ".join(message.split())
    for pattern, plain in (
        (r'Parser key "([^"]+)":', r"\1:"),
        (r"Expected an? <class '(\w+)'>\.? Got value:", r"expected \1, got"),
        (r"Expected a typing\.Literal\[([^\]]*)\]\. Got value:", r"expected one of \1, got"),
    ):
        message = re.sub(pattern, plain, message)
    for name in re.findall(r"--([\w.]+)", message):
        if name not in [*_settings(), "config"]:
            close = difflib.get_close_matches(name, [*_settings(), *(full.rpartition(".")[2] for full in _settings())], n=2)
            if close:
                return f"{message}; did you mean {' or '.join('--' + found for found in close)}?"
    return message


def _run_config(record: dict[str, Any]) -> RunConfig:
    """The dataclasses from parsed and checked values."""
    values: dict[str, Any] = {}
    for item in fields(RunConfig):
        value = record[item.name]
        values[item.name] = item.type(**value) if is_dataclass(item.type) and isinstance(item.type, type) else value
    return RunConfig(**values)


def _log_handler() -> logging.Handler:
    """Coloured log lines on a terminal, plain ones elsewhere."""
    if sys.stderr.isatty():
        return RichHandler(console=Console(stderr=True), show_path=False, show_level=False, rich_tracebacks=False)
    return logging.StreamHandler(sys.stderr)
