"""Batch norms with fixed statistics, computed by the convolutions before them."""

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F


def scale_and_shift(norm: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What a batch norm with fixed statistics multiplies each channel by, and what it adds then; both in ``dtype``."""
    scale = (norm.running_var.to(dtype) + norm.eps).rsqrt()
    shift = -norm.running_mean.to(dtype) * scale
    if norm.weight is None:
        return scale, shift
    weight = norm.weight.to(dtype)
    return weight * scale, weight * shift + norm.bias.to(dtype)


class FrozenNormConv2d(Conv2d):
    """A convolution whose norm scales its weights, which are few, instead of its output; trained as before."""

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if not isinstance(norm, FrozenBatchNorm2d) or self.bias is not None or self.activation is not None:
            return super().forward(x)
        scale, shift = scale_and_shift(norm, self.weight.dtype)
        weight = self.weight * scale[:, None, None, None]
        return F.conv2d(x, weight, shift, self.stride, self.padding, self.dilation, self.groups)


def merge_frozen_norms(backbone: nn.Module) -> None:
    """Let the convolutions of Detectron2 in ``backbone`` do the work of their frozen norms, in every pass anew.

    Weights and norms stay apart, with the names of all checkpoints, and the weights can be trained. A model that only
    predicts folds them for good: :func:`detr_d2.inference.folding.fold_batch_norms`.
    """
    for module in backbone.modules():
        if type(module) is Conv2d and isinstance(module.norm, FrozenBatchNorm2d):
            module.__class__ = FrozenNormConv2d
