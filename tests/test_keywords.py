"""The keywords that editors complete are those that there are."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from deformable_detr.checkpoints import load_checkpoint
from deformable_detr.config import Metadata, ModelConfig
from deformable_detr.detector import Detector
from deformable_detr.inference import Predictor
from deformable_detr.keywords import EvaluationOptions, LoadOptions, PredictionOptions, TrainSettings
from deformable_detr.schema import alternatives
from deformable_detr.settings import GROUPS, SETTINGS


def as_keyword(name: str, hint: Any) -> Any:
    """What a caller may give for a setting: sequences for tuples, mappings for dicts, paths for files."""
    kinds = []
    for kind in alternatives(hint):
        origin, inner = get_origin(kind), get_args(kind)
        kinds.append(Sequence[inner[0]] if origin is tuple else Mapping[str, Any] if origin is dict else kind)
    if name in ("output_dir", "weights", "pretrained_backbone"):
        kinds.append(Path)
    return Union[tuple(kinds)]  # noqa: UP007


def test_settings_of_training() -> None:
    """A setting that was added to `config.py` belongs to `keywords.TrainSettings` as well."""
    expected = {entry.name: as_keyword(entry.name, entry.hint) for full, entry in SETTINGS.items() if full != "dataset"}
    assert get_type_hints(TrainSettings) == expected | {name: kind | Mapping[str, Any] for name, kind in GROUPS.items()}


def test_prediction() -> None:
    parameters = list(inspect.signature(Predictor.iterate).parameters)
    assert parameters == ["self", "source", "threshold", *get_type_hints(PredictionOptions)]


def test_evaluation() -> None:
    parameters = list(inspect.signature(Detector._detect_split).parameters)
    assert parameters == ["self", "dataset", "split", *get_type_hints(EvaluationOptions)]


def test_loading() -> None:
    known = {*ModelConfig.__dataclass_fields__, *inspect.signature(load_checkpoint).parameters}
    assert set(get_type_hints(LoadOptions)) <= known
    assert Literal["fp32", "bf16", "fp16"] in get_args(inspect.signature(Detector.load).parameters["precision"].annotation)


def test_metadata_is_not_a_setting() -> None:
    with pytest.raises(ValueError, match="unknown setting"):
        Detector.train("data", thresholds=Metadata)  # type: ignore[call-arg]
