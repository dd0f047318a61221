"""Readers of annotation formats, and their conversion to COCO's."""

from detr_d2.data.formats.coco_writer import to_coco
from detr_d2.data.formats.records import AnnotatedDataset, AnnotatedImage, AnnotatedObject, Source, pick_split
from detr_d2.data.formats.registry import FORMATS, Format, read_dataset, recognize

__all__ = [
    "FORMATS",
    "AnnotatedDataset",
    "AnnotatedImage",
    "AnnotatedObject",
    "Format",
    "Source",
    "pick_split",
    "read_dataset",
    "recognize",
    "to_coco",
]
