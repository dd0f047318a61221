"""From predictions to results."""

from detr_d2.modeling.postprocessing.boxes import box_instances
from detr_d2.modeling.postprocessing.masks import QueryMasks, resized_masks
from detr_d2.modeling.postprocessing.panoptic import PanopticRules, panoptic_segmentation

__all__ = ["PanopticRules", "QueryMasks", "box_instances", "panoptic_segmentation", "resized_masks"]
