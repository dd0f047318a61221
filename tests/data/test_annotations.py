"""Boxes and classes from annotation dicts."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode

from detr_d2.data.annotations import build_instances, read_targets
from detr_d2.utils.errors import ExampleCounter, UserError

SIZE = (40, 60)


def read(*annotations, dropped=None):
    return read_targets(annotations, "a.jpg", SIZE, dropped or ExampleCounter())


def test_crowds_are_left_out(make_annotation):
    """A missing iscrowd means 0."""
    targets = read(
        make_annotation(iscrowd=1, category_id=1),
        make_annotation(iscrowd=0, category_id=2),
        make_annotation(iscrowd=..., category_id=3),
    )
    assert targets.classes.tolist() == [2, 3]
    assert [item["category_id"] for item in targets.annotations] == [2, 3]
    assert len(read(make_annotation(iscrowd=1)).boxes) == 0


@pytest.mark.parametrize(
    ("bbox", "mode"),
    [
        ([5, 6, 20, 10], BoxMode.XYWH_ABS),
        ((5, 6, 25, 16), BoxMode.XYXY_ABS),
        (np.array([5.0, 6, 25, 16]), 0),
        ([15, 11, 10, 20, 90], BoxMode.XYWHA_ABS),
    ],
)
def test_box_modes(make_annotation, bbox, mode):
    targets = read(make_annotation(bbox=bbox, bbox_mode=mode))
    np.testing.assert_allclose(targets.boxes, [[5, 6, 25, 16]], atol=1e-5)
    assert targets.boxes.dtype == np.float32


def test_boxes_are_clipped_and_dropped(make_annotation, caplog):
    """Boxes are clipped to the image; without area, they are dropped and counted, and the first one is named."""
    boxes = {
        1: [-5, -5, 20, 20],
        2: [50, 30, 100, 100],
        3: [10, 10, 0, 5],
        4: [10, 10, 5, 0],
        5: [60, 10, 5, 5],
        6: [-9, 3, 9, 9],
        7: [10, 10, -3, 5],
    }
    dropped = ExampleCounter()
    annotations = [make_annotation(id=number, bbox=box) for number, box in boxes.items()]
    with caplog.at_level(logging.WARNING):
        targets = read(*annotations, dropped=dropped)
        read(*annotations, dropped=dropped)
    np.testing.assert_array_equal(targets.boxes, [[0, 0, 15, 15], [50, 30, 60, 40]])
    assert [item["id"] for item in targets.annotations] == [1, 2]
    assert dropped.counts["a box without area inside its image"] == 10
    assert len(caplog.records) == 1
    assert "annotation id 3 of image a.jpg" in caplog.text


def test_annotation_without_id_is_named_by_its_position(make_annotation):
    """Detectron2's COCO reader leaves ids out."""
    crowd = make_annotation(iscrowd=1)
    with pytest.raises(UserError, match=r"annotation number 2 \(counted from 0\) of image a\.jpg"):
        read(crowd, make_annotation(), make_annotation(id=..., category_id=-1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("position", range(4))
def test_box_that_is_not_finite(make_annotation, value, position):
    bbox = [5.0, 6.0, 20.0, 10.0]
    bbox[position] = value
    with pytest.raises(UserError, match=r"annotation id 7 of image a\.jpg is not finite"):
        read(make_annotation(bbox=bbox))


@pytest.mark.parametrize(
    "changes",
    [
        {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, 3, 4, 5]},
        {"bbox": []},
        {"bbox": None},
        {"bbox": "box"},
        {"bbox": [[1, 2, 3, 4]]},
        {"bbox": [1, 2, 3, "x"]},
        {"bbox": ...},
        {"bbox_mode": ...},
        {"bbox_mode": 99},
        {"bbox_mode": BoxMode.XYXY_REL},
    ],
)
def test_malformed_box_is_named(make_annotation, changes):
    """The message names the annotation and the image."""
    with pytest.raises(UserError, match=r"bbox.* annotation id 7 of image a\.jpg"):
        read(make_annotation(**changes))


@pytest.mark.parametrize(("value", "category"), [("3", 3), (3.0, 3), (np.int64(3), 3), (0, 0)])
def test_category_becomes_an_integer(make_annotation, value, category):
    classes = read(make_annotation(category_id=value)).classes
    assert classes.tolist() == [category]
    assert classes.dtype == np.int64


@pytest.mark.parametrize("value", [-1, 2.5, "cat", "2.5", None, ..., float("nan"), float("inf"), [1]])
def test_wrong_category_is_named(make_annotation, value):
    with pytest.raises(UserError, match=r"category_id .* of annotation id 7 of image a\.jpg"):
        read(make_annotation(category_id=value))


@pytest.mark.parametrize(
    "segmentation",
    [
        ...,
        [],
        None,
        [[1, 2, 3, 4, 5, 6]],
        [[1, 2, 3]],
        [[]],
        {"size": [40, 60], "counts": "PPYo0"},
        {"size": [1, 1], "counts": [0]},
        "broken",
        [[float("nan")] * 6],
    ],
)
def test_segmentation_never_stops_boxes(make_annotation, segmentation):
    """Boxes are read from annotations with RLE, broken polygons or without masks."""
    assert len(read(make_annotation(segmentation=segmentation)).boxes) == 1


def test_instances_are_clipped_and_emptied():
    """Objects of which a crop leaves nothing are removed."""
    boxes = np.array([[-5, 2, 10, 12], [-8, 2, 0, 12], [50, 30, 70, 50], [60, 0, 90, 9]], dtype=np.float64)
    instances = build_instances(boxes, np.array([4, 5, 6, 7]), SIZE)
    assert instances.image_size == SIZE
    assert instances.gt_boxes.tensor.tolist() == [[0, 2, 10, 12], [50, 30, 60, 40]]
    assert instances.gt_classes.tolist() == [4, 6]


def test_no_instances():
    instances = build_instances(np.zeros((0, 4)), np.zeros(0), SIZE)
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_boxes.tensor.dtype == torch.float32
    assert instances.gt_classes.shape == (0,)
    assert instances.gt_classes.dtype == torch.int64


@pytest.mark.parametrize(("worker", "logged"), [(None, 1), (0, 1), (1, 0)])
def test_one_worker_of_a_loader_logs_what_is_dropped(make_annotation, monkeypatch, caplog, worker, logged):
    info = worker if worker is None else SimpleNamespace(id=worker)
    monkeypatch.setattr("detr_d2.data.annotations.get_worker_info", lambda: info)
    dropped = ExampleCounter()
    read(make_annotation(bbox=[10, 10, 0, 5]), dropped=dropped)
    assert dropped.counts["a box without area inside its image"] == 1
    assert len(caplog.records) == logged
