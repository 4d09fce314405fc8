"""What commands show: text and tables on standard output, progress and log lines on standard error.

Nothing shown may cost finished work. Files are written first (:class:`Finish`). Names are shown as they are, whatever looks like
markup in them. Characters that a terminal or a redirected file cannot encode are replaced. A reader that goes away (`| head`) ends
the showing, not the command.
"""

import codecs
import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from deformable_detr.process import is_first_process

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

REPLACEMENTS = {"→": "->", "–": "-", "—": "-", "…": "...", "×": "x", "·": "|", "¹": "1", "²": "2", "≥": ">=", "≤": "<="}
"""Plain forms of characters in our own texts, for streams that cannot encode them; all others are shown by their number."""


def prepare_streams() -> None:
    """Make standard output take any character, and be there."""
    codecs.register_error("deformable_detr", _encodable)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # in a program without a console
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (it stays open)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="deformable_detr")


def _encodable(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # a byte of a file name in another encoding, which Python keeps like this
        return bytes([ord(character) - 0xDC00]), error.start + 1
    plain = REPLACEMENTS.get(character) or character.encode("ascii", "backslashreplace").decode("ascii")
    return plain, error.start + 1


def show(*parts: "RenderableType") -> None:
    """Print lines of text, tables and styled texts to standard output, one below the other; tables as wide as the screen."""
    from rich.text import Text

    console = _console()
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str | Text))


def progress(label: str, *, unit: str = "images", hidden: bool = False) -> "Progress":
    """A bar on standard error, with how many are done, how fast, and the time that is left; a context manager."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.1f} {unit}/s")

    columns = (TextColumn(label, markup=False), BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
    return Progress(*columns, console=_console(stderr=True), transient=True, disable=hidden)


def log_to_screen() -> None:
    """Show log lines on standard error, coloured on a terminal; of several processes that train together, the first one's."""
    from rich.logging import RichHandler

    handler = (
        RichHandler(console=_console(stderr=True), show_path=False, show_time=False)
        if sys.stderr.isatty()
        else logging.StreamHandler(sys.stderr)
    )
    level = logging.INFO if is_first_process() else logging.ERROR
    logging.basicConfig(level=level, handlers=[handler], format="%(message)s")


class Finish:
    """The end of a command: its files are written, then the screen shows what came out, then errors of writing are raised.

    ```python
    with Finish() as finish:
        finish.write(options.json, metrics.save_json)
        finish.show(metrics.table())
    ```
    """

    def __init__(self) -> None:
        self._parts: list[RenderableType] = []
        self._written: list[str] = []
        self._errors: list[Exception] = []

    def write(self, path: str | Path | None, writer: Callable[[Path], Any], note: str = "") -> None:
        """Write a file that was asked for; one that cannot be written does not keep others from it.

        Args:
            path: the file or folder; None: it was not asked for.
            writer: takes the path; may return the path of what it has written instead.
            note: what to say about it on the screen.
        """
        if path is None:
            return
        try:
            written = writer(Path(path))
        except (OSError, ValueError, ImportError) as error:
            self._errors.append(error)
        else:
            self._written.append(f"written: {written if isinstance(written, Path) else path}{note and f' ({note})'}")

    def show(self, *parts: "RenderableType") -> None:
        """Show these once everything is written, in this order, before the names of the files."""
        self._parts += parts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            return
        show(*self._parts, *self._written)
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            raise OSError("; ".join(map(str, self._errors)))


def _console(*, stderr: bool = False) -> "Console":
    """A console that shows names as they are."""
    from rich.console import Console

    class Screen(Console):
        """Goes on silently when nobody reads any more."""

        def on_broken_pipe(self) -> None:
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), (sys.stderr if stderr else sys.stdout).fileno())

    # a notebook shows tables; bars would ask for a package of their own there
    return Screen(stderr=stderr, markup=False, emoji=False, highlight=False, force_jupyter=False if stderr else None)
