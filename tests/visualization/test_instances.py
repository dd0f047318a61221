import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances

from detr_d2.visualization import class_name, draw_instances
from detr_d2.visualization import instances as module

IMAGE = np.full((120, 160, 3), 128, dtype=np.uint8)
BOX = [20.0, 30.0, 100.0, 90.0]


def detections(*scores: float) -> Instances:
    boxes = Boxes(torch.tensor([BOX] * len(scores)).reshape(-1, 4))
    classes = torch.zeros(len(scores), dtype=torch.int64)
    return Instances((120, 160), pred_boxes=boxes, pred_classes=classes, scores=torch.tensor(scores))


@pytest.fixture
def drawn(monkeypatch):
    """What the Visualizer is asked to draw."""
    calls = []

    class Recorder(module.Visualizer):
        def overlay_instances(self, **what):
            calls.append(what)
            return super().overlay_instances(**what)

    monkeypatch.setattr(module, "Visualizer", Recorder)
    return calls


def test_a_box_is_drawn_where_it_is():
    before = IMAGE.copy()
    picture = draw_instances(IMAGE, detections(0.9))
    assert (picture.shape, picture.dtype) == (IMAGE.shape, np.uint8)
    assert np.array_equal(IMAGE, before)
    changed = (picture != IMAGE).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert np.allclose([columns[0], rows[0], columns[-1], rows[-1]], BOX, atol=3)
    # The middle of the box stays to be seen.
    assert not changed[60:80, 40:90].any()


def test_labels_threshold_and_colours(drawn):
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
    truth = Instances((120, 160), gt_boxes=Boxes(torch.tensor([BOX])), gt_classes=torch.tensor([1]))
    xywh = {"bbox": [20, 30, 80, 60], "category_id": 1}
    xyxy = {"bbox": BOX, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    pictures = [draw_instances(IMAGE, x, ["cat", "dog"]) for x in (truth, [xywh], [xyxy])]
    assert all(x["labels"] == ["dog"] for x in drawn)
    assert not np.array_equal(pictures[0], IMAGE)
    for picture in pictures[1:]:
        assert np.array_equal(picture, pictures[0])


def test_a_larger_picture_of_a_small_image():
    assert draw_instances(IMAGE[:1, :1], detections(0.9), scale=40).shape == (40, 40, 3)
    assert draw_instances(IMAGE, detections(0.9), scale=2.5).shape == (300, 400, 3)


def test_a_name_that_looks_like_a_formula():
    draw_instances(IMAGE, detections(0.9), [r"$\frac{$ money"])


def test_names_that_are_missing():
    assert [class_name(x, 1) for x in (None, ["cat"], ["cat", None], ["cat", "dog"])] == ["class 1"] * 3 + ["dog"]
