"""What training minimises."""

from detr_d2.criterion.criterion import SetCriterion
from detr_d2.criterion.masks import MASK_LOSSES, MaskPredictor, MatchedPairs

__all__ = ["MASK_LOSSES", "MaskPredictor", "MatchedPairs", "SetCriterion"]
