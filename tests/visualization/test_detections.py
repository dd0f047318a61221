"""Detections and segments drawn on images."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances

from detr_d2.visualization import class_name, draw_instances, draw_panoptic
from detr_d2.visualization import detections as module

SIZE = (120, 160)
IMAGE = np.full((*SIZE, 3), 128, dtype=np.uint8)
GRAY = np.full((*SIZE, 3), 90, dtype=np.uint8)
BOX = [20.0, 30.0, 100.0, 90.0]


def detections(*scores: float) -> Instances:
    boxes = Boxes(torch.tensor([BOX] * len(scores)).reshape(-1, 4))
    classes = torch.zeros(len(scores), dtype=torch.int64)
    return Instances(SIZE, pred_boxes=boxes, pred_classes=classes, scores=torch.tensor(scores))


@pytest.fixture
def drawn(monkeypatch):
    """Record the arguments that the Visualizer gets."""
    calls = []

    class Recorder(module.Visualizer):
        def overlay_instances(self, **arguments):
            calls.append(arguments)
            return super().overlay_instances(**arguments)

    monkeypatch.setattr(module, "Visualizer", Recorder)
    return calls


def test_a_box_is_drawn_at_its_position():
    before = IMAGE.copy()
    drawn_image = draw_instances(IMAGE, detections(0.9))
    assert (drawn_image.shape, drawn_image.dtype) == (IMAGE.shape, np.uint8)
    assert np.array_equal(IMAGE, before)
    changed = (drawn_image != IMAGE).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert np.allclose([columns[0], rows[0], columns[-1], rows[-1]], BOX, atol=3)
    # The middle of the box stays visible.
    assert not changed[60:80, 40:90].any()


def test_labels_threshold_and_colors(drawn):
    instances = detections(0.9, 0.5, 0.49)
    instances.pred_classes = torch.tensor([1, 3, 0])
    draw_instances(IMAGE, instances, ["cat", "dog"], score_thresh=0.5)
    draw_instances(IMAGE, instances[1:], None, score_thresh=0)
    assert drawn[0]["labels"] == ["dog 90%", "class 3 50%"]
    assert drawn[1]["labels"] == ["class 3 50%", "class 0 49%"]
    assert drawn[0]["assigned_colors"][1] == drawn[1]["assigned_colors"][0] != drawn[0]["assigned_colors"][0]


def test_nothing_to_draw_leaves_the_image():
    assert np.array_equal(draw_instances(IMAGE, detections()), IMAGE)
    assert np.array_equal(draw_instances(IMAGE, detections(0.2), score_thresh=0.5), IMAGE)
    assert np.array_equal(draw_instances(IMAGE, []), IMAGE)


def test_ground_truth_of_every_kind(drawn):
    """Instances of the mapper, records of a dataset, annotations of a COCO file: one box."""
    truth = Instances(SIZE, gt_boxes=Boxes(torch.tensor([BOX])), gt_classes=torch.tensor([1]))
    xywh = {"bbox": [20, 30, 80, 60], "category_id": 1}
    xyxy = {"bbox": BOX, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    images = [draw_instances(IMAGE, x, ["cat", "dog"]) for x in (truth, [xywh], [xyxy])]
    assert all(x["labels"] == ["dog"] for x in drawn)
    assert not np.array_equal(images[0], IMAGE)
    for drawn_image in images[1:]:
        assert np.array_equal(drawn_image, images[0])


def test_a_small_image_is_enlarged():
    assert draw_instances(IMAGE[:1, :1], detections(0.9), scale=40).shape == (40, 40, 3)
    assert draw_instances(IMAGE, detections(0.9), scale=2.5).shape == (300, 400, 3)


def test_a_name_that_looks_like_a_formula():
    draw_instances(IMAGE, detections(0.9), [r"$\frac{$ money"])


def test_names_that_are_missing():
    assert [class_name(x, 1) for x in (None, ["cat"], ["cat", None], ["cat", "dog"])] == ["class 1"] * 3 + ["dog"]


def segments(*kinds: tuple[bool, int]) -> list[dict]:
    return [
        {"id": i, "isthing": thing, "category_id": c, "area": 9, "score": 0.9} for i, (thing, c) in enumerate(kinds, 1)
    ]


def test_segments_are_colored_and_void_is_left():
    ids = torch.zeros(SIZE, dtype=torch.int32)
    ids[:, :50], ids[:, 60:100] = 1, 2
    infos = segments((False, 1), (True, 0))
    drawn_image = draw_panoptic(GRAY, ids, infos, ["cat $5$", "sky"])
    assert drawn_image.shape == GRAY.shape
    assert (drawn_image[60:, 125:] == 90).all()
    left, middle = drawn_image[100, 10].astype(int), drawn_image[100, 90].astype(int)
    assert np.abs(left - 90).max() > 10
    assert np.abs(middle - 90).max() > 10
    assert np.abs(left - middle).max() > 10
    assert infos == segments((False, 1), (True, 0)), "the arguments are unchanged"
    np.testing.assert_array_equal(drawn_image, draw_panoptic(GRAY, ids, infos, ["cat $5$", "sky"]))


def test_things_of_a_class_have_shades_and_stuff_its_color():
    ids = torch.ones(SIZE, dtype=torch.int32)
    ids[:, 80:] = 2
    things = draw_panoptic(GRAY, ids, segments((True, 3), (True, 3)))
    assert (things[100, 20] != things[100, 140]).any()
    first = draw_panoptic(GRAY, ids, segments((False, 3), (False, 5)))
    second = draw_panoptic(GRAY, 3 - ids, segments((False, 3), (True, 0)))
    np.testing.assert_array_equal(first[100, 20], second[100, 140])


def test_nothing_found_leaves_the_image():
    """No segments, all void."""
    np.testing.assert_array_equal(draw_panoptic(GRAY, torch.zeros(SIZE, dtype=torch.int32), []), GRAY)


def test_instance_masks_are_filled():
    """Above the threshold only; zero detections with masks are accepted."""
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 60:100, 20:60], masks[1, 60:100, 90:130] = True, True
    boxes = Boxes(torch.tensor([[20.0, 60.0, 60.0, 100.0], [90.0, 60.0, 130.0, 100.0]]))
    found = Instances(SIZE, pred_boxes=boxes, pred_masks=masks)
    found.scores, found.pred_classes = torch.tensor([0.9, 0.2]), torch.tensor([0, 1])
    drawn_image = draw_instances(GRAY, found, ["cat", "dog"])
    assert (drawn_image[85, 50] != 90).any()
    assert (drawn_image[85, 120] == 90).all()
    np.testing.assert_array_equal(draw_instances(GRAY, found[:0]), GRAY)
