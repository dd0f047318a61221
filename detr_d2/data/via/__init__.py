"""Conversion of annotations of the VGG Image Annotator (VIA) to COCO's format."""

from detr_d2.data.via.conversion import ViaClasses, via_to_coco
from detr_d2.data.via.project import ViaImage, ViaRegion, read_via

__all__ = ["ViaClasses", "ViaImage", "ViaRegion", "read_via", "via_to_coco"]
