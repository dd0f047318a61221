"""The two losses of the class head, for all decoder layers at once."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Totals(NamedTuple):
    """What sums over a batch are divided by: scalars, averages over the processes."""

    boxes: Tensor
    """Number of objects, at least 1."""
    class_weight: Tensor
    """Sum of the weights of the classes that the queries should say."""


def softmax_loss(logits: Tensor, classes: Tensor, class_weights: Tensor, totals: Totals) -> Tensor:
    """Weighted mean of - log probability.

    Args:
        logits: (L, B, Q, K); the last class is no-object.
        classes: (L, B, Q) int64 below K.
        class_weights: (K,)

    Returns:
        (L,)
    """
    losses = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), class_weights, reduction="none")
    return losses.view(logits.shape[0], -1).sum(1) / totals.class_weight


def focal_loss(
    logits: Tensor, classes: Tensor, class_weights: Tensor, totals: Totals, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss (arXiv 1708.02002, equation 5) summed over queries and classes, an object.

    Every class has a sigmoid of its own; the last, no-object, is never there. Arguments and result as for
    :func:`softmax_loss`; the weights of the classes make no difference.
    """
    there = F.one_hot(classes, logits.shape[-1])
    there[..., -1] = 0
    there = there.to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, there, reduction="none")
    probability = logits.sigmoid()
    wrong = probability * (1 - there) + (1 - probability) * there
    balance = alpha * there + (1 - alpha) * (1 - there)
    return (balance * wrong**gamma * entropy).sum((1, 2, 3)) / totals.boxes


CLASS_LOSSES = {"softmax": softmax_loss, "focal": focal_loss}
