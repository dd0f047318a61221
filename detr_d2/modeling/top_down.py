"""Coarse levels of a backbone added to a finer one: fine features that know what is around them."""

import itertools
from collections.abc import Mapping, Sequence

from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from detr_d2.structures import FeatureLevel, PaddedBatch
from detr_d2.utils.errors import UserError


class TopDown(nn.Module):
    """Levels of a backbone joined to one, of the finest stride among them.

    They are joined as in a feature pyramid network (arXiv 1612.03144, section 3). Residual blocks may follow, as in a
    ResNet (arXiv 1512.03385, figure 2), but with layer norms over the channels of each feature, which need no other.

    Args:
        shapes: the levels of the backbone.
        names: the levels to join, the coarsest among them. The joined level gets the name of the finest of them; those
            that are finer still stay as they are.
        channels: number of channels of the joined level.
        num_blocks: number of residual blocks.

    Raises:
        UserError: ``names`` are not two or more of the levels, of different strides, the coarsest among them.
    """

    def __init__(self, shapes: Mapping[str, ShapeSpec], names: Sequence[str], channels: int, num_blocks: int = 0):
        super().__init__()
        strides = {name: x.stride for name, x in shapes.items()}
        names = _coarse_to_fine(strides, names)
        self.level, self.stride = names[-1], strides[names[-1]]
        # Of each level's stride to that of the finer one it is added to.
        self.ratios = tuple(strides[coarse] // strides[fine] for coarse, fine in itertools.pairwise(names))
        self.lateral = nn.ModuleDict({name: nn.Conv2d(shapes[name].channels, channels, 1) for name in names})
        for layer in self.lateral.values():
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        self.output = NormedConv2d(channels)
        self.blocks = nn.ModuleList(ResidualBlock(channels) for _ in range(num_blocks))
        finer = {name: x for name, x in shapes.items() if x.stride < self.stride}
        self.shapes = {**finer, self.level: ShapeSpec(channels=channels, stride=self.stride)}

    def forward(self, levels: Mapping[str, FeatureLevel], batch: PaddedBatch) -> dict[str, FeatureLevel]:
        """Return the joined level and those finer; what lies beyond an image's valid size has no influence on it."""
        laterals = [layer(levels[name].tensor) for name, layer in self.lateral.items()]
        x = laterals[0]
        for lateral, ratio in zip(laterals[1:], self.ratios, strict=True):
            height, width = lateral.shape[-2:]
            # By whole factors, so that what is added to a feature does not depend on the size of the batch.
            x = lateral + F.interpolate(x, scale_factor=ratio, mode="nearest")[..., :height, :width]
        x = F.relu(self.output(x, batch, self.stride))
        for block in self.blocks:
            x = block(x, batch, self.stride)
        joined = levels[self.level]._replace(tensor=x)
        return {**{name: levels[name] for name in self.shapes}, self.level: joined}


def _coarse_to_fine(strides: Mapping[str, int], names: Sequence[str]) -> list[str]:
    """Return ``names`` in the order of their strides; raise a UserError if they are no levels that can be joined."""
    known = [name for name in names if name in strides]
    distinct = {strides[name] for name in known}
    if len(distinct) < max(2, len(names)) or max(strides.values()) not in distinct:
        listed = ", ".join(f"{name} (stride {x})" for name, x in strides.items())
        raise UserError(
            f"MODEL.DETR.TOP_DOWN.LEVELS is {list(names)}: name two or more levels of the backbone, of different "
            f"strides, the coarsest among them. This one returns {listed}: MODEL.RESNETS.OUT_FEATURES or "
            "MODEL.TIMM.OUT_INDICES chooses them."
        )
    return sorted(known, key=strides.__getitem__, reverse=True)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = NormedConv2d(channels)
        self.conv2 = NormedConv2d(channels)

    def forward(self, x: Tensor, batch: PaddedBatch, stride: int) -> Tensor:
        """Return (B, C, h, w) features."""
        y = F.relu(self.conv1(x, batch, stride))
        return F.relu(x + self.conv2(y, batch, stride))


class NormedConv2d(nn.Module):
    """A 3 x 3 convolution that sees zeros beyond the valid sizes, and a layer norm over the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, batch: PaddedBatch, stride: int) -> Tensor:
        """Return (B, C, h, w) features."""
        if not batch.is_valid_throughout:
            x = batch.zero_padding(x, stride)
        return self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
