"""Class losses. Each strategy owns the loss, the matching cost of a class, and the ranking of its predictions."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from detr_d2.config import choice

IGNORED = -1
"""Target class of queries without a class loss."""

# Of the focal loss (arXiv 1708.02002, section 4.1).
_ALPHA, _GAMMA = 0.25, 2.0
# Keeps logits finite.
_MIN_PROBABILITY = 1e-7


class Normalizer(NamedTuple):
    """Divisors of the losses of a batch: scalars, averaged over the processes."""

    num_objects: Tensor
    """Number of objects, at least 1."""
    class_weight_sum: Tensor
    """Sum of the weights of the queries' target classes."""
    accumulation_steps: int = 1
    """Number of forward passes that the batch is split into."""

    def repeated(self, times: int) -> "Normalizer":
        """Return the normalizer of losses that are summed over ``times`` copies of the batch's objects and queries."""
        return self._replace(num_objects=self.num_objects * times, class_weight_sum=self.class_weight_sum * times)


class Ranking(NamedTuple):
    """The detections of B images."""

    scores: Tensor
    """(B, Q) in [0, 1]."""
    classes: Tensor
    """(B, Q) int64"""
    queries: Tensor
    """(B, Q) int64, the object query of each detection."""


class ClassLoss(Protocol):
    """A class loss, and how predictions trained with it are matched and ranked.

    Logits are (…, K + 1) for K foreground classes; the last one is no-object.
    """

    prior: float | None
    """Initial probability of each class (arXiv 1708.02002, section 3.3). None: the head's bias is not set."""
    uses_overlaps: bool
    """Whether the loss depends on how good the boxes are."""

    def loss(
        self,
        logits: Tensor,
        classes: Tensor,
        class_weights: Tensor,
        normalizer: Normalizer,
        overlaps: Tensor | None = None,
    ) -> Tensor:
        """Return one loss per decoder layer.

        Args:
            logits: (L, B, Q, K + 1).
            classes: (L, B, Q) int64 target classes up to K, or :data:`IGNORED`.
            class_weights: (K + 1,) weights of the classes.
            normalizer: divisors of the losses.
            overlaps: (L, B, Q) IoU of each query's box with that of its object, where the loss uses it.

        Returns:
            (L,)
        """

    def cost(self, logits: Tensor) -> Tensor:
        """Return the cost of matching a query with an object of each class, in the shape of ``logits``."""

    def rank(self, logits: Tensor) -> Ranking:
        """Return as many detections per image as there are queries, from (B, Q, K + 1) logits; in no defined order."""

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (Q,) score and class of each query from (Q, K + 1) logits; score 0 for no-object."""

    def logits(self, scores: Tensor) -> Tensor:
        """Return (…, K + 1) logits whose scores of the foreground classes are ``scores``, (…, K) in [0, 1]."""


class SoftmaxLoss:
    """Weighted cross entropy over the classes and no-object (arXiv 2005.12872, section 3.1)."""

    prior = None
    uses_overlaps = False

    def loss(
        self,
        logits: Tensor,
        classes: Tensor,
        class_weights: Tensor,
        normalizer: Normalizer,
        overlaps: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted mean of - log probability."""
        losses = F.cross_entropy(
            logits.flatten(0, 2), classes.flatten(), class_weights, reduction="none", ignore_index=IGNORED
        )
        return losses.view(logits.shape[0], -1).sum(1) / normalizer.class_weight_sum

    def cost(self, logits: Tensor) -> Tensor:
        """Return - probability."""
        return -logits.softmax(-1)

    def rank(self, logits: Tensor) -> Ranking:
        """Rank every query under its best foreground class, even if no-object is more probable."""
        scores, classes = logits.softmax(-1)[..., :-1].max(-1)
        queries = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
        return Ranking(scores, classes, queries)

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most probable class; score 0 where that is no-object."""
        scores, classes = logits.softmax(-1).max(-1)
        return scores.where(classes < logits.shape[-1] - 1, 0.0), classes

    def logits(self, scores: Tensor) -> Tensor:
        """Return log probabilities; no-object has what the classes leave."""
        rest = 1 - scores.sum(-1, keepdim=True)
        return torch.cat((scores, rest), -1).clamp(min=_MIN_PROBABILITY).log()


class FocalLoss:
    """Sigmoid focal loss (arXiv 1708.02002, equation 5), summed over queries and classes, per object."""

    prior = 0.01
    uses_overlaps = False

    def loss(
        self,
        logits: Tensor,
        classes: Tensor,
        class_weights: Tensor,
        normalizer: Normalizer,
        overlaps: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of one sigmoid per class. No-object is never a target; class weights are not used."""
        targets = F.one_hot(classes.clamp(min=0), logits.shape[-1])
        targets[..., -1] = 0
        losses = self.elementwise(logits, targets.bool(), overlaps)
        return losses.where(classes[..., None] != IGNORED, 0.0).sum((1, 2, 3)) / normalizer.num_objects

    def elementwise(self, logits: Tensor, targets: Tensor, overlaps: Tensor | None) -> Tensor:
        """Return the loss of each logit, (L, B, Q, K + 1); ``targets`` is bool and of the same shape."""
        return sigmoid_focal_loss(logits, targets)

    def cost(self, logits: Tensor) -> Tensor:
        """Return the loss of the class as target minus that of the class as negative, as Deformable DETR has it."""
        probability = logits.sigmoid()
        positive = -_ALPHA * (1 - probability) ** _GAMMA * (probability + 1e-8).log()
        negative = -(1 - _ALPHA) * probability**_GAMMA * (1 - probability + 1e-8).log()
        return positive - negative

    def rank(self, logits: Tensor) -> Ranking:
        """Rank the best pairs of query and class, the best first: a query may appear under several classes."""
        probabilities = logits[..., :-1].sigmoid()
        num_queries, num_classes = probabilities.shape[1:]
        scores, pairs = probabilities.flatten(1).topk(num_queries)
        return Ranking(scores, pairs % num_classes, pairs // num_classes)

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class with the highest score; there is no no-object."""
        return logits[..., :-1].sigmoid().max(-1)

    def logits(self, scores: Tensor) -> Tensor:
        """Return the inverse of the sigmoid; the last logit, which has no meaning, is 0."""
        return F.pad(scores.clamp(_MIN_PROBABILITY, 1 - _MIN_PROBABILITY).logit(), (0, 1))


class OverlapAwareLoss(FocalLoss):
    """Cross entropy of a sigmoid whose target is not 1 but tells how good the box is; ranked and matched as focal loss.

    Negatives weigh ``negative_weight`` times the class's probability to the power ``gamma``. The targets have no
    gradients.

    Args:
        target: from the probability and the IoU of each matched query to its target and its weight.
        negative_weight: of the classes that are not the object's.
        gamma: exponent of the probability of a negative.
    """

    uses_overlaps = True

    def __init__(self, target: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], negative_weight: float, gamma: float):
        self.target = target
        self.negative_weight = negative_weight
        self.gamma = gamma

    def elementwise(self, logits: Tensor, targets: Tensor, overlaps: Tensor) -> Tensor:
        with torch.no_grad():
            probability = logits.sigmoid()
            positive_target, positive_weight = self.target(probability, overlaps[..., None])
            soft_targets = torch.where(targets, positive_target, 0.0)
            weights = torch.where(targets, positive_weight, self.negative_weight * probability**self.gamma)
        return weights * F.binary_cross_entropy_with_logits(logits, soft_targets, reduction="none")


def _varifocal(probability: Tensor, overlaps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the overlap as target and weight (arXiv 2008.13367, equation 2)."""
    return overlaps, overlaps


def _aligned(probability: Tensor, overlaps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the geometric mean of probability and overlap (arXiv 2304.07527, equation 4)."""
    return probability**0.25 * overlaps**0.75, torch.ones_like(overlaps)


def _matchability(probability: Tensor, overlaps: Tensor) -> tuple[Tensor, Tensor]:
    """Return a power of the overlap, so that poor matches count too (arXiv 2412.04234, equation 4)."""
    return overlaps**1.5, torch.ones_like(overlaps)


CLASS_LOSSES: dict[str, ClassLoss] = {
    "softmax": SoftmaxLoss(),
    "focal": FocalLoss(),
    "varifocal": OverlapAwareLoss(_varifocal, negative_weight=0.75, gamma=2.0),
    "aligned": OverlapAwareLoss(_aligned, negative_weight=1.0, gamma=2.0),
    "matchability": OverlapAwareLoss(_matchability, negative_weight=1.0, gamma=1.5),
}
"""Values of ``MODEL.DETR.CLASS_LOSS``; an entry that is added here can be chosen in a config."""


def get_class_loss(name: str) -> ClassLoss:
    """Return the strategy that ``MODEL.DETR.CLASS_LOSS`` names."""
    return choice(CLASS_LOSSES, "MODEL.DETR.CLASS_LOSS", name)


def sigmoid_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the focal loss (arXiv 1708.02002, equation 5) of each logit.

    Args:
        logits: of any shape.
        targets: bool, of the same shape.
    """
    signed = torch.where(targets, -logits, logits)
    balance = torch.where(targets, _ALPHA, 1 - _ALPHA)
    return balance * signed.sigmoid() ** _GAMMA * F.softplus(signed)
