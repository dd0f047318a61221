"""The terms of the loss, for all decoder layers at once: every function returns one value a layer."""

import torch
from torch import Tensor

from detr_d2.utils.box_ops import cxcywh_to_xyxy, generalized_iou


def target_classes(labels: Tensor, matches: Tensor, num_queries: int, no_object: int) -> Tensor:
    """The class that each query should say.

    Args:
        labels: (B, T). matches: (L, B, T), the query of each object or -1.

    Returns:
        (L, B, Q) int64, ``no_object`` for queries without an object.
    """
    layers, batch, _ = matches.shape
    # Objects without a query write into one column too many, which is cut off.
    classes = labels.new_full((layers, batch, num_queries + 1), no_object)
    index = torch.where(matches < 0, num_queries, matches)
    return classes.scatter_(2, index, labels.expand(layers, -1, -1))[..., :num_queries]


def box_losses(boxes: Tensor, target_boxes: Tensor, matches: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the matched pairs of the L1 distance and of 1 - GIoU.

    Args:
        boxes: (L, B, Q, 4). target_boxes: (B, T, 4). matches: (L, B, T), the query of each object or -1.

    Returns:
        (L,), (L,)
    """
    index = matches.clamp(min=0)[..., None].expand(-1, -1, -1, 4)
    predicted = boxes.gather(2, index)
    matched = (matches >= 0).to(boxes.dtype)
    l1 = (predicted - target_boxes).abs().sum(-1)
    giou = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target_boxes))
    return (l1 * matched).sum((1, 2)), ((1 - giou) * matched).sum((1, 2))
