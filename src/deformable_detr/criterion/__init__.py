"""Matching and losses: from Predictions and Targets to the loss that training minimises."""

from deformable_detr.criterion.criterion import BatchMatching, SetCriterion
from deformable_detr.criterion.matcher import HungarianMatcher, Matching
from deformable_detr.criterion.quality_matcher import QualityMatcher

__all__ = ["BatchMatching", "HungarianMatcher", "Matching", "QualityMatcher", "SetCriterion"]
