"""From predictions to results."""

from detr_d2.postprocess.boxes import box_instances
from detr_d2.postprocess.panoptic import PanopticRules, panoptic_segmentation

__all__ = ["PanopticRules", "box_instances", "panoptic_segmentation"]
