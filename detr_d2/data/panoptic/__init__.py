"""Panoptic data: things and stuff, one segment per pixel."""

from detr_d2.data.panoptic.categories import (
    PanopticCategories,
    PanopticCategory,
    coco_panoptic_categories,
    published_panoptic_rows,
    things_of_model,
)

__all__ = [
    "PanopticCategories",
    "PanopticCategory",
    "coco_panoptic_categories",
    "published_panoptic_rows",
    "things_of_model",
]
