"""Matching and losses: from Predictions and Targets to the number that training makes small."""

from deformable_detr.criterion.build import build_criterion
from deformable_detr.criterion.criterion import BatchMatching, SetCriterion
from deformable_detr.criterion.matcher import HungarianMatcher, Matching

__all__ = ["BatchMatching", "HungarianMatcher", "Matching", "SetCriterion", "build_criterion"]
