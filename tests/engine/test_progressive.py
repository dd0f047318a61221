"""Progressive resizing: scales by iteration, and what becomes of images, boxes and masks."""

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.testing import assert_close
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from detr_d2.engine import build_optimizer
from detr_d2.engine.progressive import ProgressiveSize
from detr_d2.engine.step import TrainingStep
from detr_d2.utils.errors import UserError

CPU = torch.device("cpu")
PROGRESSIVE = ("INPUT.PROGRESSIVE.START", 0.5)


def test_scale_grows_evenly():
    size = ProgressiveSize(0.5, 10)
    assert [size.scale(i) for i in (0, 5, 10, 11)] == [0.5, 0.75, 1.0, 1.0]
    assert ProgressiveSize(0.5, 0).scale(0) == 1


def test_share_of_the_training():
    assert ProgressiveSize.of_training(0.5, 0.6, 50) == ProgressiveSize(0.5, 30)
    assert ProgressiveSize.of_training(1.0, 0.6, 50) is None


def test_images_are_those_of_torchvision(make_inputs):
    inputs = make_inputs([(64, 96), (51, 37)], [0, 0])
    for x, scaled in zip(inputs, ProgressiveSize(0.6, 10)(inputs, 0, CPU), strict=True):
        height, width = x["image"].shape[1:]
        size = [round(0.6 * height), round(0.6 * width)]
        expected = resize(x["image"].float(), size, InterpolationMode.BILINEAR, antialias=True)
        assert_close(scaled["image"], expected)
        assert scaled["instances"].image_size == tuple(size)


def test_boxes_keep_their_place(make_inputs):
    """Relative to the image, also where its size is rounded; classes and what else a mapper adds stay."""
    (x,) = make_inputs([(51, 37)], [3])
    x["file_name"] = "a.jpg"
    (scaled,) = ProgressiveSize(0.6, 10)([x], 2, CPU)
    assert scaled["file_name"] == "a.jpg"
    assert torch.equal(scaled["instances"].gt_classes, x["instances"].gt_classes)
    relative = [y.gt_boxes.tensor / torch.tensor(y.image_size[::-1] * 2) for y in (scaled["instances"], x["instances"])]
    assert_close(*relative)


def test_masks_keep_their_place():
    masks = torch.zeros(2, 96, 64, dtype=torch.bool)
    masks[0, 17:33, 8:40] = True
    masks[1, :, 32:] = True
    boxes = Boxes([[8.0, 17, 40, 33], [32, 0, 64, 96]])
    instances = Instances((96, 64), gt_boxes=boxes, gt_masks=BitMasks(masks))
    (scaled,) = ProgressiveSize(0.5, 10)([{"image": torch.zeros(3, 96, 64), "instances": instances}], 0, CPU)
    expected = torch.zeros(2, 48, 32, dtype=torch.bool)
    expected[0, 8:16, 4:20] = True
    expected[1, :, 16:] = True
    assert torch.equal(scaled["instances"].gt_masks.tensor, expected)


def test_inputs_stay_from_full_size_on(make_inputs):
    inputs = make_inputs([(64, 96)], [1])
    assert ProgressiveSize(0.5, 3)(inputs, 3, CPU) is inputs


def test_given_inputs_do_not_change(make_inputs):
    (x,) = make_inputs([(64, 96)], [1])
    boxes = x["instances"].gt_boxes.tensor.clone()
    ProgressiveSize(0.5, 3)([x], 0, CPU)
    assert x["image"].shape[1:] == (64, 96)
    assert torch.equal(x["instances"].gt_boxes.tensor, boxes)


def test_steps_see_scaled_images(make_cfg, make_model, make_inputs):
    """In the first iteration half as large; then of full size."""
    model = make_model().train()
    seen = []
    forward = model.forward
    model.forward = lambda x, **arguments: seen.append(x[0]["image"].shape[1:]) or forward(x, **arguments)
    inputs = make_inputs([(64, 96)], [1])
    optimizer = build_optimizer(make_cfg(), model)
    step = TrainingStep(model, [inputs] * 2, optimizer, progressive_size=ProgressiveSize(0.5, 1))
    with EventStorage():
        for step.iter in range(2):
            step.run_step()
    assert seen == [(32, 48), (64, 96)]


@pytest.mark.parametrize(
    ("key", "value"), [("START", 0.0), ("START", 1.5), ("UNTIL", -0.1), ("UNTIL", 1.1)], ids=lambda x: str(x)
)
def test_values_out_of_range(make_model, key, value):
    with pytest.raises(UserError, match=rf"INPUT\.PROGRESSIVE\.{key}"):
        make_model(f"INPUT.PROGRESSIVE.{key}", value)


@pytest.mark.parametrize(("start", "until"), [(0.0, 0.7), (1.5, 0.7), (0.5, 1.1)])
def test_values_out_of_range_in_a_lazy_config(start, until):
    with pytest.raises(UserError, match="set a scale over 0, at most 1, and a share of the training"):
        ProgressiveSize.of_training(start, until, 100)
