"""How good a detector is: COCO's metrics over a split, and the analysis behind them."""

from deformable_detr.evaluation.analysis import Analysis, analyze
from deformable_detr.evaluation.coco_evaluator import CocoEvaluator
from deformable_detr.evaluation.confusion import ConfusionMatrix, confusion_matrix
from deformable_detr.evaluation.error_types import ErrorType, ErrorTypes, error_types
from deformable_detr.evaluation.evaluate import detect, evaluate
from deformable_detr.evaluation.metrics import ClassMetrics, Metrics
from deformable_detr.evaluation.thresholds import ScoreCurve, class_thresholds, score_curves

__all__ = [
    "Analysis",
    "ClassMetrics",
    "CocoEvaluator",
    "ConfusionMatrix",
    "ErrorType",
    "ErrorTypes",
    "Metrics",
    "ScoreCurve",
    "analyze",
    "class_thresholds",
    "confusion_matrix",
    "detect",
    "error_types",
    "evaluate",
    "score_curves",
]
