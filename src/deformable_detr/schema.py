"""Dataclasses as descriptions of settings: names, types, defaults and documentation of their fields; values of those types."""

import ast
import inspect
import math
import operator
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Entry:
    """One field of a dataclass."""

    name: str
    """The attribute."""

    hint: Any
    """Its type."""

    default: Any
    """Its default value, `dataclasses.MISSING` if it has none."""

    metadata: Mapping[str, Any]
    """As given to `dataclasses.field`."""


@cache
def entries(kind: type) -> dict[str, Entry]:
    """The fields of a dataclass by name, inherited ones first."""
    hints = get_type_hints(kind)
    defaults = {item.name: item.default if item.default_factory is MISSING else item.default_factory() for item in fields(kind)}
    return {item.name: Entry(item.name, hints[item.name], defaults[item.name], item.metadata) for item in fields(kind)}


@cache
def help_texts(kind: type) -> dict[str, str]:
    """The strings below the attributes of a dataclass, inherited ones too; empty in a program that was shipped without sources."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        for statement, text in pairwise(_class_bodies(base.__module__).get(base.__name__, [])):
            match statement, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(value))):
                    texts[name] = " ".join(value.split())
    return texts


@cache
def _class_bodies(module: str) -> dict[str, list[ast.stmt]]:
    """The statements of each class of a module."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except OSError:
        return {}
    return {statement.name: statement.body for statement in tree.body if isinstance(statement, ast.ClassDef)}


def convert(value: Any, hint: Any, name: str) -> Any:
    """A value of a field's type from a plain one, such as JSON, YAML or a caller gives it: a list for a tuple, 1 for 1.0.

    Args:
        value: what was given.
        hint: the type: int, float (a finite one), str, bool, None, a Literal, dict, list or tuple of these, or a union.
        name: of the setting, for the message.

    Raises:
        ValueError: it is of another type.
    """
    for kind in alternatives(hint):
        with suppress(TypeError, ValueError):
            return _as(value, kind)
    raise ValueError(f"{name}: expected {describe(hint)}, got {value!r}")


def from_text(text: str, hint: Any, name: str) -> Any:
    """A value of a field's type from a word of a command line, which is read as YAML unless the type is a string.

    Raises:
        ValueError: it has no meaning as this type.
    """
    import yaml  # slow to import, and not needed for the help

    kinds = alternatives(hint)
    if text == "null" and NoneType in kinds:
        return None
    others = tuple(kind for kind in kinds if kind not in (str, NoneType))
    if not others:
        return text
    try:
        return convert(yaml.safe_load(text), Union[others], name)  # noqa: UP007 (made from a tuple)
    except (yaml.YAMLError, ValueError):
        return convert(text, hint, name)  # as a string, if it may be one


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def describe(hint: Any) -> str:
    """A type in words for a message, such as `int or 'auto'`."""
    return " or ".join(_describe(kind) for kind in alternatives(hint))


def _describe(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"{'one of ' if len(inner) > 1 else ''}{', '.join(map(repr, inner))}"
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"{len(inner)} values [{', '.join(map(describe, inner))}]"
    if origin in (tuple, list):
        return f"a list of {describe(inner[0])}"
    return "null" if kind is NoneType else "a mapping" if origin is dict else kind.__name__


def _as(value: Any, kind: Any) -> Any:
    """The value as one of the simple types; TypeError or ValueError where it is none."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Literal:
        return inner[[(type(choice), choice) for choice in inner].index((type(value), value))]
    if origin in (tuple, list):
        if not isinstance(value, (tuple, list)):
            raise TypeError
        kinds = inner[:1] * len(value) if origin is list or inner[-1] is Ellipsis else inner
        return origin(convert(item, each, "") for item, each in zip(value, kinds, strict=True))
    if origin is dict:
        if not isinstance(value, Mapping):  # dict() would make one of a list of words of two letters
            raise TypeError
        key_kind, value_kind = inner
        return {convert(key, key_kind, ""): convert(item, value_kind, "") for key, item in value.items()}
    if kind in (bool, NoneType) or isinstance(value, bool):
        if type(value) is kind:
            return value
        raise TypeError
    if kind is int:
        return operator.index(value)
    if kind is str:
        return os.fspath(value)
    number = kind(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def known(name: str, what: str, choices: Iterable[str]) -> str:
    """`name`, which must be one of several.

    Raises:
        ValueError: there is no such `what`; the message gives the one that was probably meant, and all of them.
    """
    choices = list(choices)
    if name in choices:
        return name
    close = get_close_matches(name, choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"unknown {what} {name!r}; {hint}known are {', '.join(choices) or 'none'}")


def check_range(settings: Any, names: str, low: float = 0, high: float = math.inf, *, beyond: bool = False) -> None:
    """:func:`check_number` of several attributes (where they are neither null nor a word), whose names stand in one text."""
    for name in names.split():
        value = getattr(settings, name)
        if value is not None and not isinstance(value, str):
            check_number(name, value, low, high, beyond=beyond)


def check_number(name: str, value: Any, low: float = 0, high: float = math.inf, *, beyond: bool = False) -> None:
    """Check that a number is one from `low` on, or beyond it, up to `high`.

    Raises:
        ValueError: it is not; the message names it.
        TypeError: it is no number at all.
    """
    if not ((low < value if beyond else low <= value) and value <= high and math.isfinite(value)):
        least = f"{'above' if beyond else 'at least'} {low:g}"
        within = f"in {'(' if beyond else '['}{low:g}, {high:g}]"
        raise ValueError(f"{name} must be {least if high == math.inf else within}, not {value}")


def plain_numbers(expected: str, kind: type, plain: type, **options: Any) -> list[Any]:
    """Values of options, of the kind `Integral` or `Real` or None, as Python's own type (`plain`).

    NumPy's numbers overflow where sums of them go on, and a Fraction is no number to torch.

    Raises:
        TypeError: one is not what is `expected`; True is no number here.
    """
    for name, value in options.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise TypeError(f"{name} must be {expected}, not {value!r}")
    return [None if value is None else plain(value) for value in options.values()]
