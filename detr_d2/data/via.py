"""Former place of :mod:`detr_d2.data.formats.via`."""

from detr_d2.data.formats.via import ViaClasses, via_to_coco
from detr_d2.data.formats.via_file import ViaImage, ViaRegion, read_via

__all__ = ["ViaClasses", "ViaImage", "ViaRegion", "read_via", "via_to_coco"]
