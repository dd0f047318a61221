"""Which query answers for which object."""

from detr_d2.criterion.matching.build import DETR_MATCHER_REGISTRY, Matcher, build_matcher
from detr_d2.criterion.matching.cost import MatchingCost
from detr_d2.criterion.matching.hungarian import HungarianMatcher
from detr_d2.criterion.matching.sinkhorn import SinkhornMatcher

__all__ = [
    "DETR_MATCHER_REGISTRY",
    "HungarianMatcher",
    "Matcher",
    "MatchingCost",
    "SinkhornMatcher",
    "build_matcher",
]
