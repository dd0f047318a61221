"""Checks and statistics of boxes, labels and their numbers, on all annotations of a dataset at once."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from detr_d2.data.annotations import has_area
from detr_d2.data.checks.annotation_table import AnnotationTable
from detr_d2.data.checks.findings import Finding, Severity
from detr_d2.utils.errors import abbreviate

# Correct XYWH boxes almost never extend beyond the image; about half of XYXY boxes mistaken for XYWH do.
SUSPICIOUS_SHARE_BEYOND_IMAGE = 0.25
NUM_SMALLEST = 3
# COCO calls objects of under 32 x 32 pixels small, and of over 96 x 96 large.
SMALL_AREA, LARGE_AREA = 32**2, 96**2


def compute_statistics(table: AnnotationTable, classes: Sequence[str] | None) -> dict[str, Any]:
    """Compute statistics of the boxes that training keeps: readable, not crowds, with an area inside their image.

    ``classes`` are the names by label; if None, labels are their own names.

    Returns:
        Values for JSON. Sizes are widths and heights in pixels; those of images are None if the dataset has no sizes.
    """
    records = table.records
    keep = np.flatnonzero(table.usable())
    boxes = table.clipped[keep]
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(axis=1)
    objects = np.bincount(table.image_index[keep], minlength=len(records))
    sizes = sorted(((x["width"], x["height"]) for x in records if x.get("width") and x.get("height")), key=math.prod)
    small, large = int((areas < SMALL_AREA).sum()), int((areas > LARGE_AREA).sum())
    smallest = np.argsort(areas, kind="stable")[:NUM_SMALLEST]
    names = [table.name(row) for row in keep[smallest]]
    smallest_sides = np.round(sides[smallest].astype(np.float64), 2).tolist()
    return {
        "images": len(records),
        "images_without_objects": int((objects == 0).sum()),
        "objects": len(keep),
        "crowds": table.num_crowds,
        "median_objects": float(np.median(objects)) if len(records) else 0.0,
        "max_objects": int(objects.max(initial=0)),
        "most_objects_in": records[objects.argmax()]["file_name"] if len(keep) else "",
        "small": small,
        "medium": len(keep) - small - large,
        "large": large,
        "smallest_boxes": [
            {"width": width, "height": height, "annotation": name}
            for (width, height), name in zip(smallest_sides, names, strict=True)
        ],
        "smallest_image": sizes[0] if sizes else None,
        "largest_image": sizes[-1] if sizes else None,
        "classes": _count_classes(table.classes[keep].tolist(), table.image_index[keep].tolist(), classes),
    }


def _count_classes(labels: list[int], images: list[int], names: Sequence[str] | None) -> list[dict[str, Any]]:
    """Count the objects of each class, and the images with one."""
    objects = Counter(labels)
    images_with = Counter(label for label, _ in set(zip(labels, images, strict=True)))
    shown = enumerate(names) if names is not None else ((label, label) for label in sorted(objects))
    return [
        {"label": label, "name": str(name), "objects": objects[label], "images": images_with[label]}
        for label, name in shown
    ]


def check_annotations(
    table: AnnotationTable,
    train: bool,
    num_classes: int | None = None,
    num_queries: int | None = None,
    classes: Sequence[str] | None = None,
    masks: bool = False,
) -> list[Finding]:
    """Return all findings about annotations to train on or to evaluate on; with ``masks``, objects need a mask."""
    return [
        *_check_values(table, num_classes, classes),
        *_check_crowds(table),
        *_check_objects(table, train),
        *_check_boxes(table),
        *_check_queries(table, num_queries),
        *_check_repetition(table),
        *(_check_masks(table) if masks else ()),
        *_check_unused_classes(table, classes),
    ]


def _check_values(table: AnnotationTable, num_classes: int | None, classes: Sequence[str] | None) -> Iterator[Finding]:
    """Check that boxes and categories can be read, and that the categories have a row in the class head."""
    rows = [row for row, _ in table.unreadable]
    message = table.unreadable[0][1] if rows else ""
    total = f" In total, {len(rows)} boxes or categories can't be read." if len(rows) > 1 else ""
    yield from _about(rows, table, "error", "unreadable-annotation", "{message}", message=message + total)

    limit = num_classes if classes is None else len(classes)
    rows = np.flatnonzero(table.classes >= limit) if limit is not None else ()
    label = table.classes[rows[0]] if len(rows) else None
    key = "the number of classes" if num_classes is None else "MODEL.DETR.NUM_CLASSES"
    text = (
        "category_id {label} of {example} is not in [0, {limit}), as for {count} of {total} annotations: count "
        "categories from 0, or correct {key} (now {limit})."
    )
    yield from _about(rows, table, "error", "label-range", text, label=label, limit=limit, key=key)


def _check_crowds(table: AnnotationTable) -> Iterator[Finding]:
    """Check that 'iscrowd' is 0 or 1: any other text or number would count as 1, and the object be left out."""
    wrong = [(record, x) for record, x in table.annotations() if x.get("iscrowd", 0) not in (0, 1)]
    if wrong:
        record, item = wrong[0]
        message = (
            f"{len(wrong)} annotations have an 'iscrowd' other than 0 and 1, e.g. {item['iscrowd']!r} of annotation id "
            f"{item.get('id')} of image {record['file_name']}: write 0 for an object, 1 for a group."
        )
        yield Finding("error", "annotation-iscrowd-malformed", message, len(wrong), record["file_name"])


def _check_objects(table: AnnotationTable, train: bool) -> Iterator[Finding]:
    without_area = len(table.without_area())
    if without_area < len(table):
        return
    annotations = f"its annotations: {table.num_crowds} crowds, {without_area} boxes without area"
    message = (
        f"no object to learn from ({annotations}): annotate objects, with 'iscrowd' 0, or don't train on it."
        if train
        else f"no object to find ({annotations}): AP can't be computed and will be nan or -1. Evaluate on annotated "
        "data, and don't choose the best checkpoint by this dataset."
    )
    yield Finding("error" if train else "warning", "no-objects", message)


def _check_boxes(table: AnnotationTable) -> Iterator[Finding]:
    """Check that boxes are inside their images, and have the unit and the format that they are declared with."""
    rows = table.without_area()
    flat = int((~has_area(table.boxes[rows])).sum())
    text = (
        "{count} of {total} boxes have no area inside their image and are dropped, e.g. {example} ({flat} without "
        "width or height, {outside} outside): correct or remove them."
    )
    yield from _about(rows, table, "warning", "box-without-area", text, flat=flat, outside=len(rows) - flat)

    rows = np.flatnonzero((table.boxes[:, 2:] > table.image_sizes[:, ::-1] + 1).any(axis=1))
    if table.declared_xywh[rows].sum() > SUSPICIOUS_SHARE_BEYOND_IMAGE * max(len(table), 1):
        code = "xyxy-as-xywh"
        text = (
            "{count} of {total} boxes extend beyond their image, e.g. {example}: are they XYXY, but declared XYWH? "
            "COCO's 'bbox' is [left, top, width, height]."
        )
    else:
        code = "box-partly-outside"
        rows = np.flatnonzero((np.abs(table.boxes - table.clipped) > 1).any(axis=1) & has_area(table.clipped))
        text = (
            "{count} of {total} boxes are partly outside their image, by more than a pixel, and are clipped, e.g. "
            "{example}: were they annotated on another size of the image?"
        )
    yield from _about(rows, table, "warning", code, text)

    rows = np.flatnonzero(table.is_readable())
    if len(rows) and 0 < table.boxes[rows].max() <= 2 and table.image_sizes.min() >= 8:
        text = (
            "all {count} boxes are within two pixels of the corner of their image, e.g. {example}: are they fractions "
            "of the image's sides, as in YOLO's format? Multiply them by width and height."
        )
        yield from _about(rows, table, "warning", "box-in-fractions", text)


def _check_queries(table: AnnotationTable, num_queries: int | None) -> Iterator[Finding]:
    objects = np.bincount(table.image_index, minlength=table.num_images)
    count = int((objects > num_queries).sum()) if num_queries else 0
    if count:
        example = table.records[objects.argmax()]["file_name"]
        message = (
            f"{count} of {table.num_images} images have more objects than the model has queries ({num_queries}), "
            f"at most {objects.max()}, in {example}: the surplus is never detected. "
            "Set MODEL.DETR.NUM_OBJECT_QUERIES well above the usual count."
        )
        yield Finding("warning", "more-objects-than-queries", message, count, example)


def _check_repetition(table: AnnotationTable) -> list[Finding]:
    # Two segments can't lie on the same pixels, whatever their boxes.
    rows = np.flatnonzero(table.is_readable() & ~table.of_segments)
    keys = np.column_stack([table.image_index, table.classes, table.boxes])[rows]
    order = np.lexsort(keys.T)
    repeated = rows[order[1:][(keys[order[1:]] == keys[order[:-1]]).all(axis=1)]]
    text = (
        "{count} objects are annotated twice, with the same box and class, e.g. {example}: a query has to find each; "
        "remove the duplicates."
    )
    return _about(repeated, table, "note", "object-repeated", text)


def _check_masks(table: AnnotationTable) -> list[Finding]:
    rows = table.without_mask()
    text = (
        "{count} of {total} objects have no mask and are dropped, with their boxes, e.g. {example}: add "
        "'segmentation', or set MODEL.MASK_ON False and INPUT.COPY_PASTE 0 to train on boxes."
    )
    return _about(rows, table, "error" if len(rows) == len(table) else "warning", "object-without-mask", text)


def _check_unused_classes(table: AnnotationTable, classes: Sequence[str] | None) -> Iterator[Finding]:
    used = set(table.classes.tolist())
    unused = [name for label, name in enumerate(classes or ()) if label not in used]
    if unused and len(table):
        message = f"{len(unused)} of {len(classes)} classes have no object: {abbreviate(unused)}."
        yield Finding("note", "class-without-objects", message, len(unused), str(unused[0]))


def _about(
    rows: Sequence[int], table: AnnotationTable, severity: Severity, code: str, text: str, **values: object
) -> list[Finding]:
    """Return a finding about rows, the first of which is the example; nothing if there are none."""
    if len(rows) == 0:
        return []
    count, example = len(rows), table.name(int(rows[0]))
    message = text.format(count=count, total=len(table), example=example, **values)
    return [Finding(severity, code, message, count, example)]
