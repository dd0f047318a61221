"""Positions of image features: their grid, and embeddings as fixed sines or from a learned table."""

import math
from functools import lru_cache

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from detr_d2.config import choice
from detr_d2.utils.errors import UserError

_MAX_TABLE_SIZE = 50


class PositionEmbeddingSine(nn.Module):
    """Sines and cosines of the position, normalized to the unpadded image (arXiv 1706.03762, section 3.5).

    Half of the channels hold the row, half the column.
    """

    def __init__(self, hidden_dim: int, temperature: float = 10000.0):
        super().__init__()
        self.channels_per_axis = hidden_dim // 2
        self.temperature = temperature

    def forward(self, features: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Return (B, hidden_dim, H, W) for features and their (B, H, W) padding mask; (1, …) without mask."""
        if padding_mask is None:
            height, width = features.shape[-2:]
            return _unpadded_sine(height, width, self.channels_per_axis, self.temperature, features.device)
        return _sine(~padding_mask, self.channels_per_axis, self.temperature)


def _sine(valid: Tensor, channels_per_axis: int, temperature: float) -> Tensor:
    axes = []
    for dim in (1, 2):
        position = valid.cumsum(dim, dtype=torch.float32)
        extent = position.amax(dim, keepdim=True)
        axes.append(axis_sine(position / (extent + 1e-6) * (2 * math.pi), channels_per_axis, temperature))
    return torch.cat(axes, dim=3).permute(0, 3, 1, 2)


def axis_sine(position: Tensor, channels: int, temperature: float) -> Tensor:
    """Return (…, channels) sines and cosines of (…) positions in radians (arXiv 1706.03762, section 3.5)."""
    channel = torch.arange(channels, dtype=torch.float32, device=position.device)
    frequency = temperature ** (2 * (channel // 2) / channels)
    angle = position[..., None] / frequency
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2)


@lru_cache(maxsize=64)
def _unpadded_sine(height: int, width: int, channels_per_axis: int, temperature: float, device: torch.device) -> Tensor:
    # A tensor created in inference mode could not be used in training later.
    with torch.inference_mode(False), torch.no_grad():
        valid = torch.ones((1, height, width), dtype=torch.bool, device=device)
        return _sine(valid, channels_per_axis, temperature)


class PositionEmbeddingLearned(nn.Module):
    """A learned vector for each of the first 50 rows and columns."""

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.row_embed = nn.Embedding(_MAX_TABLE_SIZE, hidden_dim // 2)
        self.col_embed = nn.Embedding(_MAX_TABLE_SIZE, hidden_dim // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, features: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Return (1, hidden_dim, H, W) for (B, C, H, W) features; the padding makes no difference."""
        height, width = features.shape[-2:]
        if max(height, width) > _MAX_TABLE_SIZE:
            raise UserError(
                f"MODEL.DETR.POSITION_EMBEDDING 'learned' has {_MAX_TABLE_SIZE} rows and columns, but the image "
                f"features have {height} x {width}: use smaller images (INPUT.MAX_SIZE_TRAIN, INPUT.MAX_SIZE_TEST) "
                "or 'sine'."
            )
        columns = self.col_embed.weight[:width].expand(height, -1, -1)
        rows = self.row_embed.weight[:height, None].expand(-1, width, -1)
        return torch.cat((columns, rows), dim=-1).permute(2, 0, 1)[None]


_EMBEDDINGS = {"sine": PositionEmbeddingSine, "learned": PositionEmbeddingLearned}


def build_position_embedding(cfg: CfgNode) -> nn.Module:
    """Build the embedding that ``MODEL.DETR.POSITION_EMBEDDING`` names."""
    detr = cfg.MODEL.DETR
    return choice(_EMBEDDINGS, "MODEL.DETR.POSITION_EMBEDDING", detr.POSITION_EMBEDDING)(detr.HIDDEN_DIM)


def feature_grid(height: int, width: int, device: torch.device) -> Tensor:
    """Return (H * W, 2) float32 x and y of every feature, row by row."""
    rows, columns = (torch.arange(x, dtype=torch.float32, device=device) for x in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x, y), dim=-1).flatten(0, 1)
