"""COCO metrics: run a model over a split, compare with the annotations, show and save the numbers."""

from deformable_detr.evaluation.coco_evaluator import CocoEvaluator
from deformable_detr.evaluation.evaluate import evaluate
from deformable_detr.evaluation.metrics import ClassMetrics, Metrics

__all__ = ["ClassMetrics", "CocoEvaluator", "Metrics", "evaluate"]
