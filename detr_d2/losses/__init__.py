"""What training minimises."""

from detr_d2.losses.criterion import SetCriterion

__all__ = ["SetCriterion"]
