"""Box formats and overlaps, vectorized over any leading dimensions."""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert (..., 4) boxes from center, width and height to left, top, right and bottom."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert (..., 4) boxes from left, top, right and bottom to center, width and height."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), dim=-1)


def iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Compute the intersection over union, in [0, 1]; arguments and result as for :func:`generalized_iou`."""
    intersection, union = _intersection_and_union(boxes1, boxes2)
    return intersection / union


def generalized_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Compute the generalized intersection over union (arXiv 1902.09630, algorithm 1), in [-1, 1].

    Args:
        boxes1, boxes2: (..., 4) boxes as left, top, right, bottom whose leading dimensions broadcast:
            (N, 4) with (N, 4) compares pair by pair, (N, 1, 4) with (M, 4) all pairs.

    Returns:
        A tensor of the broadcast leading dimensions. NaN where both boxes are the same point.
    """
    left1, top1, right1, bottom1 = boxes1.unbind(-1)
    left2, top2, right2, bottom2 = boxes2.unbind(-1)
    intersection, union = _intersection_and_union(boxes1, boxes2)
    hull_width = torch.maximum(right1, right2) - torch.minimum(left1, left2)
    hull_height = torch.maximum(bottom1, bottom2) - torch.minimum(top1, top2)
    hull = hull_width.clamp(min=0) * hull_height.clamp(min=0)
    return intersection / union - (hull - union) / hull


def _intersection_and_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    left1, top1, right1, bottom1 = boxes1.unbind(-1)
    left2, top2, right2, bottom2 = boxes2.unbind(-1)
    width = (torch.minimum(right1, right2) - torch.maximum(left1, left2)).clamp(min=0)
    height = (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).clamp(min=0)
    intersection = width * height
    area1 = (right1 - left1) * (bottom1 - top1)
    area2 = (right2 - left2) * (bottom2 - top2)
    return intersection, area1 + area2 - intersection
