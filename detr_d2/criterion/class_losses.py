"""Class losses. Each strategy owns the loss, the matching cost of a class, and the ranking of its predictions."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from detr_d2.config import choice

# Of the focal loss (arXiv 1708.02002, section 4.1).
_ALPHA, _GAMMA = 0.25, 2.0


class Normalizer(NamedTuple):
    """What the losses of a batch are divided by: scalars, averaged over the processes."""

    num_objects: Tensor
    """Number of objects, at least 1."""
    class_weight: Tensor
    """Sum of the weights of the queries' target classes."""
    accumulation_steps: int = 1
    """How many forward passes the batch is split into."""


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

    def loss(self, logits: Tensor, classes: Tensor, class_weights: Tensor, normalizer: Normalizer) -> Tensor:
        """Return one loss per decoder layer.

        Args:
            logits: (L, B, Q, K + 1).
            classes: (L, B, Q) int64 target classes up to K.
            class_weights: (K + 1,) weights of the classes.
            normalizer: of the batch.

        Returns:
            (L,)
        """

    def cost(self, logits: Tensor) -> Tensor:
        """Return the cost of matching a query with an object of each class, in the shape of ``logits``."""

    def rank(self, logits: Tensor) -> Ranking:
        """Return as many detections per image as there are queries, from (B, Q, K + 1) logits."""

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (Q,) score and class of each query from (Q, K + 1) logits; score 0 for no-object."""


class SoftmaxLoss:
    """Weighted cross entropy over the classes and no-object (arXiv 2005.12872, section 3.1)."""

    prior = None

    def loss(self, logits: Tensor, classes: Tensor, class_weights: Tensor, normalizer: Normalizer) -> Tensor:
        """Return the weighted mean of - log probability."""
        losses = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), class_weights, reduction="none")
        return losses.view(logits.shape[0], -1).sum(1) / normalizer.class_weight

    def cost(self, logits: Tensor) -> Tensor:
        """Return - probability."""
        return -logits.softmax(-1)

    def rank(self, logits: Tensor) -> Ranking:
        """Take every query for its best foreground class, also where no-object is more probable."""
        scores, classes = logits.softmax(-1)[..., :-1].max(-1)
        queries = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
        return Ranking(scores, classes, queries)

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most probable class; score 0 where that is no-object."""
        scores, classes = logits.softmax(-1).max(-1)
        return scores.where(classes < logits.shape[-1] - 1, 0.0), classes


class FocalLoss:
    """Sigmoid focal loss (arXiv 1708.02002, equation 5), summed over queries and classes, per object."""

    prior = 0.01

    def loss(self, logits: Tensor, classes: Tensor, class_weights: Tensor, normalizer: Normalizer) -> Tensor:
        """Return the loss of one sigmoid per class. No-object is never a target; class weights are not used."""
        targets = F.one_hot(classes, logits.shape[-1])
        targets[..., -1] = 0
        return sigmoid_focal_loss(logits, targets.bool()).sum((1, 2, 3)) / normalizer.num_objects

    def cost(self, logits: Tensor) -> Tensor:
        """Return the loss of the class as target minus that of the class as negative, as Deformable DETR has it."""
        probability = logits.sigmoid()
        positive = -_ALPHA * (1 - probability) ** _GAMMA * (probability + 1e-8).log()
        negative = -(1 - _ALPHA) * probability**_GAMMA * (1 - probability + 1e-8).log()
        return positive - negative

    def rank(self, logits: Tensor) -> Ranking:
        """Take the best pairs of query and class, the best first: a query may be found under several classes."""
        probabilities = logits[..., :-1].sigmoid()
        num_queries, num_classes = probabilities.shape[1:]
        scores, pairs = probabilities.flatten(1).topk(num_queries)
        return Ranking(scores, pairs % num_classes, pairs // num_classes)

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class with the highest score; there is no no-object."""
        return logits[..., :-1].sigmoid().max(-1)


CLASS_LOSSES: dict[str, ClassLoss] = {"softmax": SoftmaxLoss(), "focal": FocalLoss()}
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
