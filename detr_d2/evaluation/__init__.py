"""Evaluation: COCO's AP and panoptic quality, and an analysis of each class."""

from detr_d2.evaluation.analysis import ClassResult, Evaluation, OperatingPoint, analyze
from detr_d2.evaluation.coco import evaluate_results, load_annotations, load_results
from detr_d2.evaluation.evaluator import DetrCOCOEvaluator, build_evaluator, check_evaluation
from detr_d2.evaluation.panoptic import PanopticEvaluator
from detr_d2.evaluation.report import summary, summary_table, write_evaluation

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
