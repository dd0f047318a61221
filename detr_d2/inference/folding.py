"""Batch norms with fixed statistics, as part of the convolutions before them."""

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn

from detr_d2.modeling.frozen_norm import scale_and_shift

_BATCH_NORMS = (FrozenBatchNorm2d, nn.modules.batchnorm._BatchNorm)


def fold_batch_norms(module: nn.Module) -> int:
    """Fold the batch norms of Detectron2's convolutions into their weights and biases, in place.

    ``w * (conv(x) - mean) / sqrt(var + eps) + b`` is a convolution too. Other norms stay, and so do the batch norms of
    timm's models, which are modules of their own.

    Args:
        module: in evaluation mode.

    Returns:
        How many were folded.
    """
    folded = 0
    for convolution in module.modules():
        if isinstance(convolution, Conv2d) and _has_statistics(convolution.norm):
            scale, shift = scale_and_shift(convolution.norm, torch.float64)
            weight = convolution.weight.double() * scale[:, None, None, None]
            bias = shift if convolution.bias is None else shift + convolution.bias.double() * scale
            convolution.weight = _constant(weight, convolution.weight)
            convolution.bias = _constant(bias, convolution.weight)
            convolution.norm = None
            folded += 1
    return folded


def _has_statistics(norm: nn.Module | None) -> bool:
    return isinstance(norm, _BATCH_NORMS) and norm.running_var is not None


def _constant(x: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(x.detach().to(like), requires_grad=False)
