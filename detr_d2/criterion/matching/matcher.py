"""The registry of matchers, the cost that they minimize, and the check of what they return."""

from collections.abc import Callable

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from numpy.typing import NDArray
from torch import Tensor

from detr_d2.config import choice
from detr_d2.criterion.class_losses import get_class_loss
from detr_d2.structures import Output, Targets
from detr_d2.utils.box_ops import cxcywh_to_xyxy, generalized_iou
from detr_d2.utils.precision import without_autocast

DETR_MATCHER_REGISTRY = Registry("DETR_MATCHER")
DETR_MATCHER_REGISTRY.__doc__ = """
Matchers of queries with objects. Called with a cfg; the object is called as :data:`Matcher` says.
"""

Matcher = Callable[[Tensor, tuple[int, ...]], Tensor]
"""``matcher(cost, counts) -> matches``: cost (L, B, Q, T) float32 of matching query q with object t, of which
image b has ``counts[b]``; matches (L, B, T) int64, the query of each object, -1 for padding and for objects
without a query. No query is matched twice within a layer and image."""


def build_matcher(cfg: CfgNode) -> Matcher:
    """Build the matcher that ``MODEL.DETR.MATCHER`` names."""
    return choice(DETR_MATCHER_REGISTRY, "MODEL.DETR.MATCHER", cfg.MODEL.DETR.MATCHER)(cfg)


class MatchingCost:
    """Weighted sum of a class cost, L1 distance of the boxes and - GIoU (arXiv 2005.12872, section 3.1).

    Args:
        class_weight, l1_weight, giou_weight: weights of the class cost, of the L1 distance and of - GIoU.
        class_loss: a name in :data:`~detr_d2.criterion.class_losses.CLASS_LOSSES`, as in training.
    """

    @configurable
    def __init__(
        self,
        *,
        class_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        class_loss: str = "softmax",
    ):
        self.class_loss = get_class_loss(class_loss)
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        detr = cfg.MODEL.DETR
        costs = {"class": detr.COST_CLASS, "l1": detr.COST_L1, "giou": detr.COST_GIOU}
        losses = {"class": detr.CLASS_WEIGHT, "l1": detr.L1_WEIGHT, "giou": detr.GIOU_WEIGHT}
        weights = {f"{k}_weight": losses[k] if cost is None else cost for k, cost in costs.items()}
        return {**weights, "class_loss": detr.CLASS_LOSS}

    @torch.no_grad()
    def __call__(self, output: Output, targets: Targets) -> Tensor:
        """Return the (L, B, Q, T) float32 cost of all layers and images at once, under any autocast."""
        with without_autocast(output.logits.device):
            class_cost = self.class_loss.cost(output.logits.float())
            boxes = output.boxes.float()
            layers, _, queries, _ = boxes.shape
            index = targets.labels[None, :, None].expand(layers, -1, queries, -1)
            cost = class_cost.gather(-1, index) * self.class_weight
            cost += self.l1_weight * torch.cdist(boxes, targets.boxes[None].expand(layers, -1, -1, -1), p=1)
            predicted, target = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets.boxes)
            return cost - self.giou_weight * generalized_iou(predicted[..., None, :], target[None, :, None])


def check_matched_finite(cost: NDArray, matches: NDArray[np.int64]) -> None:
    """Check that the (L, B, Q, T) costs of the (L, B, T) matches are finite.

    Raises:
        FloatingPointError: names the first that is not, and how many there are.
    """
    layer, image, obj = np.nonzero(matches >= 0)
    matched = cost[layer, image, matches[layer, image, obj], obj]
    bad = np.flatnonzero(~np.isfinite(matched))
    if len(bad):
        first = bad[0]
        raise FloatingPointError(
            f"The matching cost is {matched[first]} for object {obj[first]} of image {image[first]} of the batch "
            f"after decoder layer {layer[first]} ({len(bad)} of {len(matched)} matched pairs are not finite): "
            "the model's predictions contain NaN or infinity."
        )
