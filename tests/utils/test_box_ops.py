import torch
from torch.testing import assert_close
from torchvision.ops import box_convert, generalized_box_iou

from detr_d2.utils.box_ops import cxcywh_to_xyxy, generalized_iou, xyxy_to_cxcywh


def random_boxes(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 2, 2).sort(dim=-2).values.flatten(-2)


def test_formats_are_torchvisions():
    boxes = random_boxes(20)
    assert_close(xyxy_to_cxcywh(boxes), box_convert(boxes, "xyxy", "cxcywh"))
    assert_close(cxcywh_to_xyxy(boxes), box_convert(boxes, "cxcywh", "xyxy"))


def test_generalized_iou_is_torchvisions():
    boxes1, boxes2 = random_boxes(30), random_boxes(40)
    expected = generalized_box_iou(boxes1, boxes2)
    assert_close(generalized_iou(boxes1[:, None], boxes2), expected, atol=1e-6, rtol=1e-5)
    assert_close(generalized_iou(boxes1, boxes2[:30]), expected[:, :30].diagonal(), atol=1e-6, rtol=1e-5)
