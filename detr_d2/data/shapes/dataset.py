"""Datasets of shapes: registered with Detectron2, generated on first use, and cached in COCO's formats."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from iopath.common.file_io import file_lock
from PIL import Image

from detr_d2.data.panoptic import PanopticCategories
from detr_d2.data.panoptic.registration import EVALUATION_METADATA, load_panoptic_json
from detr_d2.data.panoptic.segments import segment_ids_to_rgb
from detr_d2.data.shapes.scene import STUFF_CLASSES, THING_CLASSES, Scene, ShapesSpec, sample_scene
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import output_folder
from detr_d2.utils.progress import progress_bar

logger = logging.getLogger(__name__)

# The datasets that the package registers.
SPLITS = {
    "shapes_train": ShapesSpec(num_images=4000, seed=0),
    "shapes_val": ShapesSpec(num_images=200, seed=1),
    "shapes_medium_train": ShapesSpec(num_images=4000, seed=4, difficulty=0.45),
    "shapes_medium_val": ShapesSpec(num_images=200, seed=5, difficulty=0.45),
    "shapes_hard_train": ShapesSpec(num_images=4000, seed=2, difficulty=0.8),
    "shapes_hard_val": ShapesSpec(num_images=200, seed=3, difficulty=0.8),
}

# Part of the cached folders' names: increase it when equal specs give other images.
_VERSION = 2
# Files in the folder of a dataset, by the name of their path in the metadata.
_FILES = {
    "image_root": "images",
    "json_file": "instances.json",
    "panoptic_root": "panoptic",
    "panoptic_json": "panoptic.json",
}
# Category ids of things start at 1.
_FIRST_STUFF_ID = 101
_CATEGORIES = [
    {"id": number, "name": name, "isthing": is_thing}
    for names, first_id, is_thing in ((THING_CLASSES, 1, 1), (STUFF_CLASSES, _FIRST_STUFF_ID, 0))
    for number, name in enumerate(names, first_id)
]


def register_shapes(name: str, spec: ShapesSpec) -> None:
    """Register a dataset that is generated when it is first loaded, and kept in the cache folder.

    ``name`` has the things, ``name`` with "_panoptic" things and stuff of the same images. Loading raises a UserError
    if the cache folder can't be written to, and adds the paths of the instances (``json_file``) and of the panoptic
    segments (``panoptic_json``, ``panoptic_root``) to the metadata.
    """
    panoptic_name = f"{name}_panoptic"

    def load() -> list[dict]:
        paths = _generate(name, spec)
        return load_coco_json(paths["json_file"], paths["image_root"], name)

    def load_panoptic() -> list[dict]:
        paths = _generate(panoptic_name, spec)
        return load_panoptic_json(paths["panoptic_json"], paths["panoptic_root"], paths["image_root"])

    DatasetCatalog.register(name, load)
    classes = {"thing_classes": list(THING_CLASSES), "stuff_classes": list(STUFF_CLASSES)}
    MetadataCatalog.get(name).set(evaluator_type="coco", **classes)
    DatasetCatalog.register(panoptic_name, load_panoptic)
    categories = PanopticCategories.from_json(_CATEGORIES, panoptic_name)
    MetadataCatalog.get(panoptic_name).set(**EVALUATION_METADATA, **categories.metadata())


def _generate(name: str, spec: ShapesSpec) -> dict[str, str]:
    """Write the files unless they exist, and return their paths."""
    folder = cached_folder(shapes_folder(spec), lambda incomplete: write_dataset(spec, incomplete))
    paths = {key: str(folder / file) for key, file in _FILES.items()}
    # Set only now: evaluators would read them before the files exist.
    MetadataCatalog.get(name).set(**paths)
    return paths


def shapes_folder(spec: ShapesSpec) -> Path:
    """Return the folder for the files of a dataset, whether it exists or not.

    It lies in ``DETR_D2_CACHE``, by default ``detr_d2`` in the user's cache folder.
    """
    user_cache = Path(os.getenv("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(f"{_VERSION} {spec}".encode()).hexdigest()[:12]
    return Path(os.getenv("DETR_D2_CACHE") or user_cache / "detr_d2") / "shapes" / digest


def cached_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """Return the folder ``path``, after ``fill(folder)`` unless an earlier call has filled it.

    The folder is either complete or absent. If several processes call this at once, one fills it and the others wait.
    If it can't be written to, raise a UserError.
    """
    if path.is_dir():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(path)):
            if not path.is_dir():
                with output_folder(path, marker=_FILES["json_file"]) as incomplete:
                    fill(incomplete)
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error}): set the environment variable DETR_D2_CACHE to a folder with space."
        ) from error
    return path


def write_dataset(spec: ShapesSpec, folder: Path) -> None:
    """Generate all images of ``spec`` in ``folder``, which exists and is empty, with their annotations."""
    logger.info("Generating %d images of shapes in %s", spec.num_images, folder)
    image_root, json_file, panoptic_root, panoptic_json = (folder / file for file in _FILES.values())
    image_root.mkdir()
    panoptic_root.mkdir()
    images, annotations, panoptic = [], [], []
    indices = progress_bar(range(spec.num_images), "generating shapes", unit="image", keep=False)
    for image_id, index in enumerate(indices, start=1):
        scene = sample_scene(spec, index)
        name = f"{image_id:06d}"
        Image.fromarray(scene.image).save(image_root / f"{name}.jpg", quality=92, subsampling=0)
        height, width = scene.segments.shape
        images.append({"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width})
        Image.fromarray(segment_ids_to_rgb(scene.segments + 1)).save(panoptic_root / f"{name}.png")
        segments, rles = _describe_segments(scene)
        panoptic.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments})
        for segment, rle in list(zip(segments, rles, strict=True))[len(scene.stuff) :]:
            ids = {"id": len(annotations) + 1, "image_id": image_id}
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
            annotations.append({**segment, **ids, "segmentation": segmentation})
    common = {"info": {"description": f"generated by detr_d2 from {spec}"}, "images": images}
    things = [category for category in _CATEGORIES if category["isthing"]]
    json_file.write_text(json.dumps({**common, "annotations": annotations, "categories": things}))
    panoptic_json.write_text(json.dumps({**common, "annotations": panoptic, "categories": _CATEGORIES}))


def _describe_segments(scene: Scene) -> tuple[list[dict], list[dict]]:
    """Return the "segments_info" of a scene, and the RLE of each segment."""
    categories = [_FIRST_STUFF_ID + stuff for stuff in scene.stuff] + [thing + 1 for thing in scene.things]
    masks = scene.segments[..., None] == np.arange(len(categories))
    rles = coco_mask.encode(np.asfortranarray(masks, dtype=np.uint8))
    segments = [
        {
            "id": number,
            "category_id": category,
            "bbox": coco_mask.toBbox(rle).tolist(),
            "area": int(coco_mask.area(rle)),
            "iscrowd": 0,
        }
        for number, (category, rle) in enumerate(zip(categories, rles, strict=True), start=1)
    ]
    return segments, rles
