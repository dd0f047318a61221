"""Masks of object queries (arXiv 2005.12872, section 4.4): attention over the memory, refined by a small FPN."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from detr_d2.utils.errors import UserError
from detr_d2.utils.precision import without_autocast

# Channels of a layer are normalized in this many groups, or in a divisor of both.
_GROUPS = 8
_NUM_LEVELS = 3
# Number of queries computed at once.
_CHUNK_CPU = 4
_CHUNK = 50

_PHASES = (((1, 1, 0), (0, 0, 1)), ((1, 0, 0), (0, 1, 1)))
"""Indicator [s][t][k]: 1 if tap k of a kernel of three falls on input t of two, for outputs of phase s."""


class AttentionMaps(nn.Module):
    """Attention weights of the object queries over the memory, without values."""

    def __init__(self, hidden_dim: int, nheads: int):
        super().__init__()
        self.nheads = nheads
        self.q_linear = nn.Linear(hidden_dim, hidden_dim)
        self.k_linear = nn.Linear(hidden_dim, hidden_dim)
        for layer in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor, memory: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Return (B, Q, heads, H, W), one map per query and head, which sum to 1 over heads and positions together.

        Args:
            hidden: (B, Q, C) output of the decoder for the object queries.
            memory: (B, C, H, W) output of the encoder.
            padding_mask: (B, H, W) bool, True where padded, or None.
        """
        q = self.q_linear(hidden).unflatten(-1, (self.nheads, -1))
        k = self.k_linear(memory.flatten(2).transpose(1, 2)).unflatten(-1, (self.nheads, -1))
        logits = (q * q.shape[-1] ** -0.5).transpose(1, 2) @ k.permute(0, 2, 3, 1)
        if padding_mask is not None:
            logits = logits.masked_fill(padding_mask.flatten(1)[:, None, None], -torch.inf)
        weights = logits.transpose(1, 2).flatten(2).softmax(-1)
        return weights.unflatten(-1, (self.nheads, *memory.shape[-2:]))


class MaskHead(nn.Module):
    """A convolutional head that refines the attention maps of queries to the finest level of the backbone.

    Convolutions are linear: their response to the image is computed once per image, whatever the number of queries.

    Args:
        hidden_dim: channels of the projected features.
        nheads: number of attention maps per query.
        level_channels: channels of the backbone's three finer levels, coarse to fine.
        maps_gain: factor on the initial weights of the attention maps.
    """

    def __init__(self, hidden_dim: int, nheads: int, level_channels: tuple[int, int, int], maps_gain: float = 1.0):
        super().__init__()
        if hidden_dim < 16:
            raise UserError(f"MODEL.DETR.HIDDEN_DIM is {hidden_dim}: masks (MODEL.MASK_ON True) take 16 or more.")
        self.hidden_dim = hidden_dim
        dim = hidden_dim + nheads
        sizes = [dim, dim, *(hidden_dim // x for x in (2, 4, 8, 16))]
        for i, (before, after) in enumerate(pairwise(sizes), start=1):
            setattr(self, f"lay{i}", nn.Conv2d(before, after, 3, padding=1))
            setattr(self, f"gn{i}", nn.GroupNorm(math.gcd(_GROUPS, after), after))
        self.out_lay = nn.Conv2d(sizes[-1], 1, 3, padding=1)
        for i, channels in enumerate(level_channels, start=1):
            setattr(self, f"adapter{i}", nn.Conv2d(channels, sizes[i + 1], 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)
        # Attention maps sum to one over all positions. They are orders of magnitude smaller than the features, so they
        # have little influence at first.
        with torch.no_grad():
            self.lay1.weight[:, hidden_dim:] *= maps_gain

    def forward(
        self, source: Tensor, maps: Tensor, levels: Sequence[Tensor], images: Tensor, chunk: int | None = None
    ) -> Tensor:
        """Return the mask logits of M object queries.

        Args:
            source: (B, C, H, W) projected features.
            maps: (M, heads, H, W) attention maps of M object queries.
            levels: the backbone's finer levels, coarse to fine, (B, channels, h, w) each; the first three are used.
            images: (M,) int64 index in the batch of each query's image.
            chunk: number of queries computed at once; None: few on the CPU, where their features should stay in the
                caches, more elsewhere.

        Returns:
            (M, h, w) at the size of the finest level.
        """
        on_cpu = source.device.type == "cpu"
        if chunk is None:
            chunk = _CHUNK_CPU if on_cpu else _CHUNK
        # Every layer keeps the memory format of its input. Channels last is a fifth faster on the CPU.
        if on_cpu:
            maps = maps.contiguous(memory_format=torch.channels_last)
        source_weight, maps_weight = self.lay1.weight.split((self.hidden_dim, maps.shape[1]), dim=1)
        stages = self._stages(levels)
        first = F.conv2d(source, source_weight, self.lay1.bias, padding=1)
        logits = []
        for some_maps, some_images in zip(maps.split(chunk), images.split(chunk), strict=True):
            x = F.conv2d(some_maps, maps_weight, padding=1) + _take(first, some_images)
            x = F.relu_(self.gn2(self.lay2(F.relu_(self.gn1(x)))))
            for stage in stages:
                x = F.relu_(stage.norm(stage.upsampling(x) + _take(stage.level, some_images)))
            logits.append(self.out_lay(x)[:, 0])
        return torch.cat(logits)

    def _stages(self, levels: Sequence[Tensor]) -> list["_Stage"]:
        parts = (
            (self.adapter1, self.lay3, self.gn3),
            (self.adapter2, self.lay4, self.gn4),
            (self.adapter3, self.lay5, self.gn5),
        )
        return [
            _Stage(conv(adapter(level)), UpsamplingConv(conv.weight, level.shape[-2:]), norm)
            for level, (adapter, conv, norm) in zip(levels, parts, strict=False)
        ]


class _Stage(NamedTuple):
    """The step from one level to the next finer one."""

    level: Tensor  # (B, channels, h, w) response to the level itself.
    upsampling: "UpsamplingConv"
    norm: nn.GroupNorm


class UpsamplingConv:
    """``conv2d(interpolate(x, size, mode="nearest"), weight, padding=1)`` without the upsampled features.

    Where the size doubles, a kernel of 3 x 3 sees only 2 x 2 features before the upsampling, and which ones depends on
    whether row and column of the output are even or odd. Four smaller kernels need 4/9 of the operations. ``weight`` is
    (outputs, inputs, 3, 3).
    """

    def __init__(self, weight: Tensor, size: Sequence[int]):
        self.weight = weight
        self.size = tuple(size)
        with without_autocast(weight.device):
            taps = torch.tensor(_PHASES, dtype=weight.dtype).to(weight.device, non_blocking=True)
            self.phases = torch.einsum("stk,rvl,oikl->osritv", taps, taps, weight).flatten(0, 2)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (M, outputs, *size) from (M, inputs, h, w)."""
        height, width = self.size
        size = tuple(x.shape[-2:])
        if size == self.size:
            return F.conv2d(x, self.weight, padding=1)
        if size != ((height + 1) // 2, (width + 1) // 2):
            return self._direct(x, self.size)
        # Position p of the small convolution sees features p - 1 and p: the odd row before, the even row after them.
        y = F.pixel_shuffle(F.conv2d(x, self.phases, padding=1), 2)[..., 1 : height + 1, 1 : width + 1]
        # At an odd end the last feature is repeated only once, before the zeros.
        if height % 2:
            y[..., -1, :] = self._direct(x[..., -2:, :], (min(2, size[0]), width))[..., -1, :]
        if width % 2:
            y[..., -1] = self._direct(x[..., -2:], (height, min(2, size[1])))[..., -1]
        return y

    def _direct(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.conv2d(F.interpolate(x, size=size, mode="nearest"), self.weight, padding=1)


def build_mask_modules(
    cfg: CfgNode, level_channels: Sequence[int]
) -> tuple[AttentionMaps, MaskHead] | tuple[None, None]:
    """Build the attention maps and the mask head; None for both without ``MODEL.MASK_ON``.

    ``level_channels`` are those of the backbone's levels finer than the transformer's, coarse to fine. If there are too
    few, raise a UserError.
    """
    if not cfg.MODEL.MASK_ON:
        return None, None
    if len(level_channels) < _NUM_LEVELS:
        raise UserError(
            f"MODEL.MASK_ON True: the mask head uses three levels finer than the coarsest; the backbone returns "
            f"{len(level_channels)}. Set MODEL.RESNETS.OUT_FEATURES ['res2', 'res3', 'res4', 'res5'], or "
            "MODEL.TIMM.OUT_INDICES (-4, -3, -2, -1), and MODEL.DETR.TOP_DOWN.LEVELS ()."
        )
    detr = cfg.MODEL.DETR
    head = MaskHead(detr.HIDDEN_DIM, detr.NHEADS, tuple(level_channels[:_NUM_LEVELS]), detr.MASK.MAPS_GAIN)
    return AttentionMaps(detr.HIDDEN_DIM, detr.NHEADS), head


def _take(per_image: Tensor, images: Tensor) -> Tensor:
    """Select (M, ...) rows of (B, ...); a single image is broadcast."""
    return per_image if len(per_image) == 1 else per_image[images]
