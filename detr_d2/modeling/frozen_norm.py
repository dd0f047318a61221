"""Convolutions that apply the frozen batch norm behind them with their own weights."""

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenNormConv2d(Conv2d):
    """A convolution whose norm scales its weights, which are few, instead of its output; trained as before."""

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if not isinstance(norm, FrozenBatchNorm2d) or self.bias is not None or self.activation is not None:
            return super().forward(x)
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        weight = self.weight * scale[:, None, None, None]
        return F.conv2d(x, weight, shift, self.stride, self.padding, self.dilation, self.groups)


def merge_frozen_norms(backbone: nn.Module) -> None:
    """Let the convolutions of Detectron2 in ``backbone`` do the work of their frozen norms; all names stay."""
    for module in backbone.modules():
        if type(module) is Conv2d and isinstance(module.norm, FrozenBatchNorm2d):
            module.__class__ = FrozenNormConv2d
