"""Findings about annotations that only the report of the command line shows."""

import math

from detectron2.structures import BoxMode

from detr_d2.data.checks.annotation_checks import check_annotations
from detr_d2.data.checks.annotation_table import AnnotationTable


def check(*objects: tuple[list[float], int], classes: tuple[str, ...] = ("cat", "dog", "cow")) -> dict[str, tuple]:
    """Check the boxes and classes of one image; return count and message of each finding, by its code."""
    annotations = [{"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label} for box, label in objects]
    table = AnnotationTable([{"file_name": "a.jpg", "height": 60, "width": 80, "annotations": annotations}])
    found = check_annotations(table, train=True, classes=list(classes))
    return {x.code: (x.count, x.message) for x in found}


def test_the_same_box_and_class_twice():
    box, other = [5, 6, 25, 36], [5, 6, 25, 37]
    count, message = check((box, 0), (other, 0), (box, 1), (box, 0), (box, 2))["object-repeated"]
    assert count == 1
    assert "a.jpg" in message
    assert "object-repeated" not in check((box, 0), (other, 0), (box, 1), (box, 2))


def test_classes_without_objects():
    count, message = check(([5, 6, 25, 36], 1))["class-without-objects"]
    assert (count, message) == (2, "2 of 3 classes have no object: cat, cow.")
    assert "class-without-objects" not in check(*(([5, 6, 25, 36], label) for label in range(3)))


def test_unreadable_values_are_counted():
    bad = [5, math.nan, 25, 36]
    assert "In total" not in check((bad, 0), ([5, 6, 25, 36], 1))["unreadable-annotation"][1]
    count, message = check((bad, 0), (bad, 1), (bad, 2))["unreadable-annotation"]
    assert count == 3
    assert message.endswith(". In total, 3 boxes or categories can't be read.")
