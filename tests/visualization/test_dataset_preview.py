import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch.testing import assert_close

from detr_d2.utils.errors import UserError
from detr_d2.visualization import dataset_preview
from detr_d2.visualization.detections import draw_instances

RECORD = {"file_name": "a/blue.png", "image_id": 1, "width": 40, "height": 20, "annotations": []}


def map_to_blue(record):
    """Return a blue image in BGR with one object."""
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    image[0] = 255
    targets = Instances((20, 40), gt_boxes=Boxes([[4.0, 5.0, 14.0, 15.0]]), gt_classes=torch.tensor([1]))
    return {"image": image, "instances": targets}


def test_images_of_a_mapper():
    figure = dataset_preview.draw_preview([RECORD], ["cell", "other"], map_to_blue, "BGR")
    axes = figure.axes[0]
    assert axes.get_title() == "blue.png: 1 objects"
    (drawn,) = axes.get_images()
    pixels = drawn.get_array()
    assert pixels.shape == (320, 640, 3)
    assert_close(torch.as_tensor(pixels[300, 600, :3]), torch.tensor([0, 0, 255], dtype=torch.uint8), rtol=0, atol=2)
    # The line of the left edge, at 16 times 4.
    columns = np.flatnonzero(np.abs(pixels[220].astype(int) - [0, 0, 255]).max(-1) > 50)
    assert columns[columns < 150].mean() == pytest.approx(64, abs=2)


def test_an_image_that_the_mapper_refuses():
    def refuse(record):
        raise UserError("a/blue.png is broken.")

    axes = dataset_preview.draw_preview([RECORD], ["cell"], refuse).axes[0]
    assert axes.get_title() == "blue.png"
    assert [x.get_text() for x in axes.texts] == ["a/blue.png is broken."]


def test_masks_of_ground_truth():
    image = np.full((40, 60, 3), 100, np.uint8)
    target = Instances((40, 60), gt_boxes=Boxes([[0.0, 0.0, 59.0, 39.0]]), gt_classes=torch.tensor([1]))
    plain = draw_instances(image, target)
    mask = torch.zeros(1, 40, 60, dtype=torch.bool)
    mask[:, 20:30, 20:40] = True
    target.gt_masks = BitMasks(mask)
    changed = (draw_instances(image, target) != plain).any(-1)
    assert changed[22:28, 22:38].all()
