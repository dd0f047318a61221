"""Matching and losses."""

from detr_d2.criterion.class_losses import CLASS_LOSSES, ClassLoss, Normalizer, get_class_loss
from detr_d2.criterion.criterion import SetCriterion
from detr_d2.criterion.mask_losses import MASK_LOSSES, MatchedMasks, MatchedPairs, matched_pairs

__all__ = [
    "CLASS_LOSSES",
    "MASK_LOSSES",
    "ClassLoss",
    "MatchedMasks",
    "MatchedPairs",
    "Normalizer",
    "SetCriterion",
    "get_class_loss",
    "matched_pairs",
]
