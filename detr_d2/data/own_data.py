"""Registering one's own annotations in COCO's format, with errors before anything is loaded."""

import os

from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager

from detr_d2.data.catalog import make_room
from detr_d2.data.checks.coco_file import load_content
from detr_d2.utils.errors import UserError


def register_coco_dataset(name: str, json_file: str, image_root: str) -> list[str]:
    """Register a dataset in COCO's instances format with Detectron2.

    As Detectron2's ``register_coco_instances``, and the class names are known at once. Category ids may be any whole
    numbers, from 0 too; classes are counted from 0 in the order of the ids.

    Registering the same files under the same name again is fine, also when the file has changed in between.

    Args:
        name: by which ``DATASETS.TRAIN`` and ``DATASETS.TEST`` refer to it.
        json_file: annotations; "categories" names the classes.
        image_root: the folder that "file_name" is relative to.

    Returns:
        The names of the classes, in the order of the class head's rows.

    Raises:
        UserError: a path does not exist, the file is not in COCO's instances format, or the name stands for other
            files.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    categories = _read_categories(json_file)
    if not PathManager.isdir(image_root):
        raise UserError(f"The image folder {image_root} of {json_file} does not exist: correct its path.")
    make_room(name, {"json_file": json_file, "image_root": image_root})
    ids = {category: label for label, category in enumerate(categories)}
    classes = list(categories.values())
    metadata = {"thing_classes": classes, "thing_dataset_id_to_contiguous_id": ids}
    register_coco_instances(name, metadata, json_file, image_root)
    return classes


def _read_categories(json_file: str) -> dict[int, str]:
    """Name by id, in the order of the ids."""
    items = load_content(json_file)["categories"]
    if not items:
        raise UserError(f"{json_file} has no categories: list the classes in 'categories', each with 'id' and 'name'.")
    names = {}
    for item in items:
        number, name = (item.get("id"), item.get("name")) if isinstance(item, dict) else (None, None)
        if type(number) is not int or not isinstance(name, str):
            raise UserError(f"The category {item} in {json_file} lacks a whole number as 'id' or a text as 'name'.")
        if number in names:
            raise UserError(f"{json_file} lists category id {number} twice, {names[number]!r} and {name!r}.")
        names[number] = name
    return dict(sorted(names.items()))
