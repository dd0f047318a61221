"""The terms of the loss, for all decoder layers at once: every function returns one value a layer."""

import torch
from torch import Tensor
from torch.nn import functional as F

from detr_d2.box_ops import cxcywh_to_xyxy, generalized_iou


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


def cross_entropy(logits: Tensor, classes: Tensor, class_weights: Tensor) -> Tensor:
    """(L, B, Q, K) logits and (L, B, Q) classes -> (L,) weighted sums of - log probability."""
    losses = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), class_weights, reduction="none")
    return losses.view(logits.shape[0], -1).sum(1)


def sigmoid_focal_loss(logits: Tensor, classes: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sums of the focal loss (arXiv 1708.02002, equation 5) over all queries and classes.

    Args:
        logits: (L, B, Q, K), each with a sigmoid of its own; the last class, no-object, is never there.
        classes: (L, B, Q) int64 below K.

    Returns:
        (L,)
    """
    there = F.one_hot(classes, logits.shape[-1])
    there[..., -1] = 0
    there = there.to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, there, reduction="none")
    probability = logits.sigmoid()
    wrong = probability * (1 - there) + (1 - probability) * there
    balance = alpha * there + (1 - alpha) * (1 - there)
    return (balance * wrong**gamma * entropy).sum((1, 2, 3))


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
