"""Matching of queries with objects."""

from detr_d2.criterion.matching.hungarian import HungarianMatcher
from detr_d2.criterion.matching.matcher import DETR_MATCHER_REGISTRY, Matcher, MatchingCost, build_matcher
from detr_d2.criterion.matching.sinkhorn import SinkhornMatcher

__all__ = [
    "DETR_MATCHER_REGISTRY",
    "HungarianMatcher",
    "Matcher",
    "MatchingCost",
    "SinkhornMatcher",
    "build_matcher",
]
