"""Evaluation: COCO's AP, and what stands behind it for each class."""

from detr_d2.evaluation.analysis import ClassResult, Evaluation, OperatingPoint, analyze
from detr_d2.evaluation.build import build_evaluator, check_evaluation
from detr_d2.evaluation.coco import evaluate_results, load_annotations, load_results
from detr_d2.evaluation.evaluator import DetrCOCOEvaluator
from detr_d2.evaluation.files import summary, summary_table, write_evaluation
from detr_d2.evaluation.panoptic_evaluator import PanopticEvaluator

__all__ = [
    "ClassResult",
    "DetrCOCOEvaluator",
    "Evaluation",
    "OperatingPoint",
    "PanopticEvaluator",
    "analyze",
    "build_evaluator",
    "check_evaluation",
    "evaluate_results",
    "load_annotations",
    "load_results",
    "summary",
    "summary_table",
    "write_evaluation",
]
