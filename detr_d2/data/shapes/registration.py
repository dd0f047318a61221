"""Datasets of shapes in Detectron2's catalogs."""

import hashlib
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from detr_d2.data.panoptic import PanopticCategories
from detr_d2.data.panoptic.registration import EVALUATION_METADATA, load_panoptic_json
from detr_d2.data.shapes.cache import cache_root, cached_folder
from detr_d2.data.shapes.generation import IMAGES, INSTANCES, PANOPTIC, PANOPTIC_MAPS, categories, write_dataset
from detr_d2.data.shapes.spec import STUFF_CLASSES, THING_CLASSES, ShapesSpec

# Part of the cache's folder names: another number whenever equal specs would draw other images.
_VERSION = 2

# What the package registers.
SPLITS = {
    "shapes_train": ShapesSpec(num_images=4000, seed=0),
    "shapes_val": ShapesSpec(num_images=200, seed=1),
}


def register_shapes(name: str, spec: ShapesSpec) -> None:
    """Register a dataset that is drawn when it is first loaded, and kept in the cache folder.

    ``name`` has the things, ``name`` with "_panoptic" things and stuff of the same images. Loading raises a UserError
    if that folder can't be written to. The metadata then lead to the instances (``json_file``) and to panoptic segments
    (``panoptic_json``, ``panoptic_root``).
    """
    DatasetCatalog.register(name, lambda: _load(name, spec))
    classes = {"thing_classes": list(THING_CLASSES), "stuff_classes": list(STUFF_CLASSES)}
    MetadataCatalog.get(name).set(evaluator_type="coco", **classes)
    panoptic_name = f"{name}_panoptic"
    DatasetCatalog.register(panoptic_name, lambda: _load_panoptic(panoptic_name, spec))
    things, stuff = categories()
    table = PanopticCategories.from_json([*things, *stuff], panoptic_name)
    MetadataCatalog.get(panoptic_name).set(**EVALUATION_METADATA, **table.metadata())


def shapes_folder(spec: ShapesSpec) -> Path:
    """Where the files of a dataset are, or will be."""
    digest = hashlib.sha256(f"{_VERSION} {spec}".encode()).hexdigest()[:12]
    return cache_root() / "shapes" / digest


def _load(name: str, spec: ShapesSpec) -> list[dict]:
    paths = _draw(name, spec)
    return load_coco_json(paths["json_file"], paths["image_root"], name)


def _load_panoptic(name: str, spec: ShapesSpec) -> list[dict]:
    paths = _draw(name, spec)
    return load_panoptic_json(paths["panoptic_json"], paths["panoptic_root"], paths["image_root"])


def _draw(name: str, spec: ShapesSpec) -> dict[str, str]:
    """Make the files unless they exist, and note their paths in the metadata."""
    folder = cached_folder(shapes_folder(spec), lambda aside: write_dataset(spec, aside))
    # Paths are told only now: until the files exist nobody should look for them.
    paths = {
        "image_root": str(folder / IMAGES),
        "json_file": str(folder / INSTANCES),
        "panoptic_root": str(folder / PANOPTIC_MAPS),
        "panoptic_json": str(folder / PANOPTIC),
    }
    MetadataCatalog.get(name).set(**paths)
    return paths
