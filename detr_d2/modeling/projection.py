"""Projection of several levels of the backbone to the size of the object queries."""

import torch
from torch import Tensor, nn

from detr_d2.modeling.backbone import BackboneWithPosition
from detr_d2.structures import FeatureLevel, Features, PaddedBatch, ProjectedLevel
from detr_d2.utils.errors import UserError


class PyramidProjection(nn.ModuleList):
    """Projection of the backbone's coarsest levels, and of one more of twice the coarsest stride.

    Args:
        backbone: backbone whose strides double from level to level.
        hidden_dim: channels of the projected levels.
        num_levels: number of projected levels, one more than are read from the backbone.
    """

    def __init__(self, backbone: BackboneWithPosition, hidden_dim: int, num_levels: int):
        masked = backbone[0]
        names = (masked.level, *masked.finer_levels)[: num_levels - 1]
        strides = [masked.strides[name] for name in names]
        if strides != [strides[0] / 2**i for i in range(num_levels - 1)]:
            raise UserError(
                f"MODEL.DETR.TRANSFORMER MultiScaleSmcaTransformer reads {num_levels - 1} levels of the backbone, each "
                f"of half the stride of the next; those of this backbone have strides {strides}. Choose them with "
                "MODEL.RESNETS.OUT_FEATURES or MODEL.TIMM.OUT_INDICES, and set MODEL.RESNETS.RES5_DILATION 1."
            )
        channels = (masked.num_channels, *masked.level_channels)[: num_levels - 1]
        coarser = nn.Conv2d(channels[0], hidden_dim, kernel_size=3, stride=2, padding=1)
        super().__init__([*(nn.Conv2d(x, hidden_dim, kernel_size=1) for x in reversed(channels)), coarser])
        # In pixels, of the projected levels, fine to coarse.
        self.strides = (*strides[::-1], 2 * strides[0])

    def forward(self, features: Features, batch: PaddedBatch, position_embedding: nn.Module) -> Features:
        """Return the features with the projected levels, and the backbone's coarsest of them as the tensor."""
        coarsest = FeatureLevel(features.tensor, features.valid_sizes)
        levels = (coarsest, *features.finer)[: len(self) - 1][::-1]
        geometry = [(tuple(x.tensor.shape[-2:]), x.valid_sizes) for x in levels]
        height, width = geometry[-1][0]
        geometry.append((((height + 1) // 2, (width + 1) // 2), batch.halved(coarsest.valid_sizes)))
        masks = [batch.padding_mask(*x) for x in geometry]
        if any(x is not None for x in masks):
            # Where one level is padded, all have a mask.
            masks = [
                torch.zeros(len(batch), *size, dtype=torch.bool, device=batch.device) if mask is None else mask
                for mask, (size, _) in zip(masks, geometry, strict=True)
            ]
        inputs = [*(x.tensor for x in levels), zero_padding(coarsest.tensor, masks[-2])]
        dtype = self[0].weight.dtype
        projected = []
        for convolution, x, mask in zip(self, inputs, masks, strict=True):
            tensor = convolution(x)
            projected.append(ProjectedLevel(tensor, position_embedding(tensor, mask).to(dtype), mask))
        return features._replace(tensor=projected[-2].tensor, projected=tuple(projected))


def zero_padding(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Return (B, C, h, w) features with zeros where the (B, h, w) mask is True."""
    return x if padding_mask is None else x.masked_fill(padding_mask[:, None], 0)
