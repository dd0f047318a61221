"""The encoder of SMCA over several feature levels: convolutions within a level and between neighboring levels."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detr_d2.modeling.projection import zero_padding
from detr_d2.modeling.transformer import TransformerLayer
from detr_d2.structures import ProjectedLevel, Size

_KERNEL_SIZE = 7


class Pyramid(NamedTuple):
    """The geometry of L levels, fine to coarse, whose S features follow each other in one (B, S, C) tensor."""

    sizes: tuple[Size, ...]
    """Height and width of each level, in features."""
    padding_masks: tuple[Tensor | None, ...]
    """(B, h, w) bool for each level, True where padded; None where nothing is."""
    interpolations: tuple[tuple[Tensor, Tensor], ...]
    """(B or 1, H, h) and (B or 1, W, w): matrices that resize rows and columns of level i + 1 to level i."""

    @classmethod
    def of(cls, levels: Sequence[ProjectedLevel]) -> "Pyramid":
        """Return the geometry of projected levels."""
        sizes = [tuple(x.tensor.shape[-2:]) for x in levels]
        masks = [x.padding_mask for x in levels]
        valid = [_valid_lengths(x) for x in levels]
        interpolations = [
            tuple(interpolation(*lengths) for lengths in zip(fine, coarse, valid_fine, valid_coarse, strict=True))
            for fine, coarse, valid_fine, valid_coarse in zip(sizes[:-1], sizes[1:], valid[:-1], valid[1:], strict=True)
        ]
        return cls(tuple(sizes), tuple(masks), tuple(interpolations))

    def split(self, x: Tensor) -> list[Tensor]:
        """Return the levels of a (B, S, C) tensor, (B, h w, C) each."""
        return split(x, [height * width for height, width in self.sizes], dim=1)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the levels of a (B, S, C) tensor, (B, C, h, w) each, with zeros where they are padded."""
        maps = [y.transpose(1, 2).unflatten(2, size) for y, size in zip(self.split(x), self.sizes, strict=True)]
        return self.zero_padding(maps)

    def zero_padding(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return maps with zeros where they are padded."""
        return [zero_padding(x, mask) for x, mask in zip(maps, self.padding_masks, strict=True)]


def split(x: Tensor, lengths: Sequence[int], dim: int) -> list[Tensor]:
    """Return consecutive parts of a tensor, of any lengths also where it is traced, unlike ``x.split(lengths)``."""
    ends = accumulate(lengths)
    return [x.narrow(dim, end - length, length) for end, length in zip(ends, lengths, strict=True)]


def flatten(maps: Sequence[Tensor]) -> Tensor:
    """Return (B, C, h, w) maps as one (B, S, C) tensor; a batch of one is repeated where others are larger."""
    batch_size = max(x.shape[0] for x in maps)
    return torch.cat([x.flatten(2).transpose(1, 2).expand(batch_size, -1, -1) for x in maps], dim=1)


def interpolation(length: int, source_length: int, valid: Tensor, source_valid: Tensor) -> Tensor:
    """Return the (B, length, source_length) matrices of linear interpolation with aligned corners.

    The first of ``valid``, (B,), values is the first of ``source_valid``, and the last the last, whatever the padding
    after them. Values in the padding are not meaningful.
    """
    step = (source_valid - 1) / (valid - 1).clamp(min=1)
    position = torch.arange(length, device=valid.device) * step[:, None]
    distance = position[..., None] - torch.arange(source_length, device=valid.device)
    return (1 - distance.abs()).clamp(min=0)


def _valid_lengths(level: ProjectedLevel) -> tuple[Tensor, Tensor]:
    """Return the numbers of rows and columns that are not padded: (B,) each, or (1,) where nothing is."""
    if level.padding_mask is None:
        height, width = (torch.full((1,), x, device=level.tensor.device) for x in level.tensor.shape[-2:])
        return height, width
    valid = ~level.padding_mask
    return valid[:, :, 0].sum(1), valid[:, 0].sum(1)


def resize(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resize (B, C, h, w) maps to (B, C, H, W) with the matrices of an interpolation."""
    x = x.permute(0, 2, 3, 1)
    x = columns[:, None].to(x.dtype) @ x
    return (rows.to(x.dtype) @ x.flatten(2)).unflatten(2, x.shape[2:]).permute(0, 3, 1, 2)


class MultiScaleEncoderLayer(TransformerLayer):
    """Convolutions within and between L levels instead of self-attention, then the feed-forward network.

    Args:
        hidden_dim: C.
        dim_feedforward: hidden size of the feed-forward network.
        dropout: probability with which a value is dropped in training.
        pre_norm: layer norm before instead of after.
        num_levels: L.
        shared: True for one convolution to the next coarser level and one to the next finer, whatever the levels.
        pointwise: True for convolutions of one feature before and after the others.
    """

    def __init__(
        self,
        hidden_dim: int,
        dim_feedforward: int,
        dropout: float,
        pre_norm: bool,
        num_levels: int,
        shared: bool,
        pointwise: bool,
    ):
        super().__init__(hidden_dim, dim_feedforward, dropout, pre_norm)
        between = 1 if shared else num_levels - 1
        self.pointwise_in = nn.Linear(hidden_dim, hidden_dim) if pointwise else nn.Identity()
        self.within = nn.ModuleList(_depthwise(hidden_dim) for _ in range(num_levels))
        self.up = nn.ModuleList(_depthwise(hidden_dim) for _ in range(between))
        self.down = nn.ModuleList(_depthwise(hidden_dim, stride=2) for _ in range(between))
        self.pointwise_out = nn.Linear(hidden_dim, hidden_dim) if pointwise else nn.Identity()
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)

    def forward(self, src: Tensor, pos: Tensor, pyramid: Pyramid) -> Tensor:
        """Map (B, S, C) to (B, S, C); ``pos`` is (B or 1, S, C)."""
        src = self.residual(src, self.norm1, lambda x: self.convolve(x + pos, pyramid))
        return self.residual(src, self.norm2, self.feed_forward)

    def convolve(self, x: Tensor, pyramid: Pyramid) -> Tensor:
        """Return for every level, of (B, S, C), the sum of convolutions of itself and of its neighbors."""
        maps = pyramid.maps(self.pointwise_in(x))
        own = [convolution(y) for convolution, y in zip(self.within, maps, strict=True)]
        own = pyramid.zero_padding(own)
        mixed = list(own)
        for i, matrices in enumerate(pyramid.interpolations):
            # The convolutions between levels i and i + 1, or those of all.
            up, down = (x[i % len(x)] for x in (self.up, self.down))
            mixed[i] = mixed[i] + resize(up(own[i + 1]), *matrices)
            mixed[i + 1] = mixed[i + 1] + down(own[i])
        return self.pointwise_out(flatten(mixed))

    def reset_convolutions(self) -> None:
        """Initialize the depthwise convolutions by the number of their inputs, as PyTorch does."""
        for convolution in (*self.within, *self.up, *self.down):
            convolution.reset_parameters()


def _depthwise(channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, _KERNEL_SIZE, stride, padding=_KERNEL_SIZE // 2, groups=channels)
