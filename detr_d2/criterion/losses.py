"""Terms of the loss and metrics, for all decoder layers at once: one value per layer."""

import torch
from torch import Tensor

from detr_d2.structures import Targets
from detr_d2.utils.box_ops import cxcywh_to_xyxy, generalized_iou, iou


def target_classes(labels: Tensor, matches: Tensor, num_queries: int, no_object: int) -> Tensor:
    """Return the target class of each query.

    Args:
        labels: (B, T).
        matches: (L, B, T), the query of each object or -1.
        num_queries: Q.
        no_object: the class of queries without an object.

    Returns:
        (L, B, Q) int64
    """
    return _by_query(labels.expand_as(matches), matches, num_queries, no_object)


@torch.no_grad()
def matched_overlaps(boxes: Tensor, target_boxes: Tensor, matches: Tensor) -> Tensor:
    """Return the (L, B, Q) IoU of each query with its object, 0 without one; arguments as for :func:`box_losses`."""
    overlaps = iou(cxcywh_to_xyxy(_matched_boxes(boxes, matches)), cxcywh_to_xyxy(target_boxes))
    return _by_query(overlaps, matches, boxes.shape[2], 0.0)


def box_losses(boxes: Tensor, target_boxes: Tensor, matches: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over the matched pairs of the L1 distance and of 1 - GIoU.

    Args:
        boxes: (L, B, Q, 4).
        target_boxes: (B, T, 4).
        matches: (L, B, T), the query of each object or -1.

    Returns:
        (L,), (L,)
    """
    predicted = _matched_boxes(boxes, matches)
    matched = (matches >= 0).to(boxes.dtype)
    l1 = (predicted - target_boxes).abs().sum(-1)
    giou = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target_boxes))
    return (l1 * matched).sum((1, 2)), ((1 - giou) * matched).sum((1, 2))


@torch.no_grad()
def class_error(logits: Tensor, targets: Targets, matches: Tensor) -> Tensor | None:
    """Return the share of matched queries whose best class, no-object included, is not the object's, in percent.

    Args:
        logits: (B, Q, K + 1) of one layer.
        targets: of the batch.
        matches: (B, T), the query of each object or -1.

    Returns:
        A scalar; None when the batch has no object.
    """
    if not any(targets.counts):
        return None
    best = logits.argmax(-1).gather(1, matches.clamp(min=0))
    matched = matches >= 0
    correct = ((best == targets.labels) & matched).sum()
    return 100 - 100.0 * correct / matched.sum()


@torch.no_grad()
def cardinality_error(logits: Tensor, targets: Targets) -> Tensor:
    """Return the (L,) mean distance of the number of detected objects from the true one; (L, B, Q, K + 1) logits."""
    detected = (logits.argmax(-1) != logits.shape[-1] - 1).sum(-1)
    true = torch.tensor(targets.counts).to(logits.device, non_blocking=True)
    return (detected - true).abs().float().mean(1)


def _matched_boxes(boxes: Tensor, matches: Tensor) -> Tensor:
    """Return the (L, B, T, 4) boxes of the objects' queries; any box for objects without a query."""
    return boxes.gather(2, matches.clamp(min=0)[..., None].expand(-1, -1, -1, 4))


def _by_query(values: Tensor, matches: Tensor, num_queries: int, fill: float) -> Tensor:
    """Return the (L, B, T) values of the objects by query: (L, B, Q), ``fill`` for queries without an object."""
    # Objects without a query write into one column too many, which is cut off.
    result = values.new_full((*matches.shape[:2], num_queries + 1), fill)
    return result.scatter_(2, torch.where(matches < 0, num_queries, matches), values)[..., :num_queries]
