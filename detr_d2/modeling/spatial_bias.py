"""The Gaussian of spatially modulated co-attention (arXiv 2101.07448, equations 4 to 6), as a bias of attention."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

# Fused kernels take head sizes that are multiples of this.
_HEAD_SIZE_STEP = 8


class SpatialBias(NamedTuple):
    """- (w_x dx² + w_y dy² + w_xy dx² dy²), where dx and dy lead from a query's point to a feature."""

    point: Tensor
    """(B, heads, Q, 2) x and y, measured in features from the centre of the first."""
    weight: Tensor
    """(B, heads, Q, 2 or 3) of the squared distance along x and y and, where there is one, of their product."""
    size: tuple[int, int]
    """Height and width of the features."""

    @property
    def has_product(self) -> bool:
        return self.weight.shape[-1] == 3

    def explicit(self) -> Tensor:
        """The bias itself: (B, heads, Q, H * W)."""
        grid = feature_grid(*self.size, self.point.device)
        squared = (self.point[..., None, :] - grid).square()
        bias = (squared * self.weight[..., None, :2]).sum(-1)
        if self.has_product:
            bias = bias + squared.prod(-1) * self.weight[..., 2:]
        return -bias

    def factors(self) -> tuple[Tensor, Tensor]:
        """Vectors whose product is the bias, up to a number a query, which a softmax does not see.

        -w (p - g)² = 2 w p g - w g² - w p²: with g and g² of both axes as the features' vectors nothing of the
        size of the attention has to be made. Needs float32, for the terms are large where their sum is small.

        Returns:
            (B, heads, Q, D) for the queries, (1, 1, H * W, D) for the features; D is padded with zeros.
        """
        grid = feature_grid(*self.size, self.point.device)
        of_queries = torch.cat((2 * self.weight * self.point, -self.weight), dim=-1)
        of_features = torch.cat((grid, grid.square()), dim=-1)
        padding = -of_queries.shape[-1] % _HEAD_SIZE_STEP
        of_queries, of_features = (torch.nn.functional.pad(x, (0, padding)) for x in (of_queries, of_features))
        return of_queries, of_features[None, None]


def feature_grid(height: int, width: int, device: torch.device) -> Tensor:
    """(H * W, 2) float32 x and y of every feature, row by row."""
    # Compiled code knows neither caches nor sizes.
    return (_make_grid if torch.compiler.is_compiling() else _cached_grid)(height, width, device)


@lru_cache(maxsize=64)
def _cached_grid(height: int, width: int, device: torch.device) -> Tensor:
    # A tensor made in inference mode could not be used in training later.
    with torch.inference_mode(False):
        return _make_grid(height, width, torch.device("cpu")).to(device, non_blocking=True)


def _make_grid(height: int, width: int, device: torch.device) -> Tensor:
    rows, columns = (torch.arange(x, dtype=torch.float32, device=device) for x in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x, y), dim=-1).flatten(0, 1)
