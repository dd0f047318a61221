"""Segments and masks over images."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from detr_d2.visualization import draw_instances, draw_panoptic

SIZE = (120, 160)


@pytest.fixture
def image():
    return np.full((*SIZE, 3), 90, np.uint8)


def segments(*kinds: tuple[bool, int]) -> list[dict]:
    return [
        {"id": i, "isthing": thing, "category_id": c, "area": 9, "score": 0.9} for i, (thing, c) in enumerate(kinds, 1)
    ]


def test_segments_are_coloured_and_void_is_left(image):
    ids = torch.zeros(SIZE, dtype=torch.int32)
    ids[:, :50], ids[:, 60:100] = 1, 2
    infos = segments((False, 1), (True, 0))
    picture = draw_panoptic(image, ids, infos, ["cat $5$", "sky"])
    assert picture.shape == image.shape
    assert (picture[60:, 125:] == 90).all()
    left, middle = picture[100, 10].astype(int), picture[100, 90].astype(int)
    assert np.abs(left - 90).max() > 10
    assert np.abs(middle - 90).max() > 10
    assert np.abs(left - middle).max() > 10
    assert infos == segments((False, 1), (True, 0)), "what is drawn stays as it is"
    np.testing.assert_array_equal(picture, draw_panoptic(image, ids, infos, ["cat $5$", "sky"]))


def test_things_of_a_class_have_shades_and_stuff_its_colour(image):
    ids = torch.ones(SIZE, dtype=torch.int32)
    ids[:, 80:] = 2
    things = draw_panoptic(image, ids, segments((True, 3), (True, 3)))
    assert (things[100, 20] != things[100, 140]).any()
    here = draw_panoptic(image, ids, segments((False, 3), (False, 5)))
    there = draw_panoptic(image, 3 - ids, segments((False, 3), (True, 0)))
    np.testing.assert_array_equal(here[100, 20], there[100, 140])


def test_nothing_found_leaves_the_image(image):
    """Edge case C34."""
    np.testing.assert_array_equal(draw_panoptic(image, torch.zeros(SIZE, dtype=torch.int32), []), image)


def test_instance_masks_are_filled(image):
    """Above the threshold; none at all is drawn as well (edge case C36)."""
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 60:100, 20:60], masks[1, 60:100, 90:130] = True, True
    boxes = Boxes(torch.tensor([[20.0, 60.0, 60.0, 100.0], [90.0, 60.0, 130.0, 100.0]]))
    found = Instances(SIZE, pred_boxes=boxes, pred_masks=masks)
    found.scores, found.pred_classes = torch.tensor([0.9, 0.2]), torch.tensor([0, 1])
    picture = draw_instances(image, found, ["cat", "dog"])
    assert (picture[85, 50] != 90).any()
    assert (picture[85, 120] == 90).all()
    np.testing.assert_array_equal(draw_instances(image, found[:0]), image)
