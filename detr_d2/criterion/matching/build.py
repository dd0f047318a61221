"""The registry of matchers."""

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor

from detr_d2.config import choice

DETR_MATCHER_REGISTRY = Registry("DETR_MATCHER")
DETR_MATCHER_REGISTRY.__doc__ = """
Matchers of queries with objects. Called with a cfg; the object is called as :data:`Matcher` says.
"""

Matcher = Callable[[Tensor, tuple[int, ...]], Tensor]
"""``matcher(cost, counts) -> matches``: cost (L, B, Q, T) float32 of giving query q to object t, of which
image b has ``counts[b]``; matches (L, B, T) int64, the query that each object got, -1 for padding and for
objects that no query was left for. No query is given twice within a layer and image."""


def build_matcher(cfg: CfgNode) -> Matcher:
    """Build the matcher that ``MODEL.DETR.MATCHER`` names."""
    return choice(DETR_MATCHER_REGISTRY, "MODEL.DETR.MATCHER", cfg.MODEL.DETR.MATCHER)(cfg)
