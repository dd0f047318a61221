"""Registration of panoptic annotations in COCO's format, with errors before anything is loaded."""

import logging
import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from detr_d2.data.panoptic.categories import PanopticCategories
from detr_d2.data.registration import list_of, read_annotation_file, unregister
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

# Metadata of panoptic datasets that Detectron2's evaluators and Visualizer need.
EVALUATION_METADATA = {"evaluator_type": "coco_panoptic_seg", "ignore_label": 255, "label_divisor": 1000}


def register_coco_panoptic_dataset(
    name: str, panoptic_json: str, panoptic_root: str, image_root: str, instances_json: str | None = None
) -> list[str]:
    """Register a dataset in COCO's panoptic format with Detectron2.

    Its classes are the things, then the stuff of "categories", each in the order of their ids. COCO's own files are
    registered already, as Detectron2's ``coco_2017_train_panoptic`` and ``coco_2017_val_panoptic``.

    Registering the same files under the same name again is allowed, also when they have changed in between.

    Args:
        name: name of the dataset in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        panoptic_json: "images", "annotations" with their "segments_info", "categories" with "isthing".
        panoptic_root: the folder of the PNGs, which "file_name" in "annotations" is relative to.
        image_root: the folder of the images, which "file_name" in "images" is relative to.
        instances_json: the things in COCO's instances format, to evaluate boxes and masks of things too.

    Returns:
        The names of the classes, in the order of the class head's rows: set ``MODEL.DETR.NUM_CLASSES`` to their number.

    Raises:
        UserError: a path does not exist, the file is not in COCO's panoptic format, or the name is registered for other
            files.
    """
    files = {"panoptic_json": panoptic_json, "panoptic_root": panoptic_root, "image_root": image_root}
    files = {key: os.fspath(path) for key, path in files.items()}
    _, categories = _load(files["panoptic_json"])
    for key in ("panoptic_root", "image_root"):
        if not PathManager.isdir(files[key]):
            raise UserError(f"The folder {files[key]} of {panoptic_json} does not exist: correct {key}.")
    paths = files
    if instances_json is not None:
        paths = {**files, "json_file": os.fspath(instances_json)}
        if not PathManager.isfile(paths["json_file"]):
            raise UserError(f"{instances_json} does not exist: correct instances_json.")
    unregister(name, paths)
    DatasetCatalog.register(name, lambda: load_panoptic_json(**files))
    MetadataCatalog.get(name).set(**paths, **EVALUATION_METADATA, **categories.metadata())
    return categories.names


def load_panoptic_json(panoptic_json: str, panoptic_root: str, image_root: str) -> list[dict]:
    """Load the records of a dataset, as Detectron2's ``load_coco_panoptic_json``, with "height" and "width".

    Images without segments in the JSON file are left out, which is logged.

    Raises:
        UserError: the file is missing or not in COCO's panoptic format; the message names the item.
    """
    content, categories = _load(panoptic_json)
    annotations = list_of(content, "annotations", panoptic_json)
    if not annotations:
        raise UserError(f"{panoptic_json} has no annotations: it lists the segments of no image.")
    try:
        images = {image["id"]: image for image in list_of(content, "images", panoptic_json)}
    except (KeyError, TypeError) as error:
        raise UserError(f"An image in {panoptic_json} lacks an 'id': correct it.") from error
    rows, is_thing = categories.rows, categories.is_thing
    records = [_read_annotation(item, images, panoptic_json, panoptic_root, image_root) for item in annotations]
    for record in records:
        for segment in record["segments_info"]:
            row = rows.get(segment.get("category_id"))
            if row is None:
                raise UserError(
                    f"category_id {segment.get('category_id')!r} of segment id {segment.get('id')} of "
                    f"{record['pan_seg_file_name']} is not in 'categories' of {panoptic_json}: correct it."
                )
            segment.update(category_id=row, isthing=is_thing[row])
    left_out = len(images) - len({record["image_id"] for record in records})
    if left_out:
        logger.warning(f"{left_out} of {len(images)} images in {panoptic_json} have no annotation and are left out.")
    return records


def _load(panoptic_json: str) -> tuple[dict, PanopticCategories]:
    content = read_annotation_file(panoptic_json)
    return content, PanopticCategories.from_json(list_of(content, "categories", panoptic_json), panoptic_json)


def _read_annotation(item: Any, images: dict, panoptic_json: str, panoptic_root: str, image_root: str) -> dict:
    try:
        image = images[item["image_id"]]
        record = {
            "file_name": os.path.join(image_root, image["file_name"]),
            "image_id": item["image_id"],
            "pan_seg_file_name": os.path.join(panoptic_root, item["file_name"]),
            "segments_info": [dict(segment) for segment in item["segments_info"]],
        }
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        shown = {key: item[key] for key in item if key != "segments_info"} if isinstance(item, dict) else item
        raise UserError(
            f"The annotation {shown} in {panoptic_json} can't be read ({reason}): it needs 'file_name', "
            "'segments_info' and the 'image_id' of an image with 'file_name'."
        ) from error
    return record | {key: image[key] for key in ("height", "width") if key in image}
