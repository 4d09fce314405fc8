"""Deformable DETR, H-DETR and DINO in the files of others: which of them a file holds, and what its layout does not state."""

import logging
from typing import Any, Literal

import torch

from deformable_detr.checkpoints.prediction_heads import DINO_MARK, TWO_STAGE_MARK
from deformable_detr.checkpoints.weights import Weights
from deformable_detr.config import ModelConfig

logger = logging.getLogger(__name__)

Family = Literal["plain", "hdetr", "dino"]

CONTENT = "query_source.content_embed.weight"
LABELS = "denoising.label_embed.weight"
QUERIES = "query_source.query_embed.weight"

_TITLES: dict[Family, str] = {"plain": "Deformable DETR", "hdetr": "H-DETR or mixed selection", "dino": "DINO"}

_HYBRID = 1500
"""Queries of H-DETR's second branch in all published files; the split is only in `args`."""

_DINO: dict[str, Any] = {
    "proposal_classes": True,
    "proposal_loss": "selected",
    "look_forward_twice": True,
    "position_temperature": 20.0,
    "position_offset": 0.0,
    "logit_eps": 1e-3,
    "denoising_queries": 100,
    "dropout": 0.0,
    "max_detections": 300,
}
_OF_LAYOUT: dict[str, dict[str, Any]] = {
    "mmdet": {"output_eps": 1e-5},
    "detrex": {"position_temperature": 10_000.0, "position_offset": 0.5, "max_detections": 300},
}
"""Where a project differs from DINO's own code; a few of its files differ again, see `published.py`."""

_SAME_OUTPUTS: dict[Family, dict[str, Any]] = {
    "plain": {
        "proposal_classes": False,
        "position_temperature": 10_000.0,
        "position_offset": 0.5,
        "logit_eps": 1e-5,
        "decoder_norm": False,
        "relation_bias": False,
        "suppressor": False,
    },
    "dino": {"proposal_classes": True, "logit_eps": 1e-3, "decoder_norm": True, "relation_bias": False, "suppressor": False},
}
_SAME_OUTPUTS["hdetr"] = _SAME_OUTPUTS["plain"]
"""Settings that a layout has one value for, and that the outputs depend on."""


def family_of(config: ModelConfig) -> Family:
    """Whose code has these parts."""
    if config.query_position == "reference":
        return "dino"
    return "hdetr" if config.query_content == "learned" or config.one_to_many_queries else "plain"


def check_family(config: ModelConfig, layout: str, needed: dict[Family, dict[str, Any]]) -> Family:
    """Whose code has these parts, where a layout can hold it.

    Args:
        config: of the network.
        layout: its name, for messages.
        needed: the families that the layout has, each with settings that it has one value for beside those of the family.

    Raises:
        ValueError: it does not have this family, or computes something else with these settings; the message names them.
    """
    family = family_of(config)
    if family not in needed:
        raise ValueError(f"{layout} cannot express this network: it has no {_TITLES[family]}")
    wanted = _SAME_OUTPUTS[family] | needed[family]
    wrong = [
        f"{name}={getattr(config, name)!r} ({value!r} there)" for name, value in wanted.items() if getattr(config, name) != value
    ]
    if wrong:
        raise ValueError(f"{layout} cannot express this network: it computes something else with {', '.join(wrong)}")
    return family


def stages_of(config: ModelConfig) -> int:
    """How many stages of the backbone become levels."""
    return min(config.num_feature_levels, config.backbone_levels)


def level_problems(config: ModelConfig) -> list[str]:
    """What of the levels the original code and transformers cannot build: they take one from the last stage of the backbone, or the
    first of several from three stages. DINO, which always has several, takes them from one, three or four.
    """
    levels, stages = config.num_feature_levels, stages_of(config)
    dino = family_of(config) == "dino"
    possible = (levels > 1 and stages != 2) if dino else stages == (1 if levels == 1 else 3)
    return [] if possible else [f"{levels} feature levels, {stages} of them from stages of the backbone"]


def is_dino(weights: Weights) -> bool:
    """Whether the positions of the queries come from their boxes in every layer."""
    return DINO_MARK in weights.tensors


def name_content(weights: Weights) -> None:
    """With proposals, a table of queries holds their content alone: other layouts call both tables the same."""
    if TWO_STAGE_MARK in weights.tensors and QUERIES in weights.tensors:
        weights.rename(QUERIES, CONTENT)


def fit_label_table(weights: Weights) -> None:
    """One row for each class and one more, which is never used: other tables have none, or rows for further classes."""
    heads = weights.tensors.get("class_heads.0.bias")
    table = weights.tensors.get(LABELS)
    if heads is None or table is None or table.ndim != 2 or len(table) == len(heads) + 1:
        return
    rows = len(heads) + 1
    weights.tensors[LABELS] = torch.cat((table, table.new_zeros(max(0, rows - len(table)), table.shape[1])))[:rows]
    weights.report.reshaped.append(f"{weights.named(LABELS)} ({len(table)} → {rows} rows)")


def hidden_settings(weights: Weights, overrides: dict[str, Any]) -> dict[str, Any]:
    """What the tensors do not show, as the code has it whose layout the file has; what the file states has precedence.

    Args:
        weights: the report gets a note of what is assumed since neither the file nor its name says it.
        overrides: what the user says.
    """
    tensors, stated = weights.tensors, weights.settings | overrides
    of_layout = _OF_LAYOUT.get(weights.report.source_format, {})
    if is_dino(weights):
        settings = _DINO | of_layout | {"num_queries": len(tensors[CONTENT])}
        if "position_temperature" not in stated:
            _assume(weights, {name: settings[name] for name in ("position_temperature", "position_offset")}, stated)
        return settings if LABELS in tensors else settings | {"denoising_queries": 0}
    settings = {name: value for name, value in of_layout.items() if name == "max_detections"}
    if CONTENT not in tensors:
        if stated.get("two_stage"):
            _assume(weights, {"num_queries": ModelConfig.num_queries}, stated)
        return settings | ({"dropout": 0.0, "look_forward_twice": True} if stated.get("one_to_many_queries") else {})
    rows = len(tensors[CONTENT])
    first = min(stated.get("num_queries", rows - _HYBRID if rows > _HYBRID else rows), rows)
    settings |= {"num_queries": first, "one_to_many_queries": rows - first, "look_forward_twice": True, "dropout": 0.0}
    division = () if "num_queries" in stated else ("num_queries", "one_to_many_queries")  # the one gives the other
    _assume(weights, {name: settings[name] for name in (*division, "look_forward_twice")}, stated)
    return settings


def _assume(weights: Weights, settings: dict[str, Any], stated: dict[str, Any]) -> None:
    """Say which settings neither the file nor the user has stated, so that somebody who knows better can pass them."""
    assumed = [f"{name}={value!r}" for name, value in settings.items() if name not in stated]
    if assumed:
        note = f"assumed, since neither the file nor its name says it: {', '.join(assumed)}; pass what is otherwise"
        weights.report.notes.append(note)
        logger.warning("%s", note)


def keep_queries(weights: Weights, stored: ModelConfig, wanted: ModelConfig) -> None:
    """Leave out what a network without its training parts has not: the label table, and the queries of the second branch.

    Args:
        weights: changed in place.
        stored: settings of the network in the file.
        wanted: settings of the network that is built, perhaps with fewer queries.

    Raises:
        ValueError: more queries are wanted than the file has contents for.
    """
    if not wanted.denoising_queries and LABELS in weights.tensors:
        weights.report.dropped.append(weights.named(LABELS))
        weights.pop(LABELS)
    names = ("num_queries", "one_to_many_queries")
    if CONTENT not in weights.tensors or all(getattr(stored, name) == getattr(wanted, name) for name in names):
        return
    for name in names:
        if getattr(wanted, name) > getattr(stored, name):
            raise ValueError(
                f"{name}={getattr(wanted, name)} was asked for, but the {weights.report.source_format} checkpoint has learned "
                f"contents for {getattr(stored, name)}"
            )
    table, second = weights.tensors[CONTENT], stored.num_queries
    weights.tensors[CONTENT] = torch.cat((table[: wanted.num_queries], table[second : second + wanted.one_to_many_queries]))
    rows = len(weights.tensors[CONTENT])
    weights.report.reshaped.append(f"{weights.named(CONTENT)} ({len(table)} → {rows} rows)")
