"""Batch norms with fixed statistics, as part of the convolutions before them."""

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn

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
            scale, shift = _scale_and_shift(convolution.norm)
            weight = convolution.weight.double() * scale[:, None, None, None]
            bias = shift if convolution.bias is None else shift + convolution.bias.double() * scale
            convolution.weight = _constant(weight, convolution.weight)
            convolution.bias = _constant(bias, convolution.weight)
            convolution.norm = None
            folded += 1
    return folded


def _has_statistics(norm: nn.Module | None) -> bool:
    return isinstance(norm, _BATCH_NORMS) and norm.running_var is not None


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Of each channel, in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.weight is None:
        return scale, shift
    weight = norm.weight.double()
    return weight * scale, weight * shift + norm.bias.double()


def _constant(x: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(x.detach().to(like), requires_grad=False)
