"""The command line: `deformable-detr COMMAND …`."""

import atexit
import gc
import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader

from deformable_detr.cli.commands import COMMANDS, find_command
from deformable_detr.cli.screen import log_to_screen, prepare_streams
from deformable_detr.lean_imports import keep_what_is_imported
from deformable_detr.version import __version__

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
  deformable-detr train my_data --preset r50-two-stage --epochs 50 --output runs/first
  deformable-detr evaluate runs/first my_data
  deformable-detr predict runs/first street.jpg
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; those of the process when None.

    Returns:
        The exit status: 0 done, 1 failed, 2 an error in what was asked for, 130 stopped by Ctrl-C.
    """
    prepare_streams()
    if argv is None:
        keep_what_is_imported()
    arguments = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in arguments or os.environ.get("DEFORMABLE_DETR_TRACEBACK", "") not in ("", "0")
    try:
        status = _run([argument for argument in arguments if argument != "--traceback"])
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        print_error(str(error) or "stopped", heading="stopped")
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except USER_ERRORS as error:
        if show_traceback:
            traceback.print_exc()
        print_error(_message(error))
        return 2
    return status


def _run(arguments: list[str]) -> int:
    """Do what the command line says; returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS)) + 2
        sys.stdout.write(HELP.format(commands="\n".join(f"  {name:<{width}}{text}" for name, text in COMMANDS.items())))
        return 0 if arguments else 2
    if arguments[0] in ("--version", "-V"):
        sys.stdout.write(f"deformable-detr {__version__}\n")
        return 0
    command = find_command(arguments[0])
    options = command.parse(arguments[1:])
    log_to_screen()
    command.check_places(options)
    atexit.unregister(end_quickly)  # once, however often a process comes here
    atexit.register(end_quickly)
    return command.run(options) or 0


def end_quickly() -> None:
    """Leave out Python's last search for garbage among all objects, which takes longer than a second.

    Not where a library made with nanobind is loaded (Triton, with PyTorch's compiler): it would report what was not found as leaks.
    """
    modules = list(sys.modules.values())
    extensions = [module for module in modules if isinstance(getattr(module, "__loader__", None), ExtensionFileLoader)]
    if any(type(found).__module__ == "nanobind" for module in extensions for found in vars(module).values()):
        gc.unfreeze()  # what was kept when it was imported
    else:
        gc.freeze()


def _message(error: Exception) -> str:
    """What an error says; where a worker of a DataLoader passed it on, without the traceback that PyTorch puts before it."""
    text, name = str(error), type(error).__name__
    if "in DataLoader worker process" in text.partition("\n")[0]:
        text = re.split(rf"^[\w.]*{name}: ", text, flags=re.MULTILINE)[-1]
    return text or name


def print_error(message: str, heading: str = "error") -> None:
    """Write one message to standard error, its heading in red on a terminal."""
    colored = f"\x1b[1;31m{heading}:\x1b[0m" if sys.stderr.isatty() and "NO_COLOR" not in os.environ else f"{heading}:"
    sys.stderr.write(f"{colored} {' '.join(message.split())}\n")


if __name__ == "__main__":
    sys.exit(main())
