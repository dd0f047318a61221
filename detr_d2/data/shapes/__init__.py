"""Built-in synthetic dataset of shapes, generated on first use: to see a model learn without a download."""

from detectron2.data import DatasetCatalog

from detr_d2.data.shapes.dataset import SPLITS, register_shapes
from detr_d2.data.shapes.scene import STUFF_CLASSES, THING_CLASSES, ShapesSpec

for _name, _spec in SPLITS.items():
    # The user's own dataset of this name stays.
    if {_name, f"{_name}_panoptic"}.isdisjoint(DatasetCatalog):
        register_shapes(_name, _spec)

__all__ = ["STUFF_CLASSES", "THING_CLASSES", "ShapesSpec", "register_shapes"]
