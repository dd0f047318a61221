"""What it costs to give a query to an object."""

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from detr_d2.config import choice
from detr_d2.structures import Predictions, Targets
from detr_d2.utils.box_ops import cxcywh_to_xyxy, generalized_iou
from detr_d2.utils.precision import without_autocast


def softmax_cost(logits: Tensor) -> Tensor:
    """- probability of each class: (…, classes + 1) logits -> the same shape."""
    return -logits.softmax(-1)


def focal_cost(logits: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (arXiv 1708.02002, equation 5) of a class being there, less that of its not being there.

    Args:
        logits: (…, classes + 1), each with a sigmoid of its own.

    Returns:
        The same shape.
    """
    probability = logits.sigmoid()
    there = -alpha * (1 - probability) ** gamma * (probability + 1e-8).log()
    absent = -(1 - alpha) * probability**gamma * (1 - probability + 1e-8).log()
    return there - absent


_CLASS_COSTS = {"softmax": softmax_cost, "focal": focal_cost}


class MatchingCost:
    """Weighted sum of a class cost, L1 distance of the boxes and - GIoU (arXiv 2005.12872, section 3.1)."""

    @configurable
    def __init__(
        self,
        *,
        class_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        class_loss: str = "softmax",
    ):
        """
        Args:
            class_loss: "softmax" or "focal", as in training.
        """
        self.class_cost = choice(_CLASS_COSTS, "MODEL.DETR.CLASS_LOSS", class_loss)
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
    def __call__(self, predictions: Predictions, targets: Targets) -> Tensor:
        """All layers and images at once -> (L, B, Q, T) float32, under any autocast."""
        with without_autocast(predictions.logits.device):
            class_cost = self.class_cost(predictions.logits.float())
            boxes = predictions.boxes.float()
            layers, _, queries, _ = boxes.shape
            index = targets.labels[None, :, None].expand(layers, -1, queries, -1)
            cost = class_cost.gather(-1, index) * self.class_weight
            cost += self.l1_weight * torch.cdist(boxes, targets.boxes[None].expand(layers, -1, -1, -1), p=1)
            predicted, wanted = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets.boxes)
            return cost - self.giou_weight * generalized_iou(predicted[..., None, :], wanted[None, :, None])
