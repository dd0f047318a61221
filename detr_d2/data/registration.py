"""Registration of the user's own annotations in COCO's format, with errors before anything is loaded."""

import logging
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager

from detr_d2.utils.errors import UserError, abbreviate
from detr_d2.utils.files import read_json

logger = logging.getLogger(__name__)


def register_coco_dataset(name: str, json_file: str, image_root: str) -> list[str]:
    """Register a dataset in COCO's instances format with Detectron2.

    As Detectron2's ``register_coco_instances``, but the class names are known immediately. Category ids may be any
    integers, including 0; classes are counted from 0 in the order of the ids.

    Registering the same files under the same name again is allowed, also when the file has changed in between.

    Args:
        name: name of the dataset in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        json_file: annotations; "categories" names the classes.
        image_root: the folder that "file_name" is relative to.

    Returns:
        The names of the classes, in the order of the class head's rows.

    Raises:
        UserError: a path does not exist, the file is not in COCO's instances format, or the name is registered for
            other files.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    categories = _read_categories(json_file)
    if not PathManager.isdir(image_root):
        raise UserError(f"The image folder {image_root} of {json_file} does not exist: correct its path.")
    unregister(name, {"json_file": json_file, "image_root": image_root})
    ids = {category: label for label, category in enumerate(categories)}
    classes = list(categories.values())
    metadata = {"thing_classes": classes, "thing_dataset_id_to_contiguous_id": ids}
    register_coco_instances(name, metadata, json_file, image_root)
    return classes


def unregister(name: str, paths: Mapping[str, str]) -> None:
    """Remove a dataset from Detectron2's catalogs that is registered under this name with the same files.

    ``paths`` are by their key in the metadata; the first is the JSON file with the annotations. If the name is
    registered for other files, raise a UserError.
    """
    if name not in DatasetCatalog:
        return
    registered = {key: MetadataCatalog.get(name).get(key) or "" for key in paths}
    if any(_absolute(registered[key]) != _absolute(path) for key, path in paths.items()):
        source = _describe(registered) if all(registered.values()) else "a dataset from another source"
        raise UserError(
            f"The dataset name {name!r} is registered for {source}; it can't be used for {_describe(paths)} too: "
            "choose another name."
        )
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def read_annotation_file(json_file: str) -> dict[str, Any]:
    """Read the object in a JSON file of annotations. If there is none, raise a UserError."""
    content = read_json(json_file, "a JSON file in COCO's format")
    if not isinstance(content, dict):
        raise UserError(f"{json_file} holds a JSON {type(content).__name__}, where COCO's format has an object.")
    return content


def list_of(content: dict[str, Any], key: str, json_file: str) -> list:
    """Return a list that COCO's formats require. If the file has none, raise a UserError with the keys that it has."""
    if not isinstance(content.get(key), list):
        keys = ", ".join(map(str, content)) or "none"
        raise UserError(f"{json_file} has no list {key!r}, which COCO's format requires; its keys are {keys}.")
    return content[key]


def read_coco_content(json_file: str) -> dict[str, Any]:
    """Read a file in COCO's instances format; "annotations" may be missing.

    Raises:
        UserError: the file is missing, is not valid JSON, or lacks the lists that the format consists of.
    """
    content = read_annotation_file(json_file)
    is_via = "_via_img_metadata" in content or any(isinstance(x, dict) and "regions" in x for x in content.values())
    if is_via and "images" not in content:
        raise UserError(
            f"{json_file} is of the VGG Image Annotator: convert it to COCO's format with `detr-d2 import-via`."
        )
    for key in ("images", "categories", *(["annotations"] if "annotations" in content else [])):
        list_of(content, key, json_file)
    if not content["images"]:
        raise UserError(f"{json_file} has no images: its list 'images' is empty.")
    if any(isinstance(x, dict) and "segments_info" in x for x in content.get("annotations", [])[:1]):
        raise UserError(
            f"{json_file} is in COCO's panoptic format, where instances are expected: give the file of instances, or "
            "to `detr-d2 train` the folder of the PNGs too (--train-panoptic, --val-panoptic), or in Python register "
            "it with detr_d2.data.register_coco_panoptic_dataset."
        )
    return content


def _read_categories(json_file: str) -> dict[int, str]:
    """Return the class names by category id, in the order of the ids."""
    content = read_coco_content(json_file)
    check_images(content["images"], json_file)
    _check_runs(content.get("annotations", []), json_file)
    names = category_names(content["categories"], json_file)
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    if repeated:
        logger.warning("%s has classes of one name: %s. They count as different.", json_file, abbreviate(repeated))
    return names


def category_names(categories: list, json_file: str) -> dict[int, str]:
    """Return the names of COCO's categories by id, in the order of the ids. If they are unusable, raise a UserError."""
    if not categories:
        raise UserError(f"{json_file} has no categories: list the classes in 'categories', each with 'id' and 'name'.")
    names = {}
    for item in categories:
        number, name = (item.get("id"), item.get("name")) if isinstance(item, dict) else (None, None)
        if type(number) is not int or not isinstance(name, str):
            raise UserError(f"The category {item!r:.80} in {json_file} lacks an integer 'id' or a string 'name'.")
        if number in names:
            raise UserError(f"{json_file} lists category id {number} twice, {names[number]!r} and {name!r}.")
        names[number] = name
    return dict(sorted(names.items()))


def check_images(images: list, json_file: str) -> None:
    """Raise a UserError for an image without an id, with another's, or without pixels: it would be left out."""
    ids = [x.get("id") if isinstance(x, dict) else None for x in images]
    if wrong := [(i, x) for i, x in enumerate(ids) if type(x) not in (int, str)]:
        number, value = wrong[0]
        raise UserError(
            f"Image number {number} (counted from 0) in {json_file} has the 'id' {value!r}: give an integer."
        )
    for x in images:
        if any(type(x.get(key)) is int and x[key] <= 0 for key in ("width", "height")):
            raise UserError(f"Image {x.get('file_name')!r} in {json_file} has a width or height under 1: correct it.")
    number, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise UserError(f"{json_file} has {count} images of id {number}: give each image its own, and its annotations.")


def _check_runs(annotations: list, json_file: str) -> None:
    """Raise a UserError for an RLE with a negative run, which older versions of numpy turn into a huge one."""
    for item in annotations:
        segmentation = item.get("segmentation") if isinstance(item, dict) else None
        counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
        if isinstance(counts, list) and any(isinstance(x, int) and x < 0 for x in counts):
            raise UserError(
                f"The annotation of id {item.get('id')!r} in {json_file} has an RLE with a negative number in "
                "'counts': correct or remove it."
            )


def _describe(paths: Mapping[str, str]) -> str:
    return f"{next(iter(paths.values()))} with images in {paths['image_root']}"


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.realpath(path)
