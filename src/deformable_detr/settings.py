"""Settings of a training run by name, and the one way in which their sources are put together.

    defaults  <  preset (the network, its training)  <  recipe (chosen by the data)  <  YAML file  <  options or keywords

Each source overrides those left of it. A setting is called by its own name (`lr`), by its full one (`optimizer.lr`), or is in
its group (`optimizer: {lr: …}`).
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from deformable_detr.config import RunConfig
from deformable_detr.presets import RUN_SETTINGS, model_preset
from deformable_detr.recipes import PRESETS
from deformable_detr.schema import Entry, convert, entries

GROUPS: dict[str, Any] = {name: entry.hint for name, entry in entries(RunConfig).items() if is_dataclass(entry.hint)}
"""The dataclasses that :class:`~deformable_detr.config.RunConfig` consists of, by name."""

SETTINGS: dict[str, Entry] = {name: entry for name, entry in entries(RunConfig).items() if name not in GROUPS} | {
    f"{group}.{name}": entry for group, kind in GROUPS.items() for name, entry in entries(kind).items()
}
"""Every setting by its full name, such as `output_dir` or `train.epochs`."""

_ALIASES = {"model.weights": "weights"}
"""The weights belong to the run, but are looked for beside the network."""

_LENGTH = ("train.epochs", "train.steps", "train.budget", "train.seconds")
"""Say how long a run is: where options do, nothing that a file says of it counts."""

_PATHS = ("dataset", "output_dir", "weights")
"""What may begin with `~`, the user's folder."""


def asked_settings(options: Mapping[str, Any], file: str | Path | None = None) -> dict[str, Any]:
    """What was asked for of a run, by full names.

    Args:
        options: in any of the forms above.
        file: YAML file with settings, such as the `config.yaml` of a run folder. None: that of the run that `resume` goes on with.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown setting, preset or recipe, or a value of the wrong type; the message names it.
    """
    asked = by_full_name(options)
    if file is None and asked.get("resume"):
        saved = Path(asked.get("output_dir", SETTINGS["output_dir"].default)) / "config.yaml"
        file = saved if saved.is_file() else None
    said = read_yaml(file) if file is not None else {}
    if any(asked.get(name) is not None for name in ("train.epochs", "train.steps", "train.budget")):
        said = {name: value for name, value in said.items() if name not in _LENGTH}
    if "train.epochs" in asked:
        asked.setdefault("train.steps", None)  # those of a recipe do not count either
    if "train.steps" in asked:
        asked.setdefault("train.seconds", None)
    return said | asked


def read_config(path: str | Path) -> RunConfig:
    """The configuration in a run folder's `config.yaml`, or in any YAML file that says enough by itself.

    Raises:
        FileNotFoundError: see :func:`read_yaml`.
        ValueError: see there and :func:`build_config`.
    """
    return build_config(read_yaml(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file, by their full names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML, an unknown setting, or a value of the wrong type.
    """
    import yaml

    from deformable_detr.yaml_keys import Typed

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a YAML file with settings")
    try:
        record = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=Typed)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no settings; expected lines such as `output_dir: runs/first`")
    try:
        return by_full_name(record)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def by_full_name(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in any of their forms → by their full names, with values of the right types.

    Raises:
        ValueError: an unknown setting, or a value of the wrong type.
    """
    values: dict[str, Any] = {}
    for name, value in record.items():
        if name not in GROUPS:
            full = full_name(name)
            value = convert(value, SETTINGS[full].hint, full)
            if full in _PATHS and value is not None:
                value = os.path.expanduser(value)  # noqa: PTH111 (a text stays one)
            _put(values, {full: value})
            continue
        group = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        if not isinstance(group, Mapping):
            raise ValueError(f"{name} takes settings by name, such as {name}={{...}}, not {value!r}")
        _put(values, by_full_name({f"{name}.{key}": entry for key, entry in group.items()}))
    return values


def _put(values: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if name in values and values[name] != value:
            raise ValueError(
                f"{name} is given twice, as {values[name]!r} and as {value!r}: by its own name, its full one or its group"
            )
        values[name] = value


def full_name(name: str) -> str:
    """`lr` or `optimizer.lr` → `optimizer.lr`.

    Raises:
        ValueError: there is no such setting; the message says which one was probably meant.
    """
    name = _ALIASES.get(name, name)
    if not isinstance(name, str):  # YAML reads 1, null and on as something else
        raise ValueError(f"unknown setting {name!r}: names of settings are texts")
    if name in SETTINGS:
        return name
    fitting = [full for full in SETTINGS if full.rpartition(".")[2] == name]
    if len(fitting) == 1:
        return fitting[0]
    own = {full.rpartition(".")[2]: full for full in SETTINGS}
    close = get_close_matches(name.rpartition(".")[2], own, n=2)
    hint = f"; did you mean {' or '.join(own[one] for one in close)}?" if close else ""
    raise ValueError(f"unknown setting {name!r}{hint} (all of them: `deformable-detr train --help`)")


def to_record(config: Any) -> dict[str, Any]:
    """A configuration as plain dicts, lists and scalars, for YAML and for comparing."""
    return json.loads(json.dumps(asdict(config)))


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"model": {"num_queries": 3}}` → `{"model.num_queries": 3}`."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict) and name != "backbone_options":
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def to_yaml(config: RunConfig) -> str:
    """A configuration as :func:`read_config` reads it."""
    import yaml

    return yaml.safe_dump(to_record(config), sort_keys=False, width=120)


def build_config(values: Mapping[str, Any]) -> RunConfig:
    """The dataclasses from settings by their full names, over the network of the preset.

    Raises:
        ValueError: no dataset, an unknown preset, or values that do not go together.
    """
    if "dataset" not in values:
        if values.get("resume"):  # the config.yaml of the run would have said it
            folder = values.get("output_dir", SETTINGS["output_dir"].default)
            raise ValueError(f"no run to resume in {folder}: give the folder of the run (the setting `output_dir`)")
        raise ValueError("which dataset? give its folder (the setting `dataset`)")
    preset = str(values.get("preset") or PRESETS.get(str(values.get("recipe")), SETTINGS["preset"].default))
    groups: dict[str, dict[str, Any]] = {name: {} for name in GROUPS} | {"model": model_preset(preset).to_dict()}
    run: dict[str, Any] = {}
    for name, value in {**RUN_SETTINGS.get(preset, {}), **values, "preset": preset}.items():
        group, _, key = name.rpartition(".")
        (groups[group] if group else run)[key] = value
    return RunConfig(**run, **{name: GROUPS[name](**members) for name, members in groups.items()})
