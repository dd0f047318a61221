"""The data that subpackages hand to each other."""

from detr_d2.structures.types import Decoded, MaskFeatures, Predictions, Size, Targets

__all__ = ["Decoded", "MaskFeatures", "Predictions", "Size", "Targets"]
