"""What can be wrong with the structure of a COCO file."""

import math
from typing import Any

from detr_d2.data.checks.findings import Fault

MAX_CHARACTERS_SHOWN = 80

# The order is that of the report. A code's first word says what {total} counts.
FAULTS = {
    "categories-missing": Fault(
        "error", "error", "'categories' is empty: list every class as {{'id': 1, 'name': 'cat'}}."
    ),
    "category-malformed": Fault(
        "error",
        "error",
        "{count} of {total} categories lack a whole-number 'id' (a string is none) or a 'name', e.g. {example}.",
    ),
    "category-id-repeated": Fault("error", "error", "{count} category ids occur more than once, e.g. {example}."),
    "category-name-repeated": Fault(
        "warning", "warning", "{count} classes have the name of another, e.g. {example}: the model takes them for two."
    ),
    "image-malformed": Fault(
        "error",
        "error",
        "{count} of {total} images lack an 'id', a 'file_name', or a 'width' and 'height' in whole pixels from 1, "
        "e.g. {example}.",
    ),
    "image-id-repeated": Fault(
        "error",
        "error",
        "{count} of {total} image ids occur more than once, e.g. {example}: only one of the images would be used. "
        "Number them anew, with their annotations.",
    ),
    "image-ids-mixed": Fault(
        "error", "error", "some image ids are numbers, others strings, e.g. {example}: make them alike."
    ),
    "image-file-repeated": Fault(
        "warning",
        "warning",
        "{count} of {total} images have the file of another, e.g. {example}: merge their annotations under one id.",
    ),
    "annotations-missing": Fault("warning", "warning", "there is no list 'annotations': no image has an object."),
    "annotation-malformed": Fault(
        "error", "error", "{count} of {total} annotations lack 'id', 'image_id' or 'category_id', e.g. {example}."
    ),
    "annotation-id-repeated": Fault(
        "error", "error", "{count} of {total} annotation ids are used before, e.g. {example}: number them anew."
    ),
    "annotation-image-unknown": Fault(
        "warning",
        "warning",
        "{count} of {total} annotations belong to images that 'images' does not list and are dropped, e.g. "
        "{example}: correct image_id (a string differs from a number), or remove them.",
    ),
    "annotation-category-unknown": Fault(
        "error",
        "error",
        "{count} of {total} annotations have a category_id that 'categories' does not list, e.g. {example}: "
        "category ids are whole numbers, not strings.",
    ),
    "annotation-iscrowd-malformed": Fault(
        "error", "error", "{count} of {total} annotations have an 'iscrowd' other than 0 and 1, e.g. {example}."
    ),
    "annotation-ignore": Fault(
        "error",
        "error",
        "{count} of {total} annotations have 'ignore' set, which Detectron2 refuses, e.g. {example}: remove them.",
    ),
    "annotation-iscrowd-missing": Fault(
        "note",
        "error",
        "{count} of {total} annotations have no 'iscrowd', e.g. {example}: training takes it for 0, COCO's evaluation "
        "fails.",
    ),
    "annotation-area-missing": Fault(
        None,
        "error",
        "{count} of {total} annotations have no 'area', which COCO's evaluation needs, e.g. {example}: add it; without "
        "masks it is width times height.",
    ),
    "annotation-id-zero": Fault(
        None, "warning", "{example} has the id 0, which COCO's evaluation takes for not found: count from 1."
    ),
    "mask-polygon-short": Fault(
        "warning",
        "warning",
        "{count} of {total} annotations have polygons of under six or an odd number of coordinates, which are dropped, "
        "e.g. {example}.",
    ),
    "mask-without-polygon": Fault(
        "warning",
        "warning",
        "{count} of {total} annotations are dropped, with their boxes, since none of their polygons is valid, e.g. "
        "{example}: correct 'segmentation', or empty it to train on the box alone.",
    ),
    "mask-malformed": Fault(
        "error",
        "error",
        "{count} of {total} annotations have a 'segmentation' that is neither a list of lists of finite coordinates "
        "nor an RLE of 'counts' and 'size', e.g. {example}.",
    ),
    "mask-size": Fault(
        "warning",
        "warning",
        "{count} of {total} annotations have an RLE whose 'size' is not their image's [height, width], e.g. {example}: "
        "their masks are of no use.",
    ),
}


def show(item: object) -> str:
    """An item of a json list, cut to a readable length."""
    text = repr(item)
    return text if len(text) <= MAX_CHARACTERS_SHOWN else text[:MAX_CHARACTERS_SHOWN] + "…"


def category_fault(item: Any) -> str | None:
    """The code of what is wrong with an item of 'categories'."""
    is_valid = isinstance(item, dict) and is_whole(item.get("id")) and isinstance(item.get("name"), str)
    return None if is_valid else "category-malformed"


def image_fault(item: Any) -> str | None:
    """The code of what is wrong with an item of 'images'."""
    is_valid = (
        isinstance(item, dict)
        and (is_whole(item.get("id")) or isinstance(item.get("id"), str))
        and isinstance(item.get("file_name"), str)
        and all(is_whole(item.get(key)) and item[key] > 0 for key in ("height", "width"))
    )
    return None if is_valid else "image-malformed"


def mask_faults(segmentation: Any, record: dict) -> tuple[list[str], bool]:
    """The codes of what is wrong with a 'segmentation', and whether Detectron2 drops the annotation for it."""
    if not segmentation:
        return [], False
    if isinstance(segmentation, dict):
        return _rle_faults(segmentation, record), False
    try:
        short = [len(polygon) < 6 or len(polygon) % 2 == 1 for polygon in segmentation]
        # The sum is finite if all numbers are; it is the quickest way to ask.
        is_finite = all(math.isfinite(sum(polygon)) for polygon in segmentation)
    except (TypeError, OverflowError):
        return ["mask-malformed"], True
    if not is_finite:
        return ["mask-malformed"], False
    if all(short):
        return ["mask-without-polygon"], True
    return (["mask-polygon-short"] if any(short) else []), False


def _rle_faults(rle: dict, record: dict) -> list[str]:
    if not isinstance(rle.get("counts"), str | list) or not isinstance(rle.get("size"), list):
        return ["mask-malformed"]
    return [] if rle["size"] == [record["height"], record["width"]] else ["mask-size"]


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
