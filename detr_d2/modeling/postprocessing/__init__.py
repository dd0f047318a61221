"""Conversion of predictions to Detectron2's results."""

from detr_d2.modeling.postprocessing.detections import (
    box_instances,
    non_maximum_suppression,
    resized_masks,
    select_by_score,
)
from detr_d2.modeling.postprocessing.panoptic import PanopticRules, SelectedQueries, panoptic_segmentation

__all__ = [
    "PanopticRules",
    "SelectedQueries",
    "box_instances",
    "non_maximum_suppression",
    "panoptic_segmentation",
    "resized_masks",
    "select_by_score",
]
