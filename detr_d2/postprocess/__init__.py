"""From predictions to results."""

from detr_d2.postprocess.boxes import box_instances

__all__ = ["box_instances"]
