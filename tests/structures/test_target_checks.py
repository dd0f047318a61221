import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from detr_d2.structures import check_instances
from detr_d2.utils.errors import UserError


def check(masks, size=(4, 6), count=2):
    boxes = torch.tensor([[0.0, 0, 2, 2]]).repeat(count, 1)
    instances = Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.zeros(count, dtype=torch.int64))
    if masks is not None:
        instances.set("gt_masks", masks)
    check_instances(instances, "a.jpg", num_classes=5, num_queries=7, masks=True)


@pytest.mark.parametrize("count", [0, 2])
def test_masks_as_the_mapper_makes_them(count):
    masks = torch.zeros(count, 4, 6, dtype=torch.bool)
    check(masks, count=count)
    check(BitMasks(masks), count=count)


def test_masks_of_another_size():
    """Edge case C23."""
    with pytest.raises(UserError, match=r"a.jpg have the shape \(2, 6, 4\).*\(2, 4, 6\)"):
        check(BitMasks(torch.zeros(2, 6, 4)))


def test_polygons_say_who_draws_them():
    polygons = PolygonMasks([[torch.tensor([0.0, 0, 2, 0, 2, 2]).numpy()]] * 2)
    with pytest.raises(UserError, match=r"a.jpg are polygons.*INPUT.MASK_FORMAT"):
        check(polygons)


def test_no_masks():
    with pytest.raises(UserError, match=r"a.jpg have none.*MODEL.MASK_ON False"):
        check(None)
