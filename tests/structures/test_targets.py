import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch.testing import assert_close

from detr_d2.structures import Targets, check_instances
from detr_d2.utils.errors import UserError


def instances(size, boxes, classes):
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(size, gt_boxes=Boxes(tensor), gt_classes=torch.tensor(classes, dtype=torch.int64))


def test_padded_and_normalized():
    targets = Targets.from_instances(
        [
            instances((100, 200), [[20, 10, 60, 50]], [3]),
            instances((50, 50), [], []),
            instances((10, 10), [[0, 0, 10, 10], [5, 5, 10, 10]], [1, 2]),
        ],
        "cpu",
    )
    assert targets.counts == (1, 0, 2)
    assert targets.labels.tolist() == [[3, 0], [0, 0], [1, 2]]
    whole = [0.5, 0.5, 1.0, 1.0]
    expected = [[[0.2, 0.3, 0.2, 0.4], whole], [whole, whole], [whole, [0.75, 0.75, 0.5, 0.5]]]
    assert_close(targets.boxes, torch.tensor(expected))


def test_no_objects_at_all():
    targets = Targets.from_instances([instances((100, 200), [], [])] * 2, "cpu")
    assert targets.labels.shape == (2, 0)
    assert targets.labels.dtype == torch.int64
    assert targets.boxes.shape == (2, 0, 4)


@pytest.mark.parametrize("kind", [BitMasks, torch.Tensor], ids=lambda x: x.__name__)
def test_masks_keep_their_sizes(kind):
    """Also those of an image without objects among others."""
    objects = [instances((4, 6), [[0, 0, 2, 2], [1, 1, 5, 3]], [3, 1]), instances((5, 5), [], [])]
    bitmaps = [torch.rand(2, 4, 6) > 0.5, torch.zeros(0, 5, 5, dtype=torch.bool)]
    for x, masks in zip(objects, bitmaps, strict=True):
        x.gt_masks = masks if kind is torch.Tensor else kind(masks)
    targets = Targets.from_instances(objects, "cpu", masks=True)
    assert [x.dtype for x in targets.masks] == [torch.bool] * 2
    assert all(torch.equal(found, expected) for found, expected in zip(targets.masks, bitmaps, strict=True))


def test_masks_are_read_only_on_request():
    objects = instances((4, 6), [[0, 0, 2, 2]], [3])
    objects.gt_masks = PolygonMasks([[torch.tensor([0.0, 0, 2, 0, 2, 2]).numpy()]])
    assert Targets.from_instances([objects], "cpu").masks is None


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
    with pytest.raises(UserError, match=r"a.jpg have the shape \(2, 6, 4\).*\(2, 4, 6\)"):
        check(BitMasks(torch.zeros(2, 6, 4)))


def test_polygons_are_refused():
    polygons = PolygonMasks([[torch.tensor([0.0, 0, 2, 0, 2, 2]).numpy()]] * 2)
    with pytest.raises(UserError, match=r"a.jpg are polygons.*INPUT.MASK_FORMAT"):
        check(polygons)


def test_no_masks():
    with pytest.raises(UserError, match=r"a.jpg have none.*MODEL.MASK_ON False"):
        check(None)
