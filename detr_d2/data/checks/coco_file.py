"""Reading COCO's json with everything wrong in it, where Detectron2's reader stops or stays silent."""

import json
import os
from dataclasses import dataclass
from typing import Any

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from detr_d2.data.checks.coco_faults import FAULTS, category_fault, image_fault, mask_faults, show
from detr_d2.data.checks.findings import FaultCounter, Finding
from detr_d2.utils.errors import UserError


@dataclass(frozen=True)
class CocoFile:
    """What could be made of a file.

    Attributes:
        records: as Detectron2's reader makes them, with annotation ids, but for what it would refuse.
        classes: names in the order of the labels; empty if the file lists none.
        findings: what is wrong with the file's structure.
    """

    records: list[dict]
    classes: list[str]
    findings: list[Finding]


def read_coco_file(json_file: str, image_root: str, train: bool) -> CocoFile:
    """Read a file in COCO's instances format.

    What Detectron2 drops (objects whose polygons all have under six numbers, annotations of unknown images)
    and what it refuses is left out of the records and is among the findings.

    Args:
        json_file: a path, or an address that Detectron2's ``PathManager`` knows.
        image_root: the folder that "file_name" is relative to.
        train: whether the data is to be trained on, not only evaluated on.

    Raises:
        UserError: the file is missing, is no json, or lacks the lists that the format consists of.
    """
    content = load_content(json_file)
    faults = FaultCounter()
    labels, classes = _read_categories(content["categories"], faults)
    records = _read_images(content["images"], image_root, faults)
    _read_annotations(content["annotations"], records, labels, faults)
    totals = {key: len(content[plural]) for key, plural in _TOTALS.items()}
    if content["annotations_missing"]:
        faults.add("annotations-missing", json_file)
    return CocoFile(list(records.values()), classes, faults.findings(FAULTS, train, totals))


def load_content(json_file: str) -> dict[str, Any]:
    """What a file in COCO's instances format holds; "annotations_missing" tells whether it has no "annotations".

    Raises:
        UserError: the file is missing, is no json, or lacks the lists that the format consists of.
    """
    content = load_json(json_file)
    is_via = "_via_img_metadata" in content or any(isinstance(x, dict) and "regions" in x for x in content.values())
    if is_via and "images" not in content:
        raise UserError(
            f"{json_file} is of the VGG Image Annotator: convert it to COCO's format with tools/via_to_coco.py."
        )
    keys = ", ".join(map(str, content)) or "none"
    content["annotations_missing"] = "annotations" not in content
    content.setdefault("annotations", [])
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{json_file} has no list {key!r}, which COCO's format asks for; its keys are {keys}.")
    if not content["images"]:
        raise UserError(f"{json_file} has no images: its list 'images' is empty.")
    if any(isinstance(x, dict) and "segments_info" in x for x in content["annotations"][:1]):
        raise UserError(
            f"{json_file} is in COCO's panoptic format, where instances are asked for: give train_net.py the folder of "
            "its PNGs too (--train-panoptic, --val-panoptic), or in Python register it with "
            "detr_d2.data.register_coco_panoptic_dataset."
        )
    return content


def load_json(json_file: str) -> dict[str, Any]:
    """The object in a json file.

    Raises:
        UserError: the file is missing, or no json object.
    """
    try:
        with PathManager.open(json_file, "r", encoding="utf-8-sig") as file:
            content = json.load(file)
    except FileNotFoundError as error:
        raise UserError(f"{json_file} does not exist: give the path of a json file in COCO's format.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{json_file} can't be read: {error}.") from error
    except ValueError as error:
        raise UserError(
            f"{json_file} is not valid json ({error}): perhaps it was cut off while it was copied; make it anew."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{json_file} holds a json {type(content).__name__}, where COCO's format has an object.")
    return content


_TOTALS = {"category": "categories", "image": "images", "annotation": "annotations", "mask": "annotations"}


def _read_categories(items: list, faults: FaultCounter) -> tuple[dict[int, int], list[str]]:
    """The label of each category id, and the names by label: in the order of the ids, as in Detectron2."""
    names: dict[int, str] = {}
    for number, item in enumerate(items):
        code = category_fault(item)
        if code:
            faults.add(code, f"number {number} (counted from 0), {show(item)}")
        elif item["id"] in names:
            faults.add("category-id-repeated", str(item["id"]))
        else:
            if item["name"] in names.values():
                faults.add("category-name-repeated", repr(item["name"]))
            names[item["id"]] = item["name"]
    if not items:
        faults.add("categories-missing", "")
    ids = sorted(names)
    return {category: label for label, category in enumerate(ids)}, [names[category] for category in ids]


def _read_images(items: list, image_root: str, faults: FaultCounter) -> dict[Any, dict]:
    """A record without annotations for every image, by image id."""
    records: dict[Any, dict] = {}
    files: set[str] = set()
    for number, item in enumerate(items):
        code = image_fault(item)
        if code:
            faults.add(code, f"number {number} (counted from 0), {show(item)}")
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


def _read_annotations(items: list, records: dict[Any, dict], labels: dict[int, int], faults: FaultCounter) -> None:
    """Put every annotation that Detectron2 would keep into its record; it is changed on the way."""
    seen: set = set()
    for number, item in enumerate(items):
        try:
            number_and_image = item["id"], item["image_id"]
            record = records.get(item["image_id"])
            repeated = item["id"] in seen
            seen.add(item["id"])
            label = labels.get(item["category_id"])
        except (TypeError, KeyError):
            faults.add("annotation-malformed", f"number {number} (counted from 0), {show(item)}")
            continue
        if record is None:
            faults.add("annotation-image-unknown", "id {} with image_id {!r}".format(*number_and_image))
            continue
        name = f"annotation id {item['id']} of image {record['file_name']}"
        if repeated:
            faults.add("annotation-id-repeated", name)
        if item["id"] == 0:
            faults.add("annotation-id-zero", name)
        if label is None and labels:
            faults.add("annotation-category-unknown", f"{item['category_id']!r} of {name}")
        for key in ("iscrowd", "area"):
            if key not in item:
                faults.add(f"annotation-{key}-missing", name)
        if item.get("iscrowd", 0) not in (0, 1):
            faults.add("annotation-iscrowd-malformed", f"{item['iscrowd']!r} of {name}")
        if item.get("ignore", 0) != 0:
            faults.add("annotation-ignore", name)
        found, dropped = mask_faults(item.get("segmentation"), record)
        for code in found:
            faults.add(code, name)
        if not dropped and (label is not None or not labels):
            item.update(bbox_mode=BoxMode.XYWH_ABS, category_id=item["category_id"] if label is None else label)
            record["annotations"].append(item)
