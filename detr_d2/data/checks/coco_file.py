"""Reader of COCO files that finds all faults, where Detectron2's reader stops at the first or ignores it."""

import math
import os
from typing import Any, NamedTuple

from detectron2.structures import BoxMode

from detr_d2.data.checks.findings import Finding, Severity
from detr_d2.data.registration import read_coco_content
from detr_d2.data.rle import to_rle
from detr_d2.utils.errors import ExampleCounter, UserError

MAX_CHARACTERS_SHOWN = 80


class Fault(NamedTuple):
    """Message about a fault, formatted with ``count``, ``total``, ``items`` and ``example``, and its severities."""

    text: str
    train: Severity | None = "error"  # In training data; None if not reported there.
    evaluation: Severity | None = None  # In evaluation data; None if the same.


def _some(problem: str, advice: str = "", *severities: Severity | None) -> Fault:
    """Make a fault of some items: what they have or lack, and what to do about it."""
    advice = advice and f": {advice}"
    return Fault("{count} of {total} {items} " + problem + ", e.g. {example}" + advice + ".", *severities)


# The order is that of the report. A code's first word determines what {total} counts.
FAULTS = {
    "categories-missing": Fault("'categories' is empty: list every class as {{'id': 1, 'name': 'cat'}}."),
    "category-malformed": _some("lack an integer 'id' (not a string) or a 'name'"),
    "category-id-repeated": _some("have the id of another"),
    "category-name-repeated": _some("have the name of another", "the model treats them as two classes", "warning"),
    "image-malformed": _some("lack an 'id', a 'file_name', or a 'width' and 'height' in pixels, integers above 0"),
    "image-id-repeated": _some(
        "have the id of another", "only one of the images would be used. Renumber them, with their annotations"
    ),
    "image-ids-mixed": Fault("some image ids are numbers, others strings, e.g. {example}: use one type."),
    "image-file-repeated": _some("have the file of another", "merge their annotations under one id", "warning"),
    "annotations-missing": Fault("there is no list 'annotations': no image has an object.", "warning"),
    "annotation-malformed": _some("lack 'id', 'image_id' or 'category_id'"),
    "annotation-id-repeated": _some("have the id of another", "renumber them"),
    "annotation-image-unknown": _some(
        "belong to images that 'images' does not list and are dropped",
        "correct image_id (a string differs from a number), or remove them",
        "warning",
    ),
    "annotation-category-unknown": _some(
        "have a category_id that 'categories' does not list", "category ids are integers, not strings"
    ),
    "annotation-ignore": _some("have 'ignore' set, which Detectron2 refuses", "remove them"),
    "annotation-iscrowd-missing": _some(
        "have no 'iscrowd'", "training assumes 0, COCO's evaluation fails", "note", "error"
    ),
    "annotation-area-missing": _some(
        "have no 'area', which COCO's evaluation needs", "add it; without masks it is width times height", None, "error"
    ),
    "annotation-id-zero": _some(
        "have the id 0, which COCO's evaluation treats as no match", "count from 1", None, "warning"
    ),
    "mask-polygon-short": _some(
        "have polygons of under six or an odd number of coordinates, which are dropped", "", "warning"
    ),
    "mask-without-polygon": _some(
        "are dropped, with their boxes, since none of their polygons is valid",
        "correct 'segmentation', or empty it to train on the box alone",
        "warning",
    ),
    "mask-malformed": _some(
        "have a 'segmentation' that is neither a list of lists of finite coordinates nor an RLE of 'counts' and 'size' "
        "whose runs cover the image"
    ),
    "mask-size": _some(
        "have an RLE whose 'size' is not their image's [height, width]", "their masks can't be used", "warning"
    ),
}
_LISTS = {"category": "categories", "image": "images", "annotation": "annotations", "mask": "annotations"}


def read_coco_file(json_file: str, image_root: str, train: bool) -> tuple[list[dict], list[str], list[Finding]]:
    """Read a file in COCO's instances format, to train on or only to evaluate on.

    Annotations that Detectron2 drops (objects whose polygons all have fewer than six numbers, annotations of unknown
    images) or refuses are left out of the records, and reported as findings.

    Returns:
        The records, as Detectron2's reader makes them, with annotation ids; the names of the classes by label, empty
        if the file lists none; and the faults of the file's structure.

    Raises:
        UserError: the file is missing, is not valid JSON, or lacks the lists that the format consists of.
    """
    content = read_coco_content(json_file)
    faults = ExampleCounter()
    if "annotations" not in content:
        faults.add("annotations-missing", json_file)
    labels, classes = _read_categories(content["categories"], faults)
    records = _read_images(content["images"], image_root, faults)
    _read_annotations(content.get("annotations", []), records, labels, faults)
    findings = []
    for code, fault in FAULTS.items():
        severity = fault.train if train else fault.evaluation or fault.train
        if code in faults.counts and severity is not None:
            count, example = faults.counts[code], faults.examples[code]
            items = _LISTS.get(code.split("-")[0], "")
            text = fault.text.format(count=count, total=len(content.get(items, ())), items=items, example=example)
            findings.append(Finding(severity, code, text, count, example))
    return list(records.values()), classes, findings


def _read_categories(items: list, faults: ExampleCounter) -> tuple[dict[int, int], list[str]]:
    """Return the label of each category id, and the names by label: in the order of the ids, as in Detectron2."""
    names: dict[int, str] = {}
    for number, item in enumerate(items):
        if not (isinstance(item, dict) and type(item.get("id")) is int and isinstance(item.get("name"), str)):
            faults.add("category-malformed", _show(number, item))
        elif item["id"] in names:
            faults.add("category-id-repeated", str(item["id"]))
        else:
            if item["name"] in names.values():
                faults.add("category-name-repeated", repr(item["name"]))
            names[item["id"]] = item["name"]
    if not items:
        faults.add("categories-missing", "")
    names = dict(sorted(names.items()))
    return {category: label for label, category in enumerate(names)}, list(names.values())


def _read_images(items: list, image_root: str, faults: ExampleCounter) -> dict[Any, dict]:
    """Make a record without annotations for every image, by image id."""
    records: dict[Any, dict] = {}
    files: set[str] = set()
    for number, item in enumerate(items):
        if not _is_image(item):
            faults.add("image-malformed", _show(number, item))
            continue
        if item["id"] in records:
            faults.add("image-id-repeated", f"{item['id']}, of {item['file_name']}")
            continue
        if item["file_name"] in files:
            faults.add("image-file-repeated", item["file_name"])
        files.add(item["file_name"])
        records[item["id"]] = {
            "file_name": os.path.join(image_root, item["file_name"]),
            "image_id": item["id"],
            "height": item["height"],
            "width": item["width"],
            "annotations": [],
        }
    if len({type(key) for key in records}) > 1:
        faults.add("image-ids-mixed", ", ".join(map(repr, list(records)[:3])))
    return records


def _read_annotations(items: list, records: dict[Any, dict], labels: dict[int, int], faults: ExampleCounter) -> None:
    """Add every annotation that Detectron2 would keep to its record, with its label; items are changed in place."""
    seen: set = set()
    for number, item in enumerate(items):
        try:
            record, label = records.get(item["image_id"]), labels.get(item["category_id"])
            is_repeated = item["id"] in seen
            seen.add(item["id"])
        except (TypeError, KeyError):
            faults.add("annotation-malformed", _show(number, item))
            continue
        if record is None:
            faults.add("annotation-image-unknown", f"id {item['id']} with image_id {item['image_id']!r}")
            continue
        name = f"annotation id {item['id']} of image {record['file_name']}"
        mask_fault, dropped = _check_mask(item.get("segmentation"), record)
        is_fault = {
            "annotation-id-repeated": is_repeated,
            "annotation-id-zero": item["id"] == 0,
            "annotation-iscrowd-missing": "iscrowd" not in item,
            "annotation-area-missing": "area" not in item,
            "annotation-ignore": item.get("ignore", 0) != 0,
            mask_fault: mask_fault is not None,
        }
        for code in filter(is_fault.get, is_fault):
            faults.add(code, name)
        if label is None and labels:
            faults.add("annotation-category-unknown", f"{item['category_id']!r} of {name}")
        if not dropped and (label is not None or not labels):
            item.update(bbox_mode=BoxMode.XYWH_ABS, category_id=item["category_id"] if label is None else label)
            record["annotations"].append(item)


def _check_mask(segmentation: Any, record: dict) -> tuple[str | None, bool]:
    """Return the code of the fault of a 'segmentation', and True if Detectron2 drops the annotation for it."""
    if not segmentation:
        return None, False
    if isinstance(segmentation, dict):
        if not isinstance(segmentation.get("counts"), str | list) or not isinstance(segmentation.get("size"), list):
            return "mask-malformed", False
        if segmentation["size"] != [record["height"], record["width"]]:
            return "mask-size", False
        try:
            to_rle(segmentation, (record["height"], record["width"]), "", ExampleCounter())
        except UserError:
            return "mask-malformed", False
        return None, False
    try:
        short = [len(polygon) < 6 or len(polygon) % 2 == 1 for polygon in segmentation]
        # The sum is finite if all numbers are; it is the quickest test.
        is_finite = all(math.isfinite(sum(polygon)) for polygon in segmentation)
    except (TypeError, OverflowError):
        return "mask-malformed", True
    if not is_finite:
        return "mask-malformed", False
    if all(short):
        return "mask-without-polygon", True
    return "mask-polygon-short" if any(short) else None, False


def _is_image(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and type(item.get("id")) in (int, str)
        and isinstance(item.get("file_name"), str)
        and all(type(item.get(key)) is int and item[key] > 0 for key in ("height", "width"))
    )


def _show(number: int, item: object) -> str:
    """Describe an item of a JSON list by its position and its text, cut to a readable length."""
    text = repr(item)
    text = text if len(text) <= MAX_CHARACTERS_SHOWN else text[:MAX_CHARACTERS_SHOWN] + "…"
    return f"number {number} (counted from 0), {text}"
