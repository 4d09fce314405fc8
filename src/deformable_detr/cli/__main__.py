"""The command line: `deformable-detr COMMAND …`; one file per command, imported only when it is called."""

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from deformable_detr.version import __version__

Command = Callable[[list[str]], int | None]


def doctor(argv: list[str]) -> int | None:
    """Examine a dataset before training: what is wrong, where, what to do; --fix repairs a copy."""
    from deformable_detr.cli.doctor import main as run

    return run(argv)


def train(argv: list[str]) -> int | None:
    """Train on your images: COCO, YOLO or Pascal VOC."""
    from deformable_detr.cli.train import main as run

    return run(argv)


def evaluate(argv: list[str]) -> int | None:
    """Measure how good a trained detector is: AP and AR, and a report on its mistakes."""
    from deformable_detr.cli.evaluate import main as run

    return run(argv)


def predict(argv: list[str]) -> int | None:
    """Find objects in images; draw them, write them as JSON."""
    from deformable_detr.cli.predict import main as run

    return run(argv)


def preview(argv: list[str]) -> int | None:
    """Draw what the network sees in training: augmented images with their boxes."""
    from deformable_detr.cli.preview import main as run

    return run(argv)


def replay(argv: list[str]) -> int | None:
    """Explain a training step whose numbers went wrong (NaN, infinity)."""
    from deformable_detr.cli.replay import main as run

    return run(argv)


def serve(argv: list[str]) -> int | None:
    """Answer images over HTTP with JSON or drawings."""
    from deformable_detr.cli.serve import main as run

    return run(argv)


def describe(argv: list[str]) -> int | None:
    """Show the way of one image through the network, stage by stage."""
    from deformable_detr.cli.describe import main as run

    return run(argv)


def explain(argv: list[str]) -> int | None:
    """Explain one detection: a page of where its query looked and how its box came about."""
    from deformable_detr.cli.explain import main as run

    return run(argv)


def explore(argv: list[str]) -> int | None:
    """See in the browser where a detector looks: click a box, a point, a query."""
    from deformable_detr.cli.explore import main as run

    return run(argv)


def demo(argv: list[str]) -> int | None:
    """Generate images, train a small detector on them, evaluate, draw: all in a few minutes."""
    from deformable_detr.cli.demo import main as run

    return run(argv)


def benchmark(argv: list[str]) -> int | None:
    """Time the operator, the network, a training step or reading images on this machine, beside peers."""
    from deformable_detr.cli.benchmark import main as run

    return run(argv)


def convert(argv: list[str]) -> int | None:
    """Convert weights from and to other projects' formats."""
    from deformable_detr.cli.convert import main as run

    return run(argv)


def export(argv: list[str]) -> int | None:
    """Write a detector to a file that runs without this package: .pt2, ONNX, OpenVINO."""
    from deformable_detr.cli.export import main as run

    return run(argv)


COMMANDS: dict[str, Command] = {
    "doctor": doctor,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "preview": preview,
    "replay": replay,
    "serve": serve,
    "describe": describe,
    "explain": explain,
    "explore": explore,
    "demo": demo,
    "benchmark": benchmark,
    "convert": convert,
    "export": export,
}

USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, NotImplementedError)
"""Shown as one line: their messages say what was wrong and what to do."""

HELP = """\
usage: deformable-detr COMMAND [arguments]     (the same: python -m deformable_detr COMMAND …)

Deformable DETR: train an object detector on your own images, see how good it is, use it.

commands:
{commands}

  deformable-detr COMMAND --help    explains a command and all its options

options:
  -h, --help     show this and exit
  --version      show the version and exit
  --traceback    show where in the code an error arose (also: DEFORMABLE_DETR_TRACEBACK=1)

examples:
  deformable-detr demo
  deformable-detr doctor my_data
  deformable-detr train my_data --preset r50-two-stage --epochs 50 --output_dir runs/first
  deformable-detr evaluate runs/first my_data
  deformable-detr predict runs/first street.jpg
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; those of the process when None.

    Returns:
        The exit status: 0 done, 1 failed, 2 a mistake in what was asked for, 130 stopped by Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in arguments or os.environ.get("DEFORMABLE_DETR_TRACEBACK", "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--traceback"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print_out(_help())
        return 0 if arguments else 2
    if arguments[0] in ("--version", "-V"):
        print_out(f"deformable-detr {__version__}\n")
        return 0
    try:
        return _command(arguments[0])(arguments[1:]) or 0
    except KeyboardInterrupt as error:
        print_error(str(error) or "stopped", heading="stopped")
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except USER_ERRORS as error:
        if show_traceback:
            traceback.print_exc()
        print_error(str(error) or type(error).__name__)
        return 2


def print_out(text: str) -> None:
    """Write to standard output."""
    sys.stdout.write(text)


def print_error(message: str, heading: str = "error") -> None:
    """Write one message to standard error, its heading in red on a terminal."""
    colored = f"\x1b[1;31m{heading}:\x1b[0m" if sys.stderr.isatty() and "NO_COLOR" not in os.environ else f"{heading}:"
    sys.stderr.write(f"{colored} {' '.join(message.split())}\n")


def _command(name: str) -> Command:
    """The function of a command.

    Raises:
        ValueError: there is none of this name; the message says which one was probably meant.
    """
    if name in COMMANDS:
        return COMMANDS[name]
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(COMMANDS)}"
    raise ValueError(f"unknown command {name!r}; {hint} (deformable-detr --help)")


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    return HELP.format(commands="\n".join(f"  {name:<{width}}{function.__doc__}" for name, function in COMMANDS.items()))


if __name__ == "__main__":
    sys.exit(main())
