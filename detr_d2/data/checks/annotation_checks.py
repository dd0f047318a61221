"""What can be wrong with boxes, labels and their numbers."""

from collections.abc import Iterator

import numpy as np

from detr_d2.data.checks.annotation_table import AnnotationTable
from detr_d2.data.checks.expectations import Expectations
from detr_d2.data.checks.findings import Finding
from detr_d2.data.checks.wording import abbreviate

# Of correct XYWH boxes hardly one leaves its image; of XYXY boxes taken for XYWH about half do.
SUSPICIOUS_SHARE_BEYOND_IMAGE = 0.25


def check_annotations(table: AnnotationTable, expected: Expectations) -> list[Finding]:
    """All findings about the annotations of a dataset, in the order of ``_CHECKS``."""
    return [finding for check in _CHECKS for finding in check(table, expected)]


def _check_readable(table: AnnotationTable, expected: Expectations) -> Iterator[Finding]:
    if not table.unreadable:
        return
    row, message = table.unreadable[0]
    count = len(table.unreadable)
    more = f" So are {count - 1} other values that can't be used." if count > 1 else ""
    yield Finding("error", "unreadable-annotation", message + more, count, table.name(row))


def _check_labels(table: AnnotationTable, expected: Expectations) -> Iterator[Finding]:
    limit = expected.num_classes if expected.classes is None else len(expected.classes)
    wrong = np.flatnonzero(table.classes >= limit) if limit is not None else ()
    if len(wrong) == 0:
        return
    key = "the number of classes" if expected.num_classes is None else "MODEL.DETR.NUM_CLASSES"
    message = (
        f"category_id {table.category(wrong[0])} of {table.name(wrong[0])} is not in [0, {limit}), as for "
        f"{len(wrong)} of {len(table)} annotations: count categories from 0, or correct {key} (now {limit})."
    )
    yield Finding("error", "label-range", message, len(wrong), table.name(wrong[0]))


def _check_objects(table: AnnotationTable, expected: Expectations) -> Iterator[Finding]:
    without_area = len(table.without_area())
    if without_area < len(table):
        return
    found = f"its annotations: {table.num_crowds} crowds, {without_area} boxes without area"
    if expected.train:
        message = f"no object to learn from ({found}): annotate objects, with 'iscrowd' 0, or don't train on it."
        yield Finding("error", "no-objects", message)
    else:
        message = (
            f"no object to find ({found}): AP can't be computed and will be nan or -1. Evaluate on annotated "
            "data, and choose no best checkpoint by this one."
        )
        yield Finding("warning", "no-objects", message)


def _check_area(table: AnnotationTable, expected: Expectations) -> Iterator[Finding]:
    rows = table.without_area()
    if len(rows) == 0:
        return
    flat = int((table.boxes[rows, 2:] <= table.boxes[rows, :2]).any(axis=1).sum())
    message = (
        f"{len(rows)} of {len(table)} boxes have no area inside their image and are dropped, e.g. "
        f"{table.name(rows[0])} ({flat} without width or height, {len(rows) - flat} outside): correct or remove them."
    )
    yield Finding("warning", "box-without-area", message, len(rows), table.name(rows[0]))


def _check_extent(table: AnnotationTable, expected: Expectations) -> Iterator[Finding]:
    beyond = table.beyond_image()
    if table.declared_xywh[beyond].sum() > SUSPICIOUS_SHARE_BEYOND_IMAGE * max(len(table), 1):
        message = (
            f"{len(beyond)} of {len(table)} boxes reach beyond their image, e.g. {table.name(beyond[0])}: are "
            "they XYXY, but declared XYWH? COCO's 'bbox' is [left, top, width, height]."
        )
        yield Finding("warning", "xyxy-as-xywh", message, len(beyond), table.name(beyond[0]))
        return
    rows = table.partly_outside()
    if len(rows):
        message = (
            f"{len(rows)} of {len(table)} boxes lie partly outside their image, by more than a pixel, and are "
            f"clipped, e.g. {table.name(rows[0])}: were they drawn on another size of the image?"
        )
        yield Finding("warning", "box-partly-outside", message, len(rows), table.name(rows[0]))


def _check_fractions(table: AnnotationTable, expected: Expectations) -> Iterator[Finding]:
    boxes = table.boxes[table.is_readable()]
    if len(boxes) == 0 or boxes.max() > 2 or boxes.max() <= 0 or table.image_sizes.min() < 8:
        return
    message = (
        f"all {len(boxes)} boxes lie within two pixels of the corner of their image, e.g. {table.name(0)}: are they "
        "fractions of the image's sides, as in YOLO's format? Multiply them by width and height."
    )
    yield Finding("warning", "box-in-fractions", message, len(boxes), table.name(0))


def _check_queries(table: AnnotationTable, expected: Expectations) -> Iterator[Finding]:
    objects = np.bincount(table.image_index, minlength=table.num_images)
    crowded = np.flatnonzero(objects > expected.num_queries) if expected.num_queries else ()
    if len(crowded) == 0:
        return
    most = int(objects.argmax())
    message = (
        f"{len(crowded)} of {table.num_images} images have more objects than the model has queries "
        f"({expected.num_queries}), at most {objects[most]}, in {table.image_name(most)}: the surplus is never found. "
        "Set MODEL.DETR.NUM_OBJECT_QUERIES well above the usual count."
    )
    yield Finding("warning", "more-objects-than-queries", message, len(crowded), table.image_name(most))


def _check_repetition(table: AnnotationTable, expected: Expectations) -> Iterator[Finding]:
    # Two segments can't lie on the same pixels, whatever their boxes.
    rows = np.flatnonzero(table.is_readable() & ~table.of_segments)
    keys = np.column_stack([table.image_index, table.classes, table.boxes])[rows]
    order = np.lexsort(keys.T)
    same = np.flatnonzero((keys[order[1:]] == keys[order[:-1]]).all(axis=1))
    if len(same) == 0:
        return
    example = table.name(int(rows[order[same[0] + 1]]))
    message = (
        f"{len(same)} objects are annotated twice, with the same box and class, e.g. {example}: a query is asked for "
        "each; remove what is double."
    )
    yield Finding("note", "object-repeated", message, len(same), example)


def _check_masks(table: AnnotationTable, expected: Expectations) -> Iterator[Finding]:
    if not expected.masks or len(table) == 0:
        return
    rows = [row for row in range(len(table)) if table.lacks_mask(row)]
    if len(rows) == 0:
        return
    message = (
        f"{len(rows)} of {len(table)} objects have no mask and are dropped, with their boxes, e.g. "
        f"{table.name(rows[0])}: add 'segmentation', or set MODEL.MASK_ON False to train on boxes."
    )
    severity = "error" if len(rows) == len(table) else "warning"
    yield Finding(severity, "object-without-mask", message, len(rows), table.name(rows[0]))


def _check_unused_classes(table: AnnotationTable, expected: Expectations) -> Iterator[Finding]:
    if expected.classes is None or len(table) == 0:
        return
    used = set(np.unique(table.classes).tolist())
    unused = [name for label, name in enumerate(expected.classes) if label not in used]
    if unused:
        message = f"{len(unused)} of {len(expected.classes)} classes have no object: {abbreviate(unused)}."
        yield Finding("note", "class-without-objects", message, len(unused), str(unused[0]))


_CHECKS = (
    _check_readable,
    _check_labels,
    _check_objects,
    _check_area,
    _check_extent,
    _check_fractions,
    _check_queries,
    _check_repetition,
    _check_masks,
    _check_unused_classes,
)
