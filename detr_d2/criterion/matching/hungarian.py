"""The one-to-one matching of minimum cost."""

import numpy as np
import torch
from detectron2.config import CfgNode
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detr_d2.criterion.matching.matcher import DETR_MATCHER_REGISTRY, check_matched_finite


@DETR_MATCHER_REGISTRY.register()
class HungarianMatcher:
    """Optimal assignment on the host, by SciPy's modified Jonker-Volgenant algorithm."""

    def __init__(self, cfg: CfgNode | None = None):
        """Accept a config, as all matchers do; this one has no settings."""

    @torch.no_grad()
    def __call__(self, cost: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Return matches as :data:`~detr_d2.criterion.matching.Matcher` says; the cost is copied to the host once.

        Raises:
            FloatingPointError: an object can only be matched at a cost that is not finite.
        """
        layers, batch, _, width = cost.shape
        matches = np.full((layers, batch, width), -1, dtype=np.int64)
        host = cost.float().cpu().numpy()
        finite_cost = host if np.isfinite(host).all() else _with_prohibitive_cost(host)
        for image, count in enumerate(counts):
            for layer in range(layers):
                queries, objects = linear_sum_assignment(finite_cost[layer, image, :, :count])
                matches[layer, image, objects] = queries
        if finite_cost is not host:
            check_matched_finite(host, matches)
        return torch.from_numpy(matches).to(cost.device, non_blocking=True)


def _with_prohibitive_cost(cost: np.ndarray) -> np.ndarray:
    """Make entries that are not finite costlier than any matching of finite entries."""
    finite = np.isfinite(cost)
    span = np.ptp(cost[finite].astype(np.float64)) if finite.any() else 0.0
    largest = cost[finite].max() if finite.any() else 0.0
    return np.where(finite, cost.astype(np.float64), largest + (span + 1.0) * (cost.shape[-1] + 1))
