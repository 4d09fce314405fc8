"""What a command is: its options as a dataclass, and a function that takes them.

The dataclass's docstring begins the help; its fields are the options, the strings below them their help:

- a field without a default, or one with the metadata :data:`POSITIONAL`, is positional: `weights: str`
- a bool is a flag: `draw: bool = True` is `--draw` and `--no-draw`
- a field with the metadata of :func:`needs` is refused where the option that it belongs to is not given
- a list or tuple takes several words, as an option also one in brackets: `--size 480 640`, `--size "[480, 640]"`
- a field of the type :class:`PlannedRun` holds all settings of a training, as `training/recipe.py:plan_run` puts them together

Options are shown with hyphens and may be written with underscores.
"""

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, TypeVar, get_args, get_origin

from deformable_detr.config import RunConfig
from deformable_detr.files import check_place
from deformable_detr.schema import Entry, alternatives, convert, entries, from_text, help_texts
from deformable_detr.settings import GROUPS, SETTINGS, to_yaml

if TYPE_CHECKING:
    from deformable_detr.data.dataset import DetectionDataset

Options = TypeVar("Options")

ALIASES = {"output-dir": "output", "model.weights": "weights"}
"""Other names of options: `output_dir` is the setting behind `--output`, and weights are looked for beside the network."""


POSITIONAL = {"positional": True}
"""Metadata of a positional field with a default, which may be left out."""


def needs(name: str) -> dict[str, str]:
    """Metadata of an option that means something only together with another one."""
    return {"needs": name}


FOLDER = {"folder": True}
"""Metadata of a field that names a folder to write into, where there may be no file of that name."""

MAX_PORT = 65535

WRITTEN_FILES = ("json", "html", "results", "curves", "figure")
"""Options that name a file to write, in every command."""

WRITTEN = (*WRITTEN_FILES, "report", "output", "fix", "convert")
"""These, and those that may name a folder."""


@dataclass(frozen=True)
class PlannedRun:
    """A training as the options, the YAML file and the recipe make it."""

    config: RunConfig
    """All settings."""

    dataset: "DetectionDataset | None"
    """What was opened to choose them, as `training/recipe.py:plan_run` gives it."""


@dataclass(frozen=True)
class Command(Generic[Options]):
    """One command of the program."""

    name: str
    """The word behind `deformable-detr`."""

    options: type[Options]
    """The dataclass of its options."""

    run: Callable[[Options], int | None]
    """Does the work; gives the exit status, None for 0. What it refuses is a ValueError or OSError, whose message is shown."""

    examples: str
    """Lines to copy: the end of its help."""

    @property
    def description(self) -> str:
        """What it does: the beginning of its help."""
        return inspect.getdoc(self.options) or ""

    def parse(self, argv: Sequence[str]) -> Options:
        """Read a command line: what follows `deformable-detr COMMAND`.

        Raises:
            SystemExit: after the help or `--print-config`, with status 0.
            ValueError: an unknown option or a value of the wrong type; the message names it.
            FileNotFoundError: the file of `--config` is missing.
        """
        parser = self.parser()
        words = _plain_flags(spelled(argv), parser)
        found, unknown = parser.parse_known_intermixed_args(words)
        if unknown:
            parser.error(_unknown(unknown[0], parser))
        given = vars(found)
        values: dict[str, Any] = {}
        for name, entry in entries(self.options).items():
            if entry.hint is PlannedRun:
                values[name] = _planned({key: value for key, value in given.items() if key not in entries(self.options)})
            elif name in given:
                shown = name.upper() if _is_positional(entry) else f"--{_hyphenated(name)}"
                as_given = _is_positional(entry) and isinstance(given[name], list)  # names of files may begin with a bracket
                values[name] = _at_home(given[name] if as_given else _value(given[name], entry.hint, shown))
        options = self.options(**values)
        for name, entry in entries(self.options).items():
            other = entry.metadata.get("needs")
            if name in given and other is not None and not getattr(options, other):
                raise ValueError(f"--{_hyphenated(name)} has no effect without --{_hyphenated(other)}")
        return options

    def check_places(self, options: Options) -> None:
        """Refuse before the work, not after it, what cannot be written, or would be written over something else.

        Raises:
            OSError: see :func:`check_place`.
            ValueError: two outputs are one file, or one is an input, ground truth or not of its kind.
        """
        places = {name: place for name in WRITTEN if (place := getattr(options, name, None)) is not None}
        if "json" in places and not getattr(options, "draw", True):
            places.pop("output", None)  # nothing goes there
        for name, place in places.items():
            check_place(place, folder=name not in WRITTEN_FILES)
            if "folder" in entries(self.options)[name].metadata and Path(place).is_file():
                raise NotADirectoryError(f"{place}: is a file; name a folder")
        others = {os.path.realpath(word): word for name in entries(self.options) for word in _words(options, name)}
        for name, place in places.items():
            if Path(place).is_file():
                _check_replaceable(name, Path(place), others)
            real = os.path.realpath(place)
            twice = [other for other in places if other != name and os.path.realpath(places[other]) == real]
            if twice and (Path(place).is_file() or not Path(place).exists()):  # and not /dev/null
                raise ValueError(f"--{name} and --{twice[0]} both write {place}: give them different names")

    def parser(self) -> argparse.ArgumentParser:
        """The options as argparse knows them; their values are words, and what is not given is left out."""
        parser = _Parser(
            prog=f"deformable-detr {self.name}",
            description=self.description,
            epilog=f"examples:\n{self.examples}",
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=116, max_help_position=30),
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        own, texts = entries(self.options), help_texts(self.options)
        for name, entry in own.items():
            if entry.hint is PlannedRun:
                _add_settings(parser, taken=own)
            else:
                _add(parser, name, name, entry, texts.get(name, ""))
        places = [_place(action) for action in parser._actions if not action.option_strings]
        parser.usage = " ".join([parser.prog, *places, "[options]"])
        return parser


def _words(options: Any, name: str) -> list[str]:
    """What an option names, if that may be a file that is read."""
    value = None if name in WRITTEN else getattr(options, name)
    return [word for word in (value if isinstance(value, list) else [value]) if isinstance(word, str)]


def _check_replaceable(name: str, place: Path, inputs: Mapping[str, str]) -> None:
    """Numbers and detections replace those of an earlier call, and nothing else."""
    if os.path.realpath(place) in inputs:
        raise ValueError(f"--{name} {place}: this file is read, and would be written over; choose another name")
    if name not in ("json", "results") or not (content := place.read_bytes().strip()):
        return
    if content[:1] not in (b"{", b"["):
        raise ValueError(f"--{name} {place}: there is a file that holds no JSON; choose another name")
    if b'"annotations"' in content and b'"score"' not in content:
        raise ValueError(f"--{name} {place}: this file holds annotations, which would be lost; choose another name")


class _Parser(argparse.ArgumentParser):
    """Raises instead of ending the program."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} ({self.prog} --help explains all options)")


class _OneList(argparse.Action):
    """A list, which stands in one place: of two, the second could mean more values, or others instead."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if getattr(namespace, self.dest, values) != values:
            parser.error(f"{option_string} is given twice: write all of its values behind one, {option_string} A B")
        setattr(namespace, self.dest, values)


def _add(parser: Any, dest: str, name: str, entry: Entry, text: str) -> None:
    """Add the argument of one field to a parser or a group of it."""
    several = _takes_several(entry.hint)
    optional = entry.default is not MISSING
    keywords: dict[str, Any] = {"help": (text + _default(entry)).replace("%", "%%")}
    if _is_positional(entry):
        nargs = ("*" if optional else "+") if several else ("?" if optional else None)
        parser.add_argument(dest, nargs=nargs, metavar=name.upper(), **keywords)
    elif {*alternatives(entry.hint)} <= {bool, NoneType}:
        parser.add_argument(f"--{_hyphenated(name)}", dest=dest, action=argparse.BooleanOptionalAction, **keywords)
    else:
        form = {"nargs": "+", "action": _OneList} if several else {}
        parser.add_argument(f"--{_hyphenated(name)}", dest=dest, metavar=_metavar(name, entry), **form, **keywords)


def _add_settings(parser: argparse.ArgumentParser, taken: Iterable[str]) -> None:
    """Add all settings of a training, except those whose name is an option of the command itself."""
    run = parser.add_argument_group("the run")
    run.add_argument("--config", metavar="FILE", dest="config file", help="YAML file with any of these settings, nested by group.")
    run.add_argument("--print-config", action="store_true", dest="print config", help="Print all settings as YAML and stop.")
    texts, groups = help_texts(RunConfig), {"": run}
    groups |= {name: parser.add_argument_group(f"{name}: {texts[name][0].lower()}{texts[name][1:].rstrip('.')}") for name in GROUPS}
    for full, entry in SETTINGS.items():
        group = full.rpartition(".")[0]
        name = "output" if full == "output_dir" else entry.name
        if full == "dataset":
            parser.add_argument(full, nargs="?", metavar="DATASET", help=texts[full])
        elif name not in taken:
            _add(groups[group], full, name, entry, help_texts(GROUPS.get(group, RunConfig)).get(entry.name, ""))


def _is_positional(entry: Entry) -> bool:
    return entry.default is MISSING or "positional" in entry.metadata


def _takes_several(hint: Any) -> bool:
    """Whether a type is a list or tuple, and nothing simpler."""
    return all(get_origin(kind) in (list, tuple) for kind in alternatives(hint) if kind is not NoneType)


def _place(action: argparse.Action) -> str:
    """A positional argument in the usage line."""
    name = f"{action.metavar} ..." if action.nargs in ("+", "*") else str(action.metavar)
    return f"[{name}]" if action.nargs in ("?", "*") else name


def _default(entry: Entry) -> str:
    """The end of a help text: what holds if nothing is given."""
    if entry.default in (None, [], ()) or _is_positional(entry):
        return ""
    shown = {True: "yes", False: "no"}[entry.default] if entry.hint is bool else entry.default
    return f" (default: {list(shown) if isinstance(shown, tuple) else shown})"


def _metavar(name: str, entry: Entry) -> str:
    """The placeholder of the value in the help."""
    kinds = [kind for kind in alternatives(entry.hint) if kind is not NoneType]
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    numbers = [kind.__name__.upper() for kind in kinds if kind in (int, float)]
    return "|".join([*numbers, *choices]) or name.rpartition("_")[2].upper()


def _planned(given: dict[str, Any]) -> PlannedRun:
    """The training that is asked for; where only its settings are, they are printed."""
    from deformable_detr.cli.screen import log_to_screen
    from deformable_detr.training.recipe import plan_run  # brings torch, which the help does without

    log_to_screen()  # what was chosen is said
    options = {name: _value(value, SETTINGS[name].hint, name) for name, value in given.items() if name in SETTINGS}
    planned = PlannedRun(*plan_run(options, given.get("config file")))
    if given.get("print config"):
        sys.stdout.write(to_yaml(planned.config))
        raise SystemExit(0)
    return planned


def _value(given: Any, hint: Any, name: str) -> Any:
    """The value of an option from its words."""
    if isinstance(given, str):
        return from_text(given, hint, name)
    if not isinstance(given, list):
        return given
    if len(given) == 1 and given[0].startswith("["):
        return from_text(given[0], hint, name)
    (kind,) = [kind for kind in alternatives(hint) if get_origin(kind) in (list, tuple)]
    return convert([from_text(word, get_args(kind)[0], name) for word in given], hint, name)


def _at_home(value: Any) -> Any:
    """Paths that begin with `~`: shells leave `--output=~/runs` to the program."""
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111 (`./a.jpg` stays as it is)


def spelled(argv: Sequence[str]) -> list[str]:
    """Options as the parser knows them: with hyphens, without the group of a setting (`--train.batch_size` → `--batch-size`)."""
    end = argv.index("--") if "--" in argv else len(argv)
    return [_spelled(word) if index < end and word.startswith("--") else word for index, word in enumerate(argv)]


def _spelled(word: str) -> str:
    name, equals, value = word[2:].partition("=")
    name = ALIASES.get(_hyphenated(name), _hyphenated(name))
    group, _, short = name.rpartition(".")
    if f"{group}.{short.replace('-', '_')}" in SETTINGS:
        name = short
    return f"--{name}{equals}{value}"


def _hyphenated(name: str) -> str:
    return name.replace("_", "-")


def _plain_flags(words: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Flags that are given a value, as scripts do it, without one: `--draw false` or `--draw=false` → `--no-draw`."""
    plain: list[str] = []
    end = words.index("--") if "--" in words else len(words)
    for index, word in enumerate(words):
        name, _, value = word.partition("=")
        if index < end and _is_flag(name, parser) and value.lower() in ("true", "false"):
            plain += [name, value]
        else:
            plain.append(word)
        if len(plain) > 1 and index < end and plain[-1].lower() in ("true", "false") and _is_flag(plain[-2], parser):
            flag, value = plain[-2:]
            plain[-2:] = [flag if value.lower() == "true" else f"--no-{flag.removeprefix('--')}"]
    return plain


def _is_flag(word: str, parser: argparse.ArgumentParser) -> bool:
    return isinstance(parser._option_string_actions.get(word), argparse.BooleanOptionalAction) and not word.startswith("--no-")


def _unknown(word: str, parser: argparse.ArgumentParser) -> str:
    """What to say about a word that has no meaning here."""
    name = word.partition("=")[0]
    alike = get_close_matches(f"--{name.lstrip('-').rpartition('.')[2]}", parser._option_string_actions, n=2)
    close = alike if name.startswith("-") else []
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{'unknown option' if name.startswith('-') else 'unexpected'} {name}{hint}"
